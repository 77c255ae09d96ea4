"""Pictures scaled between whole rectangles: by exact area averages or antialiased Lanczos down, by Lanczos up.

A picture of n px is the interval 0..n in which pixel k covers k..k+1, and scaling maps interval to interval. So the
borders of a rectangle stay its borders both ways, and nothing moves. (Pillow's BOX filter takes or leaves whole pixels,
and torch's "area" weights them alike: both move detail by up to half a pixel where the ratio is not whole.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
import torch

LOBES = 3  # of the Lanczos kernel
BLOCK = 32  # output pixels that are computed at once

# (output pixels [n], input px per output px) -> (the first input pixel that they read, weights [n, inputs])
Kernel: TypeAlias = Callable[[np.ndarray, int, float], tuple[int, np.ndarray]]


def resample(image: torch.Tensor, height: int, width: int, reduce: Kernel | None = None) -> torch.Tensor:
    """[h, w, C] float32 -> [height, width, C]: by Lanczos along an axis that becomes larger, by `reduce` along others.

    Duchon 1979: the kernel sinc(x) sinc(x / 3). Overshoot beyond 0..1 is cut where the picture has none. The same size
    returns the picture itself. All values must be finite.
    """
    h, w = image.shape[:2]
    reduce = reduce or lanczos
    out = _scaled(image, height, width, reduce if height < h else lanczos, reduce if width < w else lanczos)
    if out is not image and (reduce is lanczos or height > h or width > w):
        low, high = image.aminmax()
        out = out.clamp_(min(float(low), 0.0), max(float(high), 1.0))
    return out


def resample_mask(mask: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """[h, w] in 0..1 -> [height, width]: the mean over the area of each new pixel, exactly 0 or 1 where all of it is.

    A mask of only 0 and 1 therefore becomes grey in the pixels that its edge crosses.
    """
    h, w = mask.shape
    out = _scaled(mask[..., None], height, width, area, area)
    return mask if (h, w) == (height, width) else torch.where(out > 1.0 - 1e-5, 1.0, out)[..., 0]


def _scaled(image: torch.Tensor, height: int, width: int, down: Kernel, along: Kernel) -> torch.Tensor:
    """[h, w, C] -> [height, width, C] by `down` the columns and `along` the rows.

    The rows cost more, so they are scaled while there are fewer of them.
    """
    h, w = image.shape[:2]
    out = image
    if w != width and h < height:
        out = _along_rows(out, width, along)
    out = out if h == height else _down_columns(out, height, down)
    return out if out.shape[1] == width else _along_rows(out, width, along)


def area(outputs: np.ndarray, before: int, ratio: float) -> tuple[int, np.ndarray]:
    """A `Kernel`: the share of each output pixel that an input pixel covers."""
    low, high = outputs[:, None] * ratio, (outputs[:, None] + 1) * ratio
    first, beyond = max(math.floor(low[0, 0]), 0), min(math.ceil(high[-1, 0]), before)
    pixels = np.arange(first, beyond)[None]
    overlap = np.minimum(high, pixels + 1) - np.maximum(low, pixels)
    return first, _normalised(np.where(overlap > 1e-9, overlap, 0.0))


def lanczos(outputs: np.ndarray, before: int, ratio: float) -> tuple[int, np.ndarray]:
    """A `Kernel`, as wide as an output pixel where that is larger. Beyond the border nothing is read."""
    stretch = max(ratio, 1.0)
    centres, reach = (outputs[:, None] + 0.5) * ratio - 0.5, math.ceil(LOBES * stretch)
    first, beyond = max(math.floor(centres[0, 0]) - reach, 0), min(math.ceil(centres[-1, 0]) + reach + 1, before)
    x = (np.arange(first, beyond)[None] - centres) / stretch
    return first, _normalised(np.where(np.abs(x) < LOBES, np.sinc(x) * np.sinc(x / LOBES), 0.0))


def _normalised(weights: np.ndarray) -> np.ndarray:
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _blocks(before: int, after: int, kernel: Kernel) -> Iterator[tuple[int, int, int, np.ndarray]]:
    """(first output pixel, first beyond, first input pixel, weights [outputs, inputs]) of stretches of one axis."""
    for first in range(0, after, BLOCK):
        beyond = min(first + BLOCK, after)
        low, weights = kernel(np.arange(first, beyond, dtype=np.float64), before, before / after)
        yield first, beyond, low, weights


def _down_columns(image: torch.Tensor, height: int, kernel: Kernel) -> torch.Tensor:
    """[h, w, C] -> [height, w, C]."""
    h, w, channels = image.shape
    flat, out = image.reshape(h, w * channels), image.new_empty(height, w * channels)
    for first, beyond, low, weights in _blocks(h, height, kernel):
        torch.mm(torch.from_numpy(weights), flat[low : low + weights.shape[1]], out=out[first:beyond])
    return out.view(height, w, channels)


def _along_rows(image: torch.Tensor, width: int, kernel: Kernel) -> torch.Tensor:
    """[h, w, C] -> [h, width, C]."""
    h, w, channels = image.shape
    flat, out = image.reshape(h, w * channels), image.new_empty(h, width * channels)
    each = np.eye(channels, dtype=np.float32)
    for first, beyond, low, weights in _blocks(w, width, kernel):
        # Pixels of a row have their channels side by side, so each weight stands once for each channel.
        block = torch.from_numpy(np.kron(weights.T, each))
        read = flat[:, low * channels : (low + weights.shape[1]) * channels]
        out[:, first * channels : beyond * channels] = read @ block
    return out.view(h, width, channels)
