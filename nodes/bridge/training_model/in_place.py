"""Models that add to a tensor in place, made fit for a backward pass for the length of a training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def keep_layer_inputs(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Within the block each of `layers` reads a copy of its input, which stays as it was for the backward pass.

    `x += block(norm(x))` overwrites what the norm has kept: autograd refuses the backward pass, and with gradient
    checkpointing, which does not look, the gradient is wrong without a word. A copy for each norm is all that is
    missing.
    torch.autograd.graph.allow_mutation_on_saved_tensors makes the same copies, but looks at every operation for that
    (a small Flux's step takes 1.7 times the processor time) and is as wrong under checkpointing.
    """
    hooks = [layer.register_forward_pre_hook(_on_a_copy) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _on_a_copy(_layer: nn.Module, inputs: tuple) -> tuple:
    first, *rest = inputs
    return (first.clone() if torch.is_grad_enabled() and first.requires_grad else first, *rest)
