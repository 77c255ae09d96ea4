"""What a picture file may take: checked from its header, before its pixels are decoded."""

from __future__ import annotations

import struct
from typing import BinaryIO

from PIL import Image

from ....training.errors import InputError
from .reads import BoundedReads, TooManyReads

MOST_MEMORY = 2**30  # bytes that one picture may take while it is decoded
MOST_PIXELS = 200_000_000
# Pixels of a picture in a format that Pillow decodes in Python, a million in one to four seconds: QOI, plain-text PPM,
# BMP with run lengths, some DDS.
MOST_SLOW_PIXELS = 16_000_000
MOST_SCANS = 500  # of a progressive JPEG: each one is a pass over the whole picture; usual files have about ten
MOST_COUNTED_BYTES = 16_000_000  # a GIF of at most this size is read to its end to count the frames
MOST_COUNTED_PAGES = 1000  # of a TIFF

# Bytes for each pixel at the peak, decoder and scaling together, and those that do not depend on the size; measured by
# `tests/unit/test_picture_memory.py`. Pillow itself keeps 4, or 1 for greyscale and palettes; decoders hold more.
USUAL_BYTES, PROGRESSIVE_BYTES, BASE_BYTES = 8, 13, 2**24
BYTES = {"WEBP": 20, "AVIF": 20, "JPEG2000": 26, "TIFF": 13, "DDS": 9, "HEIF": 20, "JXL": 24, "QOI": 12}
WHOLE = ("WEBP", "AVIF", "DDS", "HEIF", "JXL", "JPEG2000")  # formats whose files are read into memory


def memory_of(opened: Image.Image, file_bytes: int) -> int:
    """The bytes that decoding and scaling a picture takes at its peak, by the size that its header claims.

    opened: as `Image.open` gives it, not loaded. file_bytes: the file's size. Raises `InputError` for a picture that
    takes more than `MOST_MEMORY`, has too many pixels, or would keep a processor busy for minutes.
    """
    width, height = opened.size
    pixels = width * height
    if pixels > MOST_PIXELS:
        raise InputError(f"has {width}x{height} px; at most {MOST_PIXELS:,} pixels are read. Make it smaller")
    if is_slow(opened) and pixels > MOST_SLOW_PIXELS:
        kind = opened.format
        raise InputError(
            f"has {width}x{height} px, and a {kind} file of its kind is read with at most {MOST_SLOW_PIXELS:,} pixels, "
            "since decoding it takes a second or more for each million; save it as PNG or JPEG"
        )
    held = sum(len(value) for value in opened.info.values() if isinstance(value, (bytes, str)))
    held += file_bytes if opened.format in WHOLE else 0
    needed = pixels * _bytes_a_pixel(opened) + held + BASE_BYTES
    if needed > MOST_MEMORY:
        raise InputError(
            f"has {width}x{height} px and takes {needed / 2**30:.1f} GB of memory to be decoded; at most "
            f"{MOST_MEMORY / 2**30:.0f} GB is allowed. Make it smaller, or save it as PNG"
        )
    return needed


def check_file(file: BinaryIO, size: int) -> None:
    """Refuse what must not reach Pillow: a file larger than `MOST_MEMORY`, and an icon that holds a larger picture.

    file: at its start, and left there. size: of the file, bytes. Pillow decodes an icon when it opens it, whatever the
    size of the picture in it. Raises `InputError`.
    """
    if size > MOST_MEMORY:
        raise InputError(f"has {size:,} bytes; a picture file may have {MOST_MEMORY:,}. Save it compressed or smaller")
    start = file.read(6)
    if start[:4] == b"\0\0\1\0":
        for _ in range(int.from_bytes(start[4:6], "little")):
            entry = file.read(16)
            here = file.tell()
            if len(entry) == 16:
                _check_icon(file, int.from_bytes(entry[12:16], "little"))
            file.seek(here)
    file.seek(0)


def check_scans(file: BinaryIO, opened: Image.Image) -> None:
    """Refuse a progressive JPEG with more than `MOST_SCANS` scans, by `InputError`. Leaves the file where it was."""
    if not opened.info.get("progressive"):
        return
    here, scans, last = file.tell(), 0, b""
    file.seek(0)
    while piece := file.read(1 << 20):
        # In the data of a scan, FF is never followed by DA, the marker of a scan (ITU T.81, B.1.1.2 and B.1.1.5).
        scans += (last + piece).count(b"\xff\xda")
        last = piece[-1:]
    file.seek(here)
    if scans > MOST_SCANS:
        raise InputError(f"is a progressive JPEG with {scans:,} scans; at most {MOST_SCANS} are read. Save it again")


def frames_of(opened: Image.Image, file_bytes: int, reads: BoundedReads) -> str:
    """ "the first of N frames" of an animation or of a file of several pages, "" for a single picture.

    Counting is bounded: a GIF is read to its end, and the pages of a TIFF are searched one by one. reads: the file, as
    `opened` has it.
    """
    reads.restart()
    try:
        return _counted_frames(opened, file_bytes)
    except TooManyReads:
        reads.restart()
        opened.seek(0)
        return "the first frame"
    finally:
        reads.restart()


def _counted_frames(opened: Image.Image, file_bytes: int) -> str:
    if opened.format == "MPO":  # a phone's: other views of the same moment behind the picture
        return ""
    if not getattr(opened, "is_animated", False):
        return ""
    if opened.format == "GIF" and file_bytes > MOST_COUNTED_BYTES:
        return "the first frame"
    if opened.format != "TIFF":
        return f"the first of {getattr(opened, 'n_frames', 1)} frames"
    pages = 1
    try:
        while pages < MOST_COUNTED_PAGES:
            opened.seek(pages)
            pages += 1
    except EOFError:
        opened.seek(0)
        return f"the first of {pages} frames"
    opened.seek(0)
    return f"the first of {pages} or more frames"


def is_slow(opened: Image.Image) -> bool:
    """Whether Pillow decodes it in Python."""
    return any(tile[0] in Image.DECODERS for tile in getattr(opened, "tile", ()))


def _bytes_a_pixel(opened: Image.Image) -> int:
    if opened.info.get("progressive"):
        return PROGRESSIVE_BYTES
    return BYTES.get(opened.format or "", USUAL_BYTES)


def _check_icon(file: BinaryIO, offset: int) -> None:
    """Raises `InputError` where the PNG or bitmap at `offset` of an icon claims more than 1024x1024 px."""
    file.seek(offset)
    head = file.read(24)
    if head.startswith(b"\x89PNG") and len(head) == 24:
        width, height = struct.unpack(">II", head[16:])
    elif len(head) >= 12:
        width, height = (abs(side) for side in struct.unpack("<ii", head[4:12]))
    else:
        return
    if width * height > 2 * 1024**2:  # a bitmap counts its mask in its height
        raise InputError(f"is an icon with a picture of {width}x{height} px; save that picture as PNG")
