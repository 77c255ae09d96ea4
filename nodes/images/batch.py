"""A training set from an IMAGE batch."""

from __future__ import annotations

import torch

from ...training.errors import InputError
from ...training.images import ImageSet, TrainingImage
from .captions import with_trigger
from .folder import fingerprint
from .quality import remarks
from .sizes import SMALLEST_SIDE


def image_set(images: torch.Tensor, captions: str, trigger: str = "", masks: torch.Tensor | None = None) -> ImageSet:
    """The training set of an IMAGE batch.

    images: [B, H, W, C] in 0..1, C of 1, 3 or 4. captions: one a line, or one line for all. trigger: a word put before
    captions that lack it. masks: [B or 1, H, W] in 0..1, or None. Sides are cropped at the middle to multiples of 8 px.
    Raises `InputError` for an empty batch, sides below 64 px, and captions or masks of another number or size.
    """
    count = images.shape[0]
    if count == 0:
        raise InputError("the batch holds 0 images; wire at least one image in")
    lines = [line.strip() for line in captions.splitlines() if line.strip()] or [""]
    if len(lines) not in (1, count):
        raise InputError(
            f"there are {len(lines)} captions for {count} images; write one line for all, or one a picture"
        )
    original = (images.shape[1], images.shape[2])
    height, width = (side // 8 * 8 for side in original)
    if min(height, width) < SMALLEST_SIDE:
        raise InputError(f"the images are {images.shape[2]}x{images.shape[1]} px; a side needs {SMALLEST_SIDE} or more")
    if masks is not None:
        if masks.shape[0] not in (1, count):
            raise InputError(f"there are {masks.shape[0]} masks for {count} images; wire one for all, or one a picture")
        if tuple(masks.shape[-2:]) != tuple(images.shape[1:3]):
            raise InputError(
                f"the masks are {masks.shape[-1]}x{masks.shape[-2]} px and the images "
                f"{images.shape[2]}x{images.shape[1]}; make them equal"
            )
    top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
    rows, columns = slice(top, top + height), slice(left, left + width)
    items = []
    for i in range(count):
        caption = with_trigger(lines[i % len(lines)], trigger.strip())
        pixels = (images[i, rows, columns, :3].float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
        if pixels.shape[-1] == 1:
            pixels = pixels.expand(-1, -1, 3)
        mask = None if masks is None else masks[i % masks.shape[0], rows, columns].float().clamp(0, 1).cpu().clone()
        items.append(TrainingImage(f"image {i + 1}", pixels.clone(), caption, mask, original, (top, left)))
    notes = remarks([item.name for item in items], [item.pixels for item in items])
    return ImageSet(tuple(items), trigger.strip(), fingerprint(items), tuple(notes))
