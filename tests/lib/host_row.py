"""The form of a row of `host_models`: how a class of ComfyUI's models is made small."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from stand_ins import Text


@dataclass(frozen=True)
class Row:
    """How a class of `comfy.supported_models` is made small.

    config: its name there. unet: the configuration that core would read from a file, small. text: what its text encoder
    gives; None for core's own text encoder, where that has no weights. vae: arguments of `stand_ins.vae`. small: makes
    the network's parts small that no configuration reaches. reason: why it cannot be trained on pictures and prompts,
    "" where it can.
    """

    config: str
    unet: Mapping[str, Any]
    text: Text | None
    vae: Mapping[str, Any] = field(default_factory=lambda: {"channels": 16})
    small: Callable[[Any, torch.dtype], None] = lambda _network, _dtype: None
    reason: str = ""
