"""Wan 2.1 and 2.2: self-attention over all frames, then a cross-attention to the prompt, as in a U-Net.

Wan Team 2025, arXiv 2503.20314, section 4.2. Latents are [B, C, frames, H, W]; a picture is one frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ....training.layer_names import aliases
from ....training.layer_names.spelling import COMFY_PREFIX
from .family import Family
from .names import as_they_are

_CROSS = r"blocks\.\d+\.cross_attn\.[qkvo]"
_SELF = r"blocks\.\d+\.self_attn\.[qkvo]"
_FFN = r"blocks\.\d+\.ffn\.[02]"
PATTERNS = {
    "cross-attention": _CROSS,
    "attention": f"{_CROSS}|{_SELF}",
    "attention + feed-forward": f"{_CROSS}|{_SELF}|{_FFN}",
}
CROSS_ATTENTION_LAYERS = "`cross_attn` (`q`, `k`, `v`, `o`) of every block"


def fits(diffusion_model: nn.Module) -> bool:
    from comfy.ldm.wan.model import WanModel

    return type(diffusion_model) is WanModel


def continues_pictures(diffusion_model: Any) -> bool:
    """Whether a model is one of image to video: it reads more channels than it predicts."""
    return getattr(diffusion_model, "in_dim", 0) != getattr(diffusion_model, "out_dim", 0)


def blocks(diffusion_model: Any) -> Iterator[nn.Module]:
    """The blocks for gradient checkpointing."""
    yield from diffusion_model.blocks


def file_names(base) -> dict[str, dict]:
    """Files for Wan have the checkpoint's own names behind `diffusion_model.`; diffusers reads those, ComfyUI no
    others."""
    return as_they_are(base, COMFY_PREFIX)


def untrainable_reason(base) -> str:
    """The reason against an image-to-video model, which reads more channels than a latent has."""
    if base.diffusion_model.patch_embedding.in_channels != base.latent_format.latent_channels:
        return (
            "it continues a picture that it is given, and a training on still pictures would teach it to repeat "
            "that one; train on the text-to-video model of the same size"
        )
    return ""


FAMILY = Family(
    "Wan",
    fits,
    PATTERNS,
    CROSS_ATTENTION_LAYERS,
    blocks,
    file_names,
    lambda _: "wan2.1",
    untrainable_reason=untrainable_reason,
    aliases=lambda _: aliases.WAN,
)
