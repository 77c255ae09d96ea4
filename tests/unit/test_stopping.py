"""The rule that ends a training by its held-out losses. The oracle is arithmetic by hand, written beside each case."""

import json
import math

import pytest
import torch
from bespoke.training.checkpoint import UnusableState, pack, unpack
from bespoke.training.config import TrainConfig
from bespoke.training.data import LatentSet
from bespoke.training.distributed import World
from bespoke.training.loop import Training
from bespoke.training.record import Run, RunInfo
from bespoke.training.stopping import (
    ALL_STEPS,
    NOTHING_CHANGES,
    STOPS,
    TURNS,
    Comparison,
    StopRule,
    compare,
    is_over,
    quiet_since,
    scatter,
    turned_at,
)
from bespoke.training.validation import validation_batches, validation_scorer
from toy_training import copy_of, one_layer

BASE = [1.0, 2.0, 3.0, 4.0]


def rule_of(stop, *validations):
    """A rule that was given these losses, at the steps 0, 20, 40, ..."""
    rule = StopRule(stop)
    for number, losses in enumerate(validations):
        rule.take(losses)
        rule.add(20 * number)
    return rule


def moved(by, spread=0.0):
    """BASE, raised by `by` and spread around it by + and - `spread`."""
    return [each + by + sign * spread for each, sign in zip(BASE, (1, -1, 1, -1), strict=True)]


def test_the_standard_error_of_paired_differences():
    """Differences 0.1, 0.2, 0.3, 0.4: mean 0.25; squares of the deviations 0.0225 + 0.0025 + 0.0025 + 0.0225 = 0.05;
    over 3 and over 4 that is 0.0041667, whose root is 0.0645497. The samples themselves scatter by more than 1."""
    mean, error = compare([1.1, 2.2, 3.3, 4.4], BASE)
    assert mean == pytest.approx(0.25)
    assert error == pytest.approx(math.sqrt(0.05 / 12))
    with pytest.raises(ValueError, match="1 samples"):
        compare([1.0], [2.0])
    with pytest.raises(ValueError):
        compare([1.0, 2.0], [1.0, 2.0, 3.0])


def falling():
    """Six validations, of steps 0 to 100, each 0.1 lower; the last is spread by 0.1. The curve does not scatter."""
    return [*(moved(-0.1 * i) for i in range(5)), moved(-0.5, 0.1)]


def test_it_turns_at_the_lowest_step_after_two_validations_above_it():
    """Spread +-0.1 on a change has the error sqrt(4 * 0.01 / 3 / 4) = 0.057735, a margin of 0.11547. 0.2 is above it,
    0.1 is not."""
    one = rule_of(TURNS, *falling(), moved(-0.3, 0.2))
    assert one.rows[-1] == (120, 100, pytest.approx(0.2), pytest.approx(0.1 / math.sqrt(3)), 80)
    assert not one.is_over
    two = rule_of(TURNS, *falling(), moved(-0.3, 0.2), moved(-0.2, 0.2))
    assert turned_at(two.rows) == 100
    assert two.is_over
    assert not rule_of(ALL_STEPS, *falling(), moved(-0.3, 0.2), moved(-0.2, 0.2)).is_over
    # 0.1 is less than the margin 0.11547.
    assert not rule_of(TURNS, *falling(), moved(-0.3, 0.2), moved(-0.4, 0.2)).is_over
    # A new lowest between the two.
    assert not rule_of(TURNS, *falling(), moved(-0.3, 0.2), moved(-0.6), moved(-0.3, 0.1)).is_over


def test_a_curve_that_scatters_has_a_wider_margin():
    """The means 3, 2, 3, 2.5 have the second differences 2 and -1.5, whose sizes have the median 1.75; over 0.6745 *
    sqrt(6) = 1.65218 that is 1.05921. Of two means it is 1.49795, and without a spread that is the whole error."""
    assert scatter([3, 2, 3, 2.5]) == pytest.approx(1.05921, rel=1e-5)
    assert scatter([5, 4, 3, 2]) == scatter([5, 4]) == scatter([]) == 0.0
    rule = rule_of(TURNS, *([mean] * 4 for mean in (3, 2, 3, 2.5)))
    assert rule.rows[-1].difference == 0.5
    assert rule.rows[-1].error == pytest.approx(1.49795, rel=1e-5)
    # Up and down by 0.5 after a fall: above the lowest twice in a row, and still no turn.
    means = (3, 2.5, 2, 2.6, 2.2, 2.7, 2.3, 2.8)
    jumping = rule_of(TURNS, *([mean] * 4 for mean in means))
    assert all(row.difference > 0 for row in jumping.rows[-2:])
    assert not jumping.is_over


def test_it_turns_after_ten_validations_without_a_new_lowest():
    """Up and down by far more than noise would allow to tell: the tenth decides, unless it is lower."""
    wide = [moved(0), moved(-0.5), *[moved(-0.4, 1.0 if i % 2 else 2.0) for i in range(9)]]
    assert not rule_of(TURNS, *wide).is_over
    rule = rule_of(TURNS, *wide, moved(-0.4, 1.0))
    assert not any(row.is_above for row in rule.rows)
    assert turned_at(rule.rows) == 20
    assert not rule_of(TURNS, *wide, moved(-0.6, 1.0)).is_over


def test_what_never_fell_below_the_start_has_not_turned():
    rule = rule_of(TURNS, moved(0), *[moved(0.5, 0.01)] * 6)
    assert [row.lowest for row in rule.rows] == [0] * 6
    assert turned_at(rule.rows) is None
    assert quiet_since(rule.rows) is None  # nothing was learned yet, which warm-up does too
    assert not rule.is_over


def test_nothing_changes_after_five_validations_without_a_change():
    fallen = [moved(0), moved(-0.5)]
    flat = [moved(-0.5 - 0.001 * i, 0.1) for i in range(1, 6)]  # margin 0.115
    assert not rule_of(NOTHING_CHANGES, *fallen, *flat[:4]).is_over
    rule = rule_of(NOTHING_CHANGES, *fallen, *flat)
    assert quiet_since(rule.rows) == 20
    assert rule.is_over
    assert not rule_of(TURNS, *fallen, *flat).is_over
    # A rise beyond the noise is a change too, and less than a thousandth is none however small the noise is.
    assert not rule_of(NOTHING_CHANGES, *fallen, *flat[:4], moved(-0.3, 0.1)).is_over
    assert rule_of(NOTHING_CHANGES, *fallen, *[moved(-0.5 - 0.0003 * i) for i in range(1, 6)]).is_over


def test_a_slow_fall_that_adds_up_to_a_change_goes_on():
    """Each validation is 0.04 lower, less than the margin 0.11547 of a spread of 0.1, but three of them are more."""
    rule = rule_of(NOTHING_CHANGES, moved(0), moved(-0.5), *[moved(-0.5 - 0.04 * i, 0.1) for i in range(1, 12)])
    assert [row.anchor for row in rule.rows[:4]] == [20, 20, 20, 80]
    assert not any(is_over(NOTHING_CHANGES, rule.rows[:count]) for count in range(len(rule.rows) + 1))


def test_losses_that_are_no_numbers_are_not_compared():
    rule = rule_of(TURNS, moved(0), [math.nan, 1, 1, 1], moved(-0.5), [math.inf, 1, 1, 1], moved(-1), moved(-1.5))
    assert [row.step for row in rule.rows] == [40, 80, 100]
    assert [row.error for row in rule.rows] == [0, 0, 0]


def test_the_state_goes_through_json_and_decides_alike():
    """At each point the rule that was restored gives the rows of the one that went on."""
    losses = [moved(0), moved(-0.5), *[moved(-0.5 - 0.01 * i, 0.1) for i in range(4)], moved(-0.2), moved(-0.1)]
    whole = rule_of(NOTHING_CHANGES, *losses)
    for cut in range(len(losses)):
        rest = StopRule(NOTHING_CHANGES)
        rest.restore(json.loads(json.dumps(rule_of(NOTHING_CHANGES, *losses[:cut]).state())))
        for number in range(cut, len(losses)):
            rest.take(losses[number])
            rest.add(20 * number)
        assert rest.rows[-1:] == whole.rows[-1:]
        assert rest.is_over == whole.is_over
    for hostile in (
        {"rows": 3},
        {"rows": [[1, 2]]},
        {"lowest": [1]},
        {"lowest": [1, ["x"]]},
        {"lowest": [0, [1.0]], "anchor": [0, [1.0, 2.0]]},
    ):
        with pytest.raises(ValueError):
            StopRule(TURNS).restore(hostile)


def test_the_losses_of_samples_are_those_of_the_batches_in_order():
    """Of 3 pictures at 5 timesteps, in one process and in two; the mean is to the bit that without the samples."""
    data = LatentSet([torch.randn(1, 4, 8, 8) for _ in range(3)], [None] * 3)
    batches = validation_batches(data, range(3), torch.device("cpu"))

    def loss(batch):
        return (batch.t + batch.number) / 3

    kept, means = [], []
    plain, sampled = (
        validation_scorer(batches, loss),
        validation_scorer(batches, loss, None, means.append, kept.append),
    )
    assert plain() == sampled()
    assert kept == [[x for batch in batches for x in loss(batch).double().tolist()]]
    assert means == [[loss(batch).double().mean().item() for batch in batches]]

    class Half(World):
        def all_reduce_numbers(self, numbers):
            halves.append(list(numbers))
            return list(numbers)

    halves = []
    for rank in range(2):
        validation_scorer(batches, loss, Half(rank, 2), keep_samples=lambda losses: None)()
    together = [sum(pair) for pair in zip(*halves, strict=True)]
    assert [each for start in range(0, 18, 6) for each in together[start + 1 : start + 6]] == kept[0]


def training(rule, scores, state=None, steps=400):
    """A training of a small LoRA whose held-out losses are given: those of four samples by step."""
    layer, lora = one_layer(6, 4, rank=2, alpha=2)
    made = TrainConfig(learning_rate=1e-2, batch_size=1, seed=0, steps=steps, stop=rule.stop)

    def loss(micro):
        return (layer(torch.full((2, 6), 0.1 * (1 + micro % 7))) - 1).square().mean()

    def score():
        losses = scores(run.steps_done)
        rule.take(losses)
        return sum(losses) / len(losses)

    run = Training(lora, loss, made, score, state, stopping=rule)
    return lora, run


def turning(step):
    """Falls to step 100 and rises from there; validated each 20 steps."""
    return moved(abs(step - 100) / 100, 0.01 * (step // 20 % 2))


def steps_of(lora, run, stop=None):
    run.initial_validation_loss()
    with lora.attached():
        for event in run:
            if event.step == stop:
                break
    return run


def test_a_training_stops_where_it_has_turned_and_a_resumed_one_at_the_same_step(tmp_path):
    """Lowest at step 100; 120 and 140 are 0.2 and 0.4 above it. Resumed at any step it ends in the same bits."""
    lora, run = training(StopRule(TURNS), turning)
    steps_of(lora, run)
    assert (run.steps_done, run.best_step) == (140, 100)
    whole, rows = copy_of(lora), run.stopping.rows
    plain_lora, plain = training(StopRule(ALL_STEPS), turning)
    steps_of(plain_lora, plain, stop=140)
    assert all(torch.equal(whole[key], value) for key, value in copy_of(plain_lora).items())
    for cut in (1, 100, 119, 120, 139):
        lora, run = training(StopRule(TURNS), turning)
        state = unpack(*pack(steps_of(lora, run, stop=cut).state()))
        lora, run = training(StopRule(TURNS), turning, state)
        steps_of(lora, run)
        assert run.steps_done == 140
        assert run.stopping.rows[-1] == rows[-1]
        assert all(torch.equal(whole[key], value) for key, value in copy_of(lora).items())
    state.stopping = {"rows": 1}
    with pytest.raises(UnusableState, match="when to stop"):
        training(StopRule(TURNS), turning, state)


def test_a_state_without_a_rule_is_that_of_earlier_versions():
    _, run = training(StopRule(TURNS), turning)
    run.stopping = None
    _, metadata = pack(run.state())
    assert "stopping" not in json.loads(metadata["bespoke.state"])


def test_the_record_keeps_the_comparisons_and_cuts_them_at_a_state():
    def record(**progress):
        return Run(RunInfo("lora-0123456789ab", "lora", {}, "base", 2), **progress)

    rows = [Comparison(20, 0, -0.5, 0.01, 20), Comparison(40, 20, 0.25, math.nan, 20)]
    back = Run.from_json(record(comparisons=rows).to_json())
    assert back.comparisons[0] == rows[0]
    assert math.isnan(back.comparisons[1].error)
    assert "comparisons" not in record().to_json()  # as version 0.1 writes it
    resumed = record()
    resumed.restore_progress(back, 30)
    assert resumed.comparisons == rows[:1]
    with pytest.raises(ValueError):
        Run.from_json(record(comparisons=rows).to_json().replace("[[20, 0,", "[[[],"))


def test_the_choice_is_written_only_where_it_is_not_the_default():
    settings = [TrainConfig(steps=9, learning_rate=0.1, batch_size=1, seed=0, stop=stop).settings() for stop in STOPS]
    assert [each.get("stop") for each in settings] == [None, TURNS, NOTHING_CHANGES]
