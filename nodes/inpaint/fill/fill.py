"""Filling masked places and new borders of pictures: the request, the canvas, and the fill of each picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ....training.errors import InputError
from ..assignment import Layout, assign, pool
from ..mask import clean, resize, stacked
from .carry import MARGIN, bounds, carry
from .contents import BLUR, CARRY, CONTENTS, FILLS, FROM_OUTSIDE

AMOUNT_MIN, AMOUNT_MAX = 0.0, 1.0
BORDER_MAX = 8192  # px on one side
MOST_PIXELS = 2**27  # px of all pictures together after they grew: 1.6 GB in three channels
CELL = 8  # px of a latent cell of most models
NOTHING_KNOWN = "what is not masked is fully transparent or holds no numbers"


@dataclass(frozen=True)
class FillSettings:
    """fill: one of `FILLS`. amount: 0..1 of the fill in what was there. left, top, right, bottom: px of new border.

    Raises `InputError` for a value out of range.
    """

    fill: str = CARRY
    amount: float = 1.0
    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0
    seed: int = 0

    def __post_init__(self):
        if self.fill not in FILLS:
            raise InputError(f"fill is {self.fill!r}; give one of {', '.join(FILLS)}")
        if not AMOUNT_MIN <= self.amount <= AMOUNT_MAX:
            raise InputError(f"amount is {self.amount}; give 0 (leave what was there) to 1 (replace it)")
        for side in ("left", "top", "right", "bottom"):
            if not 0 <= getattr(self, side) <= BORDER_MAX:
                raise InputError(
                    f"{side} is {getattr(self, side)}; give 0 to {BORDER_MAX} px of new border. To cut a border off, "
                    "use ImageCrop"
                )

    @property
    def grows(self) -> bool:
        return bool(self.left or self.top or self.right or self.bottom)


def fill_masked(
    image: torch.Tensor, mask: torch.Tensor | None, settings: FillSettings
) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """(the picture [B, H, W, C] with its masked places and new border filled, the mask [M, H, W], notes).

    image: [B, h, w, C], C of 1, 3 or 4. mask: [N, h, w] in 0..1 or None; M is 1 or B. Where the mask is 0, every
    channel of the picture is kept bit for bit. In the new border the mask is 1. What is filled becomes opaque.

    Raises `InputError` where nothing is to be filled, for a mask of another shape, and where the pictures would become
    too large.
    """
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4) or 0 in image.shape:
        raise InputError(f"image has the shape {list(image.shape)}; give an IMAGE [pictures, height, width, channels]")
    image = image.to("cpu", torch.float32)
    mask, notes = _fitted(mask, image, settings)
    _check_size(image, settings)
    if settings.grows:
        sides = (settings.left, settings.right, settings.top, settings.bottom)
        border = F.pad(torch.zeros(image.shape[1:3]), sides, value=1.0) > 0.0
        mask, image = F.pad(mask, sides, value=1.0), F.pad(image, (0, 0, *sides))
    else:
        border = torch.zeros(image.shape[1:3], dtype=torch.bool)
        image = image.clone()
    for i, picture in enumerate(image):
        generator = torch.Generator().manual_seed((settings.seed + i) % 2**64)
        one = mask[min(i, len(mask) - 1)]
        part = _part(one, known_of(picture, one), settings.fill)
        image[i][part] = _filled(picture[part], one[part], border[part], settings, generator)
    notes += _report(image, mask, border, settings)
    unclear = [one for one in image if not math.isfinite(float(one.sum()))]
    if broken := sum(int((~torch.isfinite(one).all(-1)).sum()) for one in unclear):
        notes.append(f"{broken} px that are not masked are not numbers, and stay so: mask them, too, to fill them.")
    return image, mask, notes


def known_of(picture: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[H, W] bool: where a picture [H, W, C] holds colours that a fill may take, outside its mask [H, W]."""
    known = mask == 0.0
    if not math.isfinite(float(picture.sum())):  # to look at each pixel takes longer than most fills
        known = known & torch.isfinite(picture).all(-1)
    # The colours of a fully transparent place mean nothing.
    return known & (picture[..., 3] > 0.0) if picture.shape[-1] == 4 else known


def _part(mask: torch.Tensor, known: torch.Tensor, fill: str) -> tuple[slice, slice]:
    """The rows and columns that a fill needs: for carry those of the mask [H, W] and a margin, else all.

    All, too, where nothing in that part is `known` [H, W].
    """
    masked = mask > 0.0
    if fill != CARRY or not bool(masked.any()):
        return slice(None), slice(None)
    top, bottom, left, right = bounds(masked, MARGIN)
    part = slice(top, bottom), slice(left, right)
    return part if bool(known[part].any()) else (slice(None), slice(None))


def _fitted(mask: torch.Tensor | None, image: torch.Tensor, settings: FillSettings) -> tuple[torch.Tensor, list[str]]:
    """(the mask [1 or B, h, w], cleaned, notes) for the picture [B, h, w, C]."""
    count, height, width = image.shape[:3]
    mask, notes = (None, []) if mask is None else _checked(mask, count)
    empty = mask is None or not bool((mask > 0.0).any())
    if empty and not settings.grows:
        what = "no mask is wired in" if mask is None else "the mask is black everywhere"
        raise InputError(
            f"{what} and no border is asked for, so there is nothing to fill; paint the mask white where the picture "
            "is to be filled, or give left, top, right or bottom in pixels"
        )
    if mask is None or empty:
        return torch.zeros(1, height, width), []
    high, wide = mask.shape[1:]
    if (high, wide) == (height, width):
        return mask, notes
    if high * width != wide * height:
        raise InputError(
            f"the mask is {wide}x{high} px and the picture {width}x{height} px, of other proportions; give the mask "
            "that belongs to this picture, at its size (the mask of Load Image has it)"
        )
    notes.append(f"The mask is {wide}x{high} px and the picture {width}x{height} px: it was stretched to fit.")
    return resize(mask, height, width), notes


def _checked(mask: torch.Tensor, count: int) -> tuple[torch.Tensor, list[str]]:
    """(the mask [1 or `count`, .., ..], cleaned, notes)."""
    mask = stacked(mask)
    assigned = assign(len(mask), Layout(count))
    mask, notes = clean(mask)
    return pool(mask, assigned.members, "any"), [*([assigned.note] if assigned.note else []), *notes]


def _check_size(image: torch.Tensor, settings: FillSettings) -> None:
    count, height, width = image.shape[:3]
    high, wide = height + settings.top + settings.bottom, width + settings.left + settings.right
    if settings.grows and count * high * wide > MOST_PIXELS:
        raise InputError(
            f"the new border would make {count} {'picture' if count == 1 else 'pictures'} of {wide}x{high} px, "
            f"{4 * image.shape[-1] * count * high * wide / 1e9:.1f} GB; at most {MOST_PIXELS // 2**20} megapixels are "
            "made at once: give less border, or fewer pictures"
        )


def _filled(
    picture: torch.Tensor, mask: torch.Tensor, border: torch.Tensor, settings: FillSettings, generator: torch.Generator
) -> torch.Tensor:
    """One picture [H, W, C] with its border (bool [H, W]) and its masked places filled; mask [H, W]."""
    if not bool((mask > 0.0).any()):
        return picture
    known = known_of(picture, mask)
    if settings.fill in FROM_OUTSIDE and not bool(known.any()):
        covered = "the mask covers the whole picture" if not bool((mask == 0.0).any()) else NOTHING_KNOWN
        raise InputError(
            f"{covered}, and {settings.fill} takes its colours from what is not masked; "
            "shrink the mask, or choose blur or neutral"
        )
    colours = torch.nan_to_num(picture[..., :3], 0.0, 1.0, 0.0).movedim(-1, 0)  # [C, H, W]
    if bool(border.any()) and (settings.fill == BLUR or settings.amount < 1.0):
        # What there is in the border, before it is filled: the picture, continued.
        colours = torch.where(border, carry(colours, known if bool(known.any()) else ~border), colours)
    content = CONTENTS[settings.fill](colours, known, generator)
    weight = mask * settings.amount
    filled = torch.where(weight == 1.0, content, colours + weight * (content - colours)).movedim(0, -1)
    if picture.shape[-1] == 4:
        alpha = picture[..., 3]
        opaque = torch.where(border, 1.0, alpha + weight * (1.0 - alpha))
        filled = torch.cat((filled, opaque[..., None]), -1)
    return torch.where((mask == 0.0)[..., None], picture, filled)


def _report(image: torch.Tensor, mask: torch.Tensor, border: torch.Tensor, settings: FillSettings) -> list[str]:
    height, width = image.shape[1:3]
    inner = (mask > 0.0) & ~border  # [M, H, W]
    lines = []
    if bool(inner.any()):
        share = float(inner.sum()) / (inner.numel() - len(inner) * int(border.sum()))
        lines.append(f"Filled with {settings.fill}: {share:.1%} of the picture, by {settings.amount:g}.")
        if empty := int((~inner.flatten(1).any(1)).sum()):
            lines.append(f"Empty masks: {empty} of {len(mask)}. Nothing changes there.")
        if settings.amount == 0.0:
            lines.append("amount is 0: what was under the mask is unchanged.")
    if settings.grows:
        high, wide = height - settings.top - settings.bottom, width - settings.left - settings.right
        lines.append(f"The picture grew from {wide}x{high} to {width}x{height} px; the new border is {settings.fill}.")
        lines += _whole_cells(height, width)
    return lines


def _whole_cells(height: int, width: int) -> list[str]:
    """A note where a grown picture is not whole cells."""
    more = [
        (f"{-side % CELL} px more to {sides}", -side % CELL)
        for side, sides in ((width, "left or right"), (height, "top or bottom"))
    ]
    missing = " and ".join(words for words, lacking in more if lacking)
    if not missing:
        return []
    return [
        f"{width}x{height} px are not whole cells of {CELL} px, and most VAEs crop a picture to those: give {missing}."
    ]
