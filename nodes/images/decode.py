"""Reading picture and mask files with Pillow: which formats, and how each becomes RGB."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from ...training.errors import InputError
from .sizes import size_of

# Formats of other packages, which are used where they are installed: {Pillow's name: (package, what registers it)}.
PLUGINS = {"HEIF": ("pillow_heif", "register_heif_opener"), "JXL": ("pillow_jxl", "")}
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
MAX_PIXELS = 200_000_000  # a larger picture is refused before it is decoded
HIGHLIGHTS = 16.0  # lights of a float picture in 0..1 may go beyond 1 up to this; one in 0..255 would be black there
# What is decoded. Others that Pillow knows are drawings, documents or rarities; EPS would start another program.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000", "ICO", "DDS", "QOI")


def read_picture(path: Path) -> tuple[torch.Tensor, torch.Tensor | None, str]:
    """([H, W, 3] uint8, alpha [H, W] in 0..1 or None, a note or "").

    Applies the EXIF rotation, lays transparency on white, converts CMYK and 16 bits to 8-bit RGB, and takes the first
    frame of an animation, which the note says; also how numbers that are no 8 bits were scaled. Raises `InputError` for
    a file that is no picture, is cut off or is too large to decode; the text has no path.
    """
    try:
        with Image.open(path, formats=_formats()) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise InputError(f"has {opened.width}x{opened.height} px, which is more than {MAX_PIXELS:,}")
            # A phone's MPO holds other views of the same moment behind the picture.
            frames = 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
            picture = ImageOps.exif_transpose(opened)
            picture.load()
        picture, scaled = _eight_bits(picture)
        notes = [f"animated, the first of {frames} frames is used"] if frames > 1 else []
        return *_as_rgb(picture), ", ".join([*notes, scaled] if scaled else notes)
    except InputError:
        raise
    except Exception as error:  # Pillow's readers raise anything from SyntaxError to struct.error on a malformed file
        raise InputError(_why_unreadable(path, error)) from error


def read_mask(path: Path, size: tuple[int, int]) -> torch.Tensor:
    """[H, W] in 0..1: the mean of a mask file's channels, transparency laid on black, so that only white counts.

    Raises `InputError` unless it has `size` (height, width).
    """
    pixels, alpha, _ = read_picture(path)
    if size_of(pixels) != size:
        raise InputError(
            f"is {pixels.shape[1]}x{pixels.shape[0]} px and its picture {size[1]}x{size[0]}; make them equal"
        )
    brightness = pixels.float().mean(-1) / 255
    return brightness if alpha is None else (brightness + alpha - 1).clamp(0, 1)  # `pixels` lies on white


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    for name, (package, register) in PLUGINS.items():
        if name not in Image.OPEN and importlib.util.find_spec(package):
            module = importlib.import_module(package)  # pillow_jxl registers itself
            if register:
                getattr(module, register)()
    return tuple(name for name in (*FORMATS, *PLUGINS) if name in Image.OPEN)  # an older Pillow knows fewer


def _why_unreadable(path: Path, error: Exception) -> str:
    """The reason and what to do, without the path that Pillow's messages have."""
    kind = _phone_format(path)
    if kind:
        package = PLUGINS[kind][0].replace("_", "-").replace("pillow-jxl", "pillow-jxl-plugin")
        shown = {"HEIF": "HEIC", "JXL": "JPEG XL"}[kind]
        if kind not in Image.OPEN:
            return (
                f"is a {shown} picture, which Pillow cannot read by itself; convert it to PNG or JPEG, or install the "
                f"Python package {package} for ComfyUI and start it again"
            )
    if isinstance(error, UnidentifiedImageError):
        return "is no picture that can be read; its content has no format that is known here"
    text = str(error).replace(str(path), path.name)
    return f"is no picture that can be read ({type(error).__name__}: {text})"


def _phone_format(path: Path) -> str:
    """ "HEIF" or "JXL" for a file that begins as one (ISO/IEC 23008-12, 18181-2), whatever its name; else ""."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return ""
    if start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS:
        return "HEIF"
    return "JXL" if start.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")) else ""


def _as_rgb(picture: Image.Image) -> tuple[torch.Tensor, torch.Tensor | None]:
    """([H, W, 3] uint8, alpha [H, W] in 0..1 or None), transparency laid on white."""
    alpha = None
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        alpha = torch.from_numpy(np.asarray(picture.getchannel("A"), np.float32) / 255)
        ground = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(ground, picture)
    return torch.from_numpy(np.array(picture.convert("RGB"))), alpha


def _eight_bits(picture: Image.Image) -> tuple[Image.Image, str]:
    """(the picture with 8 bits, a note or ""): a greyscale picture of 16 or 32 bits or of floats is scaled.

    White is 65535 for integers and 1 for floats. Floats up to `HIGHLIGHTS` keep that white, and what is brighter is
    cut, as in a picture with a high dynamic range. Where the values go further, white is 255 or 65535 for floats that
    fit, else the largest value; the note says so. Pillow's own conversion clips instead of scaling.
    """
    if not picture.mode.startswith("I") and picture.mode != "F":
        return picture, ""
    values = np.asarray(picture, np.float64)
    if not np.isfinite(values).all():
        raise InputError("holds numbers that are not finite")
    low, high = float(values.min()), float(values.max())
    whites = (65535.0,) if picture.mode.startswith("I") else (1.0, 255.0, 65535.0)
    white = whites[0] if picture.mode == "F" and high <= HIGHLIGHTS else next((w for w in whites if high <= w), high)
    scaled = Image.fromarray((values / white * 255).clip(0, 255).round().astype(np.uint8))
    if white == whites[0] and low >= 0 and high <= white:
        return scaled, ""
    return scaled, f"its numbers go from {low:g} to {high:g}: 0 is taken as black and {white:g} as white"
