"""Scores of single pictures in real trainings: what the record keeps, Cancel and Finish, resuming, and the node."""

import math
from dataclasses import replace

import comfy.model_management
import planted
import pytest
import tiny
import torch
from bespoke.nodes.bridge.dataset.conditioning import encode_prompt, model_conds
from bespoke.nodes.bridge.dataset.pictures import encode_pictures
from bespoke.nodes.bridge.runs import monitor
from bespoke.nodes.bridge.runs.events import PHASES, RunDisplay
from bespoke.nodes.bridge.runs.routes import record_for_page
from bespoke.nodes.bridge.runs.scoring import scored_indices, what_is_scored
from bespoke.nodes.bridge.runs.store import RunStore, request_finish
from bespoke.nodes.bridge.training_model.denoiser import prepare_for_training
from bespoke.training.config import TrainConfig
from bespoke.training.errors import InputError
from bespoke.training.images import MIRRORED, ImageSet
from bespoke.training.objective import denoising_loss
from bespoke.training.picture_findings import CAPTION, HARD, find
from bespoke.training.record import RunState
from bespoke.training.validation import TIMESTEPS, grid_batch
from helpers import image_set, sprite_set

STEPS = 6


@pytest.fixture(scope="module")
def models(comfyui):
    return tiny.patcher(tiny.SMALLEST), tiny.clip(), tiny.vae()


@pytest.fixture
def train(models, run_node, runs, monkeypatch):
    """train(**changes): the outputs of a training of twelve pictures, two of which are held out."""
    model, clip, vae = models
    monkeypatch.setattr("os.fsync", lambda handle: None)

    def run(**changes):
        settings = dict(
            images=sprite_set(2, 12, side=64, colour="teal"),
            steps=STEPS,
            batch_size=1,
            seed=1,
            rank=2,
            alpha=2.0,
            learning_rate=1e-2,
            validation=2,
            precision="fp32",
            score_pictures="on",
        )
        return run_node("BespokeTrainLora", model=model, clip=clip, vae=vae, **settings | changes)

    return run


@pytest.fixture
def at_score(monkeypatch):
    """at_score(number, action): call `action` once, at that scored picture, counted over the start and the end."""
    monkeypatch.setattr(monitor, "MOST_PER_SECOND", 1e9)  # every picture is told
    before, told = RunDisplay.phase, []

    def arm(number, action):
        def phase(self, name, **values):
            if name == "scoring":
                told.append(values)
                if len(told) == number:
                    action(self.run_id)
            before(self, name, **values)

        monkeypatch.setattr(RunDisplay, "phase", phase)
        return told

    return arm


def cancel(run_id):
    comfy.model_management.interrupt_current_processing()


def interrupted(train, **changes):
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(**changes)
    comfy.model_management.interrupt_current_processing(False)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_scores_are_kept_and_change_nothing_that_is_learned(models, train):
    """The held-out losses average to the run's own; the first trained picture's are computed here from the model."""
    model, clip, vae = models
    _, lora, loss, run, report, _ = train(resume=False)
    assert RunStore(run.id).record().pictures == run.pictures
    _, plain, plain_loss, unscored, *_ = train(resume=False, score_pictures="off")
    assert same(lora, plain)
    assert loss == plain_loss
    assert run.id == unscored.id
    held_out, trained = [[row for row in run.pictures if row.held_out is side] for side in (True, False)]
    assert (len(trained), len(held_out)) == (10, 2)
    assert [row for row in unscored.pictures if not row.held_out] == []
    assert unscored.pictures == held_out
    for number, (step, mean) in enumerate(run.held_out):
        assert [row.points[number][0] for row in held_out] == [step] * 2
        assert mean == pytest.approx(sum(row.points[number][1] for row in held_out) / 2, rel=1e-5)
    assert all([step for step, _ in row.points] == [0, STEPS] for row in trained)
    images = sprite_set(2, 12, side=64, colour="teal")
    index = next(i for i, item in enumerate(images.items) if item.picture == trained[0].picture)
    pictures = encode_pictures(vae, model.model, TrainConfig(1, 0.0, 1, 0), images)
    batch = grid_batch(pictures.data, index, 0, torch.device("cpu"))
    with prepare_for_training(model, "fp32") as denoiser, torch.no_grad():
        with_caption, without = (
            [
                denoising_loss(
                    denoiser,
                    batch.latent[i : i + 1],
                    batch.noise[i : i + 1],
                    denoiser.sigma(batch.t[i : i + 1]),
                    model_conds(
                        denoiser.base, *encode_prompt(clip, prompt), pictures.data.latents[index], denoiser.device
                    ),
                )
                for i in range(len(TIMESTEPS))
            ]
            for prompt in (images.items[index].prompt, "")
        )
    assert float(sum(with_caption)) / 5 == pytest.approx(trained[0].start, rel=1e-4)
    gain = math.log(float(sum(without[1:4]) / sum(with_caption[1:4])))
    assert gain == pytest.approx(trained[0].caption_gain, abs=1e-4)
    assert '"pictures"' not in record_for_page(run.id)
    assert "pictures that were scored one by one" in report or "of 12 pictures:" in report


@pytest.mark.parametrize("number", [3, 15])  # at the start; at the end
def test_cancel_ends_a_scoring_and_the_run_goes_on_to_the_same_end(train, at_score, number):
    _, whole, loss, run, *_ = train(resume=False, validation=0)
    told = at_score(number, cancel)
    interrupted(train, resume=False, validation=0)
    assert told[0] == {"done": 0, "total": 12}
    assert RunStore(run.id).record().state is RunState.INTERRUPTED
    _, lora, again, resumed, *_ = train(validation=0)
    assert same(whole, lora)
    assert again == loss
    assert resumed.pictures == run.pictures
    assert "scoring" in PHASES


def test_finish_ends_the_scoring_of_the_start_and_the_run_after_its_first_step(train, at_score):
    told = at_score(2, request_finish)
    *_, run, _, _ = train(resume=False, validation=0)
    assert len(told) == 2
    assert (run.state, len(run.losses)) == (RunState.KEPT, 1)
    assert run.pictures == []


def test_finish_ends_the_scoring_of_the_end_and_the_run_is_whole(train, at_score):
    told = at_score(14, request_finish)
    *_, run, _, _ = train(resume=False, validation=0)
    assert len(told) == 14
    assert (run.state, len(run.losses)) == (RunState.FINISHED, STEPS)
    assert all([step for step, _ in row.points] == [0] for row in run.pictures)


def test_a_run_that_was_not_scored_is_scored_when_it_is_queued_again(train):
    """The start's scores too, from the initial values; no step is trained."""
    _, lora, _, whole, *_ = train(resume=False)
    train(resume=False, score_pictures="off")
    _, again, _, run, *_ = train()
    assert same(lora, again)
    assert sorted(run.pictures) == sorted(whole.pictures)
    assert len(run.losses) == STEPS


def test_an_interrupted_run_keeps_the_scores_of_its_start(train, at_step):
    _, whole, _, run, *_ = train(resume=False)
    at_step(3, lambda: comfy.model_management.interrupt_current_processing())
    interrupted(train, resume=False)
    rows = RunStore(run.id).record().pictures
    assert {row.picture: row.start for row in rows} == {row.picture: row.start for row in run.pictures}
    _, lora, _, resumed, *_ = train()
    assert same(whole, lora)
    assert resumed.pictures == run.pictures


def test_cross_validation_keeps_the_held_out_loss_of_every_picture_once(train):
    *_, run, _, _ = train(images=sprite_set(2, 6, side=64, colour="teal"), resume=False)
    names = [f"sprite {i}" for i in range(6)]
    assert sorted(row.name for row in run.pictures if row.held_out) == names
    assert sorted(row.name for row in run.pictures if not row.held_out) == names


def test_copies_of_a_picture_are_scored_once(models):
    items = sprite_set(2, 3, side=64, colour="teal").items
    copies = [*items, *(replace(item, name=item.name + MIRRORED) for item in items), *items]
    pictures = encode_pictures(models[2], models[0].model, TrainConfig(1, 0.0, 1, 0), image_set(copies))
    assert scored_indices(pictures, pictures.training_indices) == [0, 1, 2]
    other = [*items, replace(items[0], source="other")]
    pictures = encode_pictures(models[2], models[0].model, TrainConfig(1, 0.0, 1, 0), image_set(other))
    assert scored_indices(pictures, pictures.training_indices) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("pictures", "steps", "setting", "learns", "expected"),
    [
        (12, 400, "auto", True, (True, True)),  # 120 + 36 forward passes, of 400 * 4 * 2.2 = 3520: 4.4 %
        (13, 400, "auto", True, (True, True)),  # 169 are 4.8 %
        (14, 400, "auto", True, (True, False)),  # 182 are 5.2 %, 140 are 4 %
        (14, 400, "auto", False, (True, False)),
        (17, 400, "auto", True, (True, False)),  # 170 are 4.8 %
        (18, 400, "auto", True, (False, False)),  # 180 are 5.1 %
        (25, 400, "on", True, (True, True)),
        (25, 400, "on", False, (True, False)),
        (1, 400, "off", True, (False, False)),
    ],
)
def test_auto_scores_where_it_costs_at_most_a_twentieth(pictures, steps, setting, learns, expected):
    config = TrainConfig(steps, 1e-4, 4, 0, score_pictures=setting)
    assert what_is_scored(config, pictures, learns) == expected


def test_a_word_is_scored_with_its_own_sentences(models, run_node, runs):
    model, clip, vae = models
    *_, run = (
        each
        for each in run_node(
            "BespokeTrainTextualInversion",
            model=model,
            clip=clip,
            vae=vae,
            images=sprite_set(2, 8, side=64, colour="teal"),
            name="w",
            init_text="red",
            steps=2,
            batch_size=1,
            validation=0,
            precision="fp32",
            score_pictures="on",
            resume=False,
        )
        if hasattr(each, "pictures")
    )
    assert [[step for step, _ in row.points] for row in run.pictures] == [[0, 2]] * 8
    assert all(row.caption_gain is None for row in run.pictures)


def test_the_node_lays_the_pictures_out(train, run_node):
    *_, run, _, _ = train(resume=False)
    images = sprite_set(2, 12, side=64, colour="teal")
    sheet, curve, report, card = run_node("BespokeInspectRun", run=run, images=images)
    assert sheet.shape[0] == curve.shape[0] == card.shape[0] == 1
    assert sheet.shape[2] == 6 * (192 + 14) + 14
    assert curve.shape[1:] == (560, 960, 3)
    losses = sorted((row.points[-1][1] for row in run.pictures), reverse=True)
    lines = [line for line in report.splitlines() if " -> " in line and line.startswith("sprite")]
    assert len(lines) == 12
    assert f"{losses[0]:.4f}" in "".join(lines[:4])  # what was found comes first
    _, _, report, _ = run_node("BespokeInspectRun", run=run, images=ImageSet(images.items[:5]))
    assert "7 that were scored are not in the set" in report
    with pytest.raises(InputError, match="none of the 1 pictures is one of the 12"):
        run_node("BespokeInspectRun", run=run, images=image_set([replace(images.items[0], name="other")]))
    run.pictures = []
    with pytest.raises(InputError, match="score_pictures to on"):
        run_node("BespokeInspectRun", run=run, images=images)
    with pytest.raises(InputError, match="a int is no run"):
        run_node("BespokeInspectRun", run=3, images=images)


@pytest.mark.slow
def test_bad_pictures_among_twelve_sprites_are_named_and_no_other_is(small):
    """A wrong caption, a foreign picture and noise on the small model; the table over five seeds is in
    tests/bench/bench_picture_findings.py."""
    whole = planted.planted(0, 12, *planted.all_pictures(0, "teal"))
    named = {each.row.name: each.kind for each in find(planted.start_rows(small, whole.items))}
    wanted = {planted.CAPTION: CAPTION, planted.FOREIGN: HARD, planted.NOISE: HARD}
    pairs = zip(whole.items, whole.kinds, strict=True)
    assert named == {item.name: wanted[kind] for item, kind in pairs if kind != planted.CLEAN}
