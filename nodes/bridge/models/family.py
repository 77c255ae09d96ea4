"""What differs between model families, as one record each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ....training.layer_names.aliases import Aliases

NO_LAYERS = r"(?!)"  # the pattern of a target that a network has no layers of


@dataclass(frozen=True)
class Family:
    """The layer names of a model family and its properties that matter to a training.

    Functions take the family's diffusion model, or ComfyUI's `BaseModel` where they are said to take the base. Two
    properties are not here, since a node on the wire may change them: what the network predicts (see
    `denoiser.prediction_of`) and the shape of a latent (`BaseModel.latent_format`).

    fits: whether a diffusion model is of this family. patterns: {target: regular expression over layer names}.
    cross_attention_layers: the layers of the target `cross-attention`, in the words of the help page. blocks: what
    gradient checkpointing computes again. file_names: base -> {layer: name by file format}, see `to_format`.
    architecture: base -> its name in the model specification, or "". overwritten_input: the layers whose input the
    model changes in place. plain_backward: whether the forward pass has a backward pass as it is, see
    `forward_pass.differentiable`. unused_layers: the names of layers whose output is not used. default_conds:
    conditioning of a training besides its prompts. is_inpainting: base -> whether it also reads a masked picture.
    rewritten_blocks: whether an argument of a block is changed in place. untrainable_reason: base -> why it cannot be
    trained on pictures and prompts, or "". aliases: base -> other programs' names of its layers, where they are not its
    own. convolutions: regular expression over the names of the layers that `conv_rank` adds, see `target_layers`; ""
    where there are none. block_patterns: {target: regular expression} of the targets that are blocks of the network,
    for a network where published work names them.
    """

    name: str
    fits: Callable[[nn.Module], bool]
    patterns: dict[str, str]
    cross_attention_layers: str
    blocks: Callable[[Any], Iterable[nn.Module]]
    file_names: Callable[[Any], dict[str, dict]]
    architecture: Callable[[Any], str] = lambda _: ""
    overwritten_input: Callable[[Any], Iterable[nn.Module]] = lambda _: ()
    unused_layers: Callable[[Any], Iterable[str]] = lambda _: ()
    plain_backward: Callable[[Any], bool] = lambda _: True
    rewritten_blocks: Callable[[Any], bool] = lambda _: False
    default_conds: Mapping[str, Any] = field(default_factory=dict)
    is_inpainting: Callable[[Any], bool] = lambda _: False
    untrainable_reason: Callable[[Any], str] = lambda _: ""
    aliases: Callable[[Any], Aliases] = lambda _: ()
    convolutions: str = ""
    block_patterns: Callable[[nn.Module], Mapping[str, str]] = lambda _: {}
