"""Models of ComfyUI's own classes with random weights that are made on the device: in their released sizes, or tiny.

The numbers are those that ComfyUI's `model_detection` reads from the released files. No file is read. Text encoders and
VAEs are stand-ins that give the shapes (tests/lib/stand_ins.py), but for the words, which need a real text encoder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import families
import full_size
import stand_ins
import tiny
import torch
from stand_ins import Text

FP8 = torch.float8_e4m3fn
# The smallest U-Net that ComfyUI takes for SD1.5's when it reads it from a file.
_SMALL_SD15 = tiny.SMALLEST | {"model_channels": 320, "context_dim": 768, "num_heads": 8}
_SMALL_SDXL = tiny.SDXL | {"adm_in_channels": tiny.SDXL["context_dim"] // 2 + 6 * 256, "num_classes": "sequential"}


@dataclass(frozen=True)
class Kind:
    """A model class: its name in `comfy.supported_models`, its released and its tiny configuration, and what a prompt
    of each gives. vae: see `stand_ins.vae`."""

    config: str
    full: Mapping[str, Any]
    small: Mapping[str, Any]
    text: Text
    small_text: Text
    vae: Mapping[str, Any] = field(default_factory=lambda: {"channels": 4})


KINDS = {
    "SD1.5": Kind("SD15", full_size.SD15, _SMALL_SD15, Text(768, tokens=77), Text(768, tokens=77)),
    "SDXL": Kind(
        "SDXL",
        full_size.SDXL,
        _SMALL_SDXL,
        Text(2048, tokens=77, pooled=1280),
        Text(96, tokens=77, pooled=48),
    ),
    "Flux": Kind(
        "Flux",
        full_size.FLUX,
        tiny.FLUX,
        Text(4096, tokens=512, pooled=768),
        Text(64, tokens=16, pooled=tiny.CONTEXT),
        {"channels": 16},
    ),
    "Z-Image": Kind(
        "ZImage",
        full_size.Z_IMAGE,
        families.Z_IMAGE,
        Text(2560, tokens=128),
        Text(families.TEXT, tokens=16),
        {"channels": 16},
    ),
    "Wan 14B": Kind(
        "WAN21_T2V",
        full_size.WAN,
        families.WAN,
        Text(4096, tokens=512),
        Text(families.TEXT, tokens=16),
        {"channels": 16, "frames": True},
    ),
}


def device() -> torch.device:
    """ComfyUI's device."""
    import comfy.model_management

    return comfy.model_management.get_torch_device()


def fill(module: torch.nn.Module, seed: int = 0) -> None:
    """Random weights of about unit gain, drawn where each weight lies; ComfyUI does not initialise its layers."""
    made: dict[torch.device, torch.Generator] = {}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(False)
            where = parameter.device
            drawn = made.setdefault(where, torch.Generator(where).manual_seed(seed))
            dtype = torch.bfloat16 if parameter.dtype == FP8 else parameter.dtype
            values = torch.randn(parameter.shape, generator=drawn, device=where, dtype=dtype)
            if parameter.ndim < 2:
                values = 0.05 * values + (1.0 if name.endswith("weight") else 0.0)
                if name.endswith(("mod.lin.bias", "modulation.lin.bias", "adaLN_modulation.1.bias")):
                    values += 0.5  # opens the gates of the blocks
            else:
                values /= math.sqrt(max(parameter[0].numel(), 1))
            parameter.copy_(values)


def make(name: str, small: bool, dtype: str = "bf16", on_cpu: bool = False) -> tuple[Any, Any, Any]:
    """(model, clip, vae) of a name in `KINDS`.

    small: the tiny configuration. dtype: of the weights, bf16 or fp8 (which is cast to bf16 at each layer). on_cpu: the
    weights lie in the computer's memory and ComfyUI loads them, else they are made on the device.
    """
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    kind, there = KINDS[name], torch.device("cpu") if on_cpu else device()
    kept, manual = (FP8, torch.bfloat16) if dtype == "fp8" else (torch.bfloat16, None)
    config = getattr(comfy.supported_models, kind.config)({**(kind.small if small else kind.full), "dtype": kept})
    config.set_inference_dtype(kept, manual, device=there)
    base = config.get_model({}, "", device=there)
    fill(base.diffusion_model)
    model = comfy.model_patcher.ModelPatcher(base.eval(), device(), comfy.model_management.unet_offload_device())
    model.cached_patcher_init = (_make_again, (name, small, dtype, on_cpu))  # core's trainer trains another one
    vae = stand_ins.vae(**kind.vae)
    vae.device, vae.vae_dtype = torch.device("cpu"), torch.float32  # where its one matrix is
    return model, stand_ins.clip(kind.small_text if small else kind.text), vae


def _make_again(name: str, small: bool, dtype: str, on_cpu: bool, disable_dynamic: bool = False) -> Any:
    """The same MODEL once more, as ComfyUI calls it for a model from a file."""
    return make(name, small, dtype, on_cpu)[0]


def text_encoder(name: str, small: bool) -> Any:
    """ComfyUI's CLIP of SD1.5, SDXL or Flux (CLIP-L and T5-XXL) with random weights, bfloat16 in the released size."""
    if small:
        width = KINDS[name].small["context_dim"] if name != "Flux" else 0
        makers = {
            "SD1.5": lambda: tiny.clip(width=width),
            "SDXL": lambda: tiny.clip(two=True, width=width // 2),
            "Flux": lambda: tiny.flux()[1],
        }
        return makers[name]()
    import comfy.sd
    import comfy.sd1_clip
    import comfy.sdxl_clip
    import comfy.text_encoders.flux

    classes = {
        "SD1.5": (comfy.sd1_clip.SD1ClipModel, comfy.sd1_clip.SD1Tokenizer),
        "SDXL": (comfy.sdxl_clip.SDXLClipModel, comfy.sdxl_clip.SDXLTokenizer),
        "Flux": (
            comfy.text_encoders.flux.flux_clip(dtype_t5=torch.bfloat16),
            comfy.text_encoders.flux.FluxTokenizer,
        ),
    }

    class Target:
        params: dict = {}  # noqa: RUF012 (what ComfyUI's own targets are)
        clip, tokenizer = classes[name]

    out = comfy.sd.CLIP(Target, model_options={"dtype": torch.bfloat16, "initial_device": device()})
    fill(out.cond_stage_model, 1)
    return out


def latent_shape(name: str, px: int, batch: int) -> tuple[int, ...]:
    """[B, C, h, w], or [B, C, 1, h, w] of a film's model, of pictures of `px` pixels a side."""
    vae = KINDS[name].vae
    return (batch, vae["channels"], *((1,) if vae.get("frames") else ()), px // 8, px // 8)
