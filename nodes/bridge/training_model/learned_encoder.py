"""T5 and language models as ComfyUI runs them, with a gradient to the vectors that stand among a prompt's tokens.

Their weights are many times a CLIP's, so they are not copied and not cast: each matrix is cast at the call that needs
it, in either pass, from the dtype that it is kept in (bfloat16, fp8, quantised), wherever ComfyUI has put it.
"""

from __future__ import annotations

import numbers
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..forward_pass.differentiable import DifferentiableFunctions
from ..forward_pass.in_place import clone_layer_inputs
from .autograd_views import autograd_view
from .checkpointing import checkpointed
from .frozen_linear import frozen_layers

# Encoders with more weights than this compute each block again in the backward pass. What a block keeps for it grows
# with the width as the weights do: of T5-XXL (4.8e9 weights), about 0.15 GB a block for 256 tokens.
LARGE = 200_000_000


def shares_weight(layer: nn.Module) -> bool:
    """Whether a layer casts its weight matrix at each call, so that a copy of the encoder can have the same layer."""
    weight = getattr(layer, "weight", None)
    return hasattr(layer, "forward_comfy_cast_weights") and isinstance(weight, Tensor) and weight.ndim >= 2


def private_parts(
    encoder: nn.Module, patched: Collection[nn.Module]
) -> tuple[list[nn.Module], dict[int, nn.Parameter]]:
    """(layers that a copy of `encoder` shares with it, {id of a parameter: what the copy has in its place}).

    patched: layers with patches of the wire in their weights, which ComfyUI takes out when it unloads the model: the
    copy has its own. Of all others the copy shares the layers, and not only their tensors, since ComfyUI gives layers
    new tensors when it moves them. Norms and the like get tensors that autograd can save.
    """
    shared, replaced = list[nn.Module](), dict[int, nn.Parameter]()
    for layer in encoder.modules():
        if not shares_weight(layer):
            for parameter in layer._parameters.values():
                if parameter is not None:
                    replaced[id(parameter)] = nn.Parameter(autograd_view(parameter), requires_grad=False)
        elif layer not in patched:
            shared.append(layer)
    return shared, replaced


def move_private_parts(encoder: nn.Module, device: torch.device) -> None:
    """Bring what the copy has of its own to `device`; the layers that cast their weight at each call stay."""
    for layer in encoder.modules():
        if not shares_weight(layer):
            for parameter in layer._parameters.values():
                if parameter is not None:
                    parameter.data = parameter.data.to(device)
            for name, buffer in layer._buffers.items():
                if buffer is not None:
                    layer._buffers[name] = autograd_view(buffer).to(device)


def blocks_of(encoder: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer: the members of its longest lists, without lists within a block."""
    found, inner = list[nn.Module](), set[int]()
    for module in encoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) and id(module) not in inner:
            found += module
            inner |= {id(each) for block in module for each in block.modules()}
    return found


def leaves_out_padding(encoder: Any) -> bool:
    """Whether the padding behind a prompt neither acts on its tokens nor comes out as anything but zero.

    So it is with UMT5 of Wan, T5 of AuraFlow and Qwen of Ovis: the padding is masked in the attention, and the places
    after the prompt are set to zero. T5 of Flux and SD3 attends to its padding, which is part of the conditioning.
    """
    return encoder.enable_attention_masks and encoder.zero_out_masked and not encoder.return_attention_masks


def encode_without_padding(encoder: Any, rows: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
    """`SDClipModel.encode` of ComfyUI, which computes a prompt only up to its end where the padding counts for nothing.

    encoder: ComfyUI's `SDClipModel`. rows: tokens, numbers or vectors, of equal length. What comes out has the full
    length, with the zeros that ComfyUI writes there.
    """
    if not leaves_out_padding(encoder):
        return encoder.encode(rows)
    longest = max(_length(row, encoder.special_tokens) for row in rows)
    out, *more = encoder([row[:longest] for row in rows])
    return nn.functional.pad(out, (0, 0, 0, len(rows[0]) - longest)), *more


def _length(row: Sequence[Any], special: Mapping[str, int]) -> int:
    """How many of a prompt's tokens count, by the rule of `SDClipModel.process_tokens`: those up to the first end
    token, or before the first padding that is not at the start where an encoder has no end token."""
    end, pad = special.get("end"), special.get("pad", -1)
    tokens: list[Any] = [token if isinstance(token, numbers.Integral) else None for token in row]
    start = next((i for i, token in enumerate(tokens) if token != pad), len(tokens))
    marker = pad if end is None else end
    if marker not in tokens[start:]:
        return len(tokens)
    return tokens.index(marker, start) + (end is not None)


def is_large(encoder: nn.Module) -> bool:
    """Whether the encoder's blocks are computed again in the backward pass."""
    return sum(parameter.numel() for parameter in encoder.parameters()) > LARGE


@contextmanager
def backward_through(
    encoders: Sequence[nn.Module], compute: torch.dtype | None, checkpointing: bool | None = None
) -> Iterator[None]:
    """Within the block a gradient flows through `encoders` to the vectors among their tokens, and to no weight.

    compute: the dtype of autocast. checkpointing: compute the blocks again in the backward pass; None does so in large
    encoders. Calls must be within `DifferentiableFunctions`.
    """
    with ExitStack() as stack:
        for encoder in encoders:
            stack.enter_context(frozen_layers(encoder, compute, always=True))
            norms = [each for each in encoder.modules() if each._parameters and not shares_weight(each)]
            leaves = [each for each in norms if not each._modules]
            stack.enter_context(clone_layer_inputs(leaves))
            if is_large(encoder) if checkpointing is None else checkpointing:
                stack.enter_context(checkpointed(blocks_of(encoder), True, DifferentiableFunctions))
        yield
