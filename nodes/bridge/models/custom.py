"""The lines of `custom_targets`: a pattern over layer names, and the rank and alpha of the layers that it matches."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ....training.config import check_range
from ....training.errors import InputError
from ....training.layer_names.glob import check_pattern, glob_matches

FORM = "write a pattern, or pattern : rank, or pattern : rank : alpha, such as *attn2.to_k : 16 : 8"


@dataclass(frozen=True)
class CustomTarget:
    """One line. pattern: with `*`, for whole layer names. rank, alpha: None where the line has none."""

    pattern: str
    rank: int | None = None
    alpha: float | None = None


def custom_targets(text: str) -> list[CustomTarget]:
    """The lines of a text, which are separated by commas or line breaks.

    Raises `InputError`, with the line, for one that cannot be read, and for a text without any.
    """
    check_pattern("custom_targets", text)
    lines = [line.strip() for line in re.split(r"[,\n]", text) if line.strip()]
    if not lines:
        raise InputError("targets is 'custom' and custom_targets is empty; write patterns such as '*attn2.to_k'")
    return [_read(line) for line in lines]


def _read(line: str) -> CustomTarget:
    pattern, *numbers = [part.strip() for part in line.split(":")]
    try:
        if not pattern or len(numbers) > 2:
            raise ValueError(line)
        rank = int(numbers[0]) if numbers else None
        alpha = float(numbers[1]) if len(numbers) > 1 else None
    except ValueError as error:
        raise InputError(f"custom_targets has {line!r}, which cannot be read; {FORM}") from error
    for name, value in (("rank", rank), ("alpha", alpha)):
        if value is not None:
            check_range(name, value, f" in the line {line!r} of custom_targets")
    return CustomTarget(pattern, rank, alpha)


def own_sizes(names: Iterable[str], text: str) -> dict[str, tuple[int | None, float | None]]:
    """{layer name: (rank, alpha)} of the layers that a line with a rank matches; of several lines the last one counts.

    alpha: None where the line has none.
    """
    lines = [line for line in custom_targets(text) if line.rank is not None]
    found: dict[str, tuple[int | None, float | None]] = {}
    for name in names:
        for line in lines:
            if glob_matches(line.pattern, name):
                found[name] = line.rank, line.alpha
    return found
