"""Small models of Flux's and SD3's classes: layers, loss, gradients, and LoRA files in core's loader."""

import logging

import pytest
import tiny
import torch
from bespoke.nodes.bridge.dataset import conditioning
from bespoke.nodes.bridge.models import checkpoint_blocks, family_of, target_layers
from bespoke.nodes.bridge.training_model.denoiser import prepare_for_training
from bespoke.training.errors import InputError
from bespoke.training.measure import measure_step
from bespoke.training.objective import denoising_loss
from helpers import batch_and_single_gradients, sprite_set, weights_hash
from random_lora import random_lora

ALL = "attention + feed-forward"


both = pytest.mark.parametrize("models", ["flux", "sd3"], indirect=True)


def make_adapters(denoiser, targets=ALL, rank=4):
    layers = target_layers(denoiser.base.diffusion_model, targets)
    return random_lora(layers, rank, denoiser.device)


def batch(models, denoiser, prompts=("a red circle", "a blue square")):
    """(latent, noise, sigma, conditioning) of two pictures."""
    generator = torch.Generator().manual_seed(0)
    count = len(prompts)
    latent, noise = torch.randn(2, count, 16, 8, 12, generator=generator)
    conds = [
        conditioning.model_conds(
            denoiser.base, *conditioning.encode_prompt(models[1], text), latent[:1], denoiser.device
        )
        for text in prompts
    ]
    return latent, noise, denoiser.sigma(torch.linspace(0.1, 0.9, count)), conditioning.join_conds(conds)


# --- which layers, which loss ---------------------------------------------------------------------------------------


def test_target_layers(flux, sd3):
    assert list(target_layers(flux[0].model.diffusion_model, "cross-attention")) == [
        f"double_blocks.{i}.{stream}_attn.{layer}"
        for i in (0, 1)
        for stream in ("img", "txt")
        for layer in ("qkv", "proj")
    ]
    # The text stream of the last block has no output projection.
    assert list(target_layers(sd3[0].model.diffusion_model, "cross-attention")) == [
        "joint_blocks.0.context_block.attn.qkv",
        "joint_blocks.0.context_block.attn.proj",
        "joint_blocks.0.x_block.attn.qkv",
        "joint_blocks.0.x_block.attn.proj",
        "joint_blocks.1.context_block.attn.qkv",
        "joint_blocks.1.x_block.attn.qkv",
        "joint_blocks.1.x_block.attn.proj",
    ]
    for (model, *_), counts in ((flux, (8, 12, 20)), (sd3, (7, 9, 15))):
        found = [
            target_layers(model.model.diffusion_model, targets) for targets in ("cross-attention", "attention", ALL)
        ]
        assert tuple(map(len, found)) == counts
        assert found[0].keys() < found[1].keys() < found[2].keys()


@both
def test_the_loss_is_that_of_the_velocity(models):
    """Against x = (1 - sigma) x0 + sigma n and the network's output compared with n - x0."""
    with prepare_for_training(models[0], "fp32") as denoiser:
        assert denoiser.prediction == "flow"
        latent, noise, sigma, conds = batch(models, denoiser)
        loss = denoising_loss(denoiser, latent, noise, sigma, conds)
        base, given = denoiser.base, dict(conds.tensors())
        context, y, more = given.pop("c_crossattn"), given.pop("y"), given
        s = sigma.reshape(-1, 1, 1, 1)
        with torch.no_grad():
            velocity = base.diffusion_model(
                (1 - s) * latent + s * noise,
                base.model_sampling.timestep(sigma),
                context=context,
                y=y,
                transformer_options=denoiser._call._options(sigma),
                **more,
            )
        expected = (velocity - (noise - latent)).square().flatten(1).mean(1)
        assert torch.allclose(loss, expected, rtol=1e-4)
        assert ("guidance" in more) == (family_of(base.diffusion_model).name == "Flux")
        if "guidance" in more:
            assert more["guidance"].tolist() == [1.0, 1.0]  # no guidance: Flux dev has the guidance scale as an input


# --- the gradient ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny.flux, tiny.sd3])
@pytest.mark.parametrize("saving", [False, True])
def test_gradient_is_that_of_finite_differences(comfyui, make, saving):
    """In float64, through every layer that can be a target, with and without gradient checkpointing."""
    models = make(dtype=torch.float64)
    model = models[0].model.diffusion_model
    rope = getattr(model, "pe_embedder", torch.nn.Identity()).register_forward_hook(
        lambda _layer, _args, out: out.double()
    )
    with prepare_for_training(models[0], "fp32", saving) as denoiser:
        adapters = make_adapters(denoiser)
        for parameter in adapters.parameters():
            parameter.data = parameter.data.double()
        latent, noise, sigma, conds = batch(models, denoiser)
        given = {name: value.double() for name, value in conds.tensors().items()}
        context = given.pop("c_crossattn")[:, :16]

        def loss():
            out = model(
                latent.double(),
                sigma.double(),
                context=context,
                transformer_options=denoiser._call._options(sigma),
                **given,
            )
            return (out * noise).mean()

        with adapters.attached():
            loss().backward()
            generator = torch.Generator().manual_seed(3)
            for parameter in list(adapters.parameters())[::3]:
                direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                ends = []
                for step in (1e-5, -1e-5):
                    with torch.no_grad():
                        parameter += step * direction
                        ends.append(loss())
                        parameter -= step * direction
                slope = (ends[0] - ends[1]) / 2e-5
                assert parameter.grad is not None
                assert (parameter.grad * direction).sum().item() == pytest.approx(slope.item(), rel=1e-5, abs=1e-10)
    rope.remove()


@both
def test_gradient_of_four_captions_is_the_mean_of_four(models):
    joint, mean, sizes = batch_and_single_gradients(models[0], models[1], (16, 8, 12))
    assert sizes == [4]  # one call with exactly four samples
    assert mean.norm() > 0
    assert (joint - mean).norm() / mean.norm() < 1e-5


def test_prompts_of_several_lengths_share_a_batch_and_not_a_call(flux):
    """Prompts of more than 256 T5 tokens are longer; core runs such samples in separate calls too."""
    prompts = ("a red circle", "a red circle, " * 80, "a blue square", "a green cross, " * 80)
    with prepare_for_training(flux[0], "fp32") as denoiser:
        latent, noise, sigma, conds = batch(flux, denoiser, prompts)
        calls = []
        hook = denoiser.base.diffusion_model.register_forward_pre_hook(lambda _, args: calls.append(args[0].shape[0]))
        with torch.no_grad():
            loss = denoising_loss(denoiser, latent, noise, sigma, conds)
            assert sum(calls) == 4
            assert len(calls) in (2, 3)  # by length
            for i, text in enumerate(prompts):
                single = conditioning.model_conds(
                    denoiser.base, *conditioning.encode_prompt(flux[1], text), latent[:1], denoiser.device
                )
                single_loss = denoising_loss(
                    denoiser, latent[i : i + 1], noise[i : i + 1], sigma[i : i + 1], conditioning.join_conds([single])
                )
                assert loss[i].item() == pytest.approx(single_loss.item(), rel=1e-5)
        hook.remove()


@both
def test_gradient_checkpointing_saves_less_and_gives_the_same_gradient(models):
    gradients, kept = [], []
    for saving in (False, True):
        with prepare_for_training(models[0], "fp32", saving) as denoiser:
            adapters = make_adapters(denoiser)
            values = batch(models, denoiser)
            with adapters.attached():
                loss = lambda denoiser=denoiser, values=values: denoising_loss(denoiser, *values).mean()  # noqa: E731
                kept.append(measure_step(loss, denoiser.base.parameters(), adapters.parameters()).kept)
                loss().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in adapters.parameters()]))
    assert (gradients[0] - gradients[1]).norm() < 1e-6 * gradients[0].norm()
    assert kept[1] < 0.5 * kept[0]
    assert not any("forward" in vars(block) for block in checkpoint_blocks(models[0].model.diffusion_model))


# --- the node and its files -----------------------------------------------------------------------------------------


def train(run_node, models, **changes):
    model, clip, vae = models
    images = sprite_set(2, 4, side=64, colour="teal")
    settings = dict(
        steps=3, batch_size=2, rank=2, alpha=1.0, learning_rate=1e-2, seed=5, precision="fp32", resume=False
    )
    return run_node("BespokeTrainLora", model=model, clip=clip, vae=vae, images=images, **settings | changes)


def predict(models, model):
    """A patched model's output for one noisy latent."""
    import comfy.model_management

    generator = torch.Generator().manual_seed(1)
    x, base = torch.randn(1, 16, 8, 8, generator=generator), models[0].model
    conds = conditioning.model_conds(
        base, *conditioning.encode_prompt(models[1], "a red circle"), x, torch.device("cpu")
    )
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
        return model.model.apply_model(x, torch.tensor([0.7]), **conds.tensors()).clone()


@both
@pytest.mark.parametrize("targets", ["cross-attention", ALL])
def test_core_loads_every_key_and_gives_the_nodes_own_model(models, targets, run_node, caplog):
    import comfy.model_management

    comfy.model_management.unload_all_models()  # removes patches that ComfyUI has left in the weights
    before = weights_hash(models[0].model)
    trained, lora, _, run, *_ = train(run_node, models, targets=targets)
    assert weights_hash(models[0].model) == before
    assert run.info.prediction == "flow"
    plain, ours = (predict(models, m) for m in (models[0], trained))
    movement = (ours - plain).abs().max()
    assert movement > 1e-4
    for form in ("kohya", "diffusers", "comfy"):
        name, *_ = run_node(
            "BespokeSaveLora", lora=lora, filename_prefix=f"test/flow-{form}", run=run, dtype="fp32", key_format=form
        )
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            cores, _ = run_node(
                "LoraLoader", model=models[0], clip=models[1], lora_name=name, strength_model=1.0, strength_clip=1.0
            )
        assert "not loaded" not in caplog.text.lower()
        assert (predict(models, cores) - ours).abs().max() < 1e-3 * movement


def test_sd3s_text_encoders_are_trained(sd3, run_node, caplog):
    _, lora, _, run, *_ = train(run_node, sd3, train_text_encoder=True, text_encoder_lr=1e-2)
    moved = [
        key
        for key, value in lora.items()
        if key.startswith("text_encoders.") and "lora_up" in key and value.abs().max() > 0
    ]
    assert {key.split(".")[1] for key in moved} == {"clip_l", "clip_g"}
    name, *_ = run_node("BespokeSaveLora", lora=lora, filename_prefix="test/flow-te", run=run, dtype="fp32")
    with caplog.at_level(logging.WARNING):
        run_node("LoraLoader", model=sd3[0], clip=sd3[1], lora_name=name, strength_model=1.0, strength_clip=1.0)
    assert "not loaded" not in caplog.text.lower()


@both
def test_nothing_is_left_on_the_users_model(models, run_node):
    train(run_node, models, gradient_checkpointing=True, sample_every=2)
    model = models[0]
    assert not model.patches
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.model.modules())
    assert not any(p.requires_grad for p in model.model.parameters())


def test_training_continues_from_a_saved_lora(flux, run_node):
    _, first, _, run, *_ = train(run_node, flux)
    name, *_ = run_node("BespokeSaveLora", lora=first, filename_prefix="test/flow-on", run=run, dtype="fp32")
    loaded, *_ = run_node("BespokeLoadLora", lora_name=name)
    _, again, *_ = train(run_node, flux, lora=loaded, learning_rate=0.0)
    assert all(torch.allclose(again[key], value) for key, value in first.items())


def test_a_patch_that_overwrites_in_place_is_an_error(flux, run_node):
    """A user's patch on the wire that changes in place what autograd has saved."""
    patched = flux[0].clone()

    def overwrite(attention, _options):
        attention.tanh_().mul_(2.0)  # tanh saves its result, which is then overwritten
        return attention

    patched.model_options.setdefault("transformer_options", {}).setdefault("patches", {})["attn1_output_patch"] = [
        overwrite
    ]
    with pytest.raises(
        InputError, match="Bespoke Train LoRA: this model, or a patch on the wire before the trainer, overwrites"
    ):
        train(run_node, (patched, *flux[1:]))
