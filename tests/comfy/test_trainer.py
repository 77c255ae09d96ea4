"""Every setting of the LoRA trainer, on small models of SD1.5's and SDXL's classes."""

import gc
import logging

import comfy.model_patcher
import comfy.sd
import pytest
import tiny
import torch
from bespoke.nodes.bridge.dataset import conditioning, pictures
from bespoke.nodes.bridge.models import checkpoint_blocks, target_layers
from bespoke.nodes.bridge.runs.store import RunStore
from bespoke.nodes.bridge.training_model.checkpointing import checkpointed
from bespoke.nodes.bridge.training_model.denoiser import prepare_for_training
from bespoke.training.adapters import AdapterConfig, AdapterSet, LoraAdapter
from bespoke.training.config import TrainConfig
from bespoke.training.errors import InputError
from bespoke.training.images import ImageSet, TrainingImage
from bespoke.training.measure import measure_step
from bespoke.training.objective import denoising_loss
from comfy_api.latest import io
from helpers import batch_and_single_gradients, image_set, sprite_set, weights_hash


def train(run_node, models, **changes):
    """(model, lora, loss, run, report, clip) of a short training in float32."""
    model, clip, vae = models
    images = changes.pop("images", None) or sprite_set(2, 4, side=64, colour="teal")
    settings = dict(
        steps=3, batch_size=2, rank=2, alpha=2.0, learning_rate=1e-2, seed=5, precision="fp32", resume=False
    )
    return run_node("BespokeTrainLora", model=model, clip=clip, vae=vae, images=images, **settings | changes)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def two_sizes() -> ImageSet:
    items = [
        TrainingImage(f"{i}", torch.randint(0, 255, (64, 96 if i % 2 else 64, 3), dtype=torch.uint8), f"picture {i}")
        for i in range(4)
    ]
    return image_set(items)


# --- the gradient ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("models", ["sd15", "sdxl"], indirect=True)
@pytest.mark.parametrize("cells", [(16, 16), (12, 20)])  # two aspect ratios
def test_gradient_of_four_captions_is_the_mean_of_four(models, cells):
    model, clip, _ = models
    batch, mean, sizes = batch_and_single_gradients(model, clip, (model.model.latent_format.latent_channels, *cells))
    assert sizes == [4]  # one call with exactly four samples
    assert mean.norm() > 0
    assert (batch - mean).norm() / mean.norm() < 1e-5


@pytest.mark.parametrize("models", ["sd15", "sdxl"], indirect=True)
def test_gradient_checkpointing_keeps_less_and_learns_the_same(models, run_node):
    model = models[0]
    plain, saving = (train(run_node, models, gradient_checkpointing=on, learning_rate=1e-3)[1] for on in (False, True))
    assert all((plain[key] - saving[key]).abs().max() < 1e-5 for key in plain)
    latent = torch.randn(2, model.model.latent_format.latent_channels, 8, 8)
    cond, extra = conditioning.encode_prompt(models[1], "a red circle")
    kept = []
    for on in (False, True):
        with prepare_for_training(model, "fp32", on) as denoiser:
            layers = target_layers(denoiser.base.diffusion_model, "attention + feed-forward")
            adapters = AdapterSet(LoraAdapter, layers, AdapterConfig(2, 2, 0), denoiser.device)
            conds = conditioning.join_conds(
                [conditioning.model_conds(denoiser.base, cond, extra, latent[:1], denoiser.device)] * 2
            )
            with adapters.attached():
                cost = measure_step(
                    lambda denoiser=denoiser, conds=conds: denoising_loss(
                        denoiser, latent, latent, denoiser.sigma(torch.tensor([0.2, 0.8])), conds
                    ).mean(),
                    denoiser.base.parameters(),
                    adapters.parameters(),
                )
            kept.append(cost.kept)
    assert kept[1] < 0.5 * kept[0]
    assert not any("forward" in vars(block) for block in checkpoint_blocks(model.model.diffusion_model))


def test_checkpointing_leaves_nothing_behind_when_it_fails(sd15):
    blocks = checkpoint_blocks(sd15[0].model.diffusion_model)

    def fail():
        with checkpointed(blocks):
            assert all("forward" in vars(block) for block in blocks)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert not any("forward" in vars(block) for block in blocks)


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(sd15, run_node):
    """The LoRA of a training with the default settings."""
    return train(run_node, sd15, batch_size=4)[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "Adafactor"},
        {"optimizer": "SGD"},
        {"loss_weighting": "min-SNR"},
        {"loss_weighting": "debiased"},
        {"loss_weighting": "sigma-sqrt"},
        {"loss_type": "huber", "optimizer": "SGD"},
        {"multires_noise": 0.3},
        {"ip_noise_gamma": 0.1},
        {"timestep_sampling": "uniform"},
        {"timestep_sampling": "logit-normal"},
        {"timestep_sampling": "shifted"},
        {"noise_offset": 0.1},
        {"ema": 0.5},
        {"caption_dropout": 1.0},
        {"gradient_accumulation": 2},
        {"max_grad_norm": 1e-3, "optimizer": "SGD"},
        {"lr_schedule": "linear"},
        {"warmup_steps": 2},
        {"targets": "attention"},
        {"targets": "attention + feed-forward"},
        {"targets": "custom", "custom_targets": "*attn2.to_k"},
        {"alpha": 1.0},
    ],
    ids=lambda changes: "-".join(f"{k}={v}" for k, v in changes.items()),
)
def test_every_setting_changes_what_is_learned(sd15, run_node, plain, changes):
    before = weights_hash(sd15[0].model)
    changed = train(run_node, sd15, **{"batch_size": 4} | changes)[1]
    shared = plain.keys() & changed.keys()
    assert shared
    assert not same({k: plain[k] for k in shared}, {k: changed[k] for k in shared})
    assert all(torch.isfinite(value).all() for value in changed.values())
    assert weights_hash(sd15[0].model) == before


def test_sd15s_cross_attention_is_64_projections(sd15, run_node):
    _, lora, *_ = train(run_node, sd15)
    layers = {key.rsplit(".lora_", 1)[0] for key in lora if ".lora_" in key}
    assert len(layers) == 64  # 16 blocks x q, k, v, out
    assert all(".attn2." in layer for layer in layers)


def test_prior_pictures(sd15, run_node):
    prior = sprite_set(7, 3, side=64, colour="red")
    plain = train(run_node, sd15)
    nothing = train(run_node, sd15, prior_images=prior, prior_weight=0.0)
    both = train(run_node, sd15, prior_images=prior, prior_weight=1.0)
    assert nothing[2]["loss"] == plain[2]["loss"]
    assert same(nothing[1], plain[1])
    assert both[2]["loss"][0] > plain[2]["loss"][0]  # the sum of two losses
    assert not same(both[1], plain[1])
    assert nothing[3].id != plain[3].id


def test_continues_from_another_lora(sd15, run_node):
    _, first, _, run, *_ = train(run_node, sd15)
    _, again, *_ = train(run_node, sd15, lora=first, learning_rate=0.0)
    assert same(again, first)
    name, *_ = run_node("BespokeSaveLora", lora=first, filename_prefix="test/tiny", run=run, dtype="fp32")
    loaded, *_ = run_node("BespokeLoadLora", lora_name=name)
    _, from_file, *_ = train(run_node, sd15, lora=loaded, learning_rate=0.0)
    assert all(torch.allclose(from_file[key], first[key]) for key in first)
    _, half, *_ = train(run_node, sd15, lora=first, learning_rate=0.0, alpha=1.0)
    key = next(key for key in first if key.endswith("lora_up.weight"))
    assert torch.allclose(half[key], 2 * first[key])  # the same effect at half the alpha
    with pytest.raises(InputError, match=r"has rank 2 at .*set rank to its rank"):
        train(run_node, sd15, lora=first, rank=4)
    with pytest.raises(InputError, match=r"has nothing for .*choose the targets"):
        train(run_node, sd15, lora=first, targets="attention")


# --- the text encoder -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "encoders"), [("sd15", ["lora_te_"]), ("sdxl", ["lora_te1_", "lora_te2_"])], indirect=["models"]
)
def test_the_text_encoder_is_trained_and_core_reads_the_file(models, encoders, run_node, caplog):
    model, clip, _ = models
    before = weights_hash(clip.cond_stage_model)
    new_model, lora, _, run, report, new_clip = train(run_node, models, train_text_encoder=True, text_encoder_lr=5e-2)
    assert weights_hash(clip.cond_stage_model) == before
    assert "text encoder" in report
    name, *_ = run_node("BespokeSaveLora", lora=lora, filename_prefix="test/te", run=run, dtype="fp32")
    from folder_paths import get_full_path
    from safetensors import safe_open

    with safe_open(get_full_path("loras", name), "pt") as file:
        keys = list(file.keys())
    for start in encoders:
        # Layers x q, k, v, out.
        assert sum(key.startswith(start) and key.endswith("lora_up.weight") for key in keys) == 3 * 4
    with caplog.at_level(logging.WARNING):
        core_model, core_clip = run_node(
            "LoraLoader", model=model, clip=clip, lora_name=name, strength_model=1.0, strength_clip=1.0
        )
    assert "not loaded" not in caplog.text.lower()
    plain, ours, cores = (tiny.encode(c) for c in (clip, new_clip, core_clip))
    movement = (ours - plain).abs().max()
    assert movement > 1e-3
    assert (cores - ours).abs().max() < 1e-3 * movement
    if not hasattr(clip.cond_stage_model, "clip_g"):
        a, b, c = (tiny.predict(m) for m in (model, new_model, core_model))
        assert (c - b).abs().max() < 1e-3 * (b - a).abs().max()


def test_the_text_encoders_rate_is_its_own(sd15, run_node):
    _, still, *_ = train(run_node, sd15, train_text_encoder=True, learning_rate=0.0, text_encoder_lr=1e-2)
    moved = {
        key.startswith("text_encoders.")
        for key, value in still.items()
        if key.endswith("lora_up.weight") and value.abs().max() > 0
    }
    assert moved == {True}


# --- families -------------------------------------------------------------------------------------------------------


def test_sdxl_gets_the_size_of_each_picture(sdxl, run_node):
    """Core passes the size of a dummy latent. The latents have the scale of the model's training."""
    model = sdxl[0]
    seen = []
    hook = model.model.diffusion_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args[0].shape[-2:], kwargs["y"])), with_kwargs=True
    )
    try:
        train(run_node, sdxl, images=two_sizes(), steps=6)
    finally:
        hook.remove()
    assert {tuple(size) for size, _ in seen} == {(8, 8), (8, 12)}
    by_size = {}
    for size, y in seen:
        assert y.shape[0] == 2
        sizes = y[:, -6 * 256 :]  # six numbers, each as 256 sines and cosines: height, width, crop, crop, height, width
        by_size.setdefault(tuple(size), sizes[0])
        assert torch.equal(sizes, by_size[tuple(size)].expand_as(sizes))
    square, wide = by_size[8, 8], by_size[8, 12]
    assert torch.equal(square[:256], wide[:256])  # the height is the same
    assert not torch.equal(square[256:512], wide[256:512])  # the width is not
    assert torch.equal(square[:256], square[256:512])
    config = TrainConfig(1, 1e-3, 1, 0)
    item = two_sizes()
    scaled = pictures.encode_pictures(sdxl[2], model.model, config, item).data.latents[0]
    raw = sdxl[2].encode(item.items[0].pixels[None].float() / 255)
    assert torch.allclose(scaled, raw.float() * 0.13025, rtol=1e-4)


# --- samples, caches, events ----------------------------------------------------------------------------------------


def test_samples_are_drawn_and_change_nothing(sd15, run_node):
    plain = train(run_node, sd15, steps=4)
    graph = {
        "9": {
            "class_type": "KSampler",
            "inputs": {"steps": 2, "cfg": 1.5, "sampler_name": "euler", "scheduler": "simple", "seed": 3},
        }
    }
    drawn = train(
        run_node, sd15, steps=4, sample_every=2, sample_prompt="a teal circle", hidden={io.Hidden.prompt: graph}
    )
    assert same(drawn[1], plain[1])
    run, store = drawn[3], RunStore(drawn[3].id)
    assert [step for step, _ in run.samples] == [0, 2, 4]
    from PIL import Image

    sheets = [Image.open(store.sample_path(name)).convert("RGB") for _, name in run.samples]
    assert {sheet.size for sheet in sheets} == {(64, 64)}
    assert len({sheet.tobytes() for sheet in sheets}) == 3  # the LoRA changes them
    assert store.record().samples == run.samples
    assert store.sample_path("../state.safetensors") is None
    settings = run_node(
        "KSampler",
        model=sd15[0],
        seed=3,
        steps=2,
        cfg=1.5,
        sampler_name="euler",
        scheduler="simple",
        positive=cond(sd15, "a teal circle"),
        negative=cond(sd15, ""),
        latent_image={"samples": torch.zeros(1, 4, 8, 8)},
        denoise=1.0,
    )[0]["samples"]
    pixels = (sd15[2].decode(settings)[0].clamp(0, 1) * 255).round().to(torch.uint8).numpy().tobytes()
    assert sheets[0].tobytes() == pixels  # step 0 is the base with the graph's own sampler settings


def cond(models, text):
    clip = models[1]
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def test_latents_and_conditionings_are_computed_once(sd15, run_node, monkeypatch):
    """Counted on the class: a VAE with a function of its own could not be compared with others."""
    calls, encode = [], comfy.sd.VAE.encode
    monkeypatch.setattr(comfy.sd.VAE, "encode", lambda vae, pixels: (calls.append(1), encode(vae, pixels))[1])
    images = sprite_set(31, 3, side=64, colour="green")
    train(run_node, sd15, images=images)
    assert len(calls) == 3
    train(run_node, sd15, images=images, steps=4)
    assert len(calls) == 3
    other = ImageSet(tuple(TrainingImage(i.name, 255 - i.pixels, i.caption) for i in images.items), "", "x")
    train(run_node, sd15, images=other)
    assert len(calls) == 6


def test_nothing_is_left_on_the_users_model(sd15, run_node):
    model, clip, _ = sd15
    out = train(run_node, sd15, sample_every=2, train_text_encoder=True, gradient_checkpointing=True, ema=0.9)
    assert out[0] is not model
    assert not model.patches
    assert not model.injections
    assert not clip.patcher.patches
    for module in (model.model, clip.cond_stage_model):
        assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in module.modules())
        assert not any(p.requires_grad for p in module.parameters())


def test_no_clone_of_a_model_waits_for_the_collection_of_garbage(sd15, run_node):
    """ComfyUI finds the owner of loaded weights by references to patchers. Where a clone and its parent are collected
    in one cycle it finds none, and then collects all garbage at each load of any model (`cleanup_models_gc`)."""

    def patchers():
        return {id(each): each for each in gc.get_objects() if isinstance(each, comfy.model_patcher.ModelPatcher)}

    gc.collect()
    gc.disable()
    try:
        before = patchers()
        train(run_node, sd15, validation=1, steps=2)
        assert patchers().keys() - before.keys() == set()
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; give a number from 1"),
        ({"rank": 0}, "rank is 0"),
        ({"ema": 2.0}, "ema is 2.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"optimizer": "x"}, "optimizer is 'x'; choose one of AdamW, Adafactor, SGD"),
        ({"loss_weighting": "x"}, "loss_weighting is 'x'; choose one of none, min-SNR, debiased, P2"),
        ({"loss_type": "l1"}, "loss_type is 'l1'; choose one of mse, huber, smooth l1"),
        ({"huber_c": 0.0}, "huber_c is 0.0; give a number from 0.001 to 1"),
        ({"validation": 4}, "validation is 4 of 4 pictures"),
        ({"warmup_steps": 3}, "warmup_steps is 3 of 3 steps"),
        ({"targets": "custom", "custom_targets": "nothing*"}, "no linear layer matches"),
    ],
)
def test_bad_settings_name_node_value_and_remedy(sd15, run_node, changes, message):
    with pytest.raises(InputError, match=f"Bespoke Train LoRA: {message}"):
        train(run_node, sd15, **changes)
