"""Flux, Flux 2 and Chroma: transformers in which the tokens of text and picture attend to each other in one attention.

Text and picture have projections of their own in a block of two streams (Esser et al. 2024, arXiv 2403.03206, figure
2b); there both meet, as in a U-Net's cross-attention. Blocks of one stream come after them, whose two matrices hold
attention and feed-forward in one: q, k, v and the first layer in `linear1`, the output projection and the second in
`linear2`. Flux 2 modulates all blocks alike, Chroma by one small network; the layers that learn are the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

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
# Both were distilled to take the strength of guidance as an input. At 1 it stands for no guidance, and only there is
# the plain velocity of the training pictures what they should answer. Chroma's default, 0, is what it was trained with.
GUIDANCE = {"guidance": 1.0}
# diffusers' class for Flux 2 has its own names for these; ComfyUI's table lists both.
_NOT_FLUX2 = re.compile(r"\.ff(_context)?\.net\.|^single_transformer_blocks\.\d+\.proj_out\.")


def is_flux(diffusion_model: nn.Module) -> bool:
    from comfy.ldm.flux.model import Flux

    return type(diffusion_model) is Flux and not _one_modulation(diffusion_model)


def is_flux2(diffusion_model: nn.Module) -> bool:
    from comfy.ldm.flux.model import Flux

    return type(diffusion_model) is Flux and _one_modulation(diffusion_model)


def _one_modulation(diffusion_model: nn.Module) -> bool:
    return bool(getattr(diffusion_model.params, "global_modulation", False))


def is_chroma(diffusion_model: nn.Module) -> bool:
    from comfy.ldm.chroma.model import Chroma

    return type(diffusion_model) is Chroma


def blocks(diffusion_model: nn.Module) -> Iterator[nn.Module]:
    """What gradient checkpointing computes anew."""
    yield from diffusion_model.double_blocks
    yield from diffusion_model.single_blocks


def overwritten(diffusion_model: nn.Module) -> Iterator[nn.Module]:
    """The layers whose input is overwritten after they have read it: each block adds to its streams in place."""
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
        # Its one-stream blocks keep their matrices whole in diffusers too.
        known = {
            name: layer
            for name, layer in known.items()
            if not _NOT_FLUX2.search(name) and ("single_transformer_blocks" not in name or isinstance(layer, str))
        }
    return by_program(base, known)


def architecture(base) -> str:
    """The base's name in Stability's model specification, or nothing where it has none."""
    import comfy.supported_models as known

    return {known.Flux: "flux-1-dev", known.FluxInpaint: "flux-1-dev", known.FluxSchnell: "flux-1-schnell"}.get(
        type(base.model_config), ""
    )


def masked_picture(base) -> bool:
    """Whether it is a Fill model: beside the latent it reads one of a picture with a hole, and 8x8 pixels of mask a
    cell."""
    return _read(base) > 2 * _made(base)


def refusal(base) -> str:
    if _made(base) < _read(base) <= 2 * _made(base):
        return (
            "it is steered by a control picture (edges or depth), which a training set does not have; train on the "
            "plain "
            "model, whose LoRAs work with it"
        )
    return ""


def _read(base) -> int:
    """Channels of the latents that the network is given, counted as ComfyUI does: a LoRA may have widened the layer."""
    model, weight = base.diffusion_model, getattr(base.diffusion_model.img_in, "weight", None)
    width = model.img_in.in_features if weight is None else weight.shape[1]
    return width // model.patch_size**2


def _made(base) -> int:
    return base.model_config.unet_config["out_channels"]


FLUX = Family(
    "Flux",
    is_flux,
    PATTERNS,
    CROSS_ATTENTION_LAYERS,
    blocks,
    file_names,
    architecture,
    overwritten,
    conds=GUIDANCE,
    masked_picture=masked_picture,
    refusal=refusal,
)
FLUX2 = Family(
    "Flux 2", is_flux2, PATTERNS, CROSS_ATTENTION_LAYERS, blocks, file_names, overwritten=overwritten, conds=GUIDANCE
)
CHROMA = Family(
    "Chroma", is_chroma, PATTERNS, CROSS_ATTENTION_LAYERS, blocks, file_names, lambda _: "chroma", overwritten
)
