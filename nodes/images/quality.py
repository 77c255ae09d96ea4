"""Measurements of each picture before training: sharpness, and duplicates."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from torch import Tensor

from ...training.images import TrainingImage

# Thresholds, measured on 120 varied pictures at 512 px.
# SOFT: 1 of the 120 lies below it; blurred with a Gaussian of radius 1.5 px 117 do, of radius 2 px all.
# SAME_BITS, SAME_RMS: of the 7,140 pairs they find the one that is nearly the same (a picture before and after
# retouching) and no other. They find all 120 pictures again as a JPEG at quality 40, at half the size and 15 %
# brighter; 119 with a fiftieth cut off at each side, 72 with a twentieth.
SOFT = 100.0
TILES = 4  # a side: the sharpest of 16 tiles counts, so that a soft background does not make a picture soft
SAME_BITS, SAME_RMS = 10, 30.0  # of 64 bits; of 255
BLOCK = 256  # pictures that are compared with all earlier ones at once


@dataclass(frozen=True)
class Traits:
    """What is measured of a picture. sharpness: see there. signs: 64 booleans, the difference hash. colours: [192]
    float32, its 8x8 colour thumbnail. digest: of its size and every pixel."""

    sharpness: float
    signs: np.ndarray
    colours: np.ndarray
    digest: bytes


def traits_of(pixels: Tensor) -> Traits:
    """The measurements of a picture. pixels: [H, W, 3] uint8 at the size that is trained on."""
    picture = Image.fromarray(pixels.numpy())
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    colours = np.asarray(picture.resize((8, 8), Image.Resampling.BOX), np.float32).ravel()
    digest = hashlib.sha256(f"{tuple(pixels.shape)}".encode())
    digest.update(pixels.contiguous().numpy().data)
    return Traits(sharpness(pixels), (grey[:, 1:] > grey[:, :-1]).ravel(), colours, digest.digest())


def traits_of_item(item: TrainingImage) -> Traits:
    """The measurements of a picture; of a clip those of its middle frame, with a digest of all frames."""
    if not item.is_clip:
        return traits_of(item.pixels)
    middle = traits_of(item.pixels[item.frames // 2].contiguous())
    digest = hashlib.sha256(f"{tuple(item.pixels.shape)}".encode())
    digest.update(item.pixels.contiguous().numpy().data)
    return replace(middle, digest=digest.digest())


def sharpness(pixels: Tensor) -> float:
    """The variance of the Laplacian of the brightness (Pech-Pacheco et al. 2000), in the sharpest of 4x4 tiles.

    pixels: [H, W, 3] uint8 at the size that is trained on. 0 for a picture of one colour; below `SOFT` it looks soft.
    """
    grey = np.asarray(Image.fromarray(pixels.numpy()).convert("L"), np.float32)
    inner = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    rows = np.array_split(laplacian, TILES, axis=0)
    return max(float(tile.var()) for row in rows for tile in np.array_split(row, TILES, axis=1))


def alike(pictures: Sequence[Traits]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(pairs that are equal in every pixel, other pairs that look the same): indices, the earlier picture first.

    Two pictures look the same if their difference hashes (the signs of the differences between columns of a 9x8 grey
    thumbnail) differ in at most `SAME_BITS` of 64 bits, and their 8x8 colour thumbnails by at most `SAME_RMS` (root
    mean square, of 255). Each picture is paired with the earliest one like it.

    Both distances of `BLOCK` pictures to all earlier ones are two matrix products, so 20,000 pictures take seconds.
    """
    first_of: dict[bytes, int] = {}
    equal = [(first_of[each.digest], i) for i, each in enumerate(pictures) if first_of.setdefault(each.digest, i) != i]
    # A picture that looks like a copy looks like the first one too, so copies need no comparison.
    distinct = sorted(first_of.values())
    if len(distinct) < 2:
        return equal, []
    signs = np.stack([pictures[i].signs for i in distinct]).astype(np.float32) * 2 - 1
    colours = np.stack([pictures[i].colours for i in distinct])
    similar = []
    for start in range(0, len(distinct), BLOCK):
        for i, candidates in _candidates(signs, colours, start):
            j = next((j for j in candidates if _near(colours[j], colours[i])), None)
            if j is not None:
                similar.append((distinct[j], distinct[i]))
    return equal, similar


def _candidates(signs: np.ndarray, colours: np.ndarray, start: int) -> list[tuple[int, list[int]]]:
    """[(a picture, the earlier ones that look like it)] of a block of pictures, with a margin for the rounding.

    signs: [N, 64], -1 or 1. colours: [N, 192]. start: the first of the block.
    """
    stop = min(len(signs), start + BLOCK)
    bits = (64 - signs[start:stop] @ signs[:stop].T) / 2  # exact: sums of 64 ones
    near = (bits <= SAME_BITS) & (np.arange(stop) < np.arange(start, stop)[:, None])
    rows = np.flatnonzero(near.any(1))
    if not len(rows):
        return []
    ours, theirs = colours[start:stop][rows].astype(np.float64), colours[:stop].astype(np.float64)
    squares = (ours**2).sum(1)[:, None] + (theirs**2).sum(1) - 2 * ours @ theirs.T
    near = near[rows] & (squares / colours.shape[1] <= SAME_RMS**2 * 1.001)
    return [(start + int(row), np.flatnonzero(each).tolist()) for row, each in zip(rows, near, strict=True)]


def _near(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.sqrt(((a - b) ** 2).mean()) <= SAME_RMS)


def remarks(names: Sequence[str], pictures: Sequence[Traits], what: str = "picture") -> list[str]:
    """Notes for the report, one line a kind: equal pictures, nearly equal ones, and blurry ones."""
    lines = []
    equal, similar = alike(pictures)
    if equal:
        pairs = [f"{names[j]} is {names[i]}" for i, j in equal]
        lines.append(f"The same {what} twice: {listed(pairs)}. It counts double; remove one, or use repeats.")
    if similar:
        pairs = [f"{names[j]} and {names[i]}" for i, j in similar]
        lines.append(
            f"Nearly the same: {listed(pairs)}. What they share is learned soonest; {what}s that differ teach more."
        )
    soft = [
        f"{name} (sharpness {each.sharpness:.0f})"
        for name, each in zip(names, pictures, strict=True)
        if each.sharpness < SOFT
    ]
    if soft:
        lines.append(
            f"Blurry: {listed(soft)}; below {SOFT:.0f} even the sharpest part looks soft, and softness is learned too."
        )
    return lines


def counted(number: int, what: str) -> str:
    """ "1 picture" or "2 pictures"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def listed(names: Sequence[str], most: int = 10) -> str:
    """The names separated by commas: the first `most`, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
