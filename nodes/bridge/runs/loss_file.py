"""The losses of a run in a file of their own, to which each save adds lines, so that no save rewrites them all.

Each line is a JSON number, or null for a loss that is not finite, filled up with spaces to one width. Line n is the
loss of step n, so a number of steps is a place in the file. How many lines count is written in record.json; lines
behind them, whole or torn, are from a save that was not completed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from ....training.checkpoint import MOST_STEPS
from ..files.reading import read_text
from .durable import write_after

LOSSES = "losses.jsonl"
WIDTH = 25  # bytes of a line: the longest float64 has 24 characters
LARGEST = 2 * WIDTH * MOST_STEPS  # bytes


class LossFile:
    """losses.jsonl in a run's folder."""

    def __init__(self, folder: Path):
        self.path = folder / LOSSES

    def read(self, count: int) -> list[float]:
        """The first `count` losses, or as many of them as the file has up to the first line that is none."""
        try:
            lines = read_text(self.path, LARGEST)[: WIDTH * count].split("\n")[:-1]
        except (OSError, ValueError):
            return []
        try:
            values = [_loss(value) for value in json.loads(f"[{','.join(lines)}]")]
            if len(values) == len(lines) and all(len(line) == WIDTH - 1 for line in lines):
                return values
        except (TypeError, ValueError, RecursionError):
            pass
        return _read_up_to_the_first_wrong(lines)

    def has(self, count: int) -> bool:
        """Whether the file is long enough for so many losses, without reading it."""
        try:
            return self.path.stat().st_size >= WIDTH * count
        except OSError:
            return count == 0

    def write_from(self, start: int, losses: Sequence[float]) -> None:
        """Write the losses of the steps after the first `start` ones, over what was there of these."""
        lines = "".join(f"{_text(loss):<{WIDTH - 1}}\n" for loss in losses)
        write_after(self.path, WIDTH * start, lines.encode("ascii"))


def _text(loss: float) -> str:
    return json.dumps(float(loss)) if math.isfinite(loss) else "null"


def _loss(value: object) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{type(value).__name__} instead of a number")
    return float(value) if math.isfinite(value) else math.nan


def _read_up_to_the_first_wrong(lines: Sequence[str]) -> list[float]:
    values: list[float] = []
    for line in lines:
        try:
            if len(line) != WIDTH - 1:
                break
            values.append(_loss(json.loads(line)))
        except (TypeError, ValueError, RecursionError):
            break
    return values


def same_start(one: list[float], other: list[float]) -> int:
    """How many losses at the start are equal in both, NaN being equal to itself."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b and not (math.isnan(a) and math.isnan(b)):
            return place
    return min(len(one), len(other))
