"""What tells that a file has not changed, and values that are kept for files as long as that holds."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Hashable
from pathlib import Path
from typing import Generic, TypeVar

# ns that a file must have been left alone for: file systems round their times, FAT to 2 s, so a file that was just
# written may change once more without another stamp.
SETTLED = 2_500_000_000

V = TypeVar("V")


def stamp_of(path: Path) -> Hashable | None:
    """A value that changes when the file's content does: its path, device, inode, size and times of change.

    None for a file that cannot be looked at or was changed just now, see `SETTLED`. The time of the last change of the
    inode (`st_ctime_ns`) is in it, which no program can set back.
    """
    try:
        stat = path.stat()
    except OSError:
        return None
    if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) < SETTLED:
        return None
    return str(path), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


class Kept(Generic[V]):
    """Values by key, with a bound on their bytes.

    What was used least recently is dropped first, but nothing that the present reading uses: of a folder that is
    larger than the bound a part is kept, instead of each picture's making room for the next one.
    """

    def __init__(self, most_bytes: int):
        self.most_bytes, self.nbytes = most_bytes, 0
        self._values: OrderedDict[Hashable, tuple[V, int, int]] = OrderedDict()  # value, bytes, last reading
        self._readings = 0
        self._lock = threading.Lock()

    def new_reading(self) -> int:
        """The number of a reading that begins."""
        with self._lock:
            self._readings += 1
            return self._readings

    def get(self, key: Hashable, reading: int) -> V | None:
        """The value that is kept under `key`, or None."""
        with self._lock:
            found = self._values.pop(key, None)
            if found is None:
                return None
            self._values[key] = (found[0], found[1], reading)
            return found[0]

    def put(self, key: Hashable, value: V, nbytes: int, reading: int) -> None:
        """Keep a value, if there is room for it without what this reading uses."""
        with self._lock:
            self._drop(key)
            while self.nbytes + nbytes > self.most_bytes and self._values:
                oldest = next(iter(self._values))
                if self._values[oldest][2] == reading:
                    return
                self._drop(oldest)
            if self.nbytes + nbytes <= self.most_bytes:
                self._values[key] = (value, nbytes, reading)
                self.nbytes += nbytes

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._values.clear()
            self.nbytes = 0

    def _drop(self, key: Hashable) -> None:
        found = self._values.pop(key, None)
        self.nbytes -= found[1] if found else 0
