"""What a block is given: the sizes to measure at, its time, and where its rows go."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from on_gpu import rows

SMALL_SIDE = 64
T = TypeVar("T")


class Work:
    """The rows and the time of one block.

    block: its name. file: of the rows. folder: for files that blocks share. limit: seconds from now. small: whether
    everything is tiny, to try the program itself.
    """

    def __init__(self, block: str, file: Path, folder: Path, limit: float, small: bool) -> None:
        self.block, self.file, self.folder, self.small = block, file, folder, small
        self._until, self._longest = time.monotonic() + limit, 0.0

    def side(self, px: int) -> int:
        """The pixels of a side: `px`, or few."""
        return SMALL_SIDE if self.small else px

    def steps(self, count: int) -> int:
        """`count`, or 2."""
        return 2 if self.small else count

    def some(self, settings: Sequence[T]) -> Sequence[T]:
        """All of `settings`, or the first one."""
        return settings[:1] if self.small else settings

    def write(self, **row: Any) -> dict[str, Any]:
        """Write a row at once."""
        rows.append(self.file, {"block": self.block, **row})
        return row

    def measure(self, call: Callable[[], dict[str, Any]], **row: Any) -> dict[str, Any]:
        """Write the row with what `call` measures, or with its error, and return it.

        Where less time is left than the longest call before has taken, the row says so and nothing is called.
        """
        began = time.monotonic()
        left = self._until - began
        if left < self._longest:
            return self.write(**row, error=f"left out: {left:.0f} s were left")
        try:
            row |= call()
        except Exception as error:  # any kind: the other rows go on
            row["error"] = describe(error)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._longest = max(self._longest, time.monotonic() - began)
        return self.write(**row)


def describe(error: BaseException) -> str:
    """The kind and the first line of an error; one of a full memory says so first."""
    text = (str(error).splitlines() or [""])[0]
    full = isinstance(error, torch.OutOfMemoryError) or "memory" in text.lower()
    return ("out of memory: " if full else "") + f"{type(error).__name__}: {text}"
