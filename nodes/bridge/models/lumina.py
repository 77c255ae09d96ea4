"""Z-Image and Lumina 2 (NextDiT): a single-stream transformer over the joined tokens of text and picture.

Qin et al. 2025, arXiv 2503.21758, section 3.1. The refiner blocks come first, `context_refiner` for the text and
`noise_refiner` for the picture; the blocks in `layers` process both with the same matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ....training.layer_names import aliases
from .family import Family
from .names import by_program

_JOINT = r"layers\.\d+\.attention\.(qkv|out)"
_SELF = r"(context|noise)_refiner\.\d+\.attention\.(qkv|out)"
_MLP = r"(layers|context_refiner|noise_refiner)\.\d+\.feed_forward\.w[123]"
PATTERNS = {
    "cross-attention": _JOINT,
    "attention": f"{_JOINT}|{_SELF}",
    "attention + feed-forward": f"{_JOINT}|{_SELF}|{_MLP}",
}
CROSS_ATTENTION_LAYERS = (
    "`attention` (`qkv`, `out`) of `layers`, where text and picture stand in one row; not the refiners', which see one "
    "of them"
)


def fits(diffusion_model: nn.Module) -> bool:
    from comfy.ldm.lumina.model import NextDiT

    return type(diffusion_model) is NextDiT


def blocks(diffusion_model: Any) -> Iterator[nn.Module]:
    """The blocks for gradient checkpointing."""
    for group in (diffusion_model.context_refiner, diffusion_model.noise_refiner, diffusion_model.layers):
        yield from group


def file_names(base) -> dict[str, dict]:
    """See `by_program`. ComfyUI's table is Z-Image's; it lacks Lumina 2's fused layer, which has fewer keys than
    queries."""
    import comfy.utils

    return by_program(base, comfy.utils.z_image_to_diffusers(base.model_config.unet_config))


def architecture(base) -> str:
    """kohya's name of Lumina 2 in the model specification; Z-Image has none."""
    import comfy.supported_models as known

    return "lumina-2" if type(base.model_config) is known.Lumina2 else ""


FAMILY = Family(
    "Z-Image, Lumina 2",
    fits,
    PATTERNS,
    CROSS_ATTENTION_LAYERS,
    blocks,
    file_names,
    architecture,
    aliases=lambda _: aliases.LUMINA,
)
