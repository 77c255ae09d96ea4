"""Cross-validation of sets of fewer than ten pictures: folds decide when to stop, then all pictures are trained on."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import comfy.model_management
import comfy.utils
import pytest
import tiny
import torch
from bespoke.nodes.bridge import trainer
from bespoke.nodes.bridge.dataset.pictures import Pictures
from bespoke.nodes.bridge.runs.index import RunIndex
from bespoke.nodes.bridge.runs.report import describe_draws
from bespoke.nodes.bridge.runs.store import RunStore, request_finish
from bespoke.training.config import TrainConfig
from bespoke.training.data import LatentSet
from bespoke.training.images import TrainingImage
from bespoke.training.record import Run, RunInfo, RunState
from helpers import image_set, sprite_set


@pytest.fixture(scope="module")
def models(comfyui):
    return tiny.patcher(tiny.SMALLEST), tiny.clip(), tiny.vae()


@pytest.fixture(autouse=True)
def progress_at_every_step(monkeypatch):
    monkeypatch.setattr("bespoke.nodes.bridge.runs.events.MOST_PER_SECOND", 1e9)


def train(run_node, models, **changes):
    model, clip, vae = models
    settings = dict(
        images=sprite_set(2, 6, side=64, colour="teal"),
        steps=20,
        batch_size=2,
        rank=2,
        alpha=2.0,
        validation=2,
        learning_rate=1e-2,
        precision="fp32",
        resume=False,
    )
    return run_node("BespokeTrainLora", model=model, clip=clip, vae=vae, **settings | changes)


def fold_records(run):
    """The records of a run's folds, in order."""
    from bespoke.training.run_identity import run_id

    return [RunStore(run_id("lora", {"rotation": n}, run.id, "")).record() for n in (1, 2, 3)]


def test_the_curve_is_the_mean_over_folds(models, run_node):
    _, lora, loss, run, report, _ = train(run_node, models, seed=1)
    folds = fold_records(run)
    assert [fold.info.images for fold in folds] == [4, 4, 4]
    assert [fold.info.settings["rotation"] for fold in folds] == ["1 of 3", "2 of 3", "3 of 3"]
    assert "rotation" not in run.info.settings
    assert [fold.state for fold in folds] == ["finished"] * 3
    assert run.folds == 3
    assert run.info.images == 6
    assert [step for step, _ in run.held_out] == [0, 10, 20]
    for at, (_, value) in enumerate(run.held_out):
        assert value == pytest.approx(sum(fold.held_out[at][1] for fold in folds) / 3)
    assert len(loss["loss"]) == run.best[0]
    assert "3 trainings, each without 2 other pictures, said when to stop; then all 6 were trained on" in report
    assert 0 < run.best[0] <= 20
    # The last training is the plain training on all pictures, up to the best step.
    _, plain, plain_loss, *_ = train(run_node, models, seed=1, validation=0)
    assert loss["loss"] == plain_loss["loss"][: run.best[0]]
    if run.best[0] == 20:
        assert all(torch.equal(value, lora[key]) for key, value in plain.items())


@pytest.mark.slow
def test_a_fold_equals_a_training_on_its_pictures(models, run_node):
    """The losses of the first fold are those of a training on its pictures."""
    from bespoke.training import validation

    images = sprite_set(2, 6, side=64, colour="teal")
    _, _, _, run, *_ = train(run_node, models, seed=2, images=images)
    rest, _ = validation.folds(images.copies(), 2, 2)[0]
    items = [images.items[i] for i in rest]
    _, _, loss, _, *_ = train(run_node, models, seed=2, images=image_set(items), validation=0)
    assert fold_records(run)[0].losses == loss["loss"]


FALLING = [(0, 9.0), (10, 5.0), (20, 1.0)], [(0, 9.0), (10, 3.0), (20, 8.0)], [(0, 9.0), (10, 4.0), (20, 7.0)]
RISING = [(0, 1.0), (10, 2.0), (20, 3.0)], [(0, 2.0), (10, 1.0), (20, 3.0)], [(0, 1.0), (10, 4.0), (20, 5.0)]
PATIENT = [(0, 1.0), (10, 2.0)], [(0, 2.0), (10, 3.0), (20, 1.0)], [(0, 1.0), (10, 4.0)]  # two stopped at step 10


@pytest.mark.parametrize(
    ("folds_curves", "mean", "keep", "until"),
    [
        (FALLING, [9.0, 4.0, 16 / 3], "best", 10),
        (FALLING, [9.0, 4.0, 16 / 3], "last", 20),
        (RISING, [4 / 3, 7 / 3, 11 / 3], "best", 20),
        (RISING, [4 / 3, 7 / 3, 11 / 3], "last", 20),
        (PATIENT, [4 / 3, 3.0], "best", 10),
    ],
)
def test_the_last_training_stops_at_the_best_mean_step(folds_curves, mean, keep, until):
    """The means are by hand. Of RISING and PATIENT step 0 is lowest, which is no result: the last training goes as far
    as the others did."""
    folds, curves = [], iter(folds_curves)

    def train_fold(fold):
        folds.append(fold)
        fold.run.held_out = fold.run.held_out or next(curves)
        fold.run.state = RunState.FINISHED
        return {"step": torch.tensor(fold.steps)}

    items = sprite_set(2, 6, side=64, colour="teal").items
    pictures = Pictures(
        list(items), LatentSet([], []), list(range(6)), [], [], [([0, 1], [2]), ([0, 2], [1]), ([1, 2], [0])]
    )
    run = Run(RunInfo("lora-0123456789ab", "lora", {}, "base", 6))
    config = TrainConfig(20, 1e-3, 1, 0, validation=1, keep=keep, save_every=5, sample_every=5)
    shared = SimpleNamespace(
        technique=SimpleNamespace(request=SimpleNamespace(train=config)),
        dataset=SimpleNamespace(pictures=pictures),
        train_fold=train_fold,
    )
    result = trainer._train_folds(shared, run)
    assert result.run is run
    assert result.learned["step"] == until
    assert run.held_out == [(10 * i, pytest.approx(value)) for i, value in enumerate(mean)]
    assert [fold.config.save_every for fold in folds] == [0, 0, 0, 5]
    assert [list(fold.held_out) for fold in folds] == [[2], [1], [0], []]
    assert len({fold.run.id for fold in folds}) == 4
    assert folds[1].prefix.startswith(f"training 2 of 4, without {items[1].name}")


@pytest.mark.parametrize(
    ("training", "step"),
    [pytest.param(1, 7, marks=pytest.mark.slow), (2, 5), pytest.param(4, 6, marks=pytest.mark.slow)],
)
def test_an_interrupted_fold_is_resumed(models, run_node, at_step, training, step):
    whole = train(run_node, models, seed=4, steps=10, keep="last")
    at_step(step, comfy.model_management.interrupt_current_processing, training)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(run_node, models, seed=4, steps=10, keep="last", resume=False)
    again = train(run_node, models, seed=4, steps=10, keep="last", resume=True)
    assert again[2]["loss"] == whole[2]["loss"]
    assert again[3].held_out == whole[3].held_out
    assert all(torch.equal(value, again[1][key]) for key, value in whole[1].items())


def test_finish_in_a_fold_returns_its_result(models, run_node, at_step):
    at_step(5, lambda: request_finish(RunIndex().look().runs[0].summary.id), training=2)
    _, _, loss, run, *_ = train(run_node, models, seed=5)
    assert run.state == "kept"
    assert run.info.images == 4
    assert 1 <= len(loss["loss"]) < 20
    assert run.id.startswith("lora-")


def test_mirrored_copies_of_a_held_out_picture_are_not_trained_on(models, run_node):
    from bespoke.nodes.images.folder import mirrored

    plain = sprite_set(2, 10, side=64, colour="teal").items
    items = [copy for item in plain for copy in (item, mirrored(item))] * 2
    from bespoke.nodes.bridge.dataset import pictures

    found = pictures.encode_pictures(
        models[2],
        models[0].model,
        TrainConfig(1, 1e-3, 1, 0, validation=3),
        image_set(items),
    )
    assert len(found.held_out_indices) == 3
    names = {found.items[i].name for i in found.held_out_indices}
    seen = {found.items[i].name.removesuffix(" (mirrored)") for i in found.training_indices}
    assert not names & seen
    assert found.count_pictures(found.training_indices) == 7
    assert len(found.training_indices) == 28


def test_cross_validation_of_a_word(models, run_node):
    model, clip, vae = models
    args = dict(
        model=model,
        clip=clip,
        vae=vae,
        images=sprite_set(3, 4, side=64, colour="pink"),
        name="w",
        init_text="red",
        steps=10,
        batch_size=1,
        precision="fp32",
        seed=3,
        validation=1,
        keep="last",
    )
    run = run_node("BespokeTrainTextualInversion", **args)[4]
    assert run.folds == 3
    assert [step for step, _ in run.held_out] == [0, 10]
    assert run.info.images == 4


@pytest.mark.parametrize("steps", [5, 6])
def test_the_report_counts_the_draws(models, run_node, monkeypatch, steps):
    """Two squares and a wide picture at batch 4: three steps are 12 draws, 4 of each. Held against what was drawn."""
    drawn = {}
    batch_of = LatentSet.batch

    def noted(*args, **kwargs):
        batch = batch_of(*args, **kwargs)
        drawn[batch.number] = batch.indices  # the first is drawn twice, once to measure a step
        return batch

    items = sprite_set(2, 3, side=64, colour="teal").items
    wide = replace(items[2], pixels=torch.cat([items[2].pixels] * 2, 1))
    monkeypatch.setattr(LatentSet, "batch", noted)
    _, _, _, _, report, _ = train(
        run_node, models, images=image_set([*items[:2], wide]), validation=0, steps=steps, batch_size=4, seed=1
    )
    counts = Counter(sum(drawn.values(), []))
    assert sum(counts.values()) == 4 * steps
    least, most = min(counts.values()), max(counts.values())
    assert (least, most) == (8, 8) if steps == 6 else least < most
    times = f"{least} times" if least == most else f"{least} to {most} times"
    assert f"each of 3 pictures was seen {times}." in report


def test_the_draws_of_a_fold_are_those_of_its_pictures():
    """Four pictures and a mirrored copy at batch 1. A run that the user has finished in a fold has its pictures."""
    items = [TrainingImage(name, torch.zeros(64, 64, 3), "") for name in ("a", "b", "b (mirrored)", "c", "d")]
    data = LatentSet([torch.zeros(1, 4, 8, 8)] * 5, [None] * 5)
    pictures = Pictures(items, data, [0, 1, 2, 3, 4], [], [], [([0, 1, 2], [3]), ([3, 4], [0])])
    config = TrainConfig(20, 1e-3, 1, 0)
    run = Run(RunInfo("lora-0123456789ab", "lora", {}, "base", 4), losses=[0.0] * 15)
    assert describe_draws(pictures, run, config) == "each of 4 pictures was seen 3 to 6 times"
    folded = Run(RunInfo("lora-0123456789ab", "lora", {"rotation": "2 of 2"}, "base", 2), losses=[0.0] * 15)
    assert describe_draws(pictures, folded, config) == "each of 2 pictures was seen 7 to 8 times"
