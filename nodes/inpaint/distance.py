"""Euclidean distances in masks."""

from __future__ import annotations

import torch

FARTHEST = 128  # px: from here on all are alike


def distance_within(inside: torch.Tensor, farthest: int = FARTHEST) -> torch.Tensor:
    """[..., H, W] bool -> [..., H, W] float32: px to the nearest pixel outside, at most `farthest`; 0 outside.

    Exact (Euclidean) up to there: first along columns, then the least over the columns to each side (Saito and Toriwaki
    1994). The array's border is no outside.
    """
    height, width = inside.shape[-2:]
    rows = torch.arange(height, device=inside.device)[:, None]
    far = height + farthest
    above = torch.where(inside, -far, rows).cummax(-2).values
    below = torch.where(inside, height + far, rows).flip(-2).cummin(-2).values.flip(-2)
    along = torch.minimum(rows - above, below - rows).clamp(max=farthest).to(torch.float32).square()
    least = along.clone()
    for step in range(1, min(farthest, width)):
        if float(least.max()) <= step * step:
            break
        least[..., step:] = torch.minimum(least[..., step:], along[..., :-step] + step * step)
        least[..., :-step] = torch.minimum(least[..., :-step], along[..., step:] + step * step)
    return least.sqrt()


def distance(marked: torch.Tensor, reach: int) -> torch.Tensor:
    """The distance to the nearest marked place: [..., H, W] bool -> [..., H, W] in places, inf from `reach` + 1 on."""
    found = distance_within(~marked, reach + 1)
    return torch.where(found < reach + 1, found, torch.inf)
