"""What a training must tell classes whose layers are discovered: their conditioning besides the prompt, and refusals.

A class is named by its path, so that a host without it needs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Exceptional:
    """conds: conditioning of a training, see `Family.default_conds`. untrainable_reason: network -> why it cannot be
    trained on pictures and prompts, or "". size_reason: (height, width) of a latent, in cells -> why it cannot be
    trained on pictures of that size, or ""."""

    conds: Mapping[str, Any] = field(default_factory=dict)
    untrainable_reason: Callable[[Any], str] = lambda _: ""
    size_reason: Callable[[int, int], str] = lambda _height, _width: ""


def exceptions_of(network: nn.Module) -> Exceptional:
    """The exceptions of a network's class, or of none."""
    return _EXCEPTIONS.get(f"{type(network).__module__}.{type(network).__qualname__}", Exceptional())


def _hunyuan_reason(network: Any) -> str:
    if network.params.meanflow:  # Geng et al. 2025, arXiv 2505.13447
        return (
            "it is distilled to few steps and reads the noise level of its next step too, which a training does not "
            "have; train on the model that it was distilled from, whose LoRAs work with it"
        )
    return ""


def _pixart_reason(network: Any) -> str:
    if network.pe_precision is None and network.pe_interpolation == 0:
        return (
            "it is PixArt's model for 256 px, whose positions ComfyUI divides by 0, so that its output is no number; "
            "train on the model for 512 or 1024 px"
        )
    return ""


def _pixart_size_reason(height: int, width: int) -> str:
    # comfy/ldm/pixart/pixartms.py, `forward_orig`: positions are divided by round((height + width) // 2 / 64), and
    # Python rounds 0.5 to 0.
    if (height + width) // 2 <= 32:
        return (
            "ComfyUI divides PixArt's positions by 0 where height and width together are below 528 px; train at a "
            "resolution of 320 or more, and leave smaller pictures out"
        )
    if height % 2 or width % 2:  # the positions are those of whole squares, the picture's tokens of started ones too
        return (
            "PixArt reads squares of 16 px; train at sides that are multiples of 16 px, with a bucket_step of 16 or "
            "more and sides of 256 px or more"
        )
    return ""


_EXCEPTIONS = {
    # Distilled for guidance (Kong et al. 2024, arXiv 2412.03603, section 4.5), whose strength is an input; ComfyUI's
    # default is 6. Only at 1, no guidance, is the plain velocity of the training pictures the right target.
    "comfy.ldm.hunyuan_video.model.HunyuanVideo": Exceptional({"guidance": 1.0}, _hunyuan_reason),
    "comfy.ldm.pixart.pixartms.PixArtMS": Exceptional({}, _pixart_reason, _pixart_size_reason),
}
