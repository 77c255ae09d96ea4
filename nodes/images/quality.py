"""What is measured of each picture before a training: is it sharp, and is it there twice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

# Measured on 120 varied pictures at 512 px. Sharpness: 1 of them lies below it; blurred with a Gaussian of radius 1.5
# px
# 117 of them do, of 2 px all. Nearly the same: of their 7,140 pairs the one that is (a picture before and after
# retouching) and no other; a picture and its JPEG at quality 40, its half in size, its 15 % brighter self: all 120;
# with a fiftieth cut off at each side 119, with a twentieth 72.
SOFT = 100.0
TILES = 4  # a side: the sharpest of 16 parts counts, so that a soft background does not
SAME_BITS, SAME_RMS = 10, 30.0


def sharpness(pixels: Tensor) -> float:
    """The variance of the Laplacian of the brightness (Pech-Pacheco et al. 2000), in the sharpest of 4x4 tiles.

    pixels: [H, W, 3] uint8 at the size that is trained on. 0 for a picture of one colour; below `SOFT` it looks soft.
    """
    grey = np.asarray(Image.fromarray(pixels.numpy()).convert("L"), np.float32)
    inner = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    rows = np.array_split(laplacian, TILES, axis=0)
    return max(float(tile.var()) for row in rows for tile in np.array_split(row, TILES, axis=1))


def alike(pictures: Sequence[Tensor]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(pairs that are equal in every pixel, other pairs that look the same): indices, the earlier picture first.

    pictures: [H, W, 3] uint8 each. Looking the same is two thumbnails' business: the signs of the steps from column to
    column of a 9x8 grey one (difference hash) differ in at most `SAME_BITS` of 64, and 8x8 coloured ones by at most
    `SAME_RMS` of 255 rms. Each picture is paired with the earliest it is like.
    """
    signs, colours = [], []
    for pixels in pictures:
        picture = Image.fromarray(pixels.numpy())
        grey = np.asarray(picture.convert("L").resize((9, 8), Image.BOX), np.int16)
        signs.append((grey[:, 1:] > grey[:, :-1]).ravel())
        colours.append(np.asarray(picture.resize((8, 8), Image.BOX), np.float32).ravel())
    equal, similar = [], []
    for i in range(1, len(pictures)):
        bits = (np.stack(signs[:i]) != signs[i]).sum(1)
        rms = np.sqrt(((np.stack(colours[:i]) - colours[i]) ** 2).mean(1))
        near = np.flatnonzero((bits <= SAME_BITS) & (rms <= SAME_RMS))
        same = [j for j in near if pictures[j].shape == pictures[i].shape and bool((pictures[j] == pictures[i]).all())]
        if same:
            equal.append((int(same[0]), i))
        elif len(near):
            similar.append((int(near[0]), i))
    return equal, similar


def remarks(names: Sequence[str], pictures: Sequence[Tensor]) -> list[str]:
    """What is to be said of a set in words, one line a kind: pictures that are there twice, and soft ones."""
    lines = []
    equal, similar = alike(pictures)
    if equal:
        pairs = [f"{names[j]} is {names[i]}" for i, j in equal]
        lines.append(f"The same picture twice: {listed(pairs)}. It counts double; remove one, or use repeats.")
    if similar:
        pairs = [f"{names[j]} and {names[i]}" for i, j in similar]
        lines.append(
            f"Nearly the same: {listed(pairs)}. What they share is learned soonest; pictures that differ teach more."
        )
    soft = [(name, value) for name, value in zip(names, map(sharpness, pictures), strict=True) if value < SOFT]
    if soft:
        each = [f"{name} (sharpness {value:.0f})" for name, value in soft]
        lines.append(
            f"Blurry: {listed(each)}; below {SOFT:.0f} even the sharpest part looks soft, and softness is learned too."
        )
    return lines


def listed(names: Sequence[str], most: int = 10) -> str:
    """Names in a row, the first `most` of them."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
