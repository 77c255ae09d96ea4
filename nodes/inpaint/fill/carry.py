"""Colours carried from the edge of a hole inward: smooth inside, and equal to the picture at the edge."""

from __future__ import annotations

import torch
import torch.nn.functional as F

COARSEST_SWEEPS = 16  # relaxations of the coarsest level
CYCLES, SMALL = 2, 2**18  # corrections of a level of at most SMALL px; a larger one has one
MOST_SOLVED = 2**22  # px of a level that is corrected; a larger one follows the coarser and is relaxed once
LONGEST = 2.0  # times the coarse level's own step
MARGIN = 32  # px of the picture around the holes that are looked at


def carry(values: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """values [C, h, w] with the places where `known` [h, w] bool is false filled from the others; these stay as given.

    The result is close to a membrane (Laplace's equation) that is fixed at the edge of the holes and free at the border
    of the picture. The coarser level gives a first guess (pull-push, Gortler et al. 1996, section 3.4), which multigrid
    corrects (Brandt 1977, "Multi-level adaptive solutions to boundary-value problems"). Raises `ValueError` where
    nothing is known.
    """
    if not bool(known.any()):
        raise ValueError("carry needs a known place")
    if bool(known.all()):
        return values
    top, bottom, left, right = bounds(~known, MARGIN)
    if not bool(known[top:bottom, left:right].any()):  # holes that are wider than the margin's box
        top, bottom, left, right = 0, known.shape[0], 0, known.shape[1]
    part, mask = values[None, :, top:bottom, left:right], known[None, None, top:bottom, left:right]
    out = values.clone()
    out[:, top:bottom, left:right] = _filled(torch.where(mask, part, 0.0), mask)[0]
    return out


def bounds(marked: torch.Tensor, margin: int) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of the marked places [h, w] and `margin` places around them."""
    rows, columns = marked.any(1).nonzero(), marked.any(0).nonzero()
    top, left = max(0, int(rows[0]) - margin), max(0, int(columns[0]) - margin)
    return top, int(rows[-1]) + 1 + margin, left, int(columns[-1]) + 1 + margin


def _filled(values: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """values [1, C, h, w], 0 where `known` [1, 1, h, w] is false -> the same, filled."""
    if bool(known.all()):
        return values
    weight = F.avg_pool2d(known.to(values.dtype), 2, ceil_mode=True)
    coarse = F.avg_pool2d(values, 2, ceil_mode=True) / weight.clamp(min=1e-12)
    out = torch.where(known, values, _finer(_filled(coarse, weight > 0.0), values))
    size = values[0, 0].numel()
    if size > MOST_SOLVED:
        return torch.where(known, values, _neighbours(out))
    for _ in range(CYCLES if size <= SMALL else 1):
        out = out + _correction(_neighbours(out) - out, known)
    return out


def _correction(residual: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """What takes the residual, the neighbours' mean minus the value, to 0 about: one V-cycle of multigrid.

    residual: [1, C, h, w]. known: [1, 1, h, w] bool, where the correction is 0.
    """
    free = (~known).to(residual.dtype)
    residual = residual * free
    change = residual
    if min(residual.shape[-2:]) <= 2:
        for _ in range(COARSEST_SWEEPS):
            change = (_neighbours(change) + residual) * free
        return change
    left = (_neighbours(change) - change + residual) * free
    # Twice the distance between places makes the same curvature four times the residual.
    coarse = 4.0 * F.avg_pool2d(left, 2, ceil_mode=True)
    closed = F.max_pool2d(known.to(residual.dtype), 2, ceil_mode=True) > 0.0
    step = _finer(_correction(coarse, closed), change) * free
    # The edge lies a little elsewhere for the coarse level, so the step is as long as lowers the energy most.
    bend = step - _neighbours(step)
    length = (left * step).sum((2, 3), keepdim=True) / (step * bend).sum((2, 3), keepdim=True).clamp(min=1e-12)
    change = change + length.clamp(0.0, LONGEST) * step
    return (_neighbours(change) + residual) * free


def _finer(coarse: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return F.interpolate(coarse, scale_factor=2, mode="bilinear")[..., : like.shape[-2], : like.shape[-1]]


def _neighbours(values: torch.Tensor) -> torch.Tensor:
    """The mean of the 3 x 3 places around each of values [1, C, h, w]; beyond the border the border is repeated."""
    padded = F.pad(values, (1, 1, 1, 1), mode="replicate")
    rows = padded[..., :-2, :] + padded[..., 1:-1, :] + padded[..., 2:, :]
    return (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9.0
