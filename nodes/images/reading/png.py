"""PNG files whose parts beside the pixels are damaged or too large, read without them.

Pillow reads a picture's texts, colour profile and sizes in print together with its pixels, and gives up the picture
where one of them is wrong: a text of more than 1 MB when decompressed, as workflows are that another program packed, a
wrong checksum, a short chunk. None of these chunks changes a pixel here.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Chunks that pixels are made of (W3C PNG, third edition, 11.2 and 11.3.1): size, palette, transparency, animation.
PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT"})
MOST_BYTES = 2**28  # of a file that is copied without its further parts
MOST_CHUNKS = 1_000_000
MOST_EXIF = 1_000_000  # bytes
LEFT_OUT = (
    "parts of the file beside its pixels (texts, a colour profile, EXIF) are damaged or too large and were left out"
)


def pixels_alone(file: BinaryIO, size: int) -> io.BytesIO | None:
    """A PNG without the chunks that no pixel is made of, but with an EXIF orientation that can be read.

    file: any file, of `size` bytes. None for one that is no PNG, or is too large to copy.
    """
    file.seek(0)
    if size > MOST_BYTES or file.read(8) != SIGNATURE:
        return None
    out = io.BytesIO()
    out.write(SIGNATURE)
    for kind, chunk in _chunks(file):
        if kind in PIXELS or (kind == b"eXIf" and _is_exif(chunk)):
            out.write(chunk)
    out.seek(0)
    return out


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """(kind, the whole chunk) in order, up to the end of the picture or of the file."""
    for _ in range(MOST_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head)
        if kind in PIXELS or (kind == b"eXIf" and length <= MOST_EXIF):
            yield kind, head + file.read(length + 4)
        else:
            file.seek(length + 4, io.SEEK_CUR)
        if kind == b"IEND":
            return


def _is_exif(chunk: bytes) -> bool:
    if len(chunk) < 12 or zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
        return False
    try:
        dict(_exif_of(chunk[8:-4]))
    except Exception:  # Pillow raises anything from SyntaxError to struct.error on malformed EXIF
        return False
    return True


def _exif_of(data: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.load(b"Exif\0\0" + data)
    return exif
