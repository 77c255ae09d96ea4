"""Random LoRAs of the small model of a family."""

from __future__ import annotations

import tiny
import torch
from bespoke.nodes.bridge.models import target_layers
from bespoke.training.layer_names.spelling import COMFY_PREFIX


def lora_of(models, seed=0, rank=3, text=True):
    """A random LoRA of all targets of a family, and of the text encoder's attention where it is a CLIP."""
    layers = target_layers(models[0].model.diffusion_model, "attention + feed-forward")
    shapes = {name: (layer.weight.shape[0], layer.weight[0].numel()) for name, layer in layers.items()}
    lora = tiny.random_lora(shapes, rank, seed=seed, size=0.1)
    for name, layer in layers.items():  # the shape of a convolution's factors
        if layer.weight.ndim > 2:
            ones = (1,) * (layer.weight.ndim - 2)
            down = lora[f"{COMFY_PREFIX}{name}.lora_down.weight"]
            lora[f"{COMFY_PREFIX}{name}.lora_down.weight"] = down.reshape(rank, *layer.weight.shape[1:])
            lora[f"{COMFY_PREFIX}{name}.lora_up.weight"] = lora[f"{COMFY_PREFIX}{name}.lora_up.weight"].reshape(
                -1, rank, *ones
            )
    if text and hasattr(models[1].cond_stage_model, "clip_l"):
        generator = torch.Generator().manual_seed(seed)
        for name, layer in models[1].cond_stage_model.named_modules():
            if name.startswith("clip_") and name.endswith(("q_proj", "v_proj")):
                rows, columns = layer.weight.shape
                lora[f"text_encoders.{name}.lora_up.weight"] = torch.randn(rows, 2, generator=generator) / 4
                lora[f"text_encoders.{name}.lora_down.weight"] = torch.randn(2, columns, generator=generator) / 4
    return lora
