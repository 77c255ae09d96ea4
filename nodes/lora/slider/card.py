"""The pictures that a slider's training shows: its words in place of a training picture, and its samples in a row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ...bridge.drawing.fonts import builtin_font, drawable
from ...bridge.drawing.palette import FAINT, INK, PAPER
from ...bridge.drawing.text_layout import fit_lines
from .request import SliderRequest

LABEL = 0.14  # the height of a label in the height of a picture
SMALLEST_LABEL = 14  # px


def words_card(request: SliderRequest, side: int) -> Tensor:
    """The words of a request as a picture, uint8 [side, side, 3]."""
    image = Image.new("RGB", (side, side), PAPER)
    draw, margin, size = ImageDraw.Draw(image), side // 16, max(9, side // 18)
    top = margin
    rows = [("target", request.target), ("more", request.more), ("less", request.less)]
    if request.erases:
        rows = [("erased", request.target), ("instead", request.more)]
    for name, text in rows:
        if not text.strip():
            continue
        draw.text((margin, top), name, FAINT, builtin_font(size * 0.8))
        top += int(size * 1.1)
        shown, font = drawable(text, size)
        lines = fit_lines(shown, font, side - 2 * margin, 3)
        draw.multiline_text((margin, top), "\n".join(lines), INK, font, spacing=size // 4)
        top += int(size * 1.35) * len(lines) + size // 2
    return torch.from_numpy(np.array(image))


def strip_of(pictures: Sequence[Image.Image], strengths: Sequence[float]) -> Image.Image:
    """Pictures of one size side by side, each with its strength above it."""
    width, height = pictures[0].size
    bar = max(SMALLEST_LABEL, round(height * LABEL))
    sheet = Image.new("RGB", (width * len(pictures), height + bar), PAPER)
    draw, font = ImageDraw.Draw(sheet), builtin_font(bar * 0.72)
    for column, (picture, strength) in enumerate(zip(pictures, strengths, strict=True)):
        sheet.paste(picture, (column * width, bar))
        text = f"{strength:+g}" if strength else "0"
        draw.text((column * width + width / 2, bar / 2), text, INK, font, anchor="mm")
    return sheet
