"""Models that change or keep tensors of a forward pass, made safe for the duration of a training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def clone_layer_inputs(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Within the block each of `layers` reads a copy of its input, which stays unchanged for the backward pass.

    `x += block(norm(x))` overwrites what the norm has saved. Autograd then refuses the backward pass; with gradient
    checkpointing, which does not check, the gradient is silently wrong. One copy for each norm prevents both.
    `torch.autograd.graph.allow_mutation_on_saved_tensors` makes the same copies, but inspects every operation (1.7
    times the processor time of a small Flux's step) and is just as wrong under checkpointing.
    """
    hooks = [layer.register_forward_pre_hook(_clone_input) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _clone_input(_layer: nn.Module, inputs: tuple) -> tuple:
    first, *rest = inputs
    return (first.clone() if torch.is_grad_enabled() and first.requires_grad else first, *rest)


@contextmanager
def fresh_key_caches(network: nn.Module) -> Iterator[None]:
    """Within the block, a network that keeps the keys and values of a prompt forgets them before each call.

    HiDream-O1 keeps those of the last two prompts, which belong to the weights that it had then: a training changes
    these at each step.
    """
    forget = getattr(network, "clear_kv_cache", None)
    if forget is None:
        yield
        return
    hook = network.register_forward_pre_hook(lambda *_: forget())
    try:
        yield
    finally:
        hook.remove()
        forget()
