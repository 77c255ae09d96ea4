"""A training set from an IMAGE batch."""

from __future__ import annotations

import torch

from ...training.captions import CAPTION_SYNTAXES, LITERAL
from ...training.config import check_choice
from ...training.errors import InputError
from ...training.images import ImageSet, TrainingImage
from .captions import with_trigger
from .folder import fingerprint
from .masks import without_black_masks
from .quality import remarks, traits_of
from .sizes import SMALLEST_SIDE


def image_set(
    images: torch.Tensor,
    captions: str,
    trigger: str = "",
    masks: torch.Tensor | None = None,
    caption_syntax: str = LITERAL,
) -> ImageSet:
    """The training set of an IMAGE batch.

    images: [B, H, W, C] in 0..1, C of 1, 3 or 4. captions: one a line, or one line for all. trigger: a word put before
    captions that lack it. masks: in 0..1, [B or 1, H, W], also with a channel ([B, 1, H, W], [B, H, W, 1]) or without
    the first dimension; or None. caption_syntax: one of `CAPTION_SYNTAXES`. Sides are cropped at the middle to
    multiples of 8 px. A picture whose mask is 0 everywhere is left out. Raises `InputError` for an empty batch, sides
    below 64 px, captions or masks of another number or size, and numbers that are not finite.
    """
    check_choice("caption_syntax", caption_syntax, CAPTION_SYNTAXES)
    images = _checked(images)
    count = images.shape[0]
    lines = [line.strip() for line in captions.splitlines() if line.strip()] or [""]
    if len(lines) not in (1, count):
        raise InputError(
            f"there are {len(lines)} captions for {count} images; write one line for all, or one a picture"
        )
    original = (images.shape[1], images.shape[2])
    height, width = (side // 8 * 8 for side in original)
    if min(height, width) < SMALLEST_SIDE:
        raise InputError(f"the images are {images.shape[2]}x{images.shape[1]} px; a side needs {SMALLEST_SIDE} or more")
    masks = None if masks is None else _masks_of(masks, count, original)
    top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
    rows, columns = slice(top, top + height), slice(left, left + width)
    items = []
    for i in range(count):
        caption = with_trigger(lines[i % len(lines)], trigger.strip())
        pixels = (images[i, rows, columns, :3].float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
        if pixels.shape[-1] == 1:
            pixels = pixels.expand(-1, -1, 3)
        mask = None if masks is None else masks[i % masks.shape[0], rows, columns].float().clamp(0, 1).cpu().clone()
        items.append(
            TrainingImage(f"image {i + 1}", pixels.clone(), caption, mask, original, (top, left), caption_syntax)
        )
    items, notes = without_black_masks(items)
    if masks is None and images.shape[-1] == 4 and bool((images[..., 3] < 1).any()):
        notes.append("The images have an alpha channel, which is not used; wire a mask in if only a part should count.")
    notes += remarks([item.name for item in items], [traits_of(item.pixels) for item in items])
    return ImageSet(tuple(items), trigger.strip(), fingerprint(items), tuple(notes))


def _checked(images: torch.Tensor) -> torch.Tensor:
    """The images, if they are [B, H, W, C] and finite. Raises `InputError`."""
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        raise InputError(f"the images have the shape {list(images.shape)}; give [B, H, W, C] with 1, 3 or 4 channels")
    if images.shape[0] == 0:
        raise InputError("the batch holds 0 images; wire at least one image in")
    if not bool(torch.isfinite(images).all()):
        raise InputError("the images hold numbers that are not finite; look at the node that makes them")
    return images


def _masks_of(masks: torch.Tensor, count: int, size: tuple[int, int]) -> torch.Tensor:
    """The masks as [B or 1, H, W] of `size` (height, width); see `image_set`. Raises `InputError`."""
    shape = list(masks.shape)
    if masks.ndim == 2:
        masks = masks[None]
    elif masks.ndim == 4 and masks.shape[1] == 1 and tuple(masks.shape[2:]) == size:
        masks = masks[:, 0]
    elif masks.ndim == 4 and masks.shape[3] == 1:
        masks = masks[..., 0]
    if masks.ndim != 3:
        raise InputError(f"the masks have the shape {shape}; give [B, H, W], one for all images or one each")
    if masks.shape[0] not in (1, count):
        raise InputError(f"there are {masks.shape[0]} masks for {count} images; wire one for all, or one a picture")
    if tuple(masks.shape[1:]) != size:
        raise InputError(
            f"the masks are {masks.shape[2]}x{masks.shape[1]} px and the images {size[1]}x{size[0]}; make them equal"
        )
    if not bool(torch.isfinite(masks).all()):
        raise InputError("the masks hold numbers that are not finite; look at the node that makes them")
    return masks
