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
    trained on pictures and prompts, or ""."""

    conds: Mapping[str, Any] = field(default_factory=dict)
    untrainable_reason: Callable[[Any], str] = lambda _: ""


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


_EXCEPTIONS = {
    # Distilled for guidance (Kong et al. 2024, arXiv 2412.03603, section 4.5), whose strength is an input; ComfyUI's
    # default is 6. Only at 1, no guidance, is the plain velocity of the training pictures the right target.
    "comfy.ldm.hunyuan_video.model.HunyuanVideo": Exceptional({"guidance": 1.0}, _hunyuan_reason),
}
