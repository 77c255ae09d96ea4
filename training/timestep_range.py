"""A part of the schedule, and how the metadata of files names it.

The level of noise is the model's own timestep over 1000: 0 is clean, 1 is noise. For flow models it is sigma after the
shift, which is the scale of Wan's published boundary between its experts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

THOUSANDTHS = 1000  # timesteps are counted to 1000 in files' metadata
OWN_KEY = "bespoke.timestep_range"
SPEC_KEY = "modelspec.timestep_range"
SS_KEYS = ("ss_min_timestep", "ss_max_timestep")


@dataclass(frozen=True)
class TimestepRange:
    """The levels `low` <= level < `high` of 0..1, and 1 too where `high` is 1."""

    low: float = 0.0
    high: float = 1.0

    @property
    def is_whole(self) -> bool:
        return self.low <= 0 and self.high >= 1

    def contains(self, level: float) -> bool:
        """Whether a level lies inside. Compared in float32, which is what levels are computed in."""
        low, high = (torch.tensor(end, dtype=torch.float32).item() for end in (self.low, self.high))
        return low <= level and (level < high or self.high >= 1)

    def is_within(self, other: TimestepRange) -> bool:
        return other.low <= self.low and self.high <= other.high

    def overlap(self, other: TimestepRange) -> TimestepRange | None:
        """The levels that both have; None where there are none."""
        low, high = max(self.low, other.low), min(self.high, other.high)
        return TimestepRange(low, high) if low < high else None

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"

    def metadata(self) -> dict[str, str]:
        """What a file's metadata says of the range; nothing for the whole schedule.

        `modelspec.timestep_range` is "min,max" in thousandths, whole numbers (Stability AI's model specification 1.0.0;
        sd-scripts and musubi-tuner write this key alone). `ss_min_timestep` and `ss_max_timestep` are the same two
        numbers under the names that kohya's metadata gives to arguments. `bespoke.timestep_range` has all digits, 0..1.
        """
        if self.is_whole:
            return {}
        low = min(round(self.low * THOUSANDTHS), THOUSANDTHS - 1)
        high = max(round(self.high * THOUSANDTHS), low + 1)  # to other programs, equal numbers are no timestep at all
        return {
            OWN_KEY: f"{self.low!r},{self.high!r}",
            SPEC_KEY: f"{low},{high}",
            **dict(zip(SS_KEYS, (str(low), str(high)), strict=True)),
        }


WHOLE = TimestepRange()


def range_in(meta: Mapping[str, str]) -> TimestepRange:
    """The range that a file's metadata names; the whole schedule where it names none, or none that can be read.

    In thousandths the last number is not included: sd-scripts draws from min <= timestep < max, musubi-tuner scales to
    min..max of 1000. The specification's own example of the noisy half is "500,999", so 999 is the end of the schedule.
    """
    if own := _numbers(meta.get(OWN_KEY, "").split(","), 1):
        return own
    pairs = (
        meta.get(SPEC_KEY, "").split(","),
        (meta.get(SS_KEYS[0], "0"), meta.get(SS_KEYS[1], str(THOUSANDTHS))),
    )
    return next((found for pair in pairs if (found := _numbers(pair, THOUSANDTHS))), WHOLE)


def _numbers(words: Iterable[str], unit: float) -> TimestepRange | None:
    """The range of two numbers in units of 1 / `unit`; None for anything else, such as an empty range."""
    try:
        low, high = (float(word) for word in words)
    except (TypeError, ValueError):
        return None
    if not (math.isfinite(low) and math.isfinite(high)):
        return None
    if unit == THOUSANDTHS and high == THOUSANDTHS - 1:
        high = THOUSANDTHS
    low, high = max(low / unit, 0.0), min(high / unit, 1.0)
    return TimestepRange(low, high) if low < high else None


def common_range(ranges: Iterable[TimestepRange]) -> TimestepRange | None:
    """The range that all of them have; None where they differ."""
    different = set(ranges)
    return different.pop() if len(different) == 1 else None
