"""Helpers of several tests: hashes, gradients, sampling with core's nodes, sets of sprites."""

from __future__ import annotations

import hashlib

import numpy as np
import sprites
import torch
from bespoke.nodes.bridge.dataset import conditioning
from bespoke.nodes.bridge.models import target_layers
from bespoke.nodes.bridge.training_model.denoiser import prepare_for_training
from bespoke.nodes.images.folder import fingerprint
from bespoke.training.images import ImageSet, TrainingImage
from bespoke.training.objective import denoising_loss
from judge import judge
from PIL import Image
from random_lora import random_lora


def weights_hash(module: torch.nn.Module) -> str:
    """SHA-256 over the name and the bytes of every parameter and buffer."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def max_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest absolute difference of two tensors."""
    return float((a - b).abs().max())


def batch_and_single_gradients(model, clip, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """(gradient of a batch of four captions, mean of the four single gradients, sizes of the batch's model calls).

    model, clip: ComfyUI's. shape: [C, H, W] of the latents, drawn from a seed, each at its own noise level.
    """
    texts = ["a red circle", "a blue square on white", "green ring", "a yellow cross on black"]
    prompts = [conditioning.encode_prompt(clip, text) for text in texts]
    torch.manual_seed(0)
    latent, noise = torch.randn(4, *shape), torch.randn(4, *shape)
    with prepare_for_training(model, "fp32") as denoiser:
        layers = target_layers(denoiser.base.diffusion_model, "cross-attention")
        adapters = random_lora(layers, 4, denoiser.device)
        conds = [conditioning.model_conds(denoiser.base, c, e, latent[:1], denoiser.device) for c, e in prompts]
        sigma = denoiser.sigma(torch.tensor([0.1, 0.4, 0.6, 0.95]))
        calls = []
        hook = denoiser.base.diffusion_model.register_forward_pre_hook(lambda _, args: calls.append(args[0].shape[0]))

        def gradient(indices: list[int]) -> torch.Tensor:
            with adapters.attached():
                joined = conditioning.join_conds([conds[i] for i in indices])
                denoising_loss(denoiser, latent[indices], noise[indices], sigma[indices], joined).mean().backward()
            out = torch.cat([p.grad.flatten() for p in adapters.parameters()])
            for p in adapters.parameters():
                p.grad = None
            return out

        batch_gradient = gradient([0, 1, 2, 3])
        sizes = list(calls)
        mean_gradient = sum(gradient([i]) for i in range(4)) / 4
        hook.remove()
    return batch_gradient, mean_gradient, sizes


def sprite_set(seed: int, count: int, word: str | None = None, side: int = 128, **kind) -> ImageSet:
    """`count` sprites that share a colour or a shape, captioned; `word` replaces the shared word. side: px."""
    pairs = sprites.training_set(np.random.default_rng(seed), count, **kind)
    shared = next(iter(kind.values()))
    items = [
        TrainingImage(
            f"sprite {i}",
            torch.from_numpy(np.array(image.resize((side, side), Image.NEAREST))),
            text.replace(shared, word or shared),
        )
        for i, (image, text) in enumerate(pairs)
    ]
    return image_set(items)


def image_set(items) -> ImageSet:
    """A set of TrainingImages."""
    return ImageSet(tuple(items), "", fingerprint(items))


def sample(run_node, model, clip, vae, prompts, count, cfg=2.0, steps=16, seed=1) -> list[Image.Image]:
    """`count` pictures for each prompt, with core's CLIPTextEncode, KSampler and VAEDecode only."""
    (negative,) = run_node("CLIPTextEncode", clip=clip, text="")
    out = []
    for prompt in prompts:
        (positive,) = run_node("CLIPTextEncode", clip=clip, text=prompt)
        (latent,) = run_node(
            "KSampler",
            model=model,
            seed=seed,
            steps=steps,
            cfg=cfg,
            sampler_name="euler",
            scheduler="normal",
            positive=positive,
            negative=negative,
            latent_image={"samples": torch.zeros(count, 4, 16, 16)},
            denoise=1.0,
        )
        (pixels,) = run_node("VAEDecode", vae=vae, samples=latent)
        out += [Image.fromarray((p.cpu().numpy() * 255).round().clip(0, 255).astype(np.uint8)) for p in pixels]
    return out


def share(pictures, **wanted) -> float:
    """The share of pictures that show the wanted attributes (colour=..., shape=...)."""
    verdicts = [judge(picture) for picture in pictures]
    return sum(all(getattr(v, k) == w for k, w in wanted.items()) for v in verdicts) / len(verdicts)


def train_with_held_out(run_node, models, pictures=12, node="BespokeTrainLora", **changes):
    """The outputs of a trainer on small models (model, clip, vae), with two of the pictures held out."""
    model, clip, vae = models
    settings = dict(
        images=sprite_set(2, pictures, side=64, colour="teal"),
        batch_size=1,
        seed=1,
        validation=2,
        precision="fp32",
        resume=False,
    )
    if node == "BespokeTrainLora":
        settings |= dict(rank=2, alpha=2.0, learning_rate=1e-2)
    else:
        settings |= dict(name="w", init_text="red")
    return run_node(node, model=model, clip=clip, vae=vae, **settings | changes)
