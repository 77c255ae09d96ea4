"""Between Pillow's pictures and ComfyUI's IMAGE tensors, and the sizes of pictures on a sheet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ....training.errors import InputError
from .palette import PAPER, RGB


def tensor_of(picture: Image.Image) -> Tensor:
    """A picture as an IMAGE: [1, H, W, 3] in 0..1."""
    return torch.from_numpy(np.array(picture.convert("RGB")))[None].float() / 255


def pictures_of(images: Tensor, name: str) -> list[Image.Image]:
    """RGB pictures of an IMAGE [B, H, W, 1, 3 or 4] in 0..1.

    Alpha is laid over white, one channel becomes grey, NaN becomes black. name: the input's, for the error.
    Raises `InputError` for another shape.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4) or 0 in images.shape:
        raise InputError(
            f"{name} is {tuple(images.shape)}, and an image is [pictures, height, width, 3]; wire in an IMAGE"
        )
    values = torch.nan_to_num(images.detach().float().cpu(), 0.0, 1.0, 0.0).clamp(0.0, 1.0)
    if values.shape[-1] == 4:
        values = values[..., :3] * values[..., 3:] + (1 - values[..., 3:])
    values = (values.expand(*values.shape[:3], 3) * 255).round().to(torch.uint8)
    return [Image.fromarray(one.numpy()) for one in values]


def scaled_size(picture: Image.Image, side: float) -> tuple[int, int]:
    """(width, height) in px of the picture with its longer side scaled to `side` px, each at least 1."""
    scale = side / max(picture.size)
    return max(1, round(picture.width * scale)), max(1, round(picture.height * scale))


def scaled(picture: Image.Image, side: int) -> Image.Image:
    """The picture with its longer side scaled to `side` px; one that is enlarged keeps its pixels as squares."""
    smaller = max(picture.size) > side
    return picture.resize(scaled_size(picture, side), Image.Resampling.LANCZOS if smaller else Image.Resampling.NEAREST)


def paste_middle(sheet: Image.Image, picture: Image.Image, corner: tuple[int, int], side: int) -> None:
    """Paste the picture into the middle of a square of `side` px, whose upper left corner (x, y) is `corner`."""
    x, y = corner
    sheet.paste(picture, (x + (side - picture.width) // 2, y + (side - picture.height) // 2))


def stacked(pictures: Sequence[Image.Image], ground: RGB = PAPER) -> Image.Image:
    """The pictures below each other, aligned at the left. Raises `ValueError` for no picture."""
    sheet = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), ground)
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet
