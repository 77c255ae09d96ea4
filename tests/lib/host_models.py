"""A small random model of every class of picture and film model in ComfyUI that has no maker in `families`.

`made(name)` returns (model, clip, vae) of a name in `ROWS`; tests must not change them. The configurations are those of
`comfy.supported_models`, with small numbers; a host that lacks the class lacks the row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import stand_ins
import tiny
import torch
from stand_ins import Text


@dataclass(frozen=True)
class Row:
    """How a class of `comfy.supported_models` is made small.

    config: its name there. unet: the configuration that core would read from a file, small. text: what its text encoder
    gives. vae: arguments of `stand_ins.vae`. reason: why it cannot be trained on pictures and prompts, "" where it can.
    """

    config: str
    unet: Mapping[str, Any]
    text: Text
    vae: Mapping[str, Any] = field(default_factory=lambda: {"channels": 16})
    reason: str = ""


ROWS = {
    "omnigen2": Row(
        "Omnigen2",
        dict(
            image_model="omnigen2", patch_size=2, in_channels=16, hidden_size=96, num_layers=2, num_refiner_layers=1,
            num_attention_heads=4, num_kv_heads=2, multiple_of=32, axes_dim_rope=(8, 8, 8), axes_lens=(300, 64, 64),
            text_feat_dim=32, timestep_scale=1000.0,
        ),
        Text(32, mask=True),
    ),
    "krea2": Row(
        "Krea2",
        dict(
            image_model="krea2", features=96, tdim=32, txtdim=32, heads=4, kvheads=2, multiplier=2, layers=2, patch=2,
            channels=16, txtlayers=3, txtheads=2, txtkvheads=2,
        ),
        Text(32, layers=3),
        {"channels": 16, "frames": True},
    ),
}  # fmt: skip


def config_class(name: str) -> type | None:
    """The class of `comfy.supported_models`, or None where this host has none."""
    import comfy.supported_models

    return getattr(comfy.supported_models, ROWS[name].config, None)


def make(name: str, **changes: Any):
    """(model, clip, vae) of a row; `changes` of its configuration, such as another dtype."""
    row = ROWS[name]
    config = config_class(name)({"dtype": torch.float32, **row.unet, **changes})
    model = tiny._flow(config.get_model({}, "", device=torch.device("cpu")), 0)
    return model, stand_ins.clip(row.text), stand_ins.vae(**row.vae)


made: Callable[[str], Any] = functools.cache(make)
