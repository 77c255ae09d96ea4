"""ComfyUI's models as a training sees them. One module a model family says which layers are what."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ....training.errors import InputError
from ..recast import is_linear
from . import joint, unet

TARGETS = ("cross-attention", "attention", "attention + feed-forward", "custom")


@dataclass(frozen=True)
class Family:
    """What differs between model families: the names of their layers, and what a training has to mind."""

    name: str
    fits: Callable[[nn.Module], bool]
    patterns: dict[str, str]  # target -> regular expression over layer names
    blocks: Callable[[nn.Module], Iterable[nn.Module]]  # what gradient checkpointing computes anew
    file_names: Callable[[nn.Module], dict[str, dict]]  # base model -> layer -> name by file format, see `to_format`
    architecture: Callable[[nn.Module], str]  # base model -> its name in the model specification
    overwritten: Callable[[nn.Module], Iterable[nn.Module]] = lambda _: ()  # layers whose input is overwritten in place
    conds: Mapping[str, Any] = field(default_factory=dict)  # what a training tells the model besides its prompts


FAMILIES = (
    Family("U-Net (SD1.5, SD2, SDXL)", unet.fits, unet.PATTERNS, unet.blocks, unet.file_names, unet.architecture),
    Family("Flux", joint.is_flux, joint.FLUX_PATTERNS, joint.flux_blocks, joint.flux_names, joint.architecture,
           joint.flux_overwritten, joint.FLUX_CONDS),
    Family("SD3", joint.is_sd3, joint.SD3_PATTERNS, joint.sd3_blocks, joint.sd3_names, joint.architecture),
)  # fmt: skip


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
    """{layer name: linear layer} of the layers that get an adapter.

    custom: comma-separated patterns with `*`, matched against whole layer names, for `targets == "custom"`.
    Raises `InputError` where the model's family is not known or nothing matches.
    """
    linear = {name: layer for name, layer in diffusion_model.named_modules() if is_linear(layer)}
    if targets not in TARGETS:
        raise InputError(f"targets is {targets!r}; choose one of {', '.join(TARGETS)}")
    if targets == "custom":
        parts = [part.strip() for part in custom.split(",") if part.strip()]
        if not parts:
            raise InputError("targets is 'custom' and custom_targets is empty; write patterns such as '*attn2.to_k'")
        pattern = "|".join(re.escape(part).replace(r"\*", ".*") for part in parts)
    else:
        family = family_of(diffusion_model)
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
