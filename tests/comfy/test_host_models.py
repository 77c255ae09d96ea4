"""Small models of the host's own classes that no record describes: layers, gradient, files, blend and denoise.

What each class is shown with is in `tests/lib/host_models.py`; a row that a host lacks is skipped.
"""

from __future__ import annotations

import collections
import importlib
import logging
import re

import families
import host_models
import pytest
import torch
from bespoke.nodes.bridge.dataset import conditioning
from bespoke.nodes.bridge.forward_pass.differentiable import DifferentiableFunctions
from bespoke.nodes.bridge.models import check_trainable, checkpoint_blocks, discovery, learn_layers, target_layers
from bespoke.nodes.bridge.training_model import memory_forecast
from bespoke.nodes.bridge.training_model.denoiser import prepare_for_training
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
    # One qkv and one proj a block for the picture alone; q, kv and proj for the prompt; two matrices of feed-forward.
    "pixart_alpha": (6, 10, 14),
    "pixart_sigma": (6, 10, 14),
    # Four blocks: Wqkv, out_proj; q_proj, kv_proj, out_proj; fc1, fc2. The attention that sums up the T5 states to one
    # vector is none.
    "hunyuan_dit": (12, 20, 28),
    "hunyuan_dit1": (12, 20, 28),
    # Six blocks with q, k, v, out and the matrix that the prompt's states go through before; two matrices in each of
    # six residual blocks.
    "cascade_c": (30, 30, 42),
    # As Flux: qkv and proj of two streams in two blocks, two matrices in two blocks of one stream, two a stream's MLP.
    "chroma_radiance": (8, 12, 20),
    # Two blocks with qkv and out of two streams, and three matrices a stream; the last block's text ends nowhere.
    "lens": (7, 7, 16),
    "mochi": (7, 7, 13),
    # q, k, v, out for the picture, and again for the prompt; two matrices.
    "cosmos": (8, 16, 20),
    "wan_causal": (8, 16, 20),
    # qkv, out of two joint blocks and of one refiner each; three matrices in all four blocks.
    "z_image_pixels": (4, 8, 20),
    # Two joint blocks with qkv and proj of two streams (the last text one ends nowhere); two blocks over pixels with
    # a matrix that joins pixels, qkv, proj and one that divides them; three matrices a stream and two in a block over
    # pixels.
    "pixeldit": (7, 15, 28),
    # Two joint blocks with eight matrices and a shared last one; their own attention of the picture, four each; two
    # refiners and two blocks of one stream, four each; three matrices of feed-forward in ten places, less none.
    "boogu": (18, 42, 66),
    # qkv and o of two blocks over one row of text and picture; three matrices.
    "ideogram4": (4, 4, 10),
    # Two blocks of Qwen-Image's: eight matrices, less the last block's query and output of the text; two matrices a
    # stream, less the last block's.
    "mage_flow": (14, 14, 20),
    "joyimage": (7, 7, 13),
    # q, k, v, out over one row of text and picture; two matrices.
    "cogvideox": (8, 8, 12),
    # Recorded families: 34, 15, 21 and 30 transformer blocks of SDXL's, each with two attentions of q, k, v, out and
    # two matrices; Flux; Lumina 2.
    "ssd1b": (136, 272, 340),
    "vega": (60, 120, 150),
    "koala_700m": (84, 168, 210),
    "koala_1b": (120, 240, 300),
    "flux_schnell": (8, 12, 20),
    "longcat_image": (8, 12, 20),
    "newbie": (4, 8, 20),
}
# Classes that compute a part in float32 whatever the model's dtype is: Krea 2 its norms, HiDream-O1 its output. Larger
# steps and a wider tolerance then hold the rounding of the differences down.
IN_FLOAT32 = {"krea2": dict(step=1e-3, rel=2e-4), "hidream_o1": dict(step=1e-3, rel=2e-3)}
# Positions that a function of the class's module computes in float32 always: (module, function).
POSITIONS = {
    "ideogram4": ("comfy.ldm.ideogram4.model", "_split_half_rope_matrix"),
    "cosmos": ("comfy.ldm.cosmos.position_embedding", "normalize"),
}
# For the gradient: CogVideoX 2B's positions, since those of the others are multiplied with in float32; HunyuanDiT's
# attentions in the model's dtype, where core takes float32 for their scores.
CHANGES = {
    "cogvideox": {"use_rotary_positional_embeddings": False, "num_attention_heads": 3},
    "hunyuan_dit": {"attn_precision": None},
}
# What the networks predict, where it is no flow.
U_NETS = ("ssd1b", "vega", "koala_700m", "koala_1b")
PREDICTIONS = {
    "cosmos_predict2": "velocity",
    "cosmos": "edm",
    **dict.fromkeys(("cogvideox", "hunyuan_dit", "hunyuan_dit1"), "v"),
    **dict.fromkeys((*U_NETS, "cascade_c", "pixart_alpha", "pixart_sigma"), "epsilon"),
}
# Whose layers have no names that diffusers reads. NewBie as Lumina 2: ComfyUI's table would divide its layers wrongly.
NOT_IN_DIFFUSERS = {
    "omnigen2", "cosmos_predict2", "hunyuan_image21", "hidream_o1", "cascade_c", "hunyuan_dit", "hunyuan_dit1",
    "chroma_radiance", "lens", "mochi", "cosmos", "z_image_pixels", "pixeldit", "boogu", "joyimage", "cogvideox",
    "newbie",
}  # fmt: skip
# Films, tried with two frames. Krea 2's latents have one frame always.
FRAMES = {
    "cosmos_predict2",
    "anima",
    "ltxv",
    "ltxav",
    "hunyuan_video",
    "hunyuan_video15",
    "kandinsky5",
    "mochi",
    "cosmos",
    "wan_causal",
    "joyimage",
    "cogvideox",
}
SIDES = {"pixart_alpha": 320, "pixart_sigma": 320}  # px of the training pictures; 64 for the others
NAMES = [name for name, row in host_models.ROWS.items() if not row.reason]
# One fast row for each family.
SLOW = {
    "cosmos_predict2",
    "ltxv",
    "ltxav23",
    "hunyuan_video",
    "hunyuan_image21",
    "kandinsky5",
    "ssd1b",
    "vega",
    "koala_1b",
    "pixart_alpha",
    "hunyuan_dit1",
    "flux_schnell",
    "newbie",
    "z_image_pixels",
    "wan_causal",
}
each = pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NAMES])
slow_each = pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in NAMES])


def need(name):
    if host_models.config_class(name) is None:
        pytest.skip(f"this ComfyUI has no {host_models.ROWS[name].config}")


def learnt(name, models=None):
    """(model, clip, vae) of a row, its layers found."""
    need(name)
    models = models or host_models.made(name)
    base = models[0].model

    def conds(latent):
        with DifferentiableFunctions():  # as in `check_gradient`
            prompt = conditioning.encode_prompt(models[1], "a red circle")
            return conditioning.model_conds(base, *prompt, latent, torch.device("cpu")).tensors()

    learn_layers(base, conds)
    return models


def counted(names):
    """{name with # for its numbers: how many}"""
    return dict(collections.Counter(re.sub(r"\.\d+(?=\.|$)", ".#", name) for name in names))


@each
def test_layers_by_target(comfyui, name):
    network = learnt(name)[0].model.diffusion_model
    assert not discovery.why_not_discovered(network)
    found = [target_layers(network, targets) for targets in TARGETS]
    assert tuple(map(len, found)) == LAYERS[name], list(map(counted, found))
    assert found[0].keys() <= found[1].keys() <= found[2].keys()
    assert not any("audio" in layer for layer in found[2])
    in_blocks = {id(layer) for block in checkpoint_blocks(network) for layer in block.modules()}
    assert all(id(layer) in in_blocks for layer in found[2].values())


def test_every_row_is_counted():
    assert set(LAYERS) == set(NAMES)


@pytest.fixture
def exact_positions(monkeypatch):
    """A function that makes these positions, and JoyImage's, float64 numbers."""

    def in_float64(make):
        return lambda *args, **more: make(
            *(x.float() if isinstance(x, torch.Tensor) else x for x in args), **more
        ).double()  # what is given is in float32 there too

    def change(name, network):
        if name in POSITIONS:
            module, function = POSITIONS[name]
            module = importlib.import_module(module)
            monkeypatch.setattr(module, function, in_float64(getattr(module, function)))
        if name == "joyimage":
            make = network.get_rotary_pos_embed_for_components
            monkeypatch.setattr(network, "get_rotary_pos_embed_for_components", in_float64(make))

    return change


@slow_each
def test_gradient_is_that_of_finite_differences(comfyui, exact_positions, name):
    """In float64, through every layer that can be a target; gradient checkpointing gives the same gradient."""
    need(name)
    models = host_models.make(name, dtype=torch.float64, **CHANGES.get(name, {}))
    exact_positions(name, models[0].model.diffusion_model)
    check_gradient(learnt(name, models), 2 if name in FRAMES else 1, **IN_FLOAT32.get(name, {}))


@slow_each
def test_core_loads_every_key_and_gives_what_was_trained(run_node, name, caplog):
    import comfy.model_management

    models, frames = learnt(name), 2 if name in FRAMES else 1
    comfy.model_management.unload_all_models()
    before = weights_hash(models[0].model)
    trained, lora, loss, run, *_ = train(run_node, models, side=SIDES.get(name, 64))
    assert weights_hash(models[0].model) == before
    assert run.info.prediction == PREDICTIONS.get(name, "flow")
    assert len(set(loss["loss"])) == 3
    assert sum("lora_up" in key for key in lora) == LAYERS[name][-1]
    plain, _ = predict(models, models[0], frames)
    ours, _ = predict(models, trained, frames)
    movement = (ours - plain).abs().max()
    assert movement > 1e-2 * plain.abs().max()
    for form in ("kohya", "diffusers", "comfy"):
        save = dict(lora=lora, filename_prefix=f"test/{name}-{form}", run=run, dtype="fp32", key_format=form)
        if name in NOT_IN_DIFFUSERS and form == "diffusers":
            with pytest.raises(InputError, match="diffusers reads no LoRA of this model's class.* kohya or comfy"):
                run_node("BespokeSaveLora", **save)
            continue
        file, *_ = run_node("BespokeSaveLora", **save)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            if name in U_NETS and form == "diffusers":
                # Core's loader does not read diffusers' names of today for U-Nets; this pack's does.
                cores, _, text, *_ = run_node("BespokeInjectLora", model=models[0], lora_name=file, strength_model=1.0)
                assert "matched nothing" not in text
            else:
                cores, _ = run_node(
                    "LoraLoader", model=models[0], clip=models[1], lora_name=file, strength_model=1.0, strength_clip=1.0
                )
        assert "not loaded" not in caplog.text.lower()
        assert (predict(models, cores, frames)[0] - ours).abs().max() < 1e-4 * movement, form
    injected, _, text, *_ = run_node("BespokeInjectLora", model=models[0], lora_name=file, strength_model=1.0)
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


def test_cogvideox_is_trained_on_the_latents_that_its_network_reads(comfyui):
    """x_t = sqrt(a) x0 + sqrt(1 - a) n with a = 1 / (1 + sigma^2), v = sqrt(a) n - sqrt(1 - a) x0: diffusers'
    CogVideoXDDIMScheduler, `add_noise` and `get_velocity`."""
    need("cogvideox")
    with prepare_for_training(host_models.made("cogvideox")[0], "fp32") as denoiser:
        latent, noise = torch.randn(2, 1, 16, 1, 8, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        sigma = torch.tensor([0.75], dtype=torch.float64)
        noisy = denoiser.add_noise(sigma, noise.clone(), latent)
        a = 1 / (1 + 0.75**2)
        assert torch.allclose(noisy, a**0.5 * latent + (1 - a) ** 0.5 * noise)
        velocity = a**0.5 * noise - (1 - a) ** 0.5 * latent
        assert torch.allclose(denoiser.base.model_sampling.calculate_denoised(sigma, velocity, noisy), latent)
        assert denoiser.prediction == "v"


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
    # How far a random network moves a picture says nothing: only that half of the way is neither end.
    half = partial(0.5)
    assert torch.isfinite(half).all()
    assert not torch.equal(half, latent["samples"])
    assert not torch.equal(half, core)


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
