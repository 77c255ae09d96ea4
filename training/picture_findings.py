"""Which pictures of a training set stand out, by their losses on the fixed grid.

Losses are compared as logarithms, and with the rest of the set as robust z-scores: the distance to the median in units
of the median absolute deviation (Iglewicz and Hoaglin 1993, "How to Detect and Handle Outliers", section 3.3), which a
few bad pictures do not move. The deviation is that of the values below the median, since bad pictures lie above it: a
quarter of bad ones made that of all values 1.7 times as large, and this one hardly larger.
tests/bench/bench_picture_findings.py measures precision and recall.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from .picture_scores import PictureLosses, until

LEAST_PICTURES = 8  # with fewer, a median says little about the rest
LEAST_HELD_OUT = 2  # pictures, to compare the trained ones with
NORMAL = 1.4826  # the standard deviation of a normal distribution over its median absolute deviation


@dataclass(frozen=True)
class Kind:
    """What can be found. label: a few words. meaning: a sentence that says what to look for."""

    label: str
    meaning: str


HARD = Kind(
    "harder than the rest",
    "its loss is far above that of the rest: look for noise, damage, or a picture that does not belong to the set",
)
CAPTION = Kind(
    "its caption may not fit",
    "the model predicts it worse with its caption than without one, unlike the rest: look for the caption of another "
    "picture",
)
BY_HEART = Kind(
    "learned by heart",
    "its loss has fallen far more than that of the held-out pictures, or of the rest where none is held out: fewer "
    "steps, a lower weight, or more pictures of the same thing would help",
)
KINDS = (HARD, CAPTION, BY_HEART)


@dataclass(frozen=True)
class Finding:
    """A picture that stands out. strength: how far, for an order within its kind."""

    row: PictureLosses
    kind: Kind
    strength: float


# (z, log ratio): how far from the median a picture must lie, in robust standard deviations and as a ratio.
HARD_LIMITS = (2.5, math.log(1.8))
CAPTION_LIMITS = (2.5, math.log(1.1))
LEAST_HARM = math.log(1.05)  # of the loss with a caption over that without it
BY_HEART_LIMITS = (4.0, math.log(1.5))


def find(rows: Sequence[PictureLosses]) -> list[Finding]:
    """What stands out among the pictures of a run, the strongest of each kind first; nothing in a small set."""
    trained = [row for row in rows if not row.held_out]
    return [
        *_outliers(rows, HARD, _hardness, HARD_LIMITS),
        *_outliers(trained, CAPTION, _caption_harm, CAPTION_LIMITS, LEAST_HARM),
        *_learned_by_heart(rows),
    ]


def _hardness(row: PictureLosses) -> float:
    return math.log(row.start) if 0 < row.start < math.inf else math.nan


def _caption_harm(row: PictureLosses) -> float:
    return math.nan if row.caption_gain is None else -row.caption_gain


def _outliers(
    rows: Sequence[PictureLosses],
    kind: Kind,
    value: Callable[[PictureLosses], float],
    limits: tuple[float, float],
    floor: float = -math.inf,
) -> list[Finding]:
    """The rows whose value is `floor` or more and above the median by both limits: (robust z-score, difference)."""
    known = [(row, value(row)) for row in rows if math.isfinite(value(row))]
    if len(known) < LEAST_PICTURES:
        return []
    middle, spread = centre([number for _, number in known])
    least_z, least = limits
    found = [
        Finding(row, kind, (number - middle) / spread if spread else math.inf)
        for row, number in known
        if number >= floor and number - middle >= max(least, least_z * spread)
    ]
    return sorted(found, key=lambda each: each.strength, reverse=True)


def centre(values: Sequence[float]) -> tuple[float, float]:
    """(median, robust standard deviation of the values below it) of one value or more; 0 where none is below."""
    middle = median(values)
    below = [middle - value for value in values if value < middle]
    return middle, NORMAL * median(below) if below else 0.0


def _learned_by_heart(rows: Sequence[PictureLosses]) -> list[Finding]:
    """The trained pictures whose loss has fallen far more than that of held-out ones, or than that of the rest.

    Two held-out pictures or more are compared at the step at which the trained ones were scored last.
    """
    trained = [row for row in rows if not row.held_out and math.isfinite(row.change)]
    if not trained:
        return []
    last = trained[0].points[-1][0]
    changes = [row.change for row in until([row for row in rows if row.held_out], last) if math.isfinite(row.change)]
    if len(changes) < LEAST_HELD_OUT:
        return _outliers(trained, BY_HEART, lambda row: -row.change, BY_HEART_LIMITS)
    middle, least = median(changes), BY_HEART_LIMITS[1]
    found = [Finding(row, BY_HEART, middle - row.change) for row in trained if middle - row.change >= least]
    return sorted(found, key=lambda each: each.strength, reverse=True)


def in_order(rows: Sequence[PictureLosses], found: Sequence[Finding]) -> list[PictureLosses]:
    """All rows: those that something was found about, in the order of `found`, then the hardest first."""
    first = list({id(each.row): each.row for each in found}.values())
    named = {id(row) for row in first}
    rest = [row for row in rows if id(row) not in named]
    return first + sorted(rest, key=_last_loss, reverse=True)


def _last_loss(row: PictureLosses) -> float:
    """The last loss that is a number; the highest place for a picture whose last loss is none."""
    loss = row.points[-1][1] if row.points else math.nan
    return loss if math.isfinite(loss) else math.inf
