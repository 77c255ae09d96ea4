"""Flux, Flux 2 and Chroma: transformers with one joint attention over the tokens of text and picture.

The double-stream blocks come first, with projections of their own for text and picture (Esser et al. 2024, arXiv
2403.03206, figure 2b); their attention takes the role of a U-Net's cross-attention. Then come single-stream blocks,
whose two matrices hold attention and feed-forward together: q, k, v and the first layer in `linear1`, the output
projection and the second layer in `linear2`. Flux 2 shares one modulation between all blocks and Chroma computes it by
a small network; the layers that are trained are the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from ....training.layer_names import aliases
from .family import Family
from .names import by_program

_JOINT = r"double_blocks\.\d+\.(img|txt)_attn\.(qkv|proj)"
_SINGLE = r"single_blocks\.\d+\.linear[12]"
_MLP = r"double_blocks\.\d+\.(img|txt)_mlp\.(0|2|gate_proj|up_proj|down_proj)"
PATTERNS = {
    "cross-attention": _JOINT,
    "attention": f"{_JOINT}|{_SINGLE}",
    "attention + feed-forward": f"{_JOINT}|{_SINGLE}|{_MLP}",
}
CROSS_ATTENTION_LAYERS = "`img_attn` and `txt_attn` (`qkv`, `proj`) of the blocks of two streams, `double_blocks`"
# Flux and Flux 2 are distilled: the guidance strength is an input. 1 means no guidance, and only there is the plain
# velocity of the training pictures the right target. Chroma's default, 0, is the value it was trained with.
GUIDANCE = {"guidance": 1.0}
# diffusers' class for Flux 2 names these layers differently; ComfyUI's table lists both names.
_NOT_FLUX2 = re.compile(r"\.ff(_context)?\.net\.|^single_transformer_blocks\.\d+\.proj_out\.")


def is_flux(diffusion_model: nn.Module) -> bool:
    from comfy.ldm.flux.model import Flux

    return type(diffusion_model) is Flux and not _has_global_modulation(diffusion_model)


def is_flux2(diffusion_model: nn.Module) -> bool:
    from comfy.ldm.flux.model import Flux

    return type(diffusion_model) is Flux and _has_global_modulation(diffusion_model)


def _has_global_modulation(diffusion_model: Any) -> bool:
    return bool(getattr(diffusion_model.params, "global_modulation", False))


def is_chroma(diffusion_model: nn.Module) -> bool:
    from comfy.ldm.chroma.model import Chroma

    return type(diffusion_model) is Chroma


def blocks(diffusion_model: Any) -> Iterator[nn.Module]:
    """The blocks for gradient checkpointing."""
    yield from diffusion_model.double_blocks
    yield from diffusion_model.single_blocks


def overwritten_input(diffusion_model: Any) -> Iterator[nn.Module]:
    """The norms, whose input is overwritten after they have read it: each block adds to its streams in place."""
    for block in diffusion_model.double_blocks:
        yield from (block.img_norm1, block.img_norm2, block.txt_norm1, block.txt_norm2)
    for block in diffusion_model.single_blocks:
        yield block.pre_norm


def file_names(base) -> dict[str, dict]:
    """See `by_program`. Chroma's layers have Flux's names in diffusers."""
    import comfy.model_base
    import comfy.utils

    known = comfy.utils.flux_to_diffusers(base.model_config.unet_config)
    if isinstance(base, comfy.model_base.Flux2):
        # Its single-stream blocks have fused matrices in diffusers too.
        known = {
            name: layer
            for name, layer in known.items()
            if not _NOT_FLUX2.search(name) and ("single_transformer_blocks" not in name or isinstance(layer, str))
        }
    return by_program(base, known)


def architecture(base) -> str:
    """The base's name in Stability's model specification, or "" where it has none."""
    import comfy.supported_models as known

    return {known.Flux: "flux-1-dev", known.FluxInpaint: "flux-1-dev", known.FluxSchnell: "flux-1-schnell"}.get(
        type(base.model_config), ""
    )


def is_inpainting(base) -> bool:
    """Whether it is a Fill model, whose input is the latent, a masked picture's latent and 8x8 mask pixels per cell."""
    return _input_channels(base) > 2 * _output_channels(base)


def is_steered(base) -> bool:
    """Whether it is a Canny or Depth model, whose input is the latent and that of a control picture."""
    return _output_channels(base) < _input_channels(base) <= 2 * _output_channels(base)


def untrainable_reason(base) -> str:
    """The reason against a Canny or Depth model, where the set has no control pictures."""
    if is_steered(base):
        return (
            "it is steered by a control picture (edges or depth), which a training set does not have; train on the "
            "plain model, whose LoRAs work with it"
        )
    return ""


def _input_channels(base) -> int:
    """The latent channels that the network reads, counted as ComfyUI does: a LoRA may have widened the layer."""
    model, weight = base.diffusion_model, getattr(base.diffusion_model.img_in, "weight", None)
    width = model.img_in.in_features if weight is None else weight.shape[1]
    return width // model.patch_size**2


def _output_channels(base) -> int:
    return base.model_config.unet_config["out_channels"]


FLUX = Family(
    "Flux",
    is_flux,
    PATTERNS,
    CROSS_ATTENTION_LAYERS,
    blocks,
    file_names,
    architecture,
    overwritten_input,
    default_conds=GUIDANCE,
    is_inpainting=is_inpainting,
    untrainable_reason=untrainable_reason,
    aliases=lambda _: aliases.FLUX,
)
FLUX2 = Family(
    "Flux 2",
    is_flux2,
    PATTERNS,
    CROSS_ATTENTION_LAYERS,
    blocks,
    file_names,
    overwritten_input=overwritten_input,
    default_conds=GUIDANCE,
    aliases=lambda _: aliases.FLUX2,
)
CHROMA = Family(
    "Chroma",
    is_chroma,
    PATTERNS,
    CROSS_ATTENTION_LAYERS,
    blocks,
    file_names,
    lambda _: "chroma",
    overwritten_input,
    aliases=lambda _: aliases.CHROMA,
)
