"""Find Learning Rate: its probes are the beginnings of the trainer's own runs, which go on after the chosen one."""

from __future__ import annotations

import os
import re
import time

import comfy.model_management
import pytest
import tiny
import torch
from bespoke.nodes.bridge.learning_rate.book import FOLDER, Probe, ProbeBook, note_of
from bespoke.nodes.bridge.learning_rate.report import report as describe
from bespoke.nodes.bridge.learning_rate.search import Found
from bespoke.nodes.bridge.runs.store import RunStore, runs_folder
from bespoke.training.adapters import ADAPTERS
from bespoke.training.checkpoint import State
from bespoke.training.errors import InputError
from bespoke.training.loop import Training
from bespoke.training.rate_search import ProbePlan
from bespoke.training.record import Run, RunInfo, RunState
from bespoke.training.stopping import NOTHING_CHANGES
from helpers import sprite_set

STEPS, PROBE, MOST = 120, 4, 4  # steps of the training and of a probe; probes of seven rates
RANGE = dict(lowest=1e-3, highest=1.0, probes=7)
SETTINGS = dict(steps=STEPS, batch_size=2, rank=2, alpha=2.0, precision="fp32")


@pytest.fixture(scope="module")
def models(comfyui):
    model, clip, vae = tiny.patcher(tiny.SMALLEST), tiny.clip(), tiny.vae()
    return dict(model=model, clip=clip, vae=vae)


@pytest.fixture(scope="module")
def sets():
    return dict(
        images=sprite_set(2, 4, side=64, colour="teal"), validation_images=sprite_set(9, 2, side=64, shape="heart")
    )


@pytest.fixture
def steps_done(monkeypatch):
    """[number of optimiser steps] since the test began."""
    count, own = [0], Training._update_parameters

    def update(self, *resting):
        count[0] += 1
        own(self, *resting)

    monkeypatch.setattr(Training, "_update_parameters", update)
    return count


def find(run_node, models, sets, **changes):
    return run_node("BespokeFindLearningRate", **models, **sets, **RANGE | SETTINGS | changes)


def train(run_node, models, sets, **changes):
    return run_node("BespokeTrainLora", **models, **sets, **SETTINGS | dict(score_pictures="off") | changes)


def test_the_training_goes_on_after_the_probe_and_ends_in_the_same_bits(run_node, models, sets, steps_done):
    """The oracle is the training at the found rate that begins anew: losses, held-out curve, what `stop` compares, leak
    and LoRA."""
    same = dict(seed=1, stop=NOTHING_CHANGES)
    rate, plot, report = find(run_node, models, sets, **same)
    assert rate in (1e-3, 3.2e-3, 1e-2, 3.2e-2, 0.1, 0.32, 1.0)
    assert plot.shape == (1, 560, 960, 3)
    assert report.startswith(f"Learning rate {rate:g} for {SETTINGS['steps']} steps.")
    assert "2 pictures held out of the training" in report
    assert f"goes on after step {PROBE}, which are done" in report
    assert not [path for path in (runs_folder() / FOLDER).iterdir() if path.is_dir()]
    before = steps_done[0]
    assert before <= MOST * PROBE
    _, lora, loss, run, text, _ = train(run_node, models, sets, learning_rate=rate, sample_every=60, **same)
    assert steps_done[0] - before == len(run.losses) - PROBE
    assert f"The first {PROBE} steps were done by Find Learning Rate." in text
    report = find(run_node, models, sets, **same)[2]
    assert f"is there from before, with {len(run.losses)} steps done. The trainer goes on after them." in report
    _, anew, losses, other, *_ = train(run_node, models, sets, learning_rate=rate, resume=False, **same)
    assert other.id == run.id
    assert loss == losses
    assert [step for step, _ in run.samples][:2] == [0, 60]  # the base's is drawn too
    assert run.held_out == other.held_out
    assert run.comparisons == other.comparisons
    assert run.comparisons[0][:2] == (10, 0)  # the first validation of the training, beside that of the start
    assert run.leak == other.leak
    assert [row[:4] for row in run.pictures] == [row[:4] for row in other.pictures]
    assert all(torch.equal(value, anew[key]) for key, value in lora.items())


def test_a_search_is_interrupted_and_goes_on_and_a_repeated_one_trains_nothing(
    run_node, models, sets, steps_done, monkeypatch
):
    counted = Training._update_parameters

    def update(self, *resting):
        counted(self, *resting)
        if steps_done[0] == PROBE + 2:  # in the second probe
            comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(Training, "_update_parameters", update)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        find(run_node, models, sets, seed=2)
    assert PROBE < steps_done[0] <= 2 * PROBE
    first = steps_done[0]
    rate, _, report = find(run_node, models, sets, seed=2)
    assert ", 1 known from before" in report
    assert steps_done[0] - first <= (MOST - 1) * PROBE
    done = steps_done[0]
    again, _, report = find(run_node, models, sets, seed=2)
    assert (again, steps_done[0]) == (rate, done)
    assert "none was run now" in report
    _, _, report = find(run_node, models, sets, seed=2, resume=False)
    assert steps_done[0] > done
    assert "begins anew: resume is off" in report


def test_a_search_with_so_many_probes_that_fewer_pictures_are_scored_begins_anew(run_node, models, sets):
    reports = [find(run_node, models, sets, seed=9, steps=160, probes=probes)[2] for probes in (7, 20)]
    assert ["2 pictures held out" in report for report in reports] == [True, False]
    assert "1 picture held out of the training" in reports[1]
    assert "begins anew: not all of the held-out pictures are scored" in reports[1]


def test_a_lower_loss_of_a_rate_that_swings_is_explained():
    probes = {rate: Probe(rate, 4, 100, loss, [loss], [0.1] * 4) for rate, loss in ((1e-3, 0.2), (2e-3, 0.19))}
    told = describe(Found((1e-3, 2e-3, 3e-3), probes, 0.3, 1e-3, ProbePlan(4, 1, 4), True, 2, 1.0, 4, True, "", 1e-3))
    assert told.startswith("Learning rate 0.001 for 100 steps.")
    assert "0.001 has the lowest loss with steady steps after 4 steps" in told
    assert "0.002 has a lower loss and does not count as the best, since its last steps had higher losses" in told
    assert "worse" not in told


@pytest.mark.parametrize(
    ("there", "probe", "steps", "begun"),
    [
        (None, (4, 120), 120, (4, 120)),
        ((4, 120), (7, 160), 160, (7, 160)),  # a probe of a training of another length
        ((4, 120), (7, 120), 120, (7, 120)),
        ((7, 120), (4, 120), 120, (7, 120)),
        ((30, 120), (7, 160), 160, (30, 120)),  # the trainer has gone on with it
        (None, (4, 120), 160, None),  # left behind by a search that was interrupted
    ],
)
def test_a_run_from_before_stays_unless_it_is_a_worse_probe(runs, there, probe, steps, begun):
    """(steps, of): the learning rates of 160 steps are others than those of 120, so a probe of 120 is no beginning."""
    run_id = "lora-00000000f1d0"
    book = ProbeBook("lora-00000000b00c")

    def run_of(done, of, probed):
        info = RunInfo(run_id, "lora", {"steps": of}, "base", 4)
        return Run(info, [0.1] * done, state=RunState.INTERRUPTED, notes=[note_of(probed)])

    if there is not None:
        RunStore(run_id).save(State(there[0], {"a": torch.zeros(1)}, {}), run_of(*there, min(there[0], 7)))
    book.save_state(run_of(*probe, probe[0]), State(probe[0], {"a": torch.ones(1)}, {}))
    found = book.hand_over(run_id, steps)
    assert (found and (len(found.losses), found.info.settings["steps"])) == begun
    if begun is not None:
        assert RunStore(run_id).state().step == begun[0]


@pytest.mark.parametrize("kind", list(ADAPTERS))
def test_every_kind_of_adapter_has_a_rate(run_node, models, sets, kind):
    rate, _, report = find(run_node, models, sets, seed=3, adapter=kind, targets="attention + feed-forward")
    rows = [line.split(" | ") for line in report.splitlines() if line.count(" | ") == 2][1:]
    losses = {float(one): float(loss) for one, loss, _ in rows if loss != "-"}
    assert len(rows) >= 3
    best = float(re.search(r"(\S+) has the lowest loss", report)[1])
    assert losses[best] == min(losses.values())
    assert best / 3.3 < rate <= best  # at most one rate lower, for the length of the training
    assert len(set(losses.values())) == len(losses)


WORD = dict(name="a-word", init_text="red", steps=160, validation=2, batch_size=2, seed=4, precision="fp32")


def find_for_word(run_node, models, images):
    return run_node("BespokeFindWordLearningRate", **models, **WORD, images=images, lowest=1e-3, highest=1.0, probes=7)


@pytest.fixture(scope="module")
def things():
    return sprite_set(3, 12, side=64, colour="pink", word="thing")


def test_a_word_has_a_rate(run_node, models, things, steps_done):
    rate, plot, report = find_for_word(run_node, models, things)
    assert report.startswith(f"Learning rate {rate:g} for {WORD['steps']} steps.")
    assert "2 pictures held out of the training" in report
    assert "goes on after step" in report
    assert 0 < steps_done[0] <= 0.2 * WORD["steps"]
    assert plot.shape == (1, 560, 960, 3)


@pytest.mark.slow
def test_the_training_of_a_word_goes_on_and_ends_in_the_same_bits(run_node, models, things, steps_done):
    """The oracle is the training that begins anew."""
    rate, *_ = find_for_word(run_node, models, things)
    before, more = steps_done[0], dict(images=things, score_pictures="off", learning_rate=rate)
    _, word, _, loss, run, _ = run_node("BespokeTrainTextualInversion", **models, **WORD, **more)
    assert steps_done[0] - before < len(loss["loss"])
    _, anew, _, losses, other, _ = run_node("BespokeTrainTextualInversion", **models, **WORD, **more, resume=False)
    assert run.id == other.id
    assert loss == losses
    assert run.held_out == other.held_out
    assert all(torch.equal(value, anew[key]) for key, value in word.items())


def test_without_held_out_pictures_trained_ones_are_scored(run_node, models, sets):
    _, _, report = find(run_node, models, {"images": sets["images"]}, seed=5)
    assert re.search(r"Judged by the loss on \d pictures? of the training set, since none is held out", report)
    assert "goes on after step" in report


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(warmup_steps=20), "warm-up steps are left out of the probes"),
        pytest.param(dict(ema=0.5), "the average of ema is left out of the probes", marks=pytest.mark.slow),
    ],
)
def test_a_training_that_the_probes_do_not_begin_starts_anew(run_node, models, sets, changes, words):
    rate, _, report = find(run_node, models, sets, seed=6, **changes)
    assert f"begins anew: {words}" in report
    assert RunStore(train(run_node, models, sets, seed=6, learning_rate=rate, **changes)[3].id).record() is not None


def test_cross_validation_scores_the_pictures_that_its_first_training_leaves_out(run_node, models, sets):
    _, _, report = find(run_node, models, {"images": sets["images"]}, seed=7, validation=1, steps=200)
    assert "1 picture held out of the training" in report
    assert "begins anew: cross-validation trains on other pictures first" in report


def test_a_rate_at_an_edge_of_the_range_says_to_widen_it(run_node, models, sets):
    rate, _, report = find(run_node, models, sets, seed=8, lowest=1e-6, highest=1e-4)
    assert rate <= 1e-4
    assert "Set lowest to 1e-05 and highest to 0.001." in report or "HARDLY ANYTHING WAS LEARNED" in report


@pytest.mark.parametrize(
    ("rates", "rate", "words"),
    [
        ((1e-5, 1e-3, 1e-2), 1e-2, "Set lowest to 0.0001 and highest to 0.1."),
        ((1e-5, 1e-3, 1e-2), 1e-5, "Set lowest to 1e-06 and highest to 0.001."),
        ((5e-4, 0.1, 0.5), 0.5, "Set lowest to 0.001 and highest to 1."),  # the trainers take 1 at most
        ((1e-3, 0.1, 1.0), 1.0, "It is the highest rate that a trainer takes. Give more steps."),
    ],
)
def test_a_range_is_moved_within_what_the_trainers_take(rates, rate, words):
    probes = {each: Probe(each, 4, 100, 0.1 if each == rate else 0.2, [0.1], [0.1] * 4) for each in rates}
    found = Found(rates, probes, 0.3, rate, ProbePlan(4, 1, 4), True, 3, 1.0, 4, True, "", rate)
    assert words in describe(found)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(optimizer="Prodigy (built in)"), "which finds the learning rate itself"),
        (dict(steps=30), "a fifth of 30 steps is too little"),
        (dict(lowest=1.0, highest=0.1), "the lower one first"),
    ],
)
def test_what_has_no_rate_to_find_is_refused(run_node, models, sets, changes, words):
    with pytest.raises(InputError, match=words):
        find(run_node, models, sets, **changes)


def test_a_bad_sample_prompt_of_the_trainer_is_refused_before_the_search(
    run_node, models, sets, steps_done, monkeypatch
):
    """By ComfyUI when the graph is queued, and by the search, which runs all the same where its outputs are shown."""
    import asyncio

    import execution
    from bespoke.nodes.bridge import running_prompt

    bad = "a cat\na dog --ar 3:2"
    trainer = {"class_type": "BespokeTrainLora", "inputs": {"learning_rate": ["1", 0], "sample_prompt": bad}}
    prompt = {"1": {"class_type": "BespokeFindLearningRate", "inputs": {}}, "2": trainer}
    _, reasons, _ = asyncio.run(execution.validate_inputs("test", prompt, "2", {}))
    told = [reason["details"] for reason in reasons if reason["type"] == "custom_validation_failed"]
    assert len(told) == 1
    assert "line 2 of sample_prompt has --ar, which is not read" in told[0]
    monkeypatch.setattr(running_prompt, "_here", lambda: (prompt, "1"))
    with pytest.raises(InputError, match="line 2 of sample_prompt has --ar.* nothing was searched"):
        find(run_node, models, sets, seed=6)
    assert steps_done[0] == 0
    trainer["inputs"]["sample_prompt"] = ["3", 0]  # by a wire: known only when it has come
    find(run_node, models, sets, seed=6)
    assert steps_done[0] > 0


def test_the_states_of_an_interrupted_search_go_after_a_week_and_its_results_stay(runs):
    """Of three searches that were interrupted: one eight days ago, one six, and the present one, eight days ago too."""
    run = Run(RunInfo("lora-00000000f1d1", "lora", {"steps": 120}, "base", 1), [0.1] * 4, state=RunState.INTERRUPTED)
    books = [ProbeBook(f"lora-00000000b0{i}c") for i in range(3)]
    for book, days in zip(books, (8, 6, 8), strict=True):
        book.add(Probe(1e-3, 4, 120, 0.5))
        book.save_state(run, State(4, {"a": torch.ones(1)}, {}))
        for path in (book._folder, *book._folder.rglob("*")):
            os.utime(path, (time.time() - days * 86400,) * 2)
    books[2].remove_old_states()
    assert [book._folder.is_dir() for book in books] == [False, True, True]
    assert [len(book.known()) for book in books] == [1, 1, 1]


def test_a_trainer_with_other_settings_is_named(run_node, models, sets, monkeypatch):
    from bespoke.nodes.bridge import running_prompt

    inputs = {"model": ["9", 0], "images": ["8", 0], "rank": 2, "alpha": 2.0, "lowest": 1e-3}
    trainers = {
        "2": {"model": ["9", 0], "images": ["7", 0], "rank": 16, "alpha": 2.0, "learning_rate": ["1", 0]},
        "3": {"model": ["9", 0], "images": ["8", 0], "rank": 32, "learning_rate": 1e-4},  # takes no rate from here
    }
    prompt = {"1": {"class_type": "BespokeFindLearningRate", "inputs": inputs}}
    prompt |= {name: {"class_type": "BespokeTrainLora", "inputs": own} for name, own in trainers.items()}
    monkeypatch.setattr(running_prompt, "_here", lambda: (prompt, "1"))
    assert running_prompt.differing_inputs("BespokeTrainLora", 0) == ["images", "rank 16 instead of 2"]
    _, _, report = find(run_node, models, sets, seed=5)
    assert "THE TRAINER HAS OTHER SETTINGS: images, rank 16 instead of 2." in report
    prompt["1"]["inputs"] = trainers["2"] | {"lowest": 1e-3}
    assert running_prompt.differing_inputs("BespokeTrainLora", 0) == []
