"""Values of Train LoRA that no widget gives: wires of the wrong type, and dropout that leaves out nearly everything."""

import pytest
import tiny
import torch
from bespoke.training.errors import InputError
from helpers import sprite_set


@pytest.fixture(scope="module")
def train(comfyui, run_node):
    model, clip, vae = tiny.patcher(tiny.SMALLEST), tiny.clip(), tiny.vae()
    given = dict(
        model=model, clip=clip, vae=vae, images=sprite_set(2, 4, side=64, colour="teal"), steps=1, batch_size=1, rank=2,
        alpha=1.0, seed=5, learning_rate=2e-2, precision="fp32", resume=False, score_pictures="off",
    )  # fmt: skip
    return lambda **changes: run_node("BespokeTrainLora", **given | changes)


@pytest.mark.parametrize("name", ["lora", "training_adapter"])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("a", "holds no tensors by name; wire in a LoRA"),
        ([1], "holds no tensors by name; wire in a LoRA"),
        ({"a": 1}, "holds no tensors by name; wire in a LoRA"),
        ({"a": torch.zeros(1)}, r"no part of a LoRA \('a'\)"),
        ({}, r"no part of a LoRA \('nothing at all'\)"),
    ],
)
def test_what_is_no_lora_is_refused(train, name, value, words):
    """An empty one too: it was taken for an input without a wire, and the training ran without it."""
    with pytest.raises(InputError, match=words):
        train(**{name: value})


@pytest.mark.parametrize("name", ["preserve", "custom_targets", "sample_prompt"])
@pytest.mark.parametrize("value", [5, None, ["a"]])
def test_a_setting_that_is_no_text_is_refused(train, name, value):
    with pytest.raises(InputError, match=f"{name} is .*; give a text"):
        train(**{name: value})


@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}, {"preserve": "a dog"}])
def test_nearly_every_layer_left_out(train, changes):
    """At module_dropout 0.99 most steps have no adapter at all: their gradient is zero, and the run goes on.

    With four layers the first five steps of this seed leave out all of them (0.99^20 is 0.82).
    """
    targets = dict(targets="custom", custom_targets="*attn2.to_k, *attn2.to_v")
    *_, run, report, _ = train(module_dropout=0.99, steps=5, **targets, **changes)
    assert len(run.losses) == 5
    assert "NOTHING WAS LEARNED" in report
