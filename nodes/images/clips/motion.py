"""Masks of what moves in a clip."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

MOVES = 6.0  # of 255: a pixel that changes by more moves; see `moving`
BLUR = 5  # px, the side of the square over which changes are averaged, against the noise of a film
GROW = 8  # px to each side: a cell of the latents


def moving(pixels: Tensor) -> Tensor:
    """[F, H, W] float32 of 0 and 1: 1 where a frame differs from the one before it or after it.

    pixels: [F, H, W, 3] uint8. The difference is the mean over the channels and over `BLUR` x `BLUR` pixels; what
    differs by more than `MOVES` is grown by `GROW` px. A clip of one frame moves nowhere.
    """
    frames, height, width = pixels.shape[:3]
    masks = torch.zeros(frames, height, width)
    for i in range(1, frames):
        change = (pixels[i].float() - pixels[i - 1].float()).abs().mean(-1)[None, None]
        change = avg_pool2d(change, BLUR, 1, BLUR // 2, count_include_pad=False)
        found = max_pool2d((change > MOVES).float(), 2 * GROW + 1, 1, GROW)[0, 0]
        masks[i - 1] = torch.maximum(masks[i - 1], found)
        masks[i] = torch.maximum(masks[i], found)
    return masks
