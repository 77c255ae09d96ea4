"""OFT (Qiu et al. 2023, arXiv 2306.07280) and BOFT (Liu et al. 2024, arXiv 2311.06243): the weight's rows are rotated.

`.oft_blocks` is [blocks, size, size], of BOFT with one more axis in front; blocks * size rows. The delta depends on
the base's weight. The arithmetic is that of LyCORIS 4.1, `functional/diag_oft.py` and `functional/boft.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....training.layer_names.parts import OFT_BLOCKS
from .kind import AdapterKind, Parts


def _shape(parts: Parts) -> tuple[int, None] | None:
    blocks = parts[OFT_BLOCKS]
    if blocks.ndim not in (3, 4):
        return None
    *_, count, size, other = blocks.shape
    return (count * size, None) if size == other else (0, None)


OFT = AdapterKind(
    "OFT",
    found=lambda parts: OFT_BLOCKS in parts and parts[OFT_BLOCKS].ndim == 3,
    matrices=(OFT_BLOCKS,),
    shape=_shape,
)
BOFT = AdapterKind(
    "BOFT",
    found=lambda parts: OFT_BLOCKS in parts and parts[OFT_BLOCKS].ndim != 3,
    matrices=(OFT_BLOCKS,),
    shape=_shape,
)


def rotations(blocks: Tensor, constraint: float) -> Tensor:
    """Orthogonal matrices of the shape of `blocks`, [..., blocks, size, size]: Cayley's (I + Q)(I - Q)^-1, Q = B - B^T.

    constraint: the file's; where it is above 0, the norm of all Q together is at most constraint * rows, rows being
    blocks * size, the layer's outputs.
    """
    skew = blocks - blocks.transpose(-1, -2)
    if constraint > 0:
        most = constraint * blocks.shape[-3] * blocks.shape[-1]
        skew = skew * (most / (torch.linalg.vector_norm(skew) + 1e-8)).clamp_max(1.0)
    identity = torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)
    return (identity + skew) @ torch.linalg.inv(identity - skew)


def rotated(weight: Tensor, blocks: Tensor, constraint: float, rescale: Tensor | None, strength: float) -> Tensor:
    """A weight [out, in, *kernel] with its rows rotated, and scaled by `rescale` [out, 1, ...].

    At a strength s other than 1 every rotation R is I + s (R - I), as LyCORIS' multiplier has it, and every factor r of
    `rescale` is 1 + s (r - 1), so that a strength of 0 is the weight as it was. (LyCORIS' multiplier leaves `rescale`.)
    """
    identity = torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)
    turns = identity + strength * (rotations(blocks, constraint) - identity)
    out = _one_stage(weight, turns) if blocks.ndim == 3 else _butterfly(weight, turns)
    return out if rescale is None else out * (1 + strength * (rescale - 1))


def _one_stage(weight: Tensor, turns: Tensor) -> Tensor:
    """turns: [blocks, size, size], each for `size` neighbouring rows; the transposed matrix is applied."""
    rows = weight.unflatten(0, turns.shape[:2])  # [blocks, size, in, *kernel]
    return torch.einsum("knm,kn...->km...", turns, rows).flatten(0, 1)


def _butterfly(weight: Tensor, turns: Tensor) -> Tensor:
    """turns: [stages, blocks, size, size]; stage i mixes rows that lie 2^i * size / 2 apart (BOFT's section 4)."""
    size = turns.shape[-1]
    for stage, matrices in enumerate(turns):
        apart = 2**stage * size // 2
        rows = weight.unflatten(0, (-1, 2, apart)).transpose(1, 2).flatten(0, 2).unflatten(0, (-1, size))
        rows = torch.einsum("bij,bj...->bi...", matrices, rows)
        weight = rows.flatten(0, 1).unflatten(0, (-1, apart, 2)).transpose(1, 2).flatten(0, 2)
    return weight
