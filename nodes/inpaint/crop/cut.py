"""Cutting pictures around their masks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from ....training.errors import InputError
from ..mask import clean, is_soft
from .parts import Box, box_of, parts_of
from .path import smooth_path, united
from .record import Crop, Piece, samples_of
from .rectangles import Need, Rect, need_of, rects_of, scaled_size
from .resample import resample, resample_mask
from .settings import CropSettings

UNITED = "{} masks for one picture: they were united. Turn each on for a crop of every one."


@dataclass(frozen=True)
class Cut:
    """images: [K, h, w, C] and masks: [K, h, w], scaled, of the K pieces of `crop`. notes: for the report."""

    images: torch.Tensor
    masks: torch.Tensor
    crop: Crop
    whole: torch.Tensor  # [B, H, W]: the mask of each picture
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    """A mask, or a part of one, that gets a crop of its own. None of `labels`: all of the mask."""

    picture: int
    mask: torch.Tensor  # [H, W]
    box: Box
    number: int = 0
    labels: np.ndarray | None = None
    others: torch.Tensor | None = None  # [H, W]: the united mask of several, of which this is one


def cut(image: torch.Tensor, mask: torch.Tensor, settings: CropSettings, context: torch.Tensor | None = None) -> Cut:
    """The crops of pictures [B, H, W, C] around their masks [N, H, W], and how to put them back.

    N is B or 1; several masks of one picture are united, or have a crop each. context: masks [B or 1, H, W] of what has
    to be in the crop besides. Raises `InputError` for an empty mask, and for sizes and numbers that do not fit.
    """
    image = _checked(image)
    size, count = (image.shape[1], image.shape[2]), image.shape[0]
    mask, notes = clean(mask)
    _check_mask(mask, size, "mask")
    boxes = _context_boxes(context, size, count)
    several = mask if count == 1 and len(mask) > 1 else None
    whole = _of_pictures(mask, count, "masks") if several is None else mask.amax(0, keepdim=True)
    if several is not None and not settings.each:
        notes.append(UNITED.format(len(mask)))
    found = _find(whole, several if settings.each else None, settings, notes)
    if not found:
        raise InputError("the mask is empty, so there is nothing to crop; paint in it what may change (white)")
    found, needs = _needs(found, whole, boxes, settings, notes)
    scaled = scaled_size(needs, size, settings)
    rects = rects_of(needs, scaled, size, settings)
    pieces = tuple(_piece(one, rect, size) for one, rect in zip(found, rects, strict=True))
    images = torch.stack([_crop(image[p.picture], p.rect, scaled, settings.pad) for p in pieces])
    hard = not is_soft(mask)
    masks = torch.stack([_crop_mask(p, size, scaled, hard) for p in pieces])
    given = mask if scaled == size else None
    crop = Crop(size, count, scaled, pieces, masks, given, samples_of(image))
    return Cut(images, masks, crop, whole, tuple(notes))


def _checked(image: torch.Tensor) -> torch.Tensor:
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4) or 0 in image.shape:
        raise InputError(f"image has the shape {list(image.shape)}; give an IMAGE [pictures, height, width, channels]")
    image = image.to("cpu", torch.float32)
    return image


def _check_mask(mask: torch.Tensor, size: tuple[int, int], name: str) -> None:
    if tuple(mask.shape[1:]) != size:
        raise InputError(
            f"{name} is {mask.shape[2]}x{mask.shape[1]} px and the picture {size[1]}x{size[0]} px; give a mask of the "
            "picture's own size. A picture that was scaled needs its mask scaled with it, and a picture without a "
            "mask gives one of 64x64 px: paint it in the mask editor"
        )


def _of_pictures(mask: torch.Tensor, count: int, what: str) -> torch.Tensor:
    if len(mask) not in (1, count):
        raise InputError(f"{len(mask)} {what} for {count} pictures; give one, or {count}")
    return mask.expand(count, -1, -1)


def _context_boxes(context: torch.Tensor | None, size: tuple[int, int], count: int) -> list[Box | None]:
    if context is None:
        return [None] * count
    context, _ = clean(context)
    _check_mask(context, size, "context_mask")
    if count == 1 and len(context) > 1:
        context = context.amax(0, keepdim=True)
    return [box_of((one > 0.0).numpy()) for one in _of_pictures(context, count, "context masks")]


def _find(whole: torch.Tensor, several: torch.Tensor | None, settings: CropSettings, notes: list[str]) -> list[_Found]:
    """What gets a crop, in the order of the pictures. several: the masks of one picture, a crop for each."""
    if several is not None:
        boxes = [box_of((one > 0.0).numpy()) for one in several]
        if empty := sum(box is None for box in boxes):
            notes.append(f"Empty masks: {empty} of {len(boxes)}, which have no crop.")
        pairs = zip(several, boxes, strict=True)
        return [_Found(0, one, box, others=whole[0]) for one, box in pairs if box is not None]
    found: list[_Found] = []
    for i, one in enumerate(whole):
        inside = (one > 0.0).numpy()
        if not settings.each:
            box = box_of(inside)
            found += [] if box is None else [_Found(i, one, box)]
            continue
        parts = parts_of(inside)
        if parts.specks:
            notes.append(f"{parts.specks} dots of a few pixels in the mask were left out; nothing changes there.")
        found += [_Found(i, one, box, n, parts.labels) for n, box in enumerate(parts.boxes, 1)]
    return found


def _needs(
    found: list[_Found],
    whole: torch.Tensor,
    boxes: list[Box | None],
    settings: CropSettings,
    notes: list[str],
) -> tuple[list[_Found], list[Need]]:
    """(what gets a crop, its need): one each, or one for every picture of a clip."""
    size = (whole.shape[1], whole.shape[2])
    needs = [need_of(one.box, settings.context, boxes[one.picture], size) for one in found]
    missing = len(whole) - len({one.picture for one in found})
    if settings.tracking == "picture":
        if missing:
            notes.append(f"Empty masks: {missing} of {len(whole)}. Those pictures have no crop and stay as they are.")
        return found, needs
    at = {one.picture: (one, need) for one, need in zip(found, needs, strict=True)}
    nothing = Box(0, 0, 0, 0)
    frames = [at[i][0] if i in at else _Found(i, one, nothing) for i, one in enumerate(whole)]
    if settings.tracking == "clip":
        return frames, [united(needs)] * len(frames)
    return frames, smooth_path([at[i][1] if i in at else None for i in range(len(whole))])


def _piece(found: _Found, rect: Rect, size: tuple[int, int]) -> Piece:
    seen = rect.within(*size)
    window = (slice(seen.top, seen.bottom), slice(seen.left, seen.right))
    mask, others = found.mask[window], None
    if found.labels is not None:
        own = torch.from_numpy(found.labels[window] == found.number)
        others = (mask > 0.0) & ~own
        mask = mask * own
    elif found.others is not None:
        others = (found.others[window] > 0.0) & (mask == 0.0)
    return Piece(found.picture, rect, mask.clone(), others if others is not None and bool(others.any()) else None)


def crop_of(image: torch.Tensor, rect: Rect, pad: str) -> torch.Tensor:
    """[H, W, C] or [H, W] -> the rectangle's pixels; beyond the picture they are mirrored, or its border's ("edge")."""
    height, width = image.shape[:2]
    if rect.within(height, width) == rect:
        return image[rect.top : rect.bottom, rect.left : rect.right]
    rows = indices(rect.top, rect.height, height, pad == "reflect")
    columns = indices(rect.left, rect.width, width, pad == "reflect")
    return image[rows][:, columns]


def indices(first: int, count: int, side: int, mirrored: bool) -> torch.Tensor:
    at = torch.arange(first, first + count)
    if not mirrored or side == 1:
        return at.clamp(0, side - 1)
    at = at.remainder(2 * (side - 1))
    return torch.minimum(at, 2 * (side - 1) - at)


def _crop(image: torch.Tensor, rect: Rect, scaled: tuple[int, int], pad: str) -> torch.Tensor:
    cropped = crop_of(image, rect, pad)
    if not math.isfinite(float(cropped.sum())) and not bool(torch.isfinite(cropped).all()):
        raise InputError("the picture holds values that are not numbers; make it again")
    return resample(cropped, *scaled).clone()


def _crop_mask(piece: Piece, size: tuple[int, int], scaled: tuple[int, int], hard: bool) -> torch.Tensor:
    """The piece's mask scaled. Beyond the picture it goes on as at the border. A hard mask stays hard."""
    rect = piece.rect
    seen = rect.within(*size)
    mask = piece.mask
    if seen != rect:
        mask = crop_of(mask, Rect(rect.top - seen.top, rect.left - seen.left, rect.height, rect.width), "edge")
    mask = resample_mask(mask, *scaled)
    return (mask > 0.0).to(torch.float32) if hard else mask.clone()
