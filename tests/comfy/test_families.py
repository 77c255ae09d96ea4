"""Every model family with a small model of ComfyUI's own class: layers, gradients, and LoRA files in core's loader."""

import logging

import families
import pytest
import torch
from bespoke.nodes.bridge.models import FAMILIES, checkpoint_blocks, family_of, target_layers
from bespoke.nodes.bridge.training_model.denoiser import prepare_for_training
from bespoke.training.adapters import AdapterConfig, AdapterSet, LoraAdapter
from bespoke.training.errors import InputError
from bespoke.training.layer_names.spelling import COMFY_PREFIX
from bespoke.training.objective import denoising_loss
from family_checks import TARGETS, batch, check_gradient, make_adapters, predict, train
from helpers import batch_and_single_gradients, sprite_set, weights_hash

# name -> (family, prediction, number of layers by target). More tests of Flux and SD3 are in test_flow.py.
KNOWN = {
    "sd15": ("U-Net (SD1.5, SD2, SDXL)", "epsilon", (64, 128, 160)),
    "sd2_v": ("U-Net (SD1.5, SD2, SDXL)", "v", (16, 32, 40)),
    "sdxl": ("U-Net (SD1.5, SD2, SDXL)", "epsilon", (112, 224, 280)),
    "sdxl_refiner": ("U-Net (SD1.5, SD2, SDXL)", "epsilon", (112, 224, 280)),
    "inpainting": ("U-Net (SD1.5, SD2, SDXL)", "epsilon", (16, 32, 40)),
    "sdxl_inpainting": ("U-Net (SD1.5, SD2, SDXL)", "epsilon", (112, 224, 280)),
    "sd3": ("SD3", "flow", (7, 9, 15)),
    "flux": ("Flux", "flow", (8, 12, 20)),
    "flux_fill": ("Flux", "flow", (8, 12, 20)),
    "flux2": ("Flux 2", "flow", (8, 12, 20)),
    "chroma": ("Chroma", "flow", (8, 12, 20)),
    "qwen_image": ("Qwen-Image", "flow", (14, 14, 20)),
    "z_image": ("Z-Image, Lumina 2", "flow", (4, 8, 20)),
    "lumina2": ("Z-Image, Lumina 2", "flow", (4, 8, 20)),
    "wan": ("Wan", "flow", (8, 16, 20)),
    "wan22": ("Wan", "flow", (8, 16, 20)),
}
SLOW = {"sd15", "sdxl", "sdxl_inpainting", "sdxl_refiner", "sd3", "flux", "flux_fill", "lumina2", "wan22"}
PARAMS = [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in families.FAMILIES]
each = pytest.mark.parametrize("name", PARAMS)


# --- which layers -----------------------------------------------------------------------------------------------------


def test_every_family_has_a_small_model_here():
    assert {family for family, _, _ in KNOWN.values()} == {family.name for family in FAMILIES}
    assert set(KNOWN) == set(families.FAMILIES)


@each
def test_target_layers_of_each_family(comfyui, name):
    models = families.made(name)
    model = models[0].model.diffusion_model
    family, prediction, counts = KNOWN[name]
    assert family_of(model).name == family
    found = [target_layers(model, targets) for targets in TARGETS]
    assert tuple(map(len, found)) == counts
    assert found[0].keys() <= found[1].keys() <= found[2].keys()
    with prepare_for_training(models[0], "fp32") as denoiser:
        assert denoiser.prediction == prediction
    in_blocks = {id(layer) for block in checkpoint_blocks(model) for layer in block.modules()}
    assert all(id(layer) in in_blocks for layer in found[2].values())  # every trained layer is in a block


def test_cross_attention_targets(comfyui):
    def names(name):
        return list(target_layers(families.made(name)[0].model.diffusion_model, TARGETS[0]))

    projections = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out")
    # The last block's text stream is not used, so its query and output get no gradient.
    blocks = ((0, projections), (1, [layer for layer in projections if layer not in ("add_q_proj", "to_add_out")]))
    assert names("qwen_image") == [f"transformer_blocks.{i}.attn.{layer}" for i, layers in blocks for layer in layers]
    assert names("z_image") == [f"layers.{i}.attention.{layer}" for i in (0, 1) for layer in ("qkv", "out")]
    assert names("wan") == [f"blocks.{i}.cross_attn.{layer}" for i in (0, 1) for layer in "qkvo"]
    joint = [
        f"double_blocks.{i}.{stream}_attn.{layer}"
        for i in (0, 1)
        for stream in ("img", "txt")
        for layer in ("qkv", "proj")
    ]
    assert names("flux2") == names("chroma") == joint


# --- the gradient -----------------------------------------------------------------------------------------------------


@each
def test_gradient_is_that_of_finite_differences(comfyui, name):
    """In float64, through every layer that can be a target; gradient checkpointing gives the same gradient."""
    # Some families have 512 tokens; a few are enough.
    check_gradient(families.MAKERS[name](dtype=torch.float64), 2 if "wan" in name else 1, tokens=16)


# Inpainting checkpoints also read a masked picture: see test_families_conditioning.py.
@pytest.mark.parametrize("name", [param for param in PARAMS if "inpainting" not in str(param)])
def test_gradient_of_four_captions_is_the_mean_of_four(comfyui, name):
    """With prompts of several lengths where a language model encodes them: each length is a separate call."""
    models = families.made(name)
    joint, mean, sizes = batch_and_single_gradients(models[0], models[1], families.latent_shape(models[0].model))
    assert sum(sizes) == 4
    assert len(sizes) == 1 or name in ("chroma", "qwen_image", "z_image", "lumina2")
    assert mean.norm() > 0
    assert (joint - mean).norm() / mean.norm() < 2e-5


IN_BF16 = [
    (name, weights)
    for name in ("flux", "sd3", "flux2", "chroma", "qwen_image", "z_image", "lumina2", "wan")
    for weights in (torch.bfloat16, torch.float32)
]
IN_BF16_SLOW = [
    (name, weights) for name, weights in IN_BF16 if name == "lumina2" or (weights is torch.float32 and name != "flux")
]


@pytest.mark.parametrize(
    ("name", "weights"),
    [pytest.param(*case, marks=pytest.mark.slow) if case in IN_BF16_SLOW else case for case in IN_BF16],
)
def test_bf16_gives_nearly_the_fp32_gradient(comfyui, name, weights):
    """bf16 weights as these models' files have them, and fp32 weights under autocast."""
    gradients = []
    for kind, precision in ((torch.float32, "fp32"), (weights, "bf16")):
        models = families.MAKERS[name](dtype=kind)
        with prepare_for_training(models[0], precision) as denoiser:
            adapters = make_adapters(denoiser, "cross-attention")
            with adapters.attached():
                denoising_loss(denoiser, *batch(models, denoiser, levels=(0.1, 0.9))).mean().backward()
            assert all(p.dtype == p.grad.dtype == torch.float32 for p in adapters.parameters())
            gradients.append(torch.cat([p.grad.flatten() for p in adapters.parameters()]))
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.98


# --- the node and its files -----------------------------------------------------------------------------------------


@each
def test_core_loads_every_key_and_gives_what_was_trained(run_node, name, caplog):
    import comfy.model_management

    models = families.made(name)
    comfy.model_management.unload_all_models()  # removes patches that ComfyUI has left in the weights
    before = weights_hash(models[0].model)
    trained, lora, loss, run, *_ = train(run_node, models)
    assert weights_hash(models[0].model) == before
    assert run.info.prediction == KNOWN[name][1]
    assert len(set(loss["loss"])) == 3
    plain, given = predict(models, models[0])
    ours, _ = predict(models, trained)
    movement = (ours - plain).abs().max()
    assert movement > 1e-2 * plain.abs().max()
    for form in ("kohya", "diffusers", "comfy"):
        save = dict(lora=lora, filename_prefix=f"test/{name}-{form}", run=run, dtype="fp32", key_format=form)
        if name == "lumina2" and form == "diffusers":
            with pytest.raises(
                InputError, match="diffusers reads no LoRA of this model's class.*choose key_format kohya or comfy"
            ):
                run_node("BespokeSaveLora", **save)
            continue
        file, *_ = run_node("BespokeSaveLora", **save)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            if KNOWN[name][0].startswith("U-Net") and form == "diffusers":
                # Core's loader does not read diffusers' names of today for U-Nets; this pack's does.
                cores, _, text, *_ = run_node("BespokeInjectLora", model=models[0], lora_name=file, strength_model=1.0)
                assert "matched nothing" not in text
            else:
                cores, _ = run_node(
                    "LoraLoader", model=models[0], clip=models[1], lora_name=file, strength_model=1.0, strength_clip=1.0
                )
        assert "not loaded" not in caplog.text.lower()
        assert (predict(models, cores)[0] - ours).abs().max() < 1e-4 * movement, form
    # The same output as in the forward pass of a training, which adds the low-rank path to the frozen layers.
    comfy.model_management.unload_all_models()
    with prepare_for_training(models[0], "fp32") as denoiser:
        layers = {
            COMFY_PREFIX + layer: module
            for layer, module in target_layers(denoiser.base.diffusion_model, TARGETS[-1]).items()
        }
        adapters = AdapterSet(LoraAdapter, layers, AdapterConfig(2, 1.0, 0), denoiser.device)
        adapters.load_state_dict(lora)
        with torch.no_grad(), adapters.attached():
            assert (denoiser.denoise(*given) - ours).abs().max() < 1e-4 * movement


@pytest.mark.parametrize("name", ["inpainting", "flux2", "qwen_image", "wan"])
def test_nothing_is_left_on_the_users_model(run_node, name):
    """After a run with gradient checkpointing, sample images and held-out pictures."""
    models = families.made(name)
    model = models[0].model
    before = weights_hash(model)
    held_out = sprite_set(4, 2, side=64, colour="teal")
    *_, report, _ = train(
        run_node, models, gradient_checkpointing=True, sample_every=2, validation_images=held_out, validation=2
    )
    assert "Held-out loss" in report
    assert weights_hash(model) == before
    assert not models[0].patches
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ["chroma", "z_image", "wan"])
def test_a_text_encoder_without_clip_is_an_error(run_node, name):
    with pytest.raises(
        InputError, match=r"train_text_encoder is on, and the text encoder \(\w+\) holds no CLIP.*switch it off"
    ):
        train(run_node, families.made(name), train_text_encoder=True)


# --- unknown models -------------------------------------------------------------------------------------------------


def test_a_model_of_no_family_needs_custom_targets(comfyui):
    """VACE is Wan with more inputs and does not belong to the family."""
    import comfy.ldm.wan.model
    import comfy.ops

    vace = comfy.ldm.wan.model.VaceWanModel(
        **families.WAN | {"model_type": "vace"},
        vace_layers=1,
        vace_in_dim=16,
        device="cpu",
        operations=comfy.ops.disable_weight_init,
    )
    assert family_of(vace) is None
    with pytest.raises(
        InputError, match="the layers of a VaceWanModel are not known by name here; set targets to 'custom'"
    ):
        target_layers(vace, "cross-attention")
    assert list(target_layers(vace, "custom", "blocks.*.cross_attn.k")) == [
        "blocks.0.cross_attn.k",
        "blocks.1.cross_attn.k",
    ]
    with pytest.raises(InputError, match="the blocks of a VaceWanModel are not known here.*switch it off"):
        checkpoint_blocks(vace)
