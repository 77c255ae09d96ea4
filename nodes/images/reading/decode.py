"""Reading picture and mask files with Pillow: which formats, and how each becomes RGB."""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from ....training.errors import InputError
from ...bridge.files.headers import open_regular
from .bands import Rows, Size, Upright, bands, shrunk, shrunk_whole
from .limits import MOST_PIXELS, check_file, check_scans, frames_of, is_slow, memory_of
from .png import LEFT_OUT, pixels_alone
from .reads import BoundedReads

# Formats of other packages, which are used where they are installed: {Pillow's name: (package, what registers it)}.
PLUGINS = {"HEIF": ("pillow_heif", "register_heif_opener"), "JXL": ("pillow_jxl", "")}
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# What is decoded. Others that Pillow knows are drawings, documents or rarities; EPS would start another program.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000", "ICO", "DDS", "QOI")

Room = Callable[[int], AbstractContextManager[object]]  # waits until so many bytes may be taken


@dataclass(frozen=True)
class Picture:
    """A picture as it is trained on. pixels: [h, w, 3] uint8. alpha: [h, w] in 0..1, None without transparency or where
    it was not asked for. original: (height, width) of the file, in px. note: for the report, or ""."""

    pixels: torch.Tensor
    alpha: torch.Tensor | None
    original: Size
    note: str


def read_picture(
    path: Path, target: Callable[[int, int], Size], with_alpha: bool = False, room: Room = contextlib.nullcontext
) -> Picture:
    """A picture, scaled to cover a size and cropped at the middle (Lanczos).

    target: gives that (height, width) in px for the file's; it may raise `InputError`. room: is entered for the memory
    that decoding takes, in bytes. At its full size the picture is held once, as Pillow decodes it, besides one to three
    of its channels; see `limits.memory_of`.

    Applies the EXIF rotation, lays transparency on white, converts CMYK and 16 bits to 8-bit RGB, and takes the first
    frame of an animation, which the note says; also how numbers that are no 8 bits were scaled. Raises `InputError` for
    a file that is no picture, is cut off or is too large to decode; the text has no path.
    """
    with _decoded(path, room) as (upright, note):
        size = upright.height, upright.width
        wanted = target(*size)
        alpha = None
        if with_alpha and upright.has_alpha:
            alpha = torch.from_numpy(shrunk(upright.alpha, 1, size, wanted).astype(np.float32) / 255)
        plain = upright.plain
        rgb = shrunk(upright.on_white, 3, size, wanted) if plain is None else shrunk_whole(plain, wanted)
        pixels = torch.from_numpy(rgb)
        return Picture(pixels, alpha, size, ", ".join(filter(None, (note, upright.note))))


def read_mask(path: Path, size: Size, target: Size, room: Room = contextlib.nullcontext) -> torch.Tensor:
    """`target` in 0..1: the mean of a mask file's channels, transparency laid on black, so that only white counts.

    size: of the picture, which the mask must have. Raises `InputError` unless it does.
    """
    with _decoded(path, room) as (upright, _):
        if (upright.height, upright.width) != size:
            raise InputError(
                f"is {upright.width}x{upright.height} px and its picture {size[1]}x{size[0]}; make them equal"
            )
        rows = _brightness(upright)
        if target == size:
            return torch.cat([rows(*band) for band in bands(*size)])
        return torch.from_numpy(shrunk(_rounded(rows), 1, size, target).astype(np.float32) / 255)


def read_thumbnail(path: Path, side: int, room: Room = contextlib.nullcontext) -> Image.Image:
    """A picture of at most `side` px a side, as RGB. Not enlarged; not cropped, but for what rounding its sides takes.

    A JPEG is decoded at about that size, which takes a small part of the time. Else as `read_picture`.
    """
    with _decoded(path, room, (2 * side, 2 * side)) as (upright, _):
        size = upright.height, upright.width
        share = min(1.0, side / max(size))
        target = max(1, round(size[0] * share)), max(1, round(size[1] * share))
        plain = upright.plain
        rgb = shrunk(upright.on_white, 3, size, target) if plain is None else shrunk_whole(plain, target)
        return Image.fromarray(rgb)


def _brightness(upright: Upright) -> Callable[[int, int], torch.Tensor]:
    """(first row, row behind the last) -> the values of a mask, [rows, W] in 0..1."""

    def rows(first: int, last: int) -> torch.Tensor:
        brightness = torch.from_numpy(np.array(upright.on_white(first, last))).float().mean(-1) / 255
        if not upright.has_alpha:
            return brightness
        alpha = torch.from_numpy(np.asarray(upright.alpha(first, last), np.float32) / 255)
        return (brightness + alpha - 1).clamp(0, 1)  # the brightness is that on white

    return rows


def _rounded(rows: Callable[[int, int], torch.Tensor]) -> Rows:
    return lambda first, last: Image.fromarray((rows(first, last).numpy() * 255).round().astype(np.uint8))


@contextlib.contextmanager
def _decoded(path: Path, room: Room, draft: tuple[int, int] | None = None) -> Iterator[tuple[Upright, str]]:
    """The decoded picture and a note on its frames and parts.

    draft: (width, height) px; a JPEG may be decoded at a smaller size that is no smaller than that. Raises `InputError`
    for whatever Pillow raises.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            check_file(file, size)
            with contextlib.ExitStack() as stack:
                yield _opened(file, size, room, stack, draft)
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(
            "needs more memory to be decoded than is free; close other programs, or save the picture again, smaller"
        ) from error
    except Image.DecompressionBombError as error:
        raise InputError(f"has more than {MOST_PIXELS:,} pixels, or than Pillow allows; make it smaller") from error
    except Exception as error:  # Pillow's readers raise anything from SyntaxError to struct.error on a malformed file
        reason = _disk_error(error)
        if reason:
            raise InputError(
                f"cannot be read from the disk ({reason}); look whether it is there, may be read and can be copied"
            ) from error
        raise InputError(_why_unreadable(path, error)) from error


def _disk_error(error: Exception) -> str:
    """Why the system refuses to read the file, or "" for an error of another kind.

    Pillow's own `OSError` has no number, and EINVAL is the system's answer to a place before the file's beginning,
    which a malformed file names.
    """
    if not isinstance(error, OSError) or error.errno in (None, errno.EINVAL):
        return ""
    return (error.strerror or type(error).__name__).lower()


def _opened(
    file: BinaryIO, size: int, room: Room, stack: contextlib.ExitStack, draft: tuple[int, int] | None
) -> tuple[Upright, str]:
    """The decoded picture, open until `stack` ends, and a note. A PNG with bad parts is read without them, see `png`.

    file: of `size` bytes.
    """
    try:
        return _loaded(file, size, 0, room, stack, draft)
    except (InputError, MemoryError, Image.DecompressionBombError):
        raise
    except Exception as error:  # see `_decoded`
        if _disk_error(error):
            raise
        alone = pixels_alone(file, size)
        if alone is None:
            raise
    upright, frames = _loaded(alone, size, size, room, stack, None)
    return upright, f"{frames}, {LEFT_OUT}" if frames else LEFT_OUT


def _loaded(
    file: BinaryIO,
    size: int,
    copied: int,
    room: Room,
    stack: contextlib.ExitStack,
    draft: tuple[int, int] | None,
) -> tuple[Upright, str]:
    """(the decoded picture, open until `stack` ends, what `frames_of` says). copied: bytes of `file` in memory.

    draft: see `_decoded`.
    """
    with contextlib.ExitStack() as own:
        reads = BoundedReads(file, size)
        opened = own.enter_context(Image.open(cast(IO[bytes], reads), formats=_formats()))
        check_scans(file, opened)
        needed, frames = memory_of(opened, size) + copied, frames_of(opened, size, reads)
        own.enter_context(room(needed))
        if draft is not None:
            opened.draft(opened.mode, draft)
        reads.bounded = not is_slow(opened)
        opened.load()
        upright = Upright(opened)
        stack.push(own.pop_all())
        return upright, f"animated, {frames} is used" if frames else ""


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
    if isinstance(error, OSError) and "truncated" in text:
        return f"is cut off: its end is missing ({text}); download or save it again"
    return f"is no picture that can be read ({type(error).__name__}: {text})"


def _phone_format(path: Path) -> str:
    """ "HEIF" or "JXL" for a file that begins as one (ISO/IEC 23008-12, 18181-2), whatever its name; else ""."""
    try:
        with open_regular(path) as file:
            start = file.read(16)
    except (OSError, ValueError):
        return ""
    if start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS:
        return "HEIF"
    return "JXL" if start.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")) else ""
