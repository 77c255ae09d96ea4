"""The leak: how far a training has moved the model at prompts that do not ask for what is learned.

At fixed noise levels and noises the trained model's prediction is compared with the base's, at prompts without the
trigger and at the captions. The squared difference of two models' predictions, summed over the noise levels, bounds the
divergence between the distributions of their pictures (Fan et al. 2023, DPOK, arXiv 2305.16381). The change at the
captions is the unit, so that the leak depends neither on the model's scale nor, much, on how far the training is: a
LoRA at half its strength moves both by about a half.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .distributed import World
from .picture_scores import MOST_COST, passes_of_run
from .validation import TIMESTEPS, shared_numbers

if TYPE_CHECKING:
    from .config import TrainConfig
    from .data import Batch

MOST_PICTURES = 4  # whose latents are noised; held-out ones
FEWEST_POINTS = 4  # of the curve, before another picture is added


class LeakPoint(NamedTuple):
    """The leak at one step: a row of the record, in JSON a list in this order.

    other, own: the mean squared change of the prediction at prompts without the trigger, and at the captions.
    """

    step: int
    other: float
    own: float

    @property
    def leak(self) -> float:
        """How far the other prompts moved, as a multiple of how far the captions did: sqrt(other / own).

        0 where they have not moved at all. NaN where a number is not finite, or where the captions alone stayed.
        """
        if self.other == 0:
            return 0.0
        return math.sqrt(self.other / self.own) if 0 < self.own < math.inf and 0 < self.other < math.inf else math.nan


class LeakPlan(NamedTuple):
    """pictures: how many are used. steps: after which the leak is measured, rising."""

    pictures: int
    steps: tuple[int, ...]


def plan_leak(config: TrainConfig, pictures: int, levels: int = len(TIMESTEPS)) -> LeakPlan | None:
    """What is measured of a run so that it takes at most `MOST_COST` longer; None where one point alone takes more.

    As many points as there are validations after the start, or fewer, evenly spaced, the last at the last step.
    pictures: how many are held out. levels: noise levels of each. A point takes two forward passes for each picture and
    level, and the base's predictions, which are computed once, as many.
    """
    validated = sorted({*range(config.validate_every, config.steps + 1, config.validate_every), config.steps})
    affordable = int(MOST_COST * passes_of_run(config) / (2 * levels))
    for count in range(min(pictures, MOST_PICTURES), 0, -1):
        points = min(len(validated), affordable // count - 1)
        if points >= min(FEWEST_POINTS, len(validated)) or (count == 1 and points >= 1):
            return LeakPlan(count, tuple(validated[-(-len(validated) * i // points) - 1] for i in range(1, points + 1)))
    return None


def spread(prompts: Sequence[str], rows: int, first: int = 0) -> list[str]:
    """The prompts of rows `first` to `first` + `rows` of a grid: all by turns, shifted by one after each round.

    The shift brings each prompt to several noise levels.
    """
    count = len(prompts)
    return [prompts[(row + row // count) % count] for row in range(first, first + rows)]


@dataclass(frozen=True)
class LeakMeter:
    """Measures the leak of one training with the model as it is.

    batches: a picture each, see `validation.grid_batch`. others, captions: the prompts of each batch's samples, without
    the trigger and with it. predict: (batch, prompts) -> the estimate of the clean latent [B, C, ...]. change: (batch,
    two estimates) -> [B], see `objective.prediction_change`. detached: a context in which the model is the frozen base.
    steps: after which `measure` is to be called. world: the processes that share the batches.
    """

    batches: Sequence[Batch]
    others: Sequence[Sequence[str]]
    captions: Sequence[Sequence[str]]
    predict: Callable[[Batch, Sequence[str]], Tensor]
    change: Callable[[Batch, Tensor, Tensor], Tensor]
    detached: Callable[[], AbstractContextManager[None]]
    steps: frozenset[int] = frozenset()
    world: World = field(default_factory=World)
    _base: dict[int, list[Tensor]] = field(default_factory=dict[int, "list[Tensor]"], init=False, repr=False)

    def measure(self, step: int) -> LeakPoint:
        """The leak as that of `step`; the same in all processes, which must all call this."""
        with torch.no_grad():
            numbers = shared_numbers(len(self.batches), 2, self._changes, self.world)
        assert numbers is not None
        other, own = (sum(numbers[start::2]) / len(self.batches) for start in (0, 1))
        return LeakPoint(step, other, own)

    def _changes(self, number: int) -> list[float]:
        """[of the other prompts, of the captions]: the mean change over one batch."""
        batch = self.batches[number]
        if number not in self._base:  # the base stays as it is
            with self.detached():
                self._base[number] = [estimate.cpu() for estimate in self._estimates(number)]
        changes = (
            self.change(batch, now, before.to(now.device))
            for now, before in zip(self._estimates(number), self._base[number], strict=True)
        )
        return [change.cpu().double().mean().item() for change in changes]

    def _estimates(self, number: int) -> list[Tensor]:
        batch = self.batches[number]
        return [self.predict(batch, self.others[number]), self.predict(batch, self.captions[number])]


def mean_leak(curves: Sequence[Sequence[LeakPoint]]) -> list[LeakPoint]:
    """The mean of the curves of several trainings over the steps that all of them have."""
    if not curves:
        return []
    known = [{point.step: point for point in curve} for curve in curves]
    out: list[LeakPoint] = []
    for step in sorted(set(known[0]).intersection(*known[1:])):
        points = [curve[step] for curve in known]
        count = len(points)
        out.append(
            LeakPoint(step, sum(each.other for each in points) / count, sum(each.own for each in points) / count)
        )
    return out
