"""SD3 and SD3.5: double-stream blocks with one joint attention over the tokens of text and picture.

Esser et al. 2024, arXiv 2403.03206, figure 2b.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ....training.layer_names import aliases
from .family import Family
from .names import by_program

_JOINT = r"joint_blocks\.\d+\.(context|x)_block\.attn\.(qkv|proj)"
_SELF = r"joint_blocks\.\d+\.x_block\.attn2\.(qkv|proj)"  # SD3.5 medium's self-attention of the picture
_MLP = r"joint_blocks\.\d+\.(context|x)_block\.mlp\.fc[12]"
PATTERNS = {
    "cross-attention": _JOINT,
    "attention": f"{_JOINT}|{_SELF}",
    "attention + feed-forward": f"{_JOINT}|{_SELF}|{_MLP}",
}
CROSS_ATTENTION_LAYERS = "`attn` (`qkv`, `proj`) of both streams, `context_block` and `x_block`, in every block"


def fits(diffusion_model: nn.Module) -> bool:
    from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT

    return isinstance(diffusion_model, MMDiT)


def blocks(diffusion_model: Any) -> Iterator[nn.Module]:
    """The blocks for gradient checkpointing."""
    yield from diffusion_model.joint_blocks


def file_names(base) -> dict[str, dict]:
    """See `by_program`."""
    import comfy.utils

    return by_program(base, comfy.utils.mmdit_to_diffusers(base.model_config.unet_config))


FAMILY = Family(
    "SD3",
    fits,
    PATTERNS,
    CROSS_ATTENTION_LAYERS,
    blocks,
    file_names,
    aliases=lambda base: aliases.sd3(len(base.diffusion_model.joint_blocks)),
)
