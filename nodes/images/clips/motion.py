"""Masks of what moves in a clip."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

# Of 255: a pixel that changes by more moves; see `moving`. Measured on a still picture with noise in H.264: of a noise
# with a standard deviation of 3 of 255 no pixel changes by more (at most 5.5, at crf 18 and 28); of 8, 0.07 % at crf 28
# and 18 % at crf 18: such a film moves everywhere.
MOVES = 6.0
CELL = 8  # px, the grid on which what is enclosed is found
BLUR = 5  # px, the side of the square over which changes are averaged, against the noise of a film
GROW = 8  # px to each side: a cell of the latents


def moving(pixels: Tensor) -> Tensor:
    """[F, H, W] float32 of 0 and 1, the same for all frames: 1 where something moves in the clip.

    pixels: [F, H, W, 3] uint8. A pixel moves where it differs from the frame before by more than `MOVES`, as a mean
    over the channels and over `BLUR` x `BLUR` pixels; what moves is grown by `GROW` px, and what it encloses counts
    too. All frames have one mask, since the inside of a thing of one colour does not change while its edges move, and
    since what it uncovers belongs to its movement. A clip of one frame moves nowhere.
    """
    frames, height, width = pixels.shape[:3]
    moves = torch.zeros(1, 1, height, width)
    for i in range(1, frames):
        change = (pixels[i].float() - pixels[i - 1].float()).abs().mean(-1)[None, None]
        change = avg_pool2d(change, BLUR, 1, BLUR // 2, count_include_pad=False)
        moves = torch.maximum(moves, (change > MOVES).float())
    mask = max_pool2d(moves, 2 * GROW + 1, 1, GROW)[0, 0]
    return torch.maximum(mask, _enclosed(mask)).expand(frames, -1, -1).clone()


def _enclosed(mask: Tensor) -> Tensor:
    """[H, W] of 0 and 1: the cells of `CELL` px from which no way through cells without any 1 leads to the border."""
    height, width = mask.shape
    free = max_pool2d(mask[None, None], CELL, ceil_mode=True) == 0
    reached = torch.zeros_like(free)
    edges = (..., 0, slice(None)), (..., -1, slice(None)), (..., slice(None), 0), (..., slice(None), -1)
    for edge in edges:
        reached[edge] = free[edge]
    while True:
        spread = reached.float()
        near = torch.maximum(max_pool2d(spread, (3, 1), 1, (1, 0)), max_pool2d(spread, (1, 3), 1, (0, 1)))
        wider = (near > 0) & free
        if torch.equal(wider, reached):
            break
        reached = wider
    holes = (free & ~reached).float()[0, 0]
    holes = holes.repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)[:height, :width]
    # The rest of the cells that the mask shares; it is wider than a cell everywhere, so nothing beyond it is reached.
    return max_pool2d(holes[None, None], 2 * CELL + 1, 1, CELL)[0, 0]
