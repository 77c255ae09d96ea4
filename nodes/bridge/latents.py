"""Pictures as latents in the model's own space."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import comfy.model_base
import torch
from torch import Tensor

from ...training.data import LatentSet
from ...training.images import TrainingImage


def encode_images(
    vae, base: comfy.model_base.BaseModel, items: Sequence[TrainingImage], tick: Callable[[int], None] = lambda _: None
) -> list[Tensor]:
    """One latent [1, C, H, W] a picture, float32 on the CPU, scaled and shifted as the model was trained."""
    latents = []
    for done, item in enumerate(items):
        pixels = item.pixels[None].float() / 255  # [1, H, W, 3]
        latents.append(base.process_latent_in(vae.encode(pixels)).float().to("cpu", copy=True).clone())
        tick(done + 1)
    return latents


def mask_to_latent(mask: Tensor, latent: Tensor) -> Tensor:
    """A pixel mask [H, W] as [1, 1, h, w] at the latent's size: the mean of each cell."""
    return torch.nn.functional.adaptive_avg_pool2d(mask[None, None].float(), latent.shape[-2:])


def latent_set(vae, base: comfy.model_base.BaseModel, items: Sequence[TrainingImage]) -> LatentSet:
    """The pictures and their loss masks in the model's latent space."""
    latents = encode_images(vae, base, items)
    masks = [None if item.mask is None else mask_to_latent(item.mask, latent) for item, latent in zip(items, latents, strict=True)]
    return LatentSet(latents, masks)
