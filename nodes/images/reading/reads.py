"""A bound on how often Pillow reads a file, since its readers of headers are loops in Python.

A JPEG of empty segments, a PNG of empty chunks, a GIF of 600,000 frames, a TIFF of a million tags or a PPM with a long
comment keeps such a loop busy for many seconds, though the file is small. Each turn of a loop reads, so the number of
reads bounds its time, whatever the format.
"""

from __future__ import annotations

from typing import Any, BinaryIO

from ....training.errors import InputError

# A GIF has two reads for 256 bytes, a PNG of Pillow's three for 64 kB, a TIFF one for each tag. Files beyond the bound
# are refused within a second (`tests/unit/test_picture_limits.py`).
MOST_READS = 50_000
LEAST_BYTES = 100  # for each further read
MOST_TIMES = 4  # that a file may be read as a whole: values of a TIFF's tags may lie over each other
MOST_BYTES = 2**24  # that may be read in any case


class TooManyReads(InputError):
    """Pillow has read a file in very many small pieces, or again and again."""


class BoundedReads:
    """A file for Pillow whose `read` raises `TooManyReads` beyond the bounds above; all else is the file's own.

    file: of `size` bytes. `bounded`: whether the bounds hold; a decoder in Python, which reads byte by byte, has a
    bound of its own, see `limits.MOST_SLOW_PIXELS`.
    """

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._size = file, size
        self._reads = self._bytes = 0
        self.bounded = True

    def restart(self) -> None:
        """Begin to count anew."""
        self._reads = self._bytes = 0

    def read(self, size: int = -1) -> bytes:
        """See `BinaryIO.read`."""
        data = self._file.read(size)
        self._reads += 1
        self._bytes += len(data)
        if self.bounded:
            if self._reads > MOST_READS + self._bytes // LEAST_BYTES:
                raise TooManyReads(
                    "is made of very many very small parts (segments, chunks, tags or the like): "
                    f"{self._reads:,} reads gave {self._bytes:,} bytes; open it in another program and save it again"
                )
            if self._bytes > max(MOST_BYTES, MOST_TIMES * self._size):
                raise TooManyReads(
                    f"has parts that lie over each other: of {self._size:,} bytes {self._bytes:,} were read; open it "
                    "in another program and save it again"
                )
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
