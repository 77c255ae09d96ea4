"""What every family of models must show: the gradient, the node's file and what core's loader makes of it.

`models` is (model, clip, vae) as the makers give it.
"""

from __future__ import annotations

import families
import pytest
import torch
from bespoke.nodes.bridge.dataset import conditioning
from bespoke.nodes.bridge.forward_pass.differentiable import DifferentiableFunctions
from bespoke.nodes.bridge.models import is_inpainting_model, target_layers
from bespoke.nodes.bridge.training_model.denoiser import prepare_for_training
from bespoke.training.objective import loss_weight
from helpers import sprite_set
from random_lora import random_lora
from torch.utils._pytree import tree_map

TARGETS = ("cross-attention", "attention", "attention + feed-forward")


def make_adapters(denoiser, targets=TARGETS[-1], rank=4, dtype=torch.float32):
    layers = target_layers(denoiser.base.diffusion_model, targets)
    adapters = random_lora(layers, rank, denoiser.device)
    for parameter in adapters.parameters():
        parameter.data = parameter.data.to(dtype)
    return adapters


def model_inputs(base, clip, vae, shape) -> dict:
    """`Pictures.model_inputs` of a picture of 96x64 px that was cropped from 200x150 px."""
    from bespoke.nodes.bridge.dataset.pictures import Pictures, encode_blanks
    from bespoke.training.data import LatentSet
    from bespoke.training.images import TrainingImage

    item = TrainingImage("a", torch.zeros(64, 96, 3, dtype=torch.uint8), "", None, (150, 200), (4, 0))
    blank = encode_blanks(vae, [item]) if is_inpainting_model(base) else {}
    return Pictures([item], LatentSet([torch.zeros(1, *shape)], [None]), [0], [], [], [], blank).model_inputs(0)


def batch(models, denoiser, prompts=("a red circle", "a blue square"), frames=1, levels=(0.3, 0.8)):
    """(latent, noise, sigma, conditioning) of a picture for each prompt, at noise levels from the first to the second
    of `levels`."""
    _, clip, vae = models
    base, shape = denoiser.base, families.latent_shape(denoiser.base, frames)
    latent, noise = torch.randn(2, len(prompts), *shape, generator=torch.Generator().manual_seed(0))
    conds = []
    for text in prompts:
        cond, extra = conditioning.encode_prompt(clip, text)
        conds.append(
            conditioning.model_conds(
                base, cond, extra | model_inputs(base, clip, vae, shape), latent[:1], denoiser.device
            )
        )
    return latent, noise, denoiser.sigma(torch.linspace(*levels, len(prompts))), conditioning.join_conds(conds)


def exact_loss(denoiser, latent, noise, sigma, conds, tokens=0):
    """The training's loss as `BaseModel._apply_model` and `denoising_loss` compute it, but all in float64.

    tokens: only the last of the context; 0 for all.
    """
    base, sampling = denoiser.base, denoiser.base.model_sampling
    given = {
        k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in conds.tensors().items()
    }
    context = given.pop("c_crossattn", None)  # Stable Cascade's has another name
    context = None if context is None else context[:, -tokens:]
    latent, noise, sigma = latent.double(), noise.double(), sigma.double()
    noisy = denoiser.add_noise(sigma, noise, latent)
    x = torch.cat(
        [sampling.calculate_input(sigma, noisy), *([given.pop("c_concat")] if "c_concat" in given else [])], dim=1
    )
    time = base.process_timestep(sampling.timestep(sigma).float(), x=noisy, **given)
    out = base.diffusion_model(
        [x] if given.pop("latent_shapes", None) else x,
        time,
        context=context,
        transformer_options=denoiser._call._options(sigma),
        **given,
    )
    error = (sampling.calculate_denoised(sigma, out, noisy) - latent).square().flatten(1).mean(1)
    return (loss_weight(denoiser.prediction, sigma) * error).mean()


# Position embeddings, which ComfyUI computes in float32 whatever the model's dtype is.
_POSITIONS = {
    "EmbedND", "ErnieImageEmbedND3", "VideoRopePosition3DEmb", "OmniGen2RotaryPosEmbed", "RotaryEmbedding",
}  # fmt: skip


def check_gradient(models, frames=1, tokens=0, step=1e-6, rel=1e-5):
    """The gradient through every layer that can be a target is that of finite differences in float64, and that with
    gradient checkpointing.

    models: of float64. step: of the finite differences. rel: their relative tolerance.
    """
    model = models[0].model.diffusion_model
    for layer in model.modules():
        if type(layer).__name__ in _POSITIONS:
            layer.register_forward_hook(
                lambda _layer, _args, out: tree_map(lambda x: x.double() if isinstance(x, torch.Tensor) else x, out)
            )
    gradients = []
    for saving in (False, True):
        with prepare_for_training(models[0], "fp32", saving) as denoiser:
            adapters = make_adapters(denoiser, dtype=torch.float64)
            parameters = list(adapters.parameters())
            with DifferentiableFunctions():  # LTX-2's own text layers call a kernel that has no float64
                values = batch(models, denoiser, frames=frames)
            with adapters.attached():
                loss = exact_loss(denoiser, *values, tokens)
                loss.backward()
                gradients.append([parameter.grad for parameter in parameters])
                assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients[-1])
                if saving:
                    break
                for seed in (1, 2):
                    slope, difference = _slopes(denoiser, values, parameters, tokens, step, seed)
                    assert slope == pytest.approx(difference, rel=rel)
    for plain, checkpointed in zip(*gradients, strict=True):
        assert (plain - checkpointed).norm() <= 1e-12 * plain.norm()


def _slopes(denoiser, values, parameters, tokens, step, seed):
    """The loss's slope in a random direction: (by the gradient, by finite differences)."""
    generator = torch.Generator().manual_seed(seed)
    directions = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    slope = sum((p.grad * direction).sum() for p, direction in zip(parameters, directions, strict=True))
    ends = []
    with torch.no_grad():
        for move in (step, -step):
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter += move * direction
            ends.append(exact_loss(denoiser, *values, tokens))
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter -= move * direction
    return slope.item(), ((ends[0] - ends[1]) / (2 * step)).item()


def train(run_node, models, side=64, **changes):
    """The outputs of Train LoRA after three steps. side: of the training pictures, px. changes: of its settings."""
    model, clip, vae = models
    images = sprite_set(2, 4, side=side, colour="teal")
    settings = dict(
        steps=3,
        batch_size=2,
        rank=2,
        alpha=1.0,
        learning_rate=5e-2,
        seed=5,
        precision="fp32",
        resume=False,
        targets=TARGETS[-1],
    )
    return run_node("BespokeTrainLora", model=model, clip=clip, vae=vae, images=images, **settings | changes)


def predict(models, model, frames=2):
    """A patched model's output for one noisy latent, of `frames` where it has frames."""
    import comfy.model_management

    base, shape = models[0].model, families.latent_shape(models[0].model, frames)
    sigma = base.model_sampling.sigmas[[int(0.7 * len(base.model_sampling.sigmas))]]
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1)) * sigma.clamp(min=1.0)
    cond, extra = conditioning.encode_prompt(models[1], "a red circle")
    conds = conditioning.model_conds(base, cond, extra | model_inputs(base, *models[1:], shape), x, torch.device("cpu"))
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
        if hasattr(base.diffusion_model, "clear_kv_cache"):  # ComfyUI keeps those of other weights
            base.diffusion_model.clear_kv_cache()
        return model.model.apply_model(x, sigma, **conds.tensors()).clone(), (x, sigma, conds)
