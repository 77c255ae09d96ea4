"""Qwen-Image: double-stream blocks with one joint attention over the tokens of text and picture.

Wu et al. 2025, arXiv 2508.02324, section 2.4: blocks like SD3's, the text encoded by a Qwen2.5-VL. Latents are
[B, 16, frames, H, W], one frame for a picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ....training.layer_names.spelling import TRANSFORMER_PREFIX
from .family import Family
from .names import as_they_are

_JOINT = r"transformer_blocks\.\d+\.attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
_MLP = r"transformer_blocks\.\d+\.(img|txt)_mlp\.net\.(0\.proj|2)"
PATTERNS = {"cross-attention": _JOINT, "attention": _JOINT, "attention + feed-forward": f"{_JOINT}|{_MLP}"}
CROSS_ATTENTION_LAYERS = (
    "the eight projections of `attn` in every block, the picture's (`to_q` ... `to_out.0`) and the text's "
    "(`add_q_proj` ... `to_add_out`); there is no other attention, and the last block's text (`add_q_proj`, "
    "`to_add_out`) goes nowhere, so it is left out"
)


def fits(diffusion_model: nn.Module) -> bool:
    from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

    return type(diffusion_model) is QwenImageTransformer2DModel


def blocks(diffusion_model: Any) -> Iterator[nn.Module]:
    """The blocks for gradient checkpointing."""
    yield from diffusion_model.transformer_blocks


def unused_layers(diffusion_model: Any) -> Iterator[str]:
    """The layers of the last block whose only output is its text stream, which is not used: they get no gradient."""
    last = f"transformer_blocks.{len(diffusion_model.transformer_blocks) - 1}."
    yield from (last + layer for layer in ("attn.add_q_proj", "attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2"))


def file_names(base) -> dict[str, dict]:
    """The checkpoint's names are diffusers' own."""
    return as_they_are(base, TRANSFORMER_PREFIX)


FAMILY = Family(
    "Qwen-Image",
    fits,
    PATTERNS,
    CROSS_ATTENTION_LAYERS,
    blocks,
    file_names,
    lambda _: "Qwen-Image",
    unused_layers=unused_layers,
)
