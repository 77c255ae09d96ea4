"""The strengths at which a slider was found to work, and how the metadata of its file names them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

KEY = "bespoke.useful_strengths"


def metadata(strengths: Sequence[float]) -> dict[str, str]:
    """What a file's metadata says of (lowest, highest); nothing where that was not measured."""
    return {KEY: ",".join(f"{strength:g}" for strength in strengths)} if strengths else {}


def strengths_in(meta: Mapping[str, str]) -> tuple[float, float] | None:
    """(lowest, highest) that a file's metadata names; None where it names none, or none that can be read."""
    try:
        low, high = (float(word) for word in meta.get(KEY, "").split(","))
    except ValueError:
        return None
    return (low, high) if math.isfinite(low) and math.isfinite(high) and low < high else None


def in_words(strengths: Sequence[float]) -> str:
    low, high = strengths
    return f"{low:g} to {high:g}"
