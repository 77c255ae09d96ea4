"""Flux's transformer: text and picture meet in one joint attention, so its projections stand in for cross-attention.

Double blocks have separate projections for the picture (`img_attn`) and the text (`txt_attn`); single blocks have one
fused layer (`linear1`: query, key, value and feed-forward) and one out (`linear2`).
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

_JOINT = r"double_blocks\.\d+\.(img|txt)_attn\.(qkv|proj)"
PATTERNS = {
    "cross-attention": _JOINT,
    "attention": _JOINT + r"|single_blocks\.\d+\.linear[12]",
    "attention + feed-forward": _JOINT + r"|single_blocks\.\d+\.linear[12]|double_blocks\.\d+\.(img|txt)_mlp\.[02]",
}


def fits(diffusion_model: nn.Module) -> bool:
    from comfy.ldm.flux.model import Flux

    return isinstance(diffusion_model, Flux)


def blocks(diffusion_model: nn.Module) -> Iterator[nn.Module]:
    """What gradient checkpointing computes anew."""
    yield from diffusion_model.double_blocks
    yield from diffusion_model.single_blocks


def file_names(base) -> dict[str, dict[str, str]]:
    """kohya's names are the checkpoint's own. diffusers splits the fused projections, so it has no names for them."""
    return {
        name: {"kohya": f"lora_unet_{name.replace('.', '_')}"}
        for name, layer in base.diffusion_model.named_modules()
        if isinstance(layer, nn.Linear)
    }


def architecture(base) -> str:
    return "flux-1-dev" if getattr(base.diffusion_model.params, "guidance_embed", False) else "flux-1-schnell"
