"""The sizes that pictures are trained at, and bringing a picture to one."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageOps

SMALLEST_SIDE = 64  # px; a smaller picture has too little to learn from
LARGE_STEP, SMALL_STEP, LARGE = 64, 8, 256  # px: sides of LARGE and more are multiples of LARGE_STEP


def target_size(height: int, width: int, resolution: int, bucket: bool) -> tuple[int, int]:
    """(height, width) in px that a picture is trained at: never enlarged, area at most resolution squared.

    With `bucket` the aspect ratio is kept to the nearest step, without it the middle square is taken. Sides are
    multiples of 64 px, of 8 px below 256 px.
    """
    if bucket:
        scale = min(1.0, resolution / math.sqrt(height * width))
        sides = (height * scale, width * scale)
    else:
        sides = (min(resolution, height, width),) * 2

    def floor_to_step(side: float) -> int:
        step = LARGE_STEP if side >= LARGE else SMALL_STEP
        return int(side + 1e-6) // step * step

    return floor_to_step(sides[0]), floor_to_step(sides[1])


def fit(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Scale down to cover height x width and crop the middle (Lanczos).

    pixels: a picture [H, W, 3] uint8 or a mask [H, W] in 0..1; gives the same kind.
    """
    if tuple(pixels.shape[:2]) == (height, width):
        return pixels
    is_mask = pixels.ndim == 2
    values = (pixels.numpy() * 255).round().astype(np.uint8) if is_mask else pixels.numpy()
    fitted = np.array(ImageOps.fit(Image.fromarray(values), (width, height), Image.Resampling.LANCZOS))
    return torch.from_numpy(fitted.astype(np.float32) / 255 if is_mask else fitted)


def crop_offset(original: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """(top, left) in px of the scaled picture that `fit` crops away. original: (height, width)."""
    scale = max(height / original[0], width / original[1])
    return round((original[0] * scale - height) / 2), round((original[1] * scale - width) / 2)


def size_of(pixels: torch.Tensor) -> tuple[int, int]:
    """(height, width) of [H, W, ...]."""
    return pixels.shape[0], pixels.shape[1]
