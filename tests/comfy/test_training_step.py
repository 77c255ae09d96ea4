"""One training step of BespokeTrainLora against the same step written with diffusers and PEFT.

Both have the weights, latents, noises, timesteps and prompt encodings of one small model. diffusers computes the noised
latent, the target and the network, PEFT the adapters; the loss is the mean squared error, as in diffusers' training
scripts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import torch
from bespoke.training.batch_order import batch_indices
from bespoke.training.images import TrainingImage
from bespoke.training.randomness import noise, stratified_uniform
from helpers import image_set
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

SEED, BATCH, RANK, ALPHA, RATE = 11, 4, 4, 2.0, 1e-2
CAPTIONS = ["a red circle", "a blue square", "a long text about what is behind the green thing", "teal"]
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
Noised = tuple[Tensor, Tensor, Tensor]


@dataclass
class Case:
    """A model of ComfyUI and the same network in diffusers.

    noised: (latent, noise, t in 0..1) -> diffusers' noised latent, target and timesteps.
    call: (noised latent, timesteps, context, pooled) -> the network's prediction.
    custom_targets: what the node trains.
    """

    models: tuple[Any, Any, Any]
    network: nn.Module
    noised: Callable[[Tensor, Tensor, Tensor], Noised]
    call: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    custom_targets: str


def unet_case(prediction: str) -> Case:
    """SD1.5's U-Net, all its levels; `prediction` is "epsilon" or "v_prediction"."""
    import comfy.model_base
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    model, width = tiny.patcher(), tiny.WIDTH
    own = model.model.diffusion_model
    if prediction == "v_prediction":
        kind = comfy.model_base.ModelType.V_PREDICTION
        model.model.model_sampling = comfy.model_base.model_sampling(model.model.model_config, kind)
    network = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(width, 2 * width, 2 * width, 2 * width),
        layers_per_block=2,
        cross_attention_dim=tiny.CONTEXT,
        attention_head_dim=own.middle_block[1].transformer_blocks[0].attn1.heads,  # heads, despite its name
    )
    weights = {f"model.diffusion_model.{key}": value.clone() for key, value in own.state_dict().items()}
    network.load_state_dict(convert_ldm_unet_checkpoint(weights, dict(network.config)))

    scheduler = DDPMScheduler(1000, prediction_type=prediction, **STABLE_DIFFUSION)
    # ComfyUI's table of noise levels is within 1.3e-5 of diffusers'; both take ComfyUI's here.
    shares = 1 / (1 + model.model.model_sampling.sigmas.double() ** 2)
    assert torch.allclose(scheduler.alphas_cumprod.double(), shares, rtol=1e-4)
    scheduler.alphas_cumprod = shares.float()

    def noised(latent: Tensor, noises: Tensor, t: Tensor) -> Noised:
        index = (t * 1000).long()
        target = noises if prediction == "epsilon" else scheduler.get_velocity(latent, noises, index)
        return scheduler.add_noise(latent, noises, index), target, index

    def call(latent: Tensor, timesteps: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
        return network(latent, timesteps, context).sample

    return Case((model, tiny.clip(), tiny.vae()), network, noised, call, "*attn*")


def sd3_case() -> Case:
    """SD3's transformer with SD3.5 medium's second attention: a flow model."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    models = tiny.sd3()
    weights = {key: value.clone() for key, value in models[0].model.diffusion_model.state_dict().items()}
    width = weights["x_embedder.proj.weight"].shape[0]
    network = SD3Transformer2DModel(
        sample_size=32,
        num_layers=2,
        attention_head_dim=64,
        num_attention_heads=width // 64,
        joint_attention_dim=4096,
        caption_projection_dim=width,
        pooled_projection_dim=weights["y_embedder.mlp.0.weight"].shape[1],
        pos_embed_max_size=round(weights["pos_embed"].shape[1] ** 0.5),
        dual_attention_layers=(0,),
        qk_norm="rms_norm" if any("ln_q" in key for key in weights) else None,
    )
    network.load_state_dict(convert_sd3_transformer_checkpoint_to_diffusers(weights))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=models[0].model.model_sampling.shift)

    def noised(latent: Tensor, noises: Tensor, t: Tensor) -> Noised:
        index = 999 - (t * 1000).long()  # diffusers' table falls
        sigma = scheduler.sigmas[index].reshape(-1, 1, 1, 1)
        return (1 - sigma) * latent + sigma * noises, noises - latent, scheduler.timesteps[index]

    def call(latent: Tensor, timesteps: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
        return network(latent, context, pooled, timesteps).sample

    return Case(models, network, noised, call, "*attn*, *mlp*")


CASES = {
    "epsilon": lambda: unet_case("epsilon"),
    "v": lambda: unet_case("v_prediction"),
    "flow": sd3_case,
}


def linear_layers(module: nn.Module) -> dict[str, Tensor]:
    return {name: one.weight.detach() for name, one in module.named_modules() if isinstance(one, nn.Linear)}


def counterparts(own: nn.Module, network: nn.Module) -> dict[str, list[str]]:
    """{ComfyUI's layer: diffusers' layers}, found by their weights; three where diffusers has q, k and v apart."""
    theirs = {weight.numpy().tobytes(): name for name, weight in linear_layers(network).items()}
    found = {}
    for name, weight in linear_layers(own).items():
        parts = [weight] if weight.numpy().tobytes() in theirs else list(weight.chunk(3))
        found[name] = [theirs[part.numpy().tobytes()] for part in parts if part.numpy().tobytes() in theirs]
    return found


def start(model: Any, run_node: Callable, case: Case, images: Any) -> dict[str, Tensor]:
    """A LoRA to go on from, whose up factors are not zero, so that both factors have a gradient."""
    _, lora, *_ = step(model, run_node, case, images, steps=1, learning_rate=0.0)
    draw = torch.Generator().manual_seed(3)
    return {
        key: value if key.endswith("alpha") else 0.2 * torch.randn(value.shape, generator=draw)
        for key, value in lora.items()
    }


def step(model: Any, run_node: Callable, case: Case, images: Any, **changes: Any) -> Any:
    _, clip, vae = case.models
    settings = dict(
        targets="custom",
        custom_targets=case.custom_targets,
        rank=RANK,
        alpha=ALPHA,
        steps=1,
        batch_size=BATCH,
        seed=SEED,
        learning_rate=RATE,
        validation=0,
        optimizer="SGD",
        lr_schedule="constant",
        timestep_sampling="uniform",
        loss_weighting="none",
        warmup_steps=0,
        max_grad_norm=0.0,
        noise_offset=0.0,
        caption_dropout=0.0,
        precision="fp32",
        keep="last",
        resume=False,
    )
    return run_node("BespokeTrainLora", model=model, clip=clip, vae=vae, images=images, **settings | changes)


def peft_step(case: Case, lora: dict[str, Tensor], images: Any) -> tuple[float, dict[str, Tensor]]:
    """(the loss, {diffusers' parameter: its gradient}) of the step with diffusers and PEFT."""
    from peft import LoraConfig

    model, clip, vae = case.models
    pairs = counterparts(model.model.diffusion_model, case.network)
    layers = {key.removesuffix(".lora_up.weight") for key in lora if key.endswith(".lora_up.weight")}
    names = {layer: pairs[layer.removeprefix("diffusion_model.")] for layer in layers}
    assert all(names.values())
    wanted = [name for group in names.values() for name in group]
    case.network.requires_grad_(False)
    case.network.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=wanted))
    parameters = {name: p for name, p in case.network.named_parameters() if p.requires_grad}
    for layer, group in names.items():
        up = lora[f"{layer}.lora_up.weight"].chunk(len(group))
        for name, rows in zip(group, up, strict=True):
            parameters[f"{name}.lora_A.default.weight"].data.copy_(lora[f"{layer}.lora_down.weight"])
            parameters[f"{name}.lora_B.default.weight"].data.copy_(rows)

    with torch.no_grad():
        latents = [model.model.process_latent_in(vae.encode(item.pixels[None].float() / 255)) for item in images.items]
        conds = [clip.encode_from_tokens(clip.tokenize(item.caption), return_pooled=True) for item in images.items]
    chosen = batch_indices([list(range(len(latents)))], BATCH, SEED, 0)
    latent = torch.cat([latents[i] for i in chosen]).clone()
    noises = torch.stack([noise(SEED, 0, place, latent.shape[1:]) for place in range(BATCH)])
    noisy, target, timesteps = case.noised(latent, noises, stratified_uniform(SEED, 0, BATCH))
    context, pooled = (torch.cat([conds[i][part] for i in chosen]).clone() for part in (0, 1))
    loss = nn.functional.mse_loss(case.call(noisy, timesteps, context, pooled), target)
    loss.backward()
    gradients = {name: p.grad for name, p in parameters.items()}
    out = {}
    for layer, group in names.items():
        out[f"{layer}.lora_up.weight"] = torch.cat([gradients[f"{name}.lora_B.default.weight"] for name in group])
        # One down factor for q, k and v: its gradient is the sum of the three.
        out[f"{layer}.lora_down.weight"] = sum(gradients[f"{name}.lora_A.default.weight"] for name in group)
    return loss.item(), out


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The length of the difference relative to that of `other`, over all tensors together."""
    squares = [((one[key] - other[key]).double().square().sum(), other[key].double().square().sum()) for key in other]
    return float((sum(a for a, _ in squares) / sum(b for _, b in squares)).sqrt())


@pytest.mark.parametrize("prediction", CASES)
def test_a_step_is_that_of_diffusers_and_peft(prediction, run_node, one_thread):
    """The loss to 1e-5 and the gradient to 1e-4, over all layers and of the worst layer by itself.

    The gradients are read where the optimiser gets them. Computed from the weights, as (before - after) / rate, they
    have the rounding of the weights in them: up to 6 % of the gradient in the layers where it is shortest.
    """
    case = CASES[prediction]()
    model = case.models[0]
    draw = torch.Generator().manual_seed(1)
    images = image_set(
        TrainingImage(f"{i}", torch.randint(0, 256, (128, 128, 3), dtype=torch.uint8, generator=draw), caption)
        for i, caption in enumerate(CAPTIONS)
    )
    lora = start(model, run_node, case, images)
    recorded: list[Tensor] = []

    def record(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        recorded.extend(p.grad.clone() for group in optimizer.param_groups for p in group["params"])

    handle = register_optimizer_step_pre_hook(record)
    try:
        _, after, losses, *_ = step(model, run_node, case, images, lora=lora)
    finally:
        handle.remove()
    # The optimiser has one group of all down factors and one of all up factors, in the order of the layers.
    names = [key for part in ("lora_down", "lora_up") for key in lora if part in key]
    ours = dict(zip(names, recorded, strict=True))
    loss, theirs = peft_step(case, lora, images)
    assert ours.keys() == theirs.keys()
    layers = {key: distance({key: ours[key]}, {key: theirs[key]}) for key in theirs}
    worst = max(layers, key=layers.__getitem__)
    print(
        f"\n{prediction}: loss {losses['loss'][0]:.7f}, diffusers {loss:.7f}; gradient of {len(theirs)} factors: "
        f"relative difference {distance(ours, theirs):.1e}, worst {layers[worst]:.1e} ({worst})"
    )
    assert losses["loss"][0] == pytest.approx(loss, rel=1e-5)
    assert distance(ours, theirs) < 1e-4
    assert layers[worst] < 1e-4
    for key, rate in ((names[0], RATE), (names[-1], 16 * RATE)):  # up learns 16 times as fast (LoRA+)
        assert torch.allclose(after[key], lora[key] - rate * theirs[key], rtol=0, atol=1e-6)
