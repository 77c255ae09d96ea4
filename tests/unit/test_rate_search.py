"""Which learning rates a search tries, for how many steps: counted by hand."""

from __future__ import annotations

import math
import re

import pytest
from bespoke.training.config import TrainConfig
from bespoke.training.errors import InputError
from bespoke.training.picture_scores import TRAINED_SAMPLE
from bespoke.training.rate_search import (
    HORIZON,
    LEAST_STEPS,
    SHARE,
    best_by_sections,
    is_better,
    is_hopeless,
    most_asked,
    plan_probes,
    rate_for_training,
    rates_between,
)


@pytest.mark.parametrize("count", range(1, 40))
def test_a_section_search_finds_every_lowest_loss_with_few_questions(count):
    """Of F(n) - 1 numbers at most n - 2 are asked for, with F(3) = 2, F(4) = 3, ... (Kiefer 1953)."""
    fibonacci = [1, 1, 2]
    while fibonacci[-1] <= count:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    for best in range(count):
        asked = set()

        def rises(one, higher, best=best, asked=asked):
            asked.update((one, higher))
            assert one < higher
            return abs(higher - best) ** 1.5 < abs(one - best) ** 1.5

        assert best_by_sections(count, rises) == best
        assert len(asked) <= len(fibonacci) - 2 == most_asked(count)


def test_a_higher_rate_is_preferred_where_its_steps_are_lower_too():
    """Losses of the small model at rank 4 on teal, after 16 steps and in steps 9 to 16, in thousandths: 0.004 has the
    lowest loss on the grid there, and after 200 steps it is 27 % worse than 0.0016."""
    low, middle, high = (30.9, [27.8, 195.7, 46.4]), (27.9, [27.3, 182.0, 39.4]), (27.4, [41.0, 196.7, 36.4])
    steps = [40.0, 40.0, 40.0]
    assert is_better(middle[0], steps + middle[1], low[0], steps + low[1])
    assert not is_better(high[0], steps + high[1], middle[0], steps + middle[1])
    assert not is_better(math.inf, steps, low[0], steps + low[1])


def test_rates_have_equal_ratios_and_two_digits():
    """10 ** 0.5 is 3.16; the ends stay as they are given."""
    assert rates_between(1e-5, 1e-2, 7) == [1e-5, 3.2e-5, 1e-4, 3.2e-4, 1e-3, 3.2e-3, 1e-2]
    assert rates_between(1.234e-4, 1.234e-2, 3) == [1.234e-4, 1.2e-3, 1.234e-2]
    assert rates_between(2e-4, 2e-2, 3) == [2e-4, 2e-3, 2e-2]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((1e-2, 1e-5, 7), "the lower one first"),
        ((0.0, 1e-2, 7), "above 0"),
        ((1e-5, 1e-2, 2), "from 3 to 50"),
        ((1e-5, 1e-2, 51), "from 3 to 50"),
        ((1e-5, 1.01e-5, 7), "wider range"),
        ((1e-5, 2.0, 7), r"learning_rate \(highest\) is 2.0"),
    ],
)
def test_values_that_give_no_rates_are_refused(values, words):
    with pytest.raises(InputError, match=words):
        rates_between(*values)


@pytest.mark.parametrize("steps", [160, 200, 400, 3000])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("held_out", [0, 2, 4, 40])
def test_probes_take_a_fifth_of_the_steps_and_of_the_time_at_most(steps, batch, held_out):
    """The time in forward passes of a sample, of a training that validates at the start and then every
    `validate_every` steps."""
    config = TrainConfig(steps, 1e-3, batch, 0)
    plan = plan_probes(config, 7, held_out, 5)
    validations = math.ceil(steps / config.validate_every) + 1
    whole = steps * batch * TRAINED_SAMPLE + validations * held_out * 5
    probes = 4 * plan.steps * batch * TRAINED_SAMPLE + 5 * plan.pictures * 5
    assert probes <= SHARE * whole
    assert 4 * plan.steps <= SHARE * steps
    assert LEAST_STEPS <= plan.steps < config.validate_every
    assert 1 <= plan.pictures <= (held_out or 4)


def test_a_training_that_is_too_short_is_refused_and_the_error_says_how_long_is_enough():
    with pytest.raises(InputError, match="a fifth of 40 steps is too little for 4 short trainings") as caught:
        plan_probes(TrainConfig(40, 1e-3, 4, 0), 7, 4, 5)
    steps = int(re.search(r"at least (\d+) steps", str(caught.value))[1])
    assert plan_probes(TrainConfig(steps, 1e-3, 4, 0), 7, 4, 5).steps >= LEAST_STEPS
    with pytest.raises(InputError, match=f"at least {steps} steps"):
        plan_probes(TrainConfig(steps - 10, 1e-3, 4, 0), 7, 4, 5)


def test_a_probe_is_ended_where_its_losses_are_far_above_the_best():
    best = [0.1] * 20
    assert not is_hopeless([0.1, 0.1, 9.0], best)  # too early
    assert not is_hopeless([0.29] * 8, best)
    assert is_hopeless([0.1] * 4 + [0.31] * 4, best)
    assert not is_hopeless([9.0] * 8, [])


def parabola(rates, lowest):
    """{rate: a loss of which the lowest point over log(rate) is at `lowest`}."""
    return {rate: 0.2 + 0.05 * math.log(rate / lowest) ** 2 for rate in rates}


@pytest.mark.parametrize("lowest", [4e-4, 1e-3, 2e-3])
def test_the_rate_for_a_training_is_lower_than_the_lowest_point_of_short_ones(lowest):
    """By hand: the power of the share of the steps times the lowest point of the parabola, on a fine grid of rates."""
    tried = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    losses = parabola(tried, lowest)
    fine = [1e-5 * 1.02**i for i in range(400)]
    found = rate_for_training(fine, min(losses, key=losses.get), losses, 8 / 200)
    assert found == pytest.approx(lowest * (8 / 200) ** HORIZON, rel=0.011)
    assert rate_for_training(fine, min(losses, key=losses.get), losses, 1.0) == pytest.approx(lowest, rel=0.011)


def test_the_rate_for_a_training_without_neighbours_of_the_best():
    """The best is at the end of those that could be trained: only the length counts."""
    losses = {1e-3: 0.2, 3e-3: 0.1, 1e-2: math.inf}
    fine = [1e-5 * 1.02**i for i in range(400)]
    assert rate_for_training(fine, 3e-3, losses, 0.04) == pytest.approx(3e-3 * 0.04**HORIZON, rel=0.011)
    assert rate_for_training((1e-3, 3e-3), 3e-3, losses, 0.02) == 1e-3  # 1.54e-3 is nearer to 1e-3 by its logarithm


def test_a_best_probe_off_the_lowest_point_moves_half_way_at_most():
    """A rate that swings has a lower loss than the best: the parabola has no lowest point near the best."""
    losses = {1e-3: 0.25, 3e-3: 0.2, 9e-3: 0.19}
    fine = [1e-5 * 1.02**i for i in range(400)]
    assert rate_for_training(fine, 3e-3, losses, 1.0) == pytest.approx(3e-3 * 3**0.5, rel=0.011)
