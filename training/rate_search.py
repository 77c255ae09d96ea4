"""Which learning rates are tried to find one, for how many steps, and which of them is chosen.

A probe is the beginning of the training that it serves: the same pictures, noise levels and noises in the same order,
the same schedule, at another rate. Its loss on the fixed grid is compared with that of other probes after equally many
steps, so what differs is the rate alone. On a scale of log(rate) that loss falls, has one lowest point and rises, so a
section search finds the lowest of n rates with about log(n) / log(1.618) probes (Kiefer 1953, "Sequential minimax
search for a maximum").

The rate that is best over the first steps is too high for the whole training: see `rate_for_training`.

After a few steps a rate at which the loss swings up and down may stand at a low point. A higher rate is therefore
preferred only where the losses of its steps are lower too; see `is_better`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from .config import TrainConfig, check_range
from .errors import InputError
from .picture_scores import TRAINED_SAMPLE

SHARE = 0.2  # of the training's steps and time that the probes take at most
MOST_PROBES = 50  # rates of a search
LEAST_STEPS = 4  # of a probe
SCORED_WITHOUT = 4  # pictures that are scored where none is held out
# The best rate falls with the number of steps as a power of it (Bjorck et al. 2024, "Scaling Optimal LR Across Token
# Horizons", arXiv 2409.19913). The exponent is measured: LoRAs of ranks 4 and 16 for three concepts, two seeds each, 8
# of 200 steps (tests/bench/bench_learning_rate.py).
HORIZON = 0.17
HOPELESS = 3.0  # times the loss of the best probe, at which a probe is ended


def rates_between(lowest: float, highest: float, count: int) -> list[float]:
    """`count` rates from `lowest` to `highest`, each about the same multiple of the one before, of two digits.

    Raises `InputError` where the ends are no rates, not in order or too close for `count` different rates.
    """
    for name, rate in (("lowest", lowest), ("highest", highest)):
        check_range("learning_rate", rate, f" ({name})")
    if not 0 < lowest < highest:
        raise InputError(
            f"lowest is {lowest:g} and highest is {highest:g}; give two learning rates above 0, the lower one first"
        )
    if not 3 <= count <= MOST_PROBES:
        raise InputError(f"probes is {count}; give a whole number from 3 to {MOST_PROBES}")
    ratio = highest / lowest
    inner = [float(f"{lowest * ratio ** (i / (count - 1)):.2g}") for i in range(1, count - 1)]
    rates = [lowest, *inner, highest]
    if any(rate >= higher for rate, higher in itertools.pairwise(rates)):
        raise InputError(
            f"there are no {count} different learning rates of two digits between {lowest:g} and {highest:g}; give "
            "fewer probes or a wider range"
        )
    return rates


def best_by_sections(count: int, rises: Callable[[int, int], bool]) -> int:
    """The number of the best of `count` rates, which get better up to it and then worse, by a Fibonacci search.

    rises: (a number, a higher one) -> whether the higher one is better. At most `most_asked(count)` different numbers
    occur in its arguments.
    """
    compared = set[int]()

    def is_better(left: int, right: int) -> bool:
        """Places begin at 1; none beyond the last is better."""
        compared.update(place for place in (left, right) if place <= count)
        return right <= count and rises(left - 1, right - 1)

    low, (small, large) = 0, _fibonacci_above(count)
    while large > 2:
        left, right = low + large - small, low + small
        if is_better(left, right):
            low = left
        small, large = large - small, small
    compared.add(low + 1)
    best, *others = sorted(compared)
    for place in others:
        best = place if rises(best - 1, place - 1) else best
    return best - 1


def most_asked(count: int) -> int:
    """How many rates `best_by_sections` compares at most."""
    small, large = _fibonacci_above(count)
    compared = 1
    while large > 2:
        small, large = large - small, small
        compared += 1
    return compared


def _fibonacci_above(count: int) -> tuple[int, int]:
    """Two neighbouring Fibonacci numbers, of which the second is the first above `count`."""
    small, large = 1, 2
    while large <= count:
        small, large = large, small + large
    return small, large


@dataclass(frozen=True)
class ProbePlan:
    """steps: of each probe. pictures: how many are scored after it, at every noise level of the grid.

    most: how many probes there are at most.
    """

    steps: int
    pictures: int
    most: int


def plan_probes(config: TrainConfig, rates: int, held_out: int, levels: int) -> ProbePlan:
    """Probes that take at most `SHARE` of the steps of a training and of its time, with their scores.

    They end before the training's first validation, so that nothing of it is missing where a probe is gone on with.
    rates: how many there are. held_out: how many pictures the training validates on; without any, pictures that are
    trained on are scored. levels: noise levels of each. Fewer pictures are scored where scoring all would leave less
    than half of the steps. Raises `InputError` where the training is too short.
    """
    plan = _longest(config, most_asked(rates), held_out, levels)
    if plan.steps < LEAST_STEPS:
        steps = config.steps
        while _longest(replace(config, steps=steps), plan.most, held_out, levels).steps < LEAST_STEPS:
            steps += 10
        raise InputError(
            f"a fifth of {config.steps} steps is too little for {plan.most} short trainings of {LEAST_STEPS} steps and "
            f"their scores; give at least {steps} steps, or fewer probes"
        )
    return plan


def _longest(config: TrainConfig, most: int, held_out: int, levels: int) -> ProbePlan:
    """The longest probes that are affordable; their steps can be too few. most: how many there are at most."""
    step = (TRAINED_SAMPLE + config.gradient_checkpointing) * config.images_per_step  # in forward passes of a sample
    validations = -(-config.steps // config.validate_every) + 1 if held_out else 0
    budget = SHARE * (step * config.steps + validations * held_out * levels)
    longest = min(int(SHARE * config.steps / most), config.validate_every - 1)

    def steps_with(pictures: int) -> int:
        """The steps that are left for a probe; the untrained model is scored too."""
        return min(longest, int((budget - (most + 1) * pictures * levels) / (most * step)))

    pictures = held_out or SCORED_WITHOUT
    while pictures > 1 and steps_with(pictures) < max(LEAST_STEPS, longest / 2):
        pictures -= 1
    return ProbePlan(steps_with(pictures), pictures, most)


def is_hopeless(losses: Sequence[float], best: Sequence[float]) -> bool:
    """Whether a probe can be ended: its training losses lie far above those of the best probe at the same steps.

    Both are of the same pictures, noise levels and noises. best: empty where there is none yet.
    """
    count = len(losses)
    if count < LEAST_STEPS or len(best) < count:
        return False
    own, other = sum(losses[count - LEAST_STEPS :]), sum(best[count - LEAST_STEPS : count])
    return own > HOPELESS * other


def is_better(higher_loss: float, higher_steps: Sequence[float], loss: float, steps: Sequence[float]) -> bool:
    """Whether a probe at a higher rate is preferred to one at a lower rate.

    Its loss on the fixed grid has to be lower, and so has the mean loss of the second half of its steps: a loss that
    swings is lower at times only. loss: on the grid. steps: the losses of the steps, of the same pictures, noise levels
    and noises for both.
    """
    count = min(len(higher_steps), len(steps))
    first = count // 2
    return higher_loss < loss and sum(higher_steps[first:count]) <= sum(steps[first:count])


def rate_for_training(rates: Sequence[float], best: float, losses: Mapping[float, float], share: float) -> float:
    """The one of `rates` that is nearest to the best rate for a training of which the probes are a part.

    rates: those that can be chosen, rising. best: the rate of the best probe. losses: of all probes on the fixed grid,
    by rate. share: the steps of a probe over those of the training. The parabola through the best probe and its
    neighbours, over log(rate), has its lowest point at the best rate for the probes' length; see `HORIZON` for the
    other length. On a scale of log(rate), as everywhere here.
    """
    wanted = math.log(best) + _to_lowest_point(best, losses) + HORIZON * math.log(share)
    return min(rates, key=lambda rate: abs(math.log(rate) - wanted))


def _to_lowest_point(best: float, losses: Mapping[float, float]) -> float:
    """From log(best) to the lowest point of the parabola, at most halfway to a neighbour; 0 without both of these."""
    tried = sorted(rate for rate, loss in losses.items() if math.isfinite(loss))
    at = tried.index(best)
    if not 0 < at < len(tried) - 1:
        return 0.0
    lower, higher = (math.log(tried[at + i] / best) for i in (-1, 1))
    fall, rise = (losses[tried[at + i]] - losses[best] for i in (-1, 1))
    # The parabola a x^2 + b x through (0, 0), (lower, fall) and (higher, rise).
    a = (rise / higher - fall / lower) / (higher - lower)
    b = fall / lower - a * lower
    return min(max(-b / (2 * a), lower / 2), higher / 2) if a > 0 else 0.0
