"""The sizes that pictures are trained at, and bringing a picture to one."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

SMALLEST_SIDE = 64  # px; a smaller picture has too little to learn from
LARGEST_RESOLUTION = 4096  # px
BUCKET_STEPS = (8, 128)  # px: the smallest and largest step between the sides of buckets
BUCKET_STEP = 64  # px, the default
SMALL_STEP, LARGE = 8, 256  # px: where the step is too coarse, sides below LARGE are multiples of SMALL_STEP
LEAST_AREA = 0.8  # of the area that may be had: a bucket of less wastes detail
LEAST_KEPT = 0.8  # of a picture's area: the report names a picture of which less is kept

Sides = int | np.ndarray


@lru_cache(maxsize=4096)
def target_size(height: int, width: int, resolution: int, bucket: bool, step: int = BUCKET_STEP) -> tuple[int, int]:
    """(height, width) in px that a picture is trained at: never enlarged, area at most resolution squared.

    With `bucket`, of all sizes in multiples of `step` with 80 to 100 % of that area the one that keeps most of the
    picture (see `kept`); of equal ones the largest, then the highest. Where there is none, as the picture is small or
    very long, or where the resolution is 256 or less, sides below 256 px are multiples of 8 px, and of the largest area
    that can be had at least 80 % is taken. Without `bucket` it is the middle square: a side in multiples of `step`, of
    8 px below 256 px.

    height, width: of the picture, px. A picture with a side below `SMALLEST_SIDE` gets that side as it is.
    """
    if min(height, width) < SMALLEST_SIDE:
        return height, width
    if not bucket:
        side = min(resolution, height, width)
        unit = step if side >= LARGE else SMALL_STEP
        side = max(side // unit * unit, SMALLEST_SIDE)
        return side, side
    whole = resolution**2
    if resolution > LARGE:
        best = _best_size(height, width, whole, step, small=False)
        if best is not None and best[0] * best[1] >= LEAST_AREA * whole:
            return best
    best = _best_size(height, width, whole, step, small=True)
    assert best is not None  # SMALLEST_SIDE squared fits in any picture and resolution
    return best


def _best_size(height: int, width: int, whole: int, step: int, small: bool) -> tuple[int, int] | None:
    """See `target_size`. whole: the largest area, px. small: whether sides below `LARGE` are multiples of 8 px."""
    longest = whole // SMALLEST_SIDE
    heights, widths = (_sides(min(side, longest), step, small) for side in (height, width))
    h, w = (grid.ravel() for grid in np.meshgrid(heights, widths, indexing="ij"))
    area = h * w
    if not (area <= whole).any():
        return None
    largest = int(area[area <= whole].max())
    least = LEAST_AREA * (whole if largest >= LEAST_AREA * whole else largest)
    fits = (area >= least) & (area <= whole)
    h, w, area = h[fits], w[fits], area[fits]
    best = np.lexsort((h, area, kept(height, width, h, w)))[-1]
    return int(h[best]), int(w[best])


def _sides(most: int, step: int, small: bool) -> np.ndarray:
    """The sides from `SMALLEST_SIDE` to `most` px that a bucket may have."""
    coarse = np.arange(step, most + 1, step)
    if not small:
        return coarse[coarse >= SMALLEST_SIDE]
    fine = np.arange(SMALLEST_SIDE, min(most, LARGE - 1) + 1, SMALL_STEP)
    return np.concatenate([fine, coarse[coarse >= LARGE]])


def kept(height: int, width: int, target_height: Sides, target_width: Sides) -> Any:
    """The share of a picture's area, 0..1, that is left when it is scaled to cover the target and cropped."""
    ours, theirs = height * target_width, width * target_height
    return np.minimum(ours, theirs) / np.maximum(ours, theirs)


def crop_offset(original: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """(top, left) in px of the scaled picture that `bands.shrunk` crops away. original: (height, width)."""
    scale = max(height / original[0], width / original[1])
    return round((original[0] * scale - height) / 2), round((original[1] * scale - width) / 2)


def size_of(pixels: torch.Tensor) -> tuple[int, int]:
    """(height, width) of a picture [H, W, C] or a clip [F, H, W, C]."""
    return pixels.shape[-3], pixels.shape[-2]
