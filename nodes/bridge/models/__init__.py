"""What a training must know of ComfyUI's models: look-ups over the recorded families and the classes that are found.

One module for each recorded family; `discovery` finds the same for every other class, and `exceptions` and `refused`
say what it cannot find.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ....training.errors import InputError
from ....training.layer_names.dialects import Place, places
from ....training.layer_names.glob import glob_matches
from . import flux, lumina, qwen, sd3, unet, wan
from .custom import custom_targets
from .discovery import discover, discovered_family, discovery_latent, was_observed, why_not_discovered
from .exceptions import exceptions_of
from .family import NO_LAYERS, Family
from .layers import is_convolution, is_linear
from .names import core_places
from .refused import reason_against
from .second_picture import CLIPS, FIRST_FRAME, MEND, NEEDED_BY, OTHER_TRAINER, second_picture

TARGETS = ("cross-attention", "attention", "attention + feed-forward", "custom", *unet.BLOCK_PATTERNS)
FAMILIES = (unet.FAMILY, flux.FLUX, flux.FLUX2, flux.CHROMA, sd3.FAMILY, qwen.FAMILY, lumina.FAMILY, wan.FAMILY)


def recorded_family(diffusion_model: nn.Module) -> Family | None:
    """The family of a diffusion model, by its class, or None where there is no record of it."""
    return next((family for family in FAMILIES if family.fits(diffusion_model)), None)


def family_of(diffusion_model: nn.Module) -> Family | None:
    """The record of a diffusion model's class, or what `learn_layers` has found; None where there is neither."""
    return recorded_family(diffusion_model) or discovered_family(diffusion_model)


def learn_layers(base, make_conds: Callable[[Tensor], Mapping[str, Any]]) -> None:
    """Find the layers of a model that no record describes, by `discovery.discover`; nothing for the others.

    make_conds: latent [1, C, ...] -> the keyword arguments of `BaseModel.apply_model` for it and one prompt.
    """
    if recorded_family(base.diffusion_model) is None and not was_observed(base.diffusion_model):
        discover(base, make_conds(discovery_latent(base)))


def layers_with_overwritten_input(diffusion_model: nn.Module) -> list[nn.Module]:
    """The layers whose input the model changes in place after they have read it; see `learn_layers`."""
    family = family_of(diffusion_model)
    return list(family.overwritten_input(diffusion_model)) if family else []


def has_plain_backward(diffusion_model: nn.Module) -> bool:
    """Whether the forward pass has a backward pass as it is, without `differentiable.DifferentiableFunctions`."""
    family = family_of(diffusion_model)
    return family is None or family.plain_backward(diffusion_model)


def rewrites_blocks(diffusion_model: nn.Module) -> bool:
    """Whether an argument of a block is changed in place, by the block or later."""
    family = family_of(diffusion_model)
    return family is not None and family.rewritten_blocks(diffusion_model)


def training_conds(base) -> Mapping[str, Any]:
    """The conditioning of a training besides its prompts, as arguments of ComfyUI's `extra_conds`."""
    family = recorded_family(base.diffusion_model)
    return family.default_conds if family else exceptions_of(base.diffusion_model).conds


def check_trainable(base, pairs: bool = False, takes_pairs: bool = True) -> None:
    """Raise `InputError`, with the reason, for a model that needs more than pictures and prompts.

    pairs: whether each picture has a second one, which such a model may need. takes_pairs: whether the trainer can be
    given such pictures.
    """
    needs_pairs = second_picture(base) in NEEDED_BY
    if pairs and needs_pairs:
        return
    reason = reason_against(base)
    if not reason:
        family = family_of(base.diffusion_model)
        reason = exceptions_of(base.diffusion_model).untrainable_reason(base.diffusion_model)
        reason = reason or (family.untrainable_reason(base) if family else "")
    if reason:
        clips = CLIPS if takes_pairs and second_picture(base) == FIRST_FRAME else ""
        mend = f"; {MEND if takes_pairs else OTHER_TRAINER}{clips}" if needs_pairs else ""
        raise InputError(f"this model ({type(base).__name__}) cannot be trained here: {reason}{mend}")


def check_picture_sizes(base, sizes: Iterable[tuple[str, int, int]]) -> None:
    """Raise `InputError` for a picture that this model cannot be trained on, by its size.

    sizes: (name, height, width) of the pictures, px.
    """
    cell = getattr(base.latent_format, "spacial_downscale_ratio", 8)
    reason_of = exceptions_of(base.diffusion_model).size_reason
    for name, height, width in sizes:
        reason = reason_of(height // cell, width // cell)
        if reason:
            raise InputError(
                f"{name!r} of {width}x{height} px cannot be trained with this model ({type(base).__name__}): {reason}"
            )


def is_inpainting_model(base) -> bool:
    """Whether the model also reads a mask and the masked picture, as inpainting checkpoints do."""
    family = family_of(base.diffusion_model)
    return bool(family and family.is_inpainting(base))


def checkpoint_blocks(diffusion_model: nn.Module) -> list[nn.Module]:
    """The blocks that gradient checkpointing computes again. Raises `InputError` where neither is known of the class:
    a record, or what `learn_layers` has found."""
    family = family_of(diffusion_model)
    if family is None:
        raise InputError(
            f"the blocks of a {type(diffusion_model).__name__} are not known here"
            f"{why_not_discovered(diffusion_model)}, so gradient_checkpointing cannot be used with it; switch it off"
        )
    blocks = list(family.blocks(diffusion_model))
    if not blocks:
        raise InputError(
            f"a {type(diffusion_model).__name__} has no blocks that could be computed again: its attention lies in no "
            "list of modules and in no modules of one class beside each other; switch gradient_checkpointing off"
        )
    return blocks


def compiled_layout(diffusion_model: nn.Module) -> tuple[list[nn.Module], tuple[str, ...]]:
    """(the blocks to compile, keys of their `transformer_options` that they use for other nodes' patches alone).

    No blocks where they are not known of the class. A U-Net's blocks read their place, `block`, to look up patches, so
    that each of them would need a compiled graph of its own.
    """
    family = family_of(diffusion_model)
    blocks = [] if family is None else list(family.blocks(diffusion_model))
    return blocks, ("block",) if unet.fits(diffusion_model) else ()


def file_names(base) -> dict[str, dict]:
    """{layer: {"kohya": ..., "diffusers": ...}} for a model whose layers are known, otherwise {}."""
    family = family_of(base.diffusion_model)
    return family.file_names(base) if family else {}


def layer_places(base, rows: Mapping[str, int]) -> dict[str, Place]:
    """Where the names of LoRA files belong, by `dialects.readings`. rows: see `places`.

    A model without a record has its own names and those of ComfyUI's table.
    """
    family = recorded_family(base.diffusion_model)
    table = places(rows, family.aliases(base) if family else (), base.model_config.unet_config)
    return table if family else core_places(base) | table


def architecture(base) -> str:
    """The base's name in a LoRA file's metadata, or "" where it has none."""
    family = family_of(base.diffusion_model)
    return family.architecture(base) if family else ""


def target_layers(
    diffusion_model: nn.Module, targets: str, custom: str = "", convolutions: bool = False
) -> dict[str, nn.Module]:
    """{layer name: layer} of the layers that get an adapter, without layers whose output is not used.

    targets: one of `TARGETS`. custom: the lines of `custom.custom_targets`, matched against whole layer names, for
    `targets == "custom"`. convolutions: also those that kohya's `conv_dim` adapts in a U-Net: all layers of the
    residual blocks, the down- and upsamplers, and the layers around each transformer; for "custom" the patterns are
    matched with convolutions too. Raises `InputError` where the layers of a target by name are not known, where a
    network has no such convolutions or blocks, and where no layer matches.
    """
    family = family_of(diffusion_model)
    unused = set(family.unused_layers(diffusion_model)) if family else set()
    if targets not in TARGETS:
        raise InputError(f"targets is {targets!r}; choose one of {', '.join(TARGETS)}")
    if convolutions:
        _check_convolutions(diffusion_model, family, targets)
    candidates = {
        name: layer
        for name, layer in diffusion_model.named_modules()
        if name not in unused and (is_linear(layer) or (convolutions and is_convolution(layer)))
    }
    if targets == "custom":
        patterns = [line.pattern for line in custom_targets(custom)]
        found = {name: layer for name, layer in candidates.items() if any(glob_matches(one, name) for one in patterns)}
    else:
        pattern = _pattern_of(diffusion_model, family, targets)
        if convolutions and family is not None:
            pattern = f"{pattern}|{family.convolutions}"
        found = {name: layer for name, layer in candidates.items() if re.fullmatch(pattern, name)}
    if not found:
        some = ", ".join(list(candidates)[:: max(1, len(candidates) // 4)][:4])
        raise InputError(f"no linear layer matches {custom or targets!r}; this model's layers are named like {some}")
    return found


def _check_convolutions(diffusion_model: nn.Module, family: Family | None, targets: str) -> None:
    if family is None or not family.convolutions:
        raise InputError(
            f"conv_rank is for the convolutions of U-Nets (SD1.5, SD2, SDXL), and a {type(diffusion_model).__name__} "
            "has none that are trained; set conv_rank to 0"
        )
    if targets in unet.BLOCK_PATTERNS:
        raise InputError(
            f"targets is {targets!r}, of which the attention layers alone are trained, and conv_rank adds convolutions "
            "of the whole U-Net; set conv_rank to 0, or choose other targets"
        )


def _pattern_of(diffusion_model: nn.Module, family: Family | None, targets: str) -> str:
    """The regular expression over layer names of a target by name. Raises `InputError` where it is not known."""
    if targets in unet.BLOCK_PATTERNS:
        patterns = family.block_patterns(diffusion_model) if family is not None else {}
        if not patterns:
            raise InputError(
                f"targets is {targets!r}: which blocks hold style and content is published for SDXL alone (B-LoRA, "
                f"arXiv 2403.14572), and this network, a {type(diffusion_model).__name__}, is built otherwise; choose "
                "'attention', or 'custom' with patterns of the blocks that you mean"
            )
        return patterns[targets]
    if family is None:
        raise InputError(
            f"the layers of a {type(diffusion_model).__name__} are not known by name here"
            f"{why_not_discovered(diffusion_model)}; set targets to 'custom' and name them, for example '*attn.qkv'"
        )
    if targets == "cross-attention" and family.patterns[targets] == NO_LAYERS:
        raise InputError(
            f"targets is 'cross-attention', and no attention of a {type(diffusion_model).__name__} reads the prompt: "
            "it scales or shifts what the layers compute, from outside of them; choose 'attention'"
        )
    return family.patterns[targets]
