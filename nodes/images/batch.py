"""A training set from a batch of images on the wire."""

from __future__ import annotations

import torch

from ...training.errors import InputError
from ...training.images import ImageSet, TrainingImage
from .folder import SMALLEST_SIDE, fingerprint
from .quality import remarks


def image_set(images: torch.Tensor, captions: str, trigger: str = "", masks: torch.Tensor | None = None) -> ImageSet:
    """images: [B, H, W, C] in 0..1. captions: one a line, or one line for all. masks: [B or 1, H, W] or None.

    Sides are cropped to multiples of 8 px from the middle. Raises `InputError` for an empty batch or for captions
    that are neither one nor as many as the images.
    """
    count = images.shape[0]
    if count == 0:
        raise InputError("the batch holds 0 images; wire at least one image in")
    lines = [line.strip() for line in captions.splitlines() if line.strip()] or [""]
    if len(lines) not in (1, count):
        raise InputError(
            f"there are {len(lines)} captions for {count} images; write one line for all, or one a picture"
        )
    height, width = (side // 8 * 8 for side in images.shape[1:3])
    if min(height, width) < SMALLEST_SIDE:
        raise InputError(f"the images are {images.shape[2]}x{images.shape[1]} px; a side needs {SMALLEST_SIDE} or more")
    if masks is not None:
        if masks.shape[0] not in (1, count):
            raise InputError(f"there are {masks.shape[0]} masks for {count} images; wire one for all, or one a picture")
        if tuple(masks.shape[-2:]) != tuple(images.shape[1:3]):
            raise InputError(
                f"the masks are {masks.shape[-1]}x{masks.shape[-2]} px and the images "
                f"{images.shape[2]}x{images.shape[1]}; "
                "make them equal"
            )
    top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
    rows, columns = slice(top, top + height), slice(left, left + width)
    items = []
    for i in range(count):
        caption = lines[i % len(lines)]
        if trigger.strip() and trigger.strip() not in caption:
            caption = f"{trigger.strip()}, {caption}" if caption else trigger.strip()
        pixels = (images[i, rows, columns, :3].float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
        if pixels.shape[-1] == 1:
            pixels = pixels.expand(-1, -1, 3)
        mask = None if masks is None else masks[i % masks.shape[0], rows, columns].float().clamp(0, 1).cpu().clone()
        items.append(
            TrainingImage(f"image {i + 1}", pixels.clone(), caption, mask, tuple(images.shape[1:3]), (top, left))
        )
    notes = remarks([item.name for item in items], [item.pixels for item in items])
    return ImageSet(tuple(items), trigger.strip(), fingerprint(items), tuple(notes))
