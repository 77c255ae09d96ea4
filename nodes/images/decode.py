"""Reading picture and mask files with Pillow: which formats, and how each becomes RGB."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ...training.errors import InputError
from .sizes import size_of

MAX_PIXELS = 200_000_000  # a larger picture is refused before it is decoded
# What is decoded. Others that Pillow knows are drawings, documents or rarities; EPS would start another program.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000", "ICO", "DDS", "QOI")


def read_picture(path: Path) -> tuple[torch.Tensor, torch.Tensor | None, str]:
    """([H, W, 3] uint8, alpha [H, W] in 0..1 or None, a note or "").

    Applies the EXIF rotation, lays transparency on white, converts CMYK and 16 bits to 8-bit RGB, and takes the first
    frame of an animation, which the note says. Raises `InputError` for a file that is no picture, is cut off or is too
    large to decode.
    """
    try:
        with Image.open(path, formats=_formats()) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise InputError(f"has {opened.width}x{opened.height} px, which is more than {MAX_PIXELS:,}")
            # A phone's MPO holds other views of the same moment behind the picture.
            frames = 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
            picture = ImageOps.exif_transpose(opened)
            picture.load()
        return *_as_rgb(picture), f"animated, the first of {frames} frames is used" if frames > 1 else ""
    except InputError:
        raise
    except Exception as error:  # Pillow's readers raise anything from SyntaxError to struct.error on a malformed file
        raise InputError(f"is no picture that can be read ({type(error).__name__}: {error})") from error


def read_mask(path: Path, size: tuple[int, int]) -> torch.Tensor:
    """[H, W] in 0..1: the mean of a mask file's channels. Raises `InputError` unless it has `size` (height, width)."""
    pixels, _, _ = read_picture(path)
    if size_of(pixels) != size:
        raise InputError(
            f"is {pixels.shape[1]}x{pixels.shape[0]} px and its picture {size[1]}x{size[0]}; make them equal"
        )
    return pixels.float().mean(-1) / 255


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # an older Pillow knows fewer


def _as_rgb(picture: Image.Image) -> tuple[torch.Tensor, torch.Tensor | None]:
    """([H, W, 3] uint8, alpha [H, W] in 0..1 or None), transparency laid on white."""
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = _eight_bits(picture)
    alpha = None
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        alpha = torch.from_numpy(np.asarray(picture.getchannel("A"), np.float32) / 255)
        ground = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(ground, picture)
    return torch.from_numpy(np.array(picture.convert("RGB"))), alpha


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A 16-bit or float greyscale picture as 8 bits; Pillow's own conversion clips instead of scaling."""
    values = np.asarray(picture, np.float64)
    if not np.isfinite(values).all():
        raise InputError("holds numbers that are not finite")
    top = 65535.0 if picture.mode.startswith("I") else max(float(values.max()), 1e-9)
    return Image.fromarray((values / top * 255).clip(0, 255).round().astype(np.uint8))
