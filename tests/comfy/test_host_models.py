"""Small models of the host's own classes that no record describes: layers, gradient, files, blend and denoise.

What each class is shown with is in `tests/lib/host_models.py`; a row that a host lacks is skipped.
"""

from __future__ import annotations

import logging

import families
import host_models
import pytest
import torch
from bespoke.nodes.bridge.dataset import conditioning
from bespoke.nodes.bridge.models import check_trainable, checkpoint_blocks, family_of, learn_layers, target_layers
from bespoke.nodes.bridge.training_model import memory_forecast
from bespoke.nodes.bridge.training_model.differentiable import DifferentiableFunctions
from bespoke.training.adapters import AdapterConfig, AdapterSet, LoraAdapter
from bespoke.training.errors import InputError
from family_checks import TARGETS, check_gradient, predict, train
from helpers import weights_hash

# Layers by target for two blocks of each kind, counted by hand from the class's code.
LAYERS = {
    # 2 blocks of q, k, v, out over text and picture; a refiner for each has the same; linear_1..3 in all 4.
    "omnigen2": (8, 16, 28),
    # 2 blocks over both; 2 layerwise and 2 refining blocks for the text; gate, up, down in all 6.
    "krea2": (8, 24, 42),
    # 2 blocks with self- and cross-attention; layer1, layer2.
    "cosmos_predict2": (8, 16, 20),
    # The same, and one block of the adapter: 2 attentions and 2 layers.
    "anima": (8, 24, 30),
    # 2 blocks of attn1, attn2 and a feed-forward of two layers; of LTX-2's, the picture's alone.
    "ltxv": (8, 16, 20),
    "ltxav": (8, 16, 20),
    "ltxav23": (8, 16, 20),  # the gates of its attentions are no targets
    # 2 double blocks of 4, 2 single ones of 2, 2 refining blocks of 2; 4 in a double block, 2 in a refining one.
    "hunyuan_video": (8, 16, 28),
    "hunyuan_video15": (8, 16, 28),
    "hunyuan_image21": (8, 16, 28),
    # 2 double blocks of 8, 2 single ones of 4; in each 5 experts of w1..w3, and 3 more for the text.
    "hidream": (16, 24, 90),
    # A language model: 2 blocks of q, k, v, o and gate, up, down.
    "hidream_o1": (8, 8, 14),
    "ernie": (8, 8, 14),
    # 2 blocks with self- and cross-attention, one with self-attention for the text; 2 layers in all 3.
    "kandinsky5": (8, 20, 26),
    "kandinsky5_image": (8, 20, 26),
    # 2 double blocks of 8, 2 single ones of 4; c_fc1, c_fc2, c_proj: 6 in a double block, 3 in a single one. The last
    # double block's text goes on into the single ones.
    "auraflow": (16, 24, 42),
}
# Classes that compute a part in float32 whatever the model's dtype is: Krea 2 its norms, HiDream-O1 its output. Larger
# steps and a wider tolerance then hold the rounding of the differences down.
IN_FLOAT32 = {"krea2": dict(step=1e-3, rel=2e-4), "hidream_o1": dict(step=1e-3, rel=2e-3)}
VELOCITY = {"cosmos_predict2": "velocity"}
# Films, tried with two frames. Krea 2's latents have one frame always.
FRAMES = {
    "cosmos_predict2",
    "anima",
    "ltxv",
    "ltxav",
    "hunyuan_video",
    "hunyuan_video15",
    "kandinsky5",
}
NAMES = list(host_models.ROWS)
# One fast row for each family.
SLOW = {"cosmos_predict2", "ltxv", "ltxav23", "hunyuan_video", "hunyuan_image21", "kandinsky5"}
each = pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NAMES])
slow_each = pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in NAMES])


def learnt(name, models=None):
    """(model, clip, vae) of a row, its layers found."""
    if host_models.config_class(name) is None:
        pytest.skip(f"this ComfyUI has no {host_models.ROWS[name].config}")
    models = models or host_models.made(name)
    base = models[0].model

    def conds(latent):
        with DifferentiableFunctions():  # as in `check_gradient`
            prompt = conditioning.encode_prompt(models[1], "a red circle")
            return conditioning.model_conds(base, *prompt, latent, torch.device("cpu")).tensors()

    learn_layers(base, conds)
    return models


@each
def test_layers_by_target(comfyui, name):
    network = learnt(name)[0].model.diffusion_model
    assert family_of(network) is not None
    found = [target_layers(network, targets) for targets in TARGETS]
    assert tuple(map(len, found)) == LAYERS[name]
    assert found[0].keys() <= found[1].keys() <= found[2].keys()
    assert not any("audio" in layer for layer in found[2])
    in_blocks = {id(layer) for block in checkpoint_blocks(network) for layer in block.modules()}
    assert all(id(layer) in in_blocks for layer in found[2].values())


@slow_each
def test_gradient_is_that_of_finite_differences(comfyui, name):
    """In float64, through every layer that can be a target; gradient checkpointing gives the same gradient."""
    models = learnt(name, host_models.make(name, dtype=torch.float64))
    check_gradient(models, 2 if name in FRAMES else 1, **IN_FLOAT32.get(name, {}))


@slow_each
def test_core_loads_every_key_and_gives_what_was_trained(run_node, name, caplog):
    import comfy.model_management

    models, frames = learnt(name), 2 if name in FRAMES else 1
    comfy.model_management.unload_all_models()
    before = weights_hash(models[0].model)
    trained, lora, loss, run, *_ = train(run_node, models)
    assert weights_hash(models[0].model) == before
    assert run.info.prediction == VELOCITY.get(name, "flow")
    assert len(set(loss["loss"])) == 3
    assert sum("lora_up" in key for key in lora) == LAYERS[name][-1]
    plain, _ = predict(models, models[0], frames)
    ours, _ = predict(models, trained, frames)
    movement = (ours - plain).abs().max()
    assert movement > 1e-2 * plain.abs().max()
    for form in ("kohya", "diffusers", "comfy"):
        file, *_ = run_node(
            "BespokeSaveLora", lora=lora, filename_prefix=f"test/{name}-{form}", run=run, dtype="fp32", key_format=form
        )
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            cores, _ = run_node(
                "LoraLoader", model=models[0], clip=models[1], lora_name=file, strength_model=1.0, strength_clip=1.0
            )
        assert "not loaded" not in caplog.text.lower()
        assert (predict(models, cores, frames)[0] - ours).abs().max() < 1e-4 * movement, form
    injected, *_, text, _ = run_node("BespokeInjectLora", model=models[0], lora_name=file, strength_model=1.0)
    assert "matched nothing" not in text
    assert (predict(models, injected, frames)[0] - ours).abs().max() < 1e-4 * movement


# --- what a training tells a class ------------------------------------------------------------------------------------


def test_hunyuan_video_is_trained_without_guidance(comfyui):
    """At 1, where the output is the plain velocity; ComfyUI's default for sampling is 6."""
    model, clip, _ = host_models.made("hunyuan_video")
    latent = torch.zeros(1, *families.latent_shape(model.model))
    conds = conditioning.model_conds(model.model, *conditioning.encode_prompt(clip, "a"), latent, torch.device("cpu"))
    assert conds.tensors()["guidance"].tolist() == [1.0]


def test_a_model_that_reads_two_noise_levels_is_refused(comfyui):
    model, *_ = host_models.make("hunyuan_image21", meanflow=True)
    with pytest.raises(InputError, match="cannot be trained here: it is distilled to few steps and reads"):
        check_trainable(model.model)


def test_layers_of_sound_are_no_custom_targets(comfyui):
    network = learnt("ltxav")[0].model.diffusion_model
    with pytest.raises(InputError, match="no linear layer matches"):
        target_layers(network, "custom", "*audio_attn1.to_q")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ltxav", "hidream", "hidream_o1", "cosmos_predict2", "hunyuan_video15"])
def test_a_step_has_a_memory_forecast(comfyui, name):
    """Of classes whose forward pass needs something of its own on fake tensors; less with gradient checkpointing."""
    models = learnt(name)
    base = models[0].model
    latent = torch.zeros(1, *families.latent_shape(base))
    conds = conditioning.model_conds(
        base, *conditioning.encode_prompt(models[1], "a red circle"), latent, torch.device("cpu")
    )

    made = []

    def learn():
        layers = target_layers(base.diffusion_model, TARGETS[-1])
        made.append(AdapterSet(LoraAdapter, layers, AdapterConfig(4, 4, 0), "cpu"))
        return list(made[-1].parameters())

    plain, saving = (
        memory_forecast.forecast(base, latent, conds, learn, None, saving, 8, lambda: made[-1].attached())
        for saving in (False, True)
    )
    assert 0 < saving.kept < plain.kept


# --- sampling ---------------------------------------------------------------------------------------------------------

SETTINGS = dict(seed=7, steps=4, cfg=2.0, sampler_name="euler", scheduler="normal")


@pytest.fixture
def wires(run_node, name):
    """(model, {"positive", "negative"}, latent); three frames where the family has frames."""
    model, clip, _ = learnt(name)
    conds = {
        side: run_node("CLIPTextEncode", clip=clip, text=text)[0]
        for side, text in (("positive", "a red circle"), ("negative", ""))
    }
    shape = families.latent_shape(model.model, frames=3 if name in FRAMES else 1)
    return model, conds, {"samples": torch.randn(1, *shape, generator=torch.Generator().manual_seed(2))}


def ksampler(run_node, model, conds, latent, **changes):
    return run_node("KSampler", model=model, latent_image=latent, **SETTINGS | {"denoise": 1.0} | conds | changes)[0][
        "samples"
    ]


@slow_each
def test_partial_denoise_is_ksampler(run_node, wires, name):
    model, conds, latent = wires

    def partial(strength, **changes):
        return run_node(
            "BespokePartialDenoise", model=model, latent_image=latent, strength=strength, **SETTINGS | conds | changes
        )[0]["samples"]

    assert torch.equal(partial(0.0), latent["samples"])
    core = ksampler(run_node, model, conds, latent)
    assert torch.isfinite(core).all()
    assert torch.equal(partial(1.0), core)
    near, far = (float((x - latent["samples"]).norm()) for x in (partial(0.5), core))
    assert 0.0 < near < far


@slow_each
@pytest.mark.parametrize("blend", ["re-inject", "prediction"])
def test_outside_the_mask_the_latent_is_the_original(run_node, wires, name, blend):
    model, conds, latent = wires
    height, width = (8 * side for side in latent["samples"].shape[-2:])
    mask = torch.zeros(1, height, width)
    mask[:, height // 4 : 5 * height // 8, width // 4 : 3 * width // 4] = 1.0
    patched, masked, *_ = run_node(
        "BespokeLatentMaskBlend", model=model, latent=latent, mask=mask, blend=blend, grow=0, feather=0
    )
    result = ksampler(run_node, patched, conds, masked)
    inside = masked["noise_mask"].expand_as(result) > 0
    assert 0 < int(inside.sum()) < inside.numel()
    assert torch.isfinite(result).all()
    assert float((result - latent["samples"]).abs().masked_fill(inside, 0.0).max()) == 0.0
    assert bool((result != latent["samples"])[inside].any())
