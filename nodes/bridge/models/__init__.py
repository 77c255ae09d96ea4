"""ComfyUI's models as a training sees them. One module a model family says which layers are what."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from ....training.errors import InputError
from . import flux, lumina, qwen, sd3, unet, wan
from .family import Family
from .layers import is_linear

TARGETS = ("cross-attention", "attention", "attention + feed-forward", "custom")
FAMILIES = (unet.FAMILY, flux.FLUX, flux.FLUX2, flux.CHROMA, sd3.FAMILY, qwen.FAMILY, lumina.FAMILY, wan.FAMILY)


def family_of(diffusion_model: nn.Module) -> Family | None:
    return next((family for family in FAMILIES if family.fits(diffusion_model)), None)


def overwritten(diffusion_model: nn.Module) -> list[nn.Module]:
    """The layers whose input the model overwrites after they have read it."""
    family = family_of(diffusion_model)
    return list(family.overwritten(diffusion_model)) if family else []


def training_conds(base) -> Mapping[str, Any]:
    """What a training tells the model besides the prompts, by the names of ComfyUI's `extra_conds`."""
    family = family_of(base.diffusion_model)
    return family.conds if family else {}


def check_trainable(base) -> None:
    """Raise `InputError` for a model that needs more than pictures and prompts, with the reason."""
    family = family_of(base.diffusion_model)
    reason = family.refusal(base) if family else ""
    if reason:
        raise InputError(f"this model ({type(base).__name__}) cannot be trained here: {reason}")


def wants_masked_picture(base) -> bool:
    """Whether the model also reads a mask and the picture outside of it, as inpainting checkpoints do."""
    family = family_of(base.diffusion_model)
    return bool(family and family.masked_picture(base))


def checkpoint_blocks(diffusion_model: nn.Module) -> list[nn.Module]:
    """The blocks that gradient checkpointing computes anew. Raises `InputError` where the family is not known."""
    family = family_of(diffusion_model)
    if family is None:
        raise InputError(
            f"the blocks of a {type(diffusion_model).__name__} are not known here, so gradient_checkpointing cannot be "
            "used with it; switch it off"
        )
    return list(family.blocks(diffusion_model))


def file_names(base) -> dict[str, dict]:
    """{layer: {"kohya": ..., "diffusers": ...}} for a model of a known family, else nothing."""
    family = family_of(base.diffusion_model)
    return family.file_names(base) if family else {}


def architecture(base) -> str:
    """What a LoRA file calls this base, or nothing."""
    family = family_of(base.diffusion_model)
    return family.architecture(base) if family else ""


def target_layers(diffusion_model: nn.Module, targets: str, custom: str = "") -> dict[str, nn.Module]:
    """{layer name: linear layer} of the layers that get an adapter; never one whose output reaches nothing.

    custom: comma-separated patterns with `*`, matched against whole layer names, for `targets == "custom"`.
    Raises `InputError` where the model's family is not known or nothing matches.
    """
    family = family_of(diffusion_model)
    idle = set(family.idle(diffusion_model)) if family else set()
    linear = {name: layer for name, layer in diffusion_model.named_modules() if is_linear(layer) and name not in idle}
    if targets not in TARGETS:
        raise InputError(f"targets is {targets!r}; choose one of {', '.join(TARGETS)}")
    if targets == "custom":
        parts = [part.strip() for part in custom.split(",") if part.strip()]
        if not parts:
            raise InputError("targets is 'custom' and custom_targets is empty; write patterns such as '*attn2.to_k'")
        pattern = "|".join(re.escape(part).replace(r"\*", ".*") for part in parts)
    else:
        if family is None:
            raise InputError(
                f"the layers of a {type(diffusion_model).__name__} are not known by name here; "
                "set targets to 'custom' and name them, for example '*attn.qkv'"
            )
        pattern = family.patterns[targets]
    found = {name: layer for name, layer in linear.items() if re.fullmatch(pattern, name)}
    if not found:
        some = ", ".join(list(linear)[:: max(1, len(linear) // 4)][:4])
        raise InputError(f"no linear layer matches {custom or targets!r}; this model's layers are named like {some}")
    return found
