"""Distances within a mask."""

from __future__ import annotations

import torch

FARTHEST = 128  # px: from here on all are alike


def distance_within(inside: torch.Tensor) -> torch.Tensor:
    """[H, W] bool -> [H, W] float32: px to the nearest pixel outside, at most `FARTHEST`; 0 outside.

    Exact (Euclidean) up to there: first along columns, then the least over the columns to each side (Saito and Toriwaki
    1994). The array's border is no outside.
    """
    height, width = inside.shape
    rows = torch.arange(height)[:, None]
    far = height + FARTHEST
    above = torch.where(inside, -far, rows).cummax(0).values
    below = torch.where(inside, height + far, rows).flip(0).cummin(0).values.flip(0)
    along = torch.minimum(rows - above, below - rows).clamp(max=FARTHEST).to(torch.float32).square()
    least = along.clone()
    for step in range(1, min(FARTHEST, width)):
        if float(least.max()) <= step * step:
            break
        least[:, step:] = torch.minimum(least[:, step:], along[:, :-step] + step * step)
        least[:, :-step] = torch.minimum(least[:, :-step], along[:, step:] + step * step)
    return least.sqrt()
