"""What differs between model families, in one record each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Family:
    """The names of a family's layers, and what a training has to mind. `base` is ComfyUI's `BaseModel`.

    Two things are not here, since a node on the wire may change them: what the network predicts
    (`denoiser.prediction_of`
    asks the model's sampling, and the loss follows from it) and the shape of a latent (`latent_format`).
    """

    name: str
    fits: Callable[[nn.Module], bool]
    patterns: dict[str, str]  # target -> regular expression over layer names
    cross_attention_layers: str  # which layers `cross-attention` means, as the help says it
    blocks: Callable[[nn.Module], Iterable[nn.Module]]  # what gradient checkpointing computes anew
    file_names: Callable[[Any], dict[str, dict]]  # base -> layer -> name by file format, see `to_format`
    architecture: Callable[[Any], str] = lambda _: ""  # base -> its name in the model specification
    overwritten: Callable[[nn.Module], Iterable[nn.Module]] = lambda _: ()  # layers whose input is overwritten in place
    idle: Callable[[nn.Module], Iterable[str]] = lambda _: ()  # names of layers whose output reaches nothing
    conds: Mapping[str, Any] = field(default_factory=dict)  # what a training tells the model besides its prompts
    masked_picture: Callable[[Any], bool] = lambda _: False  # base -> whether it also reads a picture with a hole
    refusal: Callable[[Any], str] = lambda _: ""  # base -> why it cannot be trained on pictures and prompts, or nothing
