"""Trainings in which no step scores better than the start, or whose held-out losses are no numbers.

The scores are given by the test; everything else is a real training. The oracle is arithmetic: the parameters after n
steps differ from those before the first, so a result that equals the start is none.
"""

import math
from itertools import chain, count, repeat

import pytest
import tiny
from bespoke.nodes.bridge.runs.index import RunIndex
from bespoke.nodes.bridge.runs.store import RunStore
from bespoke.training.record import RunState
from helpers import train_with_held_out

NAN = math.nan


@pytest.fixture(scope="module")
def models(comfyui):
    return tiny.patcher(tiny.SMALLEST), tiny.clip(), tiny.vae()


@pytest.fixture
def scores(monkeypatch):
    """Set the held-out losses of each training that follows: the first is that of step 0, the last repeats."""

    def give(*losses):
        def scorer(batches, loss, world, keep):
            values = chain(losses, repeat(losses[-1]))
            return lambda: next(values)

        monkeypatch.setattr("bespoke.nodes.bridge.trainer.validation_scorer", scorer)

    return give


def train(run_node, models, pictures=12, node="BespokeTrainLora", **changes):
    return train_with_held_out(run_node, models, pictures, node, **dict(steps=20) | changes)


def last_run():
    return RunStore(RunIndex().look().runs[0].summary.id).record()


def moved(lora):
    """The largest number of the up factors, which start at zero."""
    return max(float(value.abs().max()) for key, value in lora.items() if "lora_up" in key)


@pytest.mark.parametrize("pictures", [6, 12])
@pytest.mark.parametrize("rises", [(1.0, 1.5, 2.0), (1.0, 1.001, 1.0)])
def test_the_last_step_is_kept_where_none_is_better(models, run_node, scores, pictures, rises):
    scores(*rises)
    _, lora, loss, run, report, _ = train(run_node, models, pictures)
    assert moved(lora) > 1e-3
    assert len(loss["loss"]) == 20
    assert run.state == RunState.FINISHED
    assert run.no_step_improved
    assert "NO STEP WAS BETTER than the start" in report
    assert "Kept: the last step, 20" in report
    assert ("a lower learning_rate (it was 0.01)" in report) == (rises[-1] > 1.02)
    assert ("a higher learning_rate (it was 0.01)" in report) == (rises[-1] < 1.02)
    assert "fewer steps" not in report


@pytest.mark.parametrize("rate", [0.0, 1e-2])
def test_a_lora_of_zeros_is_said(models, run_node, rate):
    """At learning rate 0 no number moves, so the factors that start at zero stay there."""
    _, lora, _, _, report, _ = train(run_node, models, steps=2, validation=0, learning_rate=rate)
    assert ("NOTHING WAS LEARNED" in report) == (moved(lora) == 0.0) == (rate == 0.0)


@pytest.mark.parametrize(("end", "said"), [(0.99995, True), (0.9998, False)])
@pytest.mark.parametrize("pictures", [6, 12])
def test_a_gain_that_is_none_is_said(models, run_node, scores, pictures, end, said):
    """By hand: 5e-5 and 2e-4 of the start's loss, on both sides of `LEAST_GAIN`."""
    scores(1.0, 1.0, end)
    report = train(run_node, models, pictures)[4]
    assert ("That is less than 0.01% lower than at the start: hardly anything was learned." in report) == said
    assert "NO STEP WAS BETTER" not in report


def test_the_best_step_is_kept_where_one_is_better(models, run_node, scores):
    scores(1.0, 0.5, 2.0)
    _, best, _, _, report, _ = train(run_node, models)
    scores(1.0, 0.5, 0.25)
    _, last, *_ = train(run_node, models)
    assert 0 < moved(best) < moved(last)
    assert "Kept: step 10." in report


def test_a_word_is_not_its_start(models, run_node, scores):
    scores(1.0, 1.5)
    _, word, _, _, run, report = train(run_node, models, node="BespokeTrainTextualInversion")
    start = train(run_node, models, node="BespokeTrainTextualInversion", steps=1, learning_rate=0.0, validation=0)[1]
    assert max(float((word[key] - start[key]).abs().max()) for key in start) > 1e-4
    assert run.best[0] == 0
    assert "NO STEP WAS BETTER than the start" in report


def test_finishing_before_the_second_validation_gives_what_was_learned(models, run_node, scores, monkeypatch):
    asked = count()  # once before the first step, then after each
    monkeypatch.setattr("bespoke.nodes.bridge.runs.context.consume_finish_request", lambda run_id: next(asked) == 5)
    scores(1.0)
    _, lora, _, run, report, _ = train(run_node, models)
    assert (run.state, len(run.losses), run.held_out) == (RunState.KEPT, 5, [(0, 1.0)])
    assert moved(lora) > 1e-3
    assert "Kept: the last step." in report
    assert "NO STEP" not in report


@pytest.mark.parametrize("pictures", [6, 12])
@pytest.mark.parametrize("keep", ["best", "last"])
def test_losses_that_are_no_numbers_end_the_run_as_failed(models, run_node, scores, pictures, keep):
    scores(1.0, NAN)
    with pytest.raises(ValueError, match="Bespoke Train LoRA: the held-out loss was not a number at any of 2") as error:
        train(run_node, models, pictures, keep=keep)
    assert "what was learned before it is kept; lower the learning rate" in str(error.value)
    assert "precision" not in str(error.value)  # it is fp32
    run = last_run()
    assert run.state == RunState.FAILED
    assert len(run.losses) == 20
    assert RunStore(run.id).state().step == 20
    with pytest.raises(ValueError, match="not a number at any of 2"):  # also when it is queued again
        train(run_node, models, pictures, keep=keep, resume=True)


def test_a_base_that_gives_no_numbers_is_refused_before_the_first_step(models, run_node, scores):
    scores(NAN)
    with pytest.raises(ValueError, match="the held-out loss is nan before the first step, so the base model gives no"):
        train(run_node, models)
    assert last_run().state == RunState.FAILED
    assert last_run().losses == []


def test_single_losses_that_are_no_numbers_are_named(models, run_node, scores):
    scores(1.0, NAN, 0.5)
    *_, run, report, _ = train(run_node, models)
    assert run.state == RunState.FINISHED
    assert "The held-out loss was not a number at 1 of 3 validations, first at step 10" in report
    assert "Kept: step 20." in report
