"""A contact sheet of a training set, and what is to be said of it."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw

from ...training.images import ImageSet, passes
from ..bridge.drawing import text_layout
from ..bridge.drawing.image import tensor_of

THUMB, TEXT, GAP, MOST = 192, 54, 12, 60
INK, PAPER, FAINT = (28, 28, 32), (250, 249, 246), (120, 118, 112)


def contact_sheet(images: ImageSet) -> torch.Tensor:
    """Every picture (the first 60) with its caption under it: [1, H, W, 3] in 0..1."""
    items = images.items[:MOST]
    columns = min(6, len(items))
    rows = -(-len(items) // columns)
    sheet = Image.new("RGB", (columns * (THUMB + GAP) + GAP, rows * (THUMB + TEXT + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, item in enumerate(items):
        x, y = GAP + i % columns * (THUMB + GAP), GAP + i // columns * (THUMB + TEXT + GAP)
        picture = Image.fromarray(item.pixels.numpy())
        scale = THUMB / max(picture.size)
        size = tuple(max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize(size, Image.LANCZOS if scale < 1 else Image.NEAREST)
        if item.mask is not None:
            keep = Image.fromarray((item.mask.numpy() * 255).astype(np.uint8)).resize(size)
            picture = Image.composite(picture, Image.blend(picture, Image.new("RGB", size, PAPER), 0.75), keep)
        sheet.paste(picture, (x + (THUMB - size[0]) // 2, y + (THUMB - size[1]) // 2))
        text, font = text_layout.set_in(item.caption or "(no caption)", 13)
        lines = text_layout.lines(text, font, THUMB, 3)
        draw.multiline_text((x, y + THUMB + 4), "\n".join(lines), INK if item.caption else FAINT, font, spacing=2)
    return tensor_of(sheet)


def describe(images: ImageSet) -> str:
    """The set in words: how many, which sizes, which captions, what was noted while reading."""
    sizes = [
        f"{len(group)} at {size[1]}x{size[0]} px"
        for group in images.by_size()
        for size in [images.items[group[0]].pixels.shape]
    ]
    captions = {item.caption for item in images.items}
    distinct, copies = len(images.copies()), len(images.items)
    count = (
        f"{distinct} pictures"
        if copies == distinct
        else f"{distinct} pictures, {copies} with mirrored and repeated ones"
    )
    lines = [f"{count}: {', '.join(sizes)}."]
    if captions == {""}:
        lines.append("No captions: the model will learn the pictures for an empty prompt.")
    else:
        lines.append(f"{len(captions)} different captions, for example {min(captions - {''}, key=len)!r}.")
    if images.trigger:
        lines.append(f"Trigger word: {images.trigger}.")
    if any(item.mask is not None for item in images.items):
        lines.append("Masks: only what they let through counts in the loss.")
    lines.append(
        f"100 steps of batch_size 4 are about {passes(distinct, 100, 4):.0f} passes over each picture; 5 to 20 "
        "pictures are "
        "enough for a subject, 50 to 200 for a style. The risk is too many passes, not too few pictures."
    )
    if len(images.items) > MOST:
        lines.append(f"The sheet shows the first {MOST}.")
    lines += images.notes
    return "\n".join(lines)
