"""Trainings that end by their held-out losses, which the test gives; all else is a real training.

The oracle is arithmetic by hand: of two pictures at five noise levels each sample moves by the same amount, so the
error of a difference is that of the spread that the test adds.
"""

from itertools import chain, count, repeat

import pytest
import tiny
import torch
from bespoke.nodes.bridge.runs.store import RunStore
from bespoke.nodes.jobs.checks import request_of
from bespoke.nodes.jobs.job import Job
from bespoke.nodes.textual_inversion.node import request_from_inputs
from bespoke.training.record import RunState
from bespoke.training.run_identity import run_id
from helpers import train_with_held_out

SAMPLES = [0.1, 0.2, 0.3, 0.4, 0.5] * 2
TURNING = (0.0, -0.01, -0.02, -0.03, -0.04, -0.05, -0.02, -0.01)  # beside the start, at the steps 0, 10, ..., 70
FLAT = (0.0, -0.05, *repeat(-0.05, 5))


@pytest.fixture(scope="module")
def models(comfyui):
    return tiny.patcher(tiny.SMALLEST), tiny.clip(), tiny.vae()


@pytest.fixture
def curves(monkeypatch):
    """Give the held-out losses of each training that follows, by how far they lie above the start; the last repeats."""

    def give(*trainings):
        left = chain(trainings, repeat(trainings[-1]))

        def scorer(batches, loss, world, keep, keep_samples=lambda losses: None):
            changes, calls = next(left), count()

            def score():
                number = next(calls)
                samples = [each + changes[min(number, len(changes) - 1)] + 1e-4 * (number % 2) * (-1) ** i
                           for i, each in enumerate(SAMPLES)]  # fmt: skip
                keep([sum(samples) / len(samples)] * len(batches))
                keep_samples(samples)
                return sum(samples) / len(samples)

            return score

        monkeypatch.setattr("bespoke.nodes.bridge.trainer.validation_scorer", scorer)

    return give


def train(run_node, models, pictures=12, node="BespokeTrainLora", **changes):
    return train_with_held_out(run_node, models, pictures, node, **dict(steps=100, score_pictures="off") | changes)


def test_a_run_ends_where_it_has_turned_and_learns_what_all_steps_learn(models, run_node, curves):
    """Lowest at step 50; 60 and 70 are 0.03 and 0.04 above it. The spread of 1e-4 gives the error 1e-4 / 3."""
    curves(TURNING)
    _, lora, loss, run, report, _ = train(run_node, models, stop="when validation turns")
    assert run.state is RunState.KEPT
    assert len(loss["loss"]) == 70
    falling = [(step, step - 10, -0.01) for step in range(10, 60, 10)]
    assert [(row.step, row.lowest, round(row.difference, 6)) for row in run.comparisons] == [
        *falling,
        (60, 50, 0.03),
        (70, 50, 0.04),
    ]
    assert [round(row.error * 3e4, 3) for row in run.comparisons] == [1.0] * 6 + [0.0]
    assert (
        "Stopped after step 70 of 100: the held-out loss turned at step 50. It was higher by 0.0300 at step 60 (noise "
        "0.0001) and by 0.0400 at step 70 (noise 0.0000), more than its noise (2 standard errors of the difference)."
    ) in report
    assert "Kept: step 50." in report
    assert RunStore(run.id).record().comparisons == run.comparisons
    # The same request goes on from its end, and gives the same.
    curves(TURNING)
    _, again, _, same, *_ = train(run_node, models, stop="when validation turns", resume=True)
    assert (same.id, same.comparisons, same.state) == (run.id, run.comparisons, RunState.KEPT)
    assert all(torch.equal(again[key], value) for key, value in lora.items())
    # All steps: the same losses up to there, and no comparison.
    curves(TURNING)
    _, _, whole, plain, said, _ = train(run_node, models)
    assert whole["loss"][:70] == loss["loss"]
    assert plain.state is RunState.FINISHED
    assert plain.comparisons == []
    assert "Stopped" not in said
    assert plain.id != run.id
    assert plain.info.settings.get("stop") is None


def test_a_word_ends_where_nothing_changes(models, run_node, curves):
    """Five validations, of steps 20 to 60, have no change beside step 10: the spread is 1e-4, the fall 0."""
    curves(FLAT)
    *_, run, report = train(run_node, models, node="BespokeTrainTextualInversion", stop="when nothing changes")
    assert (len(run.losses), run.state) == (60, RunState.KEPT)
    assert "Stopped after step 60 of 100: in 5 validations since step 10 the held-out loss changed by no more" in report
    assert run.info.settings["stop"] == "when nothing changes"


def test_a_run_that_does_not_turn_says_so(models, run_node, curves):
    curves((0.0, -0.01, -0.02, -0.03))
    *_, run, report, _ = train(run_node, models, steps=30, stop="when validation turns")
    assert run.state is RunState.FINISHED
    assert "All 30 steps were trained: the held-out loss did not turn (-0.0100 beside step 20 at the end" in report


def test_the_trainings_of_a_small_set_end_one_by_one(models, run_node, curves):
    """Six pictures, two left out in each of three trainings: the first has turned at step 50, the others never do.
    Their mean is lowest at step 70: (-0.01 - 2 * 0.084) / 3 = -0.0593; at step 50 it is (-0.05 - 2 * 0.06) / 3."""
    falling = [-0.012 * i for i in range(9)]
    curves(TURNING, falling, falling)
    *_, run, report, _ = train(run_node, models, 6, steps=80, stop="when validation turns")
    folds = [RunStore(run_id("lora", {"rotation": n}, run.id, "")).record() for n in (1, 2, 3)]
    assert [len(fold.losses) for fold in folds] == [70, 80, 80]  # the first was not taken for a finish by the user
    assert [step for step, _ in run.held_out] == list(range(0, 80, 10))
    assert "1 of 3 trainings ended when validation turns, after 70 steps" in report
    assert run.comparisons == []
    assert run.state is RunState.FINISHED
    assert len(run.losses) == 70


@pytest.mark.parametrize("node", ["BespokeTrainLora", "BespokeTrainTextualInversion"])
def test_without_held_out_pictures_there_is_nothing_to_stop_by(models, run_node, node):
    with pytest.raises(Exception, match="stop is .when nothing changes.*none is held out; set validation to 2"):
        train(run_node, models, node=node, validation=0, stop="when nothing changes")


def test_the_word_keeps_its_patience_by_default_and_a_job_reads_what_was_chosen():
    """`after 5 without a gain` is what the trainer of words has always done: patience 5, and no setting of its own."""
    values = dict(name="w", init_text="red", steps=9, learning_rate=0.1, batch_size=1, seed=0)
    made = {stop: request_from_inputs(values | ({"stop": stop} if stop else {})) for stop in (
        "", "after 5 without a gain", "all steps", "when validation turns")}  # fmt: skip
    assert [(each.train.patience, each.train.stop) for each in made.values()] == [
        (5, "all steps"),
        (5, "all steps"),
        (0, "all steps"),
        (0, "when validation turns"),
    ]
    assert [each.settings().get("stop") for each in made.values()] == [
        None,
        None,
        "all steps",
        "when validation turns",
    ]
    for request in made.values():
        job = Job(None, "textual inversion", request.settings(), {}, None, {}, {}, {})
        assert request_of(job) == request
