"""Where a picture is cut, in whole pixels, and to which size the crops are scaled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .parts import Box
from .settings import CropSettings

MOST_ASPECT = 2.0  # the crop's longer side over its shorter one: a line needs surroundings, too
MOST_SCALE = 8.0  # to which a crop is enlarged; a smaller mask gets more surroundings instead
LEAST = 64  # px: the least side of a scaled crop; models draw nothing in less
GROWTH = 24  # a crop may grow by this part of its side to be scaled alike along both axes


@dataclass(frozen=True)
class Rect:
    """A rectangle in the picture's pixels, which may reach beyond the picture."""

    top: int
    left: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        """The first row below."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """The first column to the right."""
        return self.left + self.width

    def within(self, height: int, width: int) -> Rect:
        """The part of it in a picture of `height` x `width` px."""
        top, left = max(self.top, 0), max(self.left, 0)
        return Rect(top, left, min(self.bottom, height) - top, min(self.right, width) - left)

    def overlaps(self, other: Rect) -> bool:
        return (
            self.top < other.bottom and other.top < self.bottom and self.left < other.right and other.left < self.right
        )


@dataclass(frozen=True)
class Need:
    """What a crop has to hold (`must`), and what it should: a box with its centre and sides in px."""

    must: Box
    y: float
    x: float
    height: float
    width: float


def need_of(mask: Box, context: float, also: Box | None, size: tuple[int, int]) -> Need:
    """The need of a mask's box, grown by `context` about its centre and united with the box `also`.

    It is no larger than the picture of `size`, where there is nothing more to see.
    """
    grow_y, grow_x = (context - 1) * (mask.bottom - mask.top) / 2, (context - 1) * (mask.right - mask.left) / 2
    top, bottom = mask.top - grow_y, mask.bottom + grow_y
    left, right = mask.left - grow_x, mask.right + grow_x
    if also is not None:
        top, bottom = min(top, also.top), max(bottom, also.bottom)
        left, right = min(left, also.left), max(right, also.right)
    height, width = min(bottom - top, size[0]), min(right - left, size[1])
    return Need(mask.united(also), (top + bottom) / 2, (left + right) / 2, height, width)


def scaled_size(needs: Sequence[Need], size: tuple[int, int], settings: CropSettings) -> tuple[int, int]:
    """(height, width) in px to which all crops are scaled, of a picture of `size`; multiples of `settings.multiple`."""
    step = settings.multiple
    least = math.ceil(LEAST / step) * step
    if settings.resolution:
        aspect, side = _aspect(needs, size, settings), settings.resolution
        height, width = side * aspect**-0.5, side * aspect**0.5
        return max(round(height / step), 1) * step, max(round(width / step), 1) * step
    height = max(max(need.height, need.width / MOST_ASPECT) for need in needs)
    width = max(max(need.width, need.height / MOST_ASPECT) for need in needs)
    if not settings.keep_aspect:
        height = width = max(height, width)
    sides = [max(math.ceil(round(side, 6) / step) * step, least) for side in (height, width)]
    if settings.pad == "none":
        sides = [max(min(side, most // step * step), step) for side, most in zip(sides, size, strict=True)]
    return sides[0], sides[1]


def _aspect(needs: Sequence[Need], size: tuple[int, int], settings: CropSettings) -> float:
    """Width over height of all crops: the needs' geometric mean, or 1; never beyond what fits if nothing is padded."""
    aspect = 1.0
    if settings.keep_aspect:
        aspect = math.exp(sum(math.log(need.width / need.height) for need in needs) / len(needs))
        aspect = min(max(aspect, 1 / MOST_ASPECT), MOST_ASPECT)
    if settings.pad == "none":
        height, width = size
        low = max((need.must.right - need.must.left) / height for need in needs)
        high = min(width / (need.must.bottom - need.must.top) for need in needs)
        aspect = min(max(aspect, low), high)
    return aspect


def rects_of(
    needs: Sequence[Need], scaled: tuple[int, int], size: tuple[int, int], settings: CropSettings
) -> list[Rect]:
    """The rectangle of each need in a picture of `size`, with the proportions of `scaled`.

    It lies within the picture where it fits; where it is larger than the picture it covers the picture's whole side.
    Those of a clip have one size.
    """
    sides = [_sides(need, scaled, size, settings) for need in needs]
    if settings.tracking == "smooth":
        sides = [(max(height for height, _ in sides), max(width for _, width in sides))] * len(needs)
    return [_placed(need, *side, size) for need, side in zip(needs, sides, strict=True)]


def _placed(need: Need, height: int, width: int, size: tuple[int, int]) -> Rect:
    top = _first(need.y, height, need.must.top, need.must.bottom, size[0])
    return Rect(top, _first(need.x, width, need.must.left, need.must.right, size[1]), height, width)


def _sides(need: Need, scaled: tuple[int, int], size: tuple[int, int], settings: CropSettings) -> tuple[int, int]:
    must = (need.must.bottom - need.must.top, need.must.right - need.must.left)
    ratio = max(need.height / scaled[0], need.width / scaled[1])  # px of the picture to a px of the scaled crop
    ratio = max(ratio, 1 / MOST_SCALE) if settings.resolution else 1.0
    inside = settings.pad == "none"
    if inside:
        ratio = min(ratio, size[0] / scaled[0], size[1] / scaled[1])
    ratio = max(ratio, must[0] / scaled[0], must[1] / scaled[1])
    height, width = _alike(ratio, scaled)
    if inside:
        height, width = min(height, size[0]), min(width, size[1])
    return max(height, must[0]), max(width, must[1])


def _alike(ratio: float, scaled: tuple[int, int]) -> tuple[int, int]:
    """The smallest sides of at least `ratio` times `scaled`, up to 1 / `GROWTH` more, whose two ratios differ least."""
    least = math.ceil(round(scaled[1] * ratio, 6))
    best, error = (0, 0), math.inf
    for width in range(least, least + max(least // GROWTH, 1) + 1):
        height = max(round(width * scaled[0] / scaled[1]), math.ceil(round(scaled[0] * ratio, 6)))
        off = abs(height * scaled[1] / (width * scaled[0]) - 1)
        if off < error - 1e-9:
            best, error = (height, width), off
    return best


def _first(centre: float, side: int, low: int, high: int, most: int) -> int:
    """The first pixel of a stretch of `side` px about `centre` that holds low..high and keeps to 0..`most`."""
    first = min(max(round(centre - side / 2), high - side), low)
    return min(max(first, min(0, most - side)), max(0, most - side))
