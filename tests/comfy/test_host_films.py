"""Classes of ComfyUI's models that no record describes, found by discovery: their layers and their gradient."""

import collections
import importlib
import re

import host_films
import pytest
import torch
from bespoke.nodes.bridge.dataset import conditioning
from bespoke.nodes.bridge.models import TARGETS, checkpoint_blocks, discovery, learn_layers, target_layers
from bespoke.nodes.bridge.training_model.denoiser import prepare_for_training
from family_checks import check_gradient

TRAINED = [name for name, row in host_films.ROWS.items() if not row.reason]
PARAMS = [name if name in host_films.FAST else pytest.param(name, marks=pytest.mark.slow) for name in TRAINED]
each = pytest.mark.parametrize("name", PARAMS)


def need(name):
    if host_films.config_class(name) is None:
        pytest.skip(f"this ComfyUI has no {host_films.ROWS[name].config}")


def conds_of(base, clip, prompt, latent):
    with torch.no_grad():
        cond, more = conditioning.encode_prompt(clip, prompt)
        return conditioning.model_conds(base, cond, more, latent, torch.device("cpu"))


def learn(models):
    model, clip, _ = models
    learn_layers(model.model, lambda latent: conds_of(model.model, clip, "a photo", latent).tensors())
    return model.model.diffusion_model


# --- which layers -----------------------------------------------------------------------------------------------------
# The oracle: counted by hand in the class. name -> (cross-attention, attention, attention + feed-forward).


def counted(names):
    """{name with # for its numbers: how many}"""
    return dict(collections.Counter(re.sub(r"\.\d+(?=\.|$)", ".#", name) for name in names))


LAYERS = {
    # One qkv and one proj a block for the picture alone; q, kv and proj for the prompt; two matrices of feed-forward.
    "pixart_alpha": (6, 10, 14),
    "pixart_sigma": (6, 10, 14),
    # Four blocks: Wqkv, out_proj; q_proj, kv_proj, out_proj; fc1, fc2. The attention that sums up the T5 states to one
    # vector is none.
    "hunyuan_dit": (12, 20, 28),
    "hunyuan_dit1": (12, 20, 28),
    # Six blocks with q, k, v, out; two matrices in each of six residual blocks.
    "cascade_c": (24, 24, 36),
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
    # qkv and proj; three matrices a stream and two in a block over pixels.
    "pixeldit": (7, 11, 24),
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


@pytest.mark.parametrize("name", list(LAYERS))
def test_the_layers_that_discovery_finds(comfyui, name):
    need(name)
    network = learn(host_films.made(name))
    assert not discovery.why_not_discovered(network)
    found = [target_layers(network, target) for target in TARGETS[:3]]
    assert tuple(map(len, found)) == LAYERS[name], [counted(layers) for layers in found]
    assert found[0].keys() <= found[1].keys() <= found[2].keys()
    in_blocks = {id(layer) for block in checkpoint_blocks(network) for layer in block.modules()}
    assert all(id(layer) in in_blocks for layer in found[2].values())


def test_every_row_is_counted():
    assert set(LAYERS) == set(TRAINED)


# --- the gradient -----------------------------------------------------------------------------------------------------

FRAMES = {"mochi", "cosmos", "wan_causal", "joyimage", "cogvideox"}  # films, tried with two frames


# Positions that a module of the class's file computes in float32 whatever the model's dtype is: (module, function).
POSITIONS = {
    "ideogram4": ("comfy.ldm.ideogram4.model", "_split_half_rope_matrix"),
    "cosmos": ("comfy.ldm.cosmos.position_embedding", "normalize"),
}


# CogVideoX 2B's positions, since those of the others are multiplied with in float32.
CHANGES = {"cogvideox": {"use_rotary_positional_embeddings": False, "num_attention_heads": 3}}


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


@each
def test_gradient_is_that_of_finite_differences(comfyui, exact_positions, name):
    """In float64, through every layer that can be a target; gradient checkpointing gives the same gradient."""
    need(name)
    models = host_films.make(name, dtype=torch.float64, **CHANGES.get(name, {}))
    exact_positions(name, models[0].model.diffusion_model)
    learn(models)
    check_gradient(models, 2 if name in FRAMES else 1)


def test_cogvideox_is_trained_on_the_latents_that_its_network_reads(comfyui):
    """x_t = sqrt(a) x0 + sqrt(1 - a) n with a = 1 / (1 + sigma^2), v = sqrt(a) n - sqrt(1 - a) x0: diffusers'
    CogVideoXDDIMScheduler, `add_noise` and `get_velocity`."""
    need("cogvideox")
    with prepare_for_training(host_films.made("cogvideox")[0], "fp32") as denoiser:
        latent, noise = torch.randn(2, 1, 16, 1, 8, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        sigma = torch.tensor([0.75], dtype=torch.float64)
        noisy = denoiser.add_noise(sigma, noise.clone(), latent)
        a = 1 / (1 + 0.75**2)
        assert torch.allclose(noisy, a**0.5 * latent + (1 - a) ** 0.5 * noise)
        velocity = a**0.5 * noise - (1 - a) ** 0.5 * latent
        assert torch.allclose(denoiser.base.model_sampling.calculate_denoised(sigma, velocity, noisy), latent)
        assert denoiser.prediction == "v"
