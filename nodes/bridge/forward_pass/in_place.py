"""Models that change or keep tensors of a forward pass, made safe for the duration of a training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def clone_layer_inputs(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Within the block each of `layers` reads a copy of its input, which stays unchanged for the backward pass.

    `x += block(norm(x))` overwrites what the norm has saved. Autograd then refuses the backward pass; with gradient
    checkpointing, which does not check, the gradient is silently wrong. One copy for each norm prevents both.
    `torch.autograd.graph.allow_mutation_on_saved_tensors` makes the same copies, but inspects every operation (1.7
    times the processor time of a small Flux's step) and is just as wrong under checkpointing.
    """
    hooks = [layer.register_forward_pre_hook(_clone_input, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _clone_input(_layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple, dict]:
    """The arguments of a call with a copy of the first, which may have a name."""
    if inputs:
        first, *rest = inputs
        return (_copy(first), *rest), named
    return inputs, {name: _copy(value) if i == 0 else value for i, (name, value) in enumerate(named.items())}


def _copy(value: Any) -> Any:
    needed = isinstance(value, Tensor) and torch.is_grad_enabled() and value.requires_grad
    return value.clone() if needed else value


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
