"""Train LoRA with `preserve`, and the leak, through the nodes.

The oracle of both is the difference of the predictions of two MODELs: the user's own and the one with the LoRA, each
with its own text encoder.
"""

import json
from dataclasses import replace
from pathlib import Path

import jobs
import pytest
import tiny
import torch
from bespoke.training.errors import InputError
from bespoke.training.leak import spread
from bespoke.training.validation import TIMESTEPS, grid_batch
from helpers import image_set, sprite_set

LINES = "a red circle\n\n  a blue square on white \na red circle\n"
PROMPTS = ["a red circle", "a blue square on white"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def smallest(comfyui):
    return tiny.patcher(tiny.SMALLEST), tiny.clip(), tiny.vae()


def pictures():
    """(four pictures, two held-out ones), whose captions say the trigger word "teal"."""
    sets = sprite_set(2, 4, side=64, colour="teal"), sprite_set(9, 2, side=64, colour="teal")
    return [image_set([replace(item, trigger="teal") for item in images.items]) for images in sets]


def inputs(models, **changes):
    model, clip, vae = models
    given = dict(
        model=model, clip=clip, vae=vae, images=pictures()[0], steps=4, batch_size=2, rank=2, alpha=1.0, seed=5,
        learning_rate=2e-2, precision="fp32", resume=False, targets="attention + feed-forward",
    )  # fmt: skip
    return given | changes


def train(run_node, models, **changes):
    return run_node("BespokeTrainLora", **inputs(models, **changes))


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# --- The loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_without_prompts_nothing_changes(run_node, smallest):
    plain = train(run_node, smallest)
    off = train(run_node, smallest, preserve=" \n\n", preserve_weight=3.0)
    assert equal(plain[1], off[1])
    assert plain[3].id == off[3].id
    assert not {"preserve", "preserve_weight"} & {*off[3].info.settings}
    on = train(run_node, smallest, preserve=LINES)
    assert on[3].id != plain[3].id
    assert not equal(plain[1], on[1])
    assert "2 prompts were held to the base's own prediction, at the weight 1" in on[4]
    assert train(run_node, smallest, preserve=LINES, preserve_weight=2.0)[3].id != on[3].id


def test_the_first_step_is_that_without_prompts(run_node, smallest):
    """An untrained LoRA is the base, so that the loss at the prompts and its gradient are 0 exactly."""
    one, other = (train(run_node, smallest, steps=1, preserve=text) for text in ("", LINES))
    assert one[3].losses == other[3].losses
    assert equal(one[1], other[1])


@pytest.mark.slow
@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_resumed_run_ends_on_the_same_bits(run_node, smallest, runs, checkpointed):
    changes = dict(preserve=LINES, preserve_weight=2.0, lr_schedule="constant", gradient_checkpointing=checkpointed)
    train(run_node, smallest, steps=2, resume=True, **changes)
    again = train(run_node, smallest, steps=4, resume=True, **changes)
    straight = train(run_node, smallest, steps=4, resume=False, **changes)
    assert equal(again[1], straight[1])
    assert again[3].losses == straight[3].losses


@pytest.mark.slow
def test_checkpointing_learns_the_same(run_node, smallest):
    """A block that is computed again in the backward pass sees the adapters that it saw at first."""
    one, other = (
        train(run_node, smallest, preserve=LINES, preserve_weight=5.0, gradient_checkpointing=saving)[1]
        for saving in (False, True)
    )
    assert all(torch.allclose(one[key], other[key], rtol=1e-4, atol=1e-6) for key in one)


def technique_of(models, request):
    from bespoke.nodes.bridge.trainer import Models
    from bespoke.nodes.lora.training.request import LoraData
    from bespoke.nodes.lora.training.technique import LoraTechnique, encode_dataset

    models, (images, held_out) = Models(*models), pictures()
    dataset = encode_dataset(models, LoraData(images, held_out), request)
    return LoraTechnique(request, models, dataset), dataset


def estimate(model, clip, batch, prompts):
    """The clean latents [B, 4, h, w] by a MODEL of ComfyUI, as it is on the wire, with its own CLIP's encodings."""
    from bespoke.nodes.bridge.dataset.conditioning import encode_prompt, join_conds, model_conds
    from bespoke.nodes.bridge.training_model.denoiser import prepare_for_training

    with prepare_for_training(model, "fp32") as denoiser, torch.no_grad():
        conds = [model_conds(denoiser.base, *encode_prompt(clip, prompt), batch.latent[:1], CPU) for prompt in prompts]
        sigma = denoiser.sigma(batch.t)
        noisy = denoiser.add_noise(sigma, batch.noise, batch.latent)
        return denoiser.denoise(noisy, sigma, join_conds(conds)), sigma


def change(models, trained, batch, prompts):
    """[B]: the mean squared difference of the predicted noise, of the plain models and those with the LoRA."""
    (before, sigma), (after, _) = (estimate(model, clip, batch, prompts) for model, clip, *_ in (models, trained))
    return ((after - before) / sigma.reshape(-1, 1, 1, 1)).square().flatten(1).mean(1)


@pytest.mark.parametrize("text", [False, True])
def test_the_loss_is_the_change_at_the_prompts(run_node, smallest, text):
    """With a trained text encoder, the base's prediction is at the encoding of the frozen one."""
    from bespoke.nodes.lora.training.preserve import drawn_prompts
    from bespoke.nodes.lora.training.request import LoraRequest
    from bespoke.training.config import TrainConfig
    from bespoke.training.timesteps import timestep_sampler

    common = dict(timestep_sampling="uniform", train_text_encoder=text)
    trained = train(run_node, smallest, steps=6, text_encoder_lr=0.2, **common)
    model, lora, clip = trained[0], trained[1], trained[5]
    (plain,), (held,) = (
        train(
            run_node, smallest, steps=1, lora=lora, learning_rate=1e-12, preserve=lines, preserve_weight=3.0, **common
        )[3].losses
        for lines in ("", LINES)
    )
    config = TrainConfig(steps=1, learning_rate=1e-12, batch_size=2, seed=5, timestep_sampling="uniform")
    _, dataset = technique_of(smallest, LoraRequest(config, preserve=LINES, train_text_encoder=text))
    batch = dataset.pictures.data.batch(config, 0, CPU, timestep_sampler(None, "uniform", "none", (0.0, 1.0)), range(4))
    prompts = drawn_prompts(batch, PROMPTS)
    wanted = change(smallest, (model, clip), batch, prompts).mean().item()
    assert held - plain == pytest.approx(3 * wanted, rel=2e-3)
    if text:  # the encoder's own part is in it
        assert change(smallest, (model, smallest[1]), batch, prompts).mean().item() != pytest.approx(wanted, rel=0.01)


@pytest.mark.slow
def test_prior_pictures_are_not_held_to_the_base(run_node, smallest):
    """They have a loss of their own: what the prompts add to the loss of a step is the same with them."""
    lora = train(run_node, smallest)[1]
    added = []
    for prior in ({}, {"prior_images": sprite_set(30, 3, side=64, colour="red")}):
        settings = dict(steps=1, lora=lora, learning_rate=1e-12, **prior)
        (plain,), (held,) = (train(run_node, smallest, preserve=text, **settings)[3].losses for text in ("", LINES))
        added.append(held - plain)
    assert added[0] > 0
    assert added[1] == pytest.approx(added[0], rel=1e-3)


def test_the_prompts_depend_on_batch_and_position_alone():
    from bespoke.nodes.lora.training.preserve import drawn_prompts, lines_of
    from bespoke.training.data import LatentSet

    assert lines_of(LINES) == PROMPTS
    data = LatentSet([torch.zeros(1, 4, 2, 2)], [None])
    whole = grid_batch(data, 0, 7, CPU)
    parts = [grid_batch(data, 0, 7, CPU, positions=positions) for positions in ([0, 1], [2, 3, 4])]
    assert drawn_prompts(whole, PROMPTS) == [prompt for part in parts for prompt in drawn_prompts(part, PROMPTS)]
    draws = {tuple(drawn_prompts(grid_batch(data, 0, number, CPU), PROMPTS)) for number in range(20)}
    assert len(draws) > 10


@pytest.mark.slow
def test_the_memory_of_the_second_graph_is_forecast(smallest):
    from bespoke.nodes.lora.training.request import LoraRequest
    from bespoke.training.config import TrainConfig

    config = TrainConfig(steps=3, learning_rate=1e-3, batch_size=2, seed=5)
    kept = [
        technique_of(smallest, LoraRequest(config, preserve=text))[0].step_memory(size, None).kept
        for text, size in (("", 2), (LINES, 2), ("", 4))
    ]
    assert kept[0] < kept[1] == kept[2]


def test_a_weight_out_of_range_is_refused(run_node, smallest):
    with pytest.raises(InputError, match="preserve_weight is -1.0; give a number from 0 to 100"):
        train(run_node, smallest, preserve=LINES, preserve_weight=-1.0)


# --- The leak ---------------------------------------------------------------------------------------------------------

LONG = dict(steps=20, learning_rate=5e-3, keep="last")


@pytest.fixture(scope="module")
def cheap():
    """The leak may take as long as the training, so that a short one has a curve of two points, on two pictures."""
    from bespoke.training import leak

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leak, "MOST_COST", 1.0)
        yield


@pytest.fixture(scope="module")
def measured(run_node, smallest, cheap):
    """{preserve: a training with two held-out pictures}."""
    held_out = pictures()[1]
    return {text: train(run_node, smallest, validation_images=held_out, preserve=text, **LONG) for text in ("", LINES)}


@pytest.mark.parametrize("preserve", ["", LINES])
def test_the_leak_is_the_change_of_the_predictions(smallest, measured, preserve):
    """Of the trained MODEL, at the end: at the captions without "teal", or at the prompts of `preserve`."""
    from bespoke.nodes.lora.training.request import LoraRequest
    from bespoke.training.config import TrainConfig

    model, _, _, run, report, clip = measured[preserve]
    _, dataset = technique_of(smallest, LoraRequest(TrainConfig(steps=1, learning_rate=1e-3, batch_size=1, seed=5)))
    items, data = dataset.pictures.items, dataset.pictures.data
    assert [point.step for point in run.leak] == [10, 20]
    levels, other, own = len(TIMESTEPS), [], []
    for number, index in enumerate((4, 5)):  # the held-out pictures, after four trained ones
        batch, caption = grid_batch(data, index, number, CPU), items[index].prompt
        assert "teal" in caption
        without = " ".join(caption.replace("teal", "").split())
        others = spread(PROMPTS, levels, number * levels) if preserve else [without] * levels
        other.append(change(smallest, (model, clip), batch, others).mean().item())
        own.append(change(smallest, (model, clip), batch, [caption] * levels).mean().item())
    last = run.leak[-1]
    assert last.other == pytest.approx(sum(other) / 2, rel=1e-3)
    assert last.own == pytest.approx(sum(own) / 2, rel=1e-3)
    where = "the prompts of preserve" if preserve else "prompts without the trigger"
    assert f"Leak {last.leak:.2f} at step 20: the predictions at {where} moved {last.leak:.2f} times as far" in report


def test_the_leak_is_kept_shown_and_told(run_node, comfyui, measured):
    from bespoke.nodes.bridge.runs.manage import curve_of_run
    from bespoke.nodes.bridge.runs.store import RunStore
    from bespoke.training.record import Run

    run = measured[LINES][3]
    saved = RunStore(run.id)
    assert saved.record().leak == run.leak
    values = json.loads((saved.folder / "record.json").read_text())
    assert values["leak"] == [list(point) for point in run.leak]
    values.pop("leak")  # as a record of an earlier version
    assert Run.from_values(values).leak == []
    lines = curve_of_run(run.id)["csv"].splitlines()
    assert lines[0] == "step,loss,validation_loss,lr,leak"
    assert float(lines[1 + 10].split(",")[4]) == run.leak[0].leak
    assert lines[2].endswith(",")
    *_, told, _ = run_node("BespokeInspectRun", run=replace_pictures(run), images=pictures()[0])
    assert f"Leak {run.leak[-1].leak:.2f} at step 20" in told


def replace_pictures(run):
    """The run with a score of one of its pictures, without which Inspect Run refuses it."""
    from bespoke.training.picture_scores import PictureLosses

    return replace(run, pictures=[PictureLosses("", "sprite 0", False, [(0, 1.0), (20, 0.5)])])


@pytest.mark.slow
def test_measuring_the_leak_changes_nothing_that_is_learned(run_node, smallest, measured, monkeypatch):
    from bespoke.nodes.bridge import trainer

    monkeypatch.setattr(trainer, "plan_leak", lambda *args: None)
    without = train(run_node, smallest, validation_images=pictures()[1], **LONG)
    assert equal(without[1], measured[""][1])
    assert without[3].losses == measured[""][3].losses
    assert without[3].held_out == measured[""][3].held_out
    assert without[3].leak == []


def test_a_run_that_is_too_short_says_that_the_leak_was_not_measured(run_node, smallest, monkeypatch):
    from bespoke.training import leak, picture_scores

    monkeypatch.setattr(leak, "MOST_COST", picture_scores.MOST_COST)
    *_, run, report, _ = train(run_node, smallest, validation_images=pictures()[1])
    assert run.leak == []
    assert "The leak was not measured: that would make the run more than 5 % longer." in report
    *_, report, _ = train(run_node, smallest)
    assert "leak" not in report.lower()


@pytest.mark.slow
def test_folds_have_a_leak_each_and_the_run_their_mean(run_node, smallest, cheap):
    """Four pictures are too few to hold one out: three trainings leave out one each."""
    *_, run, report, _ = train(run_node, smallest, validation=1, **LONG | {"keep": "best"})
    assert run.folds == 3
    assert [point.step for point in run.leak] == [10, 20]
    assert all(0 < point.leak < 10 for point in run.leak)
    assert "Leak " in report


# --- Jobs -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_job_carries_the_prompts_and_learns_the_same(comfyui, run_node, tmp_path):
    from bespoke.nodes.jobs.checks import check_job, request_of
    from bespoke.nodes.jobs.job import read_job
    from bespoke.nodes.jobs.work import Options, prepare, train_job
    from bespoke.training.distributed import World

    models = jobs.base_model(comfyui)
    settings = dict(preserve=LINES, preserve_weight=2.5, steps=3, batch_size=2)
    folder = Path(jobs.export(run_node, models, "jobs/preserve", **settings)[0])
    job = read_job(folder)
    request = request_of(job)
    assert (request.preserve, request.preserve_weight) == (LINES, 2.5)
    path = train_job(job, World(), Options(), *prepare(job, World(), Options()))
    images, validation = jobs.pictures()
    given = dict(model=models[0], clip=models[1], vae=models[2], images=images, validation_images=validation)
    *_, run, _, _ = run_node("BespokeTrainLora", resume=False, **given | jobs.SETTINGS | settings)
    assert path is not None
    assert jobs.losses(folder) == run.losses
    edited = read_job(jobs.copy_of(folder, "edited", preserve="a text that was not encoded"))
    with pytest.raises(InputError, match="'a text that was not encoded' was not encoded when the job was exported"):
        check_job(edited, request_of(edited), 1, False)
