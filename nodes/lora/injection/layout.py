"""Where a layer's output lies in the picture, for each recorded family."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch import nn

from ....training.errors import InputError
from ...bridge.models import FAMILIES, recorded_family


class Site(Enum):
    """What the positions of a layer's output are.

    PICTURE: cells of the picture. JOINT: text tokens and then cells. KEYS: text tokens that a cross-attention's key or
    value is made of. ELSEWHERE: text tokens of a stream of their own, or one vector for the whole picture.
    """

    PICTURE = "picture"
    JOINT = "joint"
    KEYS = "keys"
    ELSEWHERE = "elsewhere"


@dataclass(frozen=True)
class Layout:
    """The layers of a family by their site: regular expressions over their names without `diffusion_model.`.

    feature_maps: whether the layers work at several resolutions (a U-Net). from_end: whether the cells end each
    sequence, padded to a multiple of the model's `pad_tokens_multiple`; else they begin it, and follow the prompt's
    tokens in a joint one.
    """

    picture: str
    keys: str = r"(?!)"
    joint: str = r"(?!)"
    feature_maps: bool = False
    from_end: bool = False

    def site(self, layer: str) -> Site:
        for pattern, site in ((self.keys, Site.KEYS), (self.joint, Site.JOINT), (self.picture, Site.PICTURE)):
            if re.fullmatch(pattern, layer):
                return site
        return Site.ELSEWHERE


_FLUX = Layout(
    picture=r"img_in|double_blocks\.\d+\.img_(attn|mlp)\..*|final_layer\.linear",
    joint=r"single_blocks\.\d+\.linear[12]",
)
_LAYOUTS = {
    "U-Net (SD1.5, SD2, SDXL)": Layout(
        picture=r"(?!.*\bemb_layers\.)(input_blocks|middle_block|output_blocks|out)\..*",
        keys=r".*\.attn2\.to_[kv]",
        feature_maps=True,
    ),
    "Flux": _FLUX,
    "Flux 2": _FLUX,
    "Chroma": _FLUX,
    "SD3": Layout(
        picture=r"x_embedder\..*|joint_blocks\.\d+\.x_block\.(attn|attn2|mlp)\..*|final_layer\.linear",
    ),
    "Qwen-Image": Layout(
        picture=r"img_in|transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_out\.0)|img_mlp\..*)|proj_out",
    ),
    "Z-Image, Lumina 2": Layout(
        picture=r"x_embedder|noise_refiner\.\d+\.(attention|feed_forward)\..*",
        joint=r"layers\.\d+\.(attention|feed_forward)\..*|final_layer\.linear",
        from_end=True,
    ),
    "Wan": Layout(
        picture=r"patch_embedding|blocks\.\d+\.(self_attn\.[qkvo]|cross_attn\.[qo]|ffn\.\d+)|head\.head",
        keys=r"blocks\.\d+\.cross_attn\.[kv](_img)?",
    ),
}


def layout_of(diffusion_model: nn.Module) -> Layout:
    """Raises `InputError` for a class without a record."""
    family = recorded_family(diffusion_model)
    layout = _LAYOUTS.get(family.name) if family else None
    if layout is None:
        known = ", ".join(family.name for family in FAMILIES)
        raise InputError(
            f"mask is for models whose layers are known by name ({known}), and this one is a "
            f"{type(diffusion_model).__name__}; leave mask unwired"
        )
    return layout


def patch_size(diffusion_model: Any) -> tuple[int, int, int]:
    """The frames, rows and columns of a latent that make one token."""
    size = diffusion_model.patch_size
    return tuple(size) if isinstance(size, tuple | list) else (1, size, size)  # type: ignore[return-value]
