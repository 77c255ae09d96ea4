"""The optimisers through the trainer: its report, its panel, a resumed run, and a package that is missing."""

import sys
from pathlib import Path

import jobs
import pytest
import tiny
import torch
from bespoke.training.errors import InputError
from bespoke.training.optimizers import OPTIMIZERS
from bespoke.training.rate_free import D0
from helpers import sprite_set
from safetensors.torch import load_file

BUILT_IN, SCHEDULE_FREE = "Prodigy (built in)", "schedule-free AdamW"
# bitsandbytes is none of the tests' requirements: 43 MB.
HERE = [
    name for name, kind in OPTIMIZERS.items() if kind.package != "bitsandbytes" and name not in ("Adafactor", "SGD")
]


@pytest.fixture(scope="module")
def smallest(comfyui):
    return tiny.patcher(tiny.SMALLEST), tiny.clip(), tiny.vae()


def train(run_node, models, optimizer, **changes):
    model, clip, vae = models
    settings = dict(
        steps=4, batch_size=2, rank=2, alpha=2.0, learning_rate=1e-2, seed=5, precision="fp32", resume=False,
        lr_schedule="constant", optimizer=optimizer,
    )  # fmt: skip
    images = sprite_set(2, 4, side=64, colour="teal")
    return run_node("BespokeTrainLora", model=model, clip=clip, vae=vae, images=images, **settings | changes)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", HERE)
def test_a_resumed_run_ends_on_the_same_bits(run_node, smallest, runs, optimizer):
    """Two steps and two more are the four steps of one run; DoRA has vectors beside its matrices (Muon)."""
    changes = {"adapter": "DoRA"} if optimizer == "Muon" else {}
    straight = train(run_node, smallest, optimizer, **changes)
    train(run_node, smallest, optimizer, steps=2, resume=True, **changes)
    again = train(run_node, smallest, optimizer, resume=True, **changes)
    assert all(torch.equal(again[1][key], straight[1][key]) for key in straight[1])
    assert again[2]["loss"] == straight[2]["loss"]
    assert again[3].found_rate == straight[3].found_rate
    assert "NOTHING WAS LEARNED" not in again[4]


def test_the_report_says_what_rate_was_found(run_node, smallest):
    """After four steps the rate is near its start: the report warns, and the default of the widget is no factor."""
    _, _, _, run, report, _ = train(run_node, smallest, BUILT_IN, learning_rate=1e-4)
    assert D0 <= run.found_rate < 10 * D0
    assert f"{BUILT_IN} found the learning rate: {run.found_rate:.3g} in the end, for the factor that started" in report
    assert "learning_rate (0.0001) is a rate for other optimisers and was not used" in report
    assert "THE RATE WAS NOT FOUND: it is still near 1e-06" in report
    assert run.info.settings["loraplus_lr_ratio"] == 16.0
    assert f"; {BUILT_IN} finds the learning rate, learning_rate (0.0001) is not used" in run.start_line
    _, _, _, run, report, _ = train(run_node, smallest, BUILT_IN, learning_rate=0.5)
    assert "learning_rate (0.5) multiplied it." in report
    assert "learning_rate (0.5) is a factor of it" in run.start_line
    _, _, _, run, report, _ = train(run_node, smallest, "Prodigy", learning_rate=1.0)
    assert "learning_rate (" not in report
    assert "Its package has one rate for all" in report
    assert run.info.settings["loraplus_lr_ratio"] == 1.0


def test_the_report_of_adamw_is_as_before(run_node, smallest):
    _, _, _, run, report, _ = train(run_node, smallest, "AdamW")
    assert "The learning rate was 0.01 at most, for the factor that started at zero 16 times that." in report
    assert run.found_rate == 0.0
    assert "found_rate" not in run.to_json()


def test_a_found_rate_is_in_the_record(run_node, smallest, runs):
    from bespoke.nodes.bridge.runs.manage import _learning_rates
    from bespoke.nodes.bridge.runs.store import RunStore

    *_, run, _, _ = train(run_node, smallest, BUILT_IN)
    assert RunStore(run.id).record().found_rate == run.found_rate > 0
    # The table of a run has the rate of each step from the settings, which do not tell this one.
    assert _learning_rates(run.info.settings, 4) == [""] * 4
    assert _learning_rates(run.info.settings | {"optimizer": "AdamW"}, 4) == [1e-2] * 4
    falling = run.info.settings | {"optimizer": SCHEDULE_FREE, "lr_schedule": "linear"}
    assert _learning_rates(falling, 4) == [1e-2] * 4


def test_schedule_free_says_that_it_has_no_schedule(run_node, smallest):
    report = train(run_node, smallest, SCHEDULE_FREE, lr_schedule="cosine")[4]
    assert "it stayed constant, and lr_schedule (cosine) was not used" in report
    assert "lr_schedule" not in train(run_node, smallest, SCHEDULE_FREE)[4]


@pytest.mark.slow
def test_schedule_free_saves_what_it_hands_on_and_scores_change_nothing(run_node, smallest, runs, comfyui):
    """The file of the last step is the LoRA at the output; scores and files between the steps change no number."""
    plain = train(run_node, smallest, SCHEDULE_FREE, keep="last")
    changes = dict(
        keep="last", save_every=1, score_pictures="on", validation_images=sprite_set(3, 2, side=64, colour="teal")
    )
    watched = train(run_node, smallest, SCHEDULE_FREE, **changes)
    assert all(torch.equal(plain[1][key], watched[1][key]) for key in plain[1])
    saved = load_file(comfyui / "models" / "loras" / "bespoke" / "runs" / f"{watched[3].id}-step000004.safetensors")
    handed_on = {tensor.numpy().tobytes() for tensor in watched[1].values()}
    assert {tensor.numpy().tobytes() for tensor in saved.values()} == handed_on


@pytest.mark.parametrize("optimizer", [name for name, kind in OPTIMIZERS.items() if kind.package])
def test_a_missing_package_is_refused_before_anything_is_encoded(run_node, smallest, monkeypatch, optimizer):
    """Without CLIP and VAE anything later would fail otherwise."""
    kind = OPTIMIZERS[optimizer]
    monkeypatch.setitem(sys.modules, kind.package, None)
    with pytest.raises(InputError, match=f"Bespoke Train LoRA: optimizer is {optimizer}, .*{kind.package}.*choose"):
        train(run_node, (smallest[0], None, None), optimizer)


def test_a_job_is_exported_without_the_package_and_refused_where_it_is_trained(run_node, comfyui, monkeypatch):
    from bespoke.nodes.jobs.checks import check_job, request_of
    from bespoke.nodes.jobs.job import read_job

    monkeypatch.setitem(sys.modules, "schedulefree", None)
    folder, _ = jobs.export(run_node, jobs.base_model(comfyui), "jobs/schedule-free", optimizer=SCHEDULE_FREE)
    job = read_job(Path(folder))
    request = request_of(job)
    assert request.train.optimizer == SCHEDULE_FREE
    with pytest.raises(InputError, match="optimizer is schedule-free AdamW.*schedulefree.*not installed here"):
        check_job(job, request, 1, False)
    monkeypatch.undo()
    check_job(job, request, 1, False)


def test_the_packages_prodigy_has_no_rate_of_the_text_encoders_own(run_node, smallest):
    with pytest.raises(InputError, match="text_encoder_lr is 1e-05 and optimizer is Prodigy.*set text_encoder_lr to 0"):
        train(run_node, smallest, "Prodigy", train_text_encoder=True, text_encoder_lr=1e-5)


@pytest.mark.parametrize(("rate", "own"), [(1.0, 1e-5), (1e-4, 1.0)])
def test_a_text_encoders_rate_of_another_kind_is_refused(rate, own):
    """A factor beside a rate: the text encoder would learn nothing, or 10,000 times as fast."""
    from bespoke.nodes.lora.training.request import LoraRequest
    from bespoke.training.config import TrainConfig

    train = TrainConfig(1, rate, 1, 0, optimizer=BUILT_IN)
    with pytest.raises(InputError, match=f"text_encoder_lr is {own:g} .*only its ratio.*give a tenth of learning_rate"):
        LoraRequest(train, train_text_encoder=True, text_encoder_lr=own)
    for fine in (0.0, rate, rate / 10):
        LoraRequest(train, train_text_encoder=True, text_encoder_lr=fine)
    LoraRequest(train, text_encoder_lr=own)  # no text encoder is trained


def test_the_panel_is_told_the_rate_that_is_found(run_node, smallest, monkeypatch):
    from bespoke.nodes.bridge.runs.events import RunDisplay

    told = []
    monkeypatch.setattr(RunDisplay, "step", lambda self, values: told.append(values))
    train(run_node, smallest, BUILT_IN)
    train(run_node, smallest, "AdamW")
    assert [values["found_rate"] for values in told[:4]] == [values["lr"] for values in told[:4]]
    assert told[0]["found_rate"] == D0
    assert [values["found_rate"] for values in told[4:]] == [None] * 4
