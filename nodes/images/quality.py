"""Measurements of each picture before training: sharpness, and duplicates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

# Thresholds, measured on 120 varied pictures at 512 px.
# SOFT: 1 of the 120 lies below it; blurred with a Gaussian of radius 1.5 px 117 do, of radius 2 px all.
# SAME_BITS, SAME_RMS: of the 7,140 pairs they find the one that is nearly the same (a picture before and after
# retouching) and no other. They find all 120 pictures again as a JPEG at quality 40, at half the size and 15 %
# brighter; 119 with a fiftieth cut off at each side, 72 with a twentieth.
SOFT = 100.0
TILES = 4  # a side: the sharpest of 16 tiles counts, so that a soft background does not make a picture soft
SAME_BITS, SAME_RMS = 10, 30.0  # of 64 bits; of 255


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

    pictures: [H, W, 3] uint8 each. Two pictures look the same if their difference hashes (the signs of the differences
    between columns of a 9x8 grey thumbnail) differ in at most `SAME_BITS` of 64 bits, and their 8x8 colour thumbnails
    by at most `SAME_RMS` (root mean square, of 255). Each picture is paired with the earliest one like it.
    """
    signs, colours = [], []
    for pixels in pictures:
        picture = Image.fromarray(pixels.numpy())
        grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
        signs.append((grey[:, 1:] > grey[:, :-1]).ravel())
        colours.append(np.asarray(picture.resize((8, 8), Image.Resampling.BOX), np.float32).ravel())
    equal, similar = [], []
    for i in range(1, len(pictures)):
        bits = (np.stack(signs[:i]) != signs[i]).sum(1)
        rms = np.sqrt(((np.stack(colours[:i]) - colours[i]) ** 2).mean(1))
        near = np.flatnonzero((bits <= SAME_BITS) & (rms <= SAME_RMS)).tolist()
        same = [j for j in near if pictures[j].shape == pictures[i].shape and bool((pictures[j] == pictures[i]).all())]
        if same:
            equal.append((same[0], i))
        elif near:
            similar.append((near[0], i))
    return equal, similar


def remarks(names: Sequence[str], pictures: Sequence[Tensor]) -> list[str]:
    """Notes for the report, one line a kind: equal pictures, nearly equal ones, and blurry ones."""
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


def counted(number: int, what: str) -> str:
    """ "1 picture" or "2 pictures"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def listed(names: Sequence[str], most: int = 10) -> str:
    """The names separated by commas: the first `most`, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
