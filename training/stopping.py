"""When to stop: whether the held-out loss has turned, or no longer changes, beyond its noise.

Every validation scores the same samples: the held-out pictures at fixed timesteps with fixed noises. Two validations
are therefore compared sample by sample. The mean of the differences has the standard error s / sqrt(n), where s is
their standard deviation and n their number (Student 1908, The probable error of a mean). The scatter between samples,
many times larger than what a training changes between two validations, cancels out of it.

A training also scatters by itself, the more the higher its learning rate is, and what it has lost so it gains again
when the rate falls. All samples share that scatter, so the paired differences do not show it. It is estimated from the
second differences of the curve, in which a trend cancels out, and counts for a turn.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

ALL_STEPS, TURNS, NOTHING_CHANGES = "all steps", "when validation turns", "when nothing changes"
STOPS = (ALL_STEPS, TURNS, NOTHING_CHANGES)
MARGIN = 2.0  # standard errors that a difference has to exceed
TURNED = 2  # validations in a row above the lowest one, after which it has turned
WAITED = 10  # validations in a row without a new lowest one, after which it has turned too: half of a run
QUIET = 5  # validations in a row without a change, after which nothing changes: a quarter of a run
SCATTERED = 7  # validations by whose means the scatter is estimated
LEAST_CHANGE = 1e-3  # of the loss: less is no change, however surely it is measured
# The standard deviation of a second difference of independent noise is sqrt(1 + 4 + 1) times the noise's, and the
# median of its size 0.6745 times that.
SECOND_DIFFERENCE = 0.6745 * math.sqrt(6)


class Comparison(NamedTuple):
    """A validation beside the earlier ones: a row of the record, in JSON a list in this order.

    lowest: the step of the lowest mean loss among the validations before, 0 before anything is learned. difference: the
    mean over all samples of the loss at `step` minus that at `lowest`. error: its standard error, with the scatter of
    the training. anchor: the last step whose loss differed from that of the anchor before it by more than the margin of
    their paired difference alone, and by more than `LEAST_CHANGE`; it can be `step` itself, and is 0 where none did.
    """

    step: int
    lowest: int
    difference: float
    error: float
    anchor: int

    @property
    def margin(self) -> float:
        """What the difference has to exceed to be more than noise."""
        return MARGIN * self.error

    @property
    def is_above(self) -> bool:
        """Whether the loss is higher than the lowest one by more than the margin, and that one was learned."""
        return self.lowest > 0 and self.difference > self.margin


def compare(now: Sequence[float], before: Sequence[float]) -> tuple[float, float]:
    """(mean, standard error) of the differences now - before of the same samples, at least two.

    Raises `ValueError` for lists of unequal length, and for fewer than two samples.
    """
    differences = [one - other for one, other in zip(now, before, strict=True)]
    count = len(differences)
    if count < 2:
        raise ValueError(f"{count} samples have no standard error; give at least 2")
    mean = math.fsum(differences) / count
    variance = math.fsum((each - mean) ** 2 for each in differences) / (count - 1)
    return mean, math.sqrt(variance / count)


def scatter(means: Sequence[float]) -> float:
    """The standard deviation of what is no trend in the means of successive validations; 0 of fewer than three."""
    differences = [a - 2 * b + c for a, b, c in zip(means, means[1:], means[2:], strict=False)]
    return statistics.median(map(abs, differences)) / SECOND_DIFFERENCE if differences else 0.0


def turned_at(rows: Sequence[Comparison]) -> int | None:
    """The step at which the held-out loss turned; else None.

    The last `TURNED` rows are above it by more than their margins, or none of the last `WAITED` rows is lower: a few
    samples may not show a small rise that goes on.
    """
    lowest = rows[-1].lowest if rows else 0
    if lowest == 0 or rows[-1].difference < 0:
        return None
    above = _since(rows[-TURNED:], lowest, TURNED) and all(row.is_above for row in rows[-TURNED:])
    return lowest if above or _since(rows[-WAITED:], lowest, WAITED) else None


def _since(rows: Sequence[Comparison], lowest: int, count: int) -> bool:
    """Whether these are `count` rows with the same lowest step."""
    return len(rows) == count and all(row.lowest == lowest for row in rows)


def quiet_since(rows: Sequence[Comparison]) -> int | None:
    """The last step with a change, if the last `QUIET` rows have none; else None.

    A change is counted from the last one, so that a slow fall is one as soon as it adds up. None also where nothing was
    learned yet.
    """
    last = rows[-QUIET:]
    if len(last) < QUIET:
        return None
    anchor = last[-1].anchor
    is_quiet = anchor > 0 and last[-1].lowest > 0 and all(row.anchor == anchor < row.step for row in last)
    return anchor if is_quiet else None


def is_over(stop: str, rows: Sequence[Comparison]) -> bool:
    """Whether a training ends after the last row. stop: one of `STOPS`.

    "when nothing changes" also ends where the loss has turned.
    """
    if stop == ALL_STEPS:
        return False
    return turned_at(rows) is not None or (stop == NOTHING_CHANGES and quiet_since(rows) is not None)


class _Scores(NamedTuple):
    step: int
    losses: list[float]

    @property
    def mean(self) -> float:
        return math.fsum(self.losses) / len(self.losses)


class StopRule:
    """Compares the validations of one training and says when to stop.

    Two of them are kept sample by sample, and the means of the last few.

    stop: one of `STOPS`. `take` is given the losses of all samples, then `add` the step that they are of.
    """

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.rows: list[Comparison] = []
        self._lowest: _Scores | None = None
        self._anchor: _Scores | None = None
        self._means: list[float] = []
        self._taken: list[float] = []

    def take(self, losses: Sequence[float]) -> None:
        """The losses of the samples in the validation that `add` is called for next."""
        self._taken = list(losses)

    def add(self, step: int) -> Comparison | None:
        """Compare the losses that were taken, those of `step`; None for the first, and where one is not finite."""
        losses, self._taken = self._taken, []
        if not losses or not all(map(math.isfinite, losses)):
            return None
        now = _Scores(step, losses)
        self._means = [*self._means, now.mean][-SCATTERED:]
        if self._lowest is None or self._anchor is None:
            self._lowest = self._anchor = now
            return None
        lowest = self._lowest
        difference, paired = compare(losses, lowest.losses)
        error = math.hypot(paired, math.sqrt(2) * scatter(self._means))  # both of the two means scatter
        change, change_error = compare(losses, self._anchor.losses)
        if abs(change) > max(MARGIN * change_error, LEAST_CHANGE * self._anchor.mean):
            self._anchor = now
        if now.mean < lowest.mean:
            self._lowest = now
        self.rows.append(Comparison(step, lowest.step, difference, error, self._anchor.step))
        return self.rows[-1]

    @property
    def is_over(self) -> bool:
        """Whether the training ends after the last validation."""
        return is_over(self.stop, self.rows)

    def state(self) -> dict[str, Any]:
        """What `restore` needs to decide as this rule would: JSON's values."""
        return {
            "lowest": self._lowest,
            "anchor": self._anchor,
            "means": self._means,
            "rows": self.rows[-max(TURNED, WAITED, QUIET) :],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`; without one from the next validation. Raises `ValueError` for what is none."""
        try:
            lowest, anchor = (_scores(state.get(name)) for name in ("lowest", "anchor"))
            rows = read_comparisons(state.get("rows", []))
            means = [float(each) for each in state.get("means", [])]
        except (TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"no state of a stop rule: {error}") from error
        if lowest is not None and anchor is not None and len(lowest.losses) != len(anchor.losses):
            raise ValueError("its two validations have not as many samples")
        self._lowest, self._anchor, self._means, self.rows = lowest, anchor, means, rows


def _scores(value: Any) -> _Scores | None:
    if value is None:
        return None
    step, losses = value
    return _Scores(int(step), [float(loss) for loss in losses])


def read_comparisons(values: Any) -> list[Comparison]:
    """The rows that a record has, checked. Raises `ValueError` or `TypeError` for anything else."""
    if not isinstance(values, list):
        raise ValueError(f"no record of a run: comparisons is of type {type(values).__name__}")
    return [_comparison(*each) for each in cast("list[Any]", values)]


def _comparison(step: Any, lowest: Any, difference: Any, error: Any, anchor: Any, *_: Any) -> Comparison:
    return Comparison(int(step), int(lowest), _number(difference), _number(error), int(anchor))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
