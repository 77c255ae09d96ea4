"""Loss types, loss weightings and added noises through the nodes: learned with, resumed, exported, and validated."""

import math
from pathlib import Path

import pytest
import tiny
import torch
from bespoke.nodes.jobs.toml import read_toml
from bespoke.training.config import ADDED
from bespoke.training.objective import loss_weight, prediction_weight
from helpers import sprite_set

ALL = dict(loss_type="huber", huber_c=0.3, multires_noise=0.4, ip_noise_gamma=0.1, loss_weighting="P2")


@pytest.fixture(scope="module")
def models(comfyui):
    return tiny.patcher(tiny.SMALLEST), tiny.clip(), tiny.vae()


def train(run_node, models, node="BespokeTrainLora", **changes):
    model, clip, vae = models
    settings = dict(
        images=sprite_set(2, 12, side=64, colour="teal"), steps=4, batch_size=2, seed=5, learning_rate=2e-2,
        precision="fp32", resume=False, lr_schedule="constant",
    )  # fmt: skip
    settings |= dict(rank=2, alpha=1.0) if node == "BespokeTrainLora" else dict(name="w", init_text="red")
    return run_node(node, model=model, clip=clip, vae=vae, **settings | changes)


@pytest.mark.parametrize(("name", "diffusers_name"), [("cosmap", "cosmap"), ("sigma-sqrt", "sigma_sqrt")])
def test_the_weightings_of_sd3_are_those_of_diffusers(name, diffusers_name):
    """On the squared error of a flow model's velocity, as its training scripts multiply them."""
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    sigmas = torch.tensor([1e-3, 0.03, 0.25, 0.5, 0.9, 1.0], dtype=torch.float64)
    own = loss_weight("flow", sigmas, name) / prediction_weight("flow", sigmas)
    expected = compute_loss_weighting_for_sd3(diffusers_name, sigmas=sigmas).double()
    assert torch.allclose(own, expected, rtol=1e-6)


@pytest.mark.parametrize("node", ["BespokeTrainLora", "BespokeTrainTextualInversion"])
def test_both_trainers_learn_with_all_of_them_and_resume_on_the_same_bits(run_node, models, runs, node):
    learned = lambda out: out[1]  # noqa: E731  the LoRA or the word
    whole = learned(train(run_node, models, node, **ALL))
    train(run_node, models, node, **ALL, steps=2, resume=True)
    again = learned(train(run_node, models, node, **ALL, resume=True))
    assert all(torch.equal(again[key], whole[key]) for key in whole)
    plain = learned(train(run_node, models, node))
    assert all(torch.isfinite(tensor).all() for tensor in whole.values())
    assert not all(torch.equal(plain[key], whole[key]) for key in whole)


def test_held_out_pictures_are_scored_alike_whatever_is_trained_with(run_node, models):
    """At a learning rate of 0 both runs score the same model. The step's loss is another one: Huber's is smaller."""
    given = dict(validation=2, learning_rate=0.0, score_pictures="on", steps=1)
    (_, _, losses, plain, *_), (_, _, changed, other, *_) = (
        train(run_node, models, **given | changes) for changes in ({}, ALL | {"loss_weighting": "none"})
    )
    assert plain.held_out == other.held_out
    assert plain.pictures == other.pictures
    assert len(plain.pictures) == 12
    assert all(math.isfinite(loss) for _, loss in plain.held_out)
    assert changed["loss"] != losses["loss"]


def test_an_exported_job_has_the_settings_that_were_changed(run_node, comfyui):
    import jobs

    models = jobs.base_model(comfyui)
    settings = [
        read_toml((Path(folder) / "job.toml").read_text("utf-8"))["settings"]
        for folder, _ in (jobs.export(run_node, models, "jobs/loss", **changes) for changes in (ALL, {}))
    ]
    assert ALL.items() <= settings[0].items()
    assert not {*ADDED} & settings[1].keys()


def test_a_words_settings_are_those_that_were_changed():
    """What is written into its record and its job."""
    from bespoke.nodes.textual_inversion.node import request_from_inputs

    given = dict(name="w", init_text="red", learning_rate=1e-3, steps=3, batch_size=1, seed=1)
    assert ALL.items() <= request_from_inputs(given | ALL).settings().items()
    assert not {*ADDED} & request_from_inputs(given).settings().keys()
