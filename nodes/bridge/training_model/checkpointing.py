"""Gradient checkpointing by block (Chen et al. 2016, arXiv 1604.06174), for the duration of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ....training.adapters.dropout import same_draw_again


@contextmanager
def checkpointed(
    blocks: Iterable[nn.Module],
    in_place: bool = False,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[None]:
    """Within the block, each of `blocks` saves only its inputs and is computed again in the backward pass.

    in_place: the blocks add to their inputs; each pass then works on a copy of the saved inputs. context: makes the
    context of the second pass; the first one is in the caller's.
    """
    wrapped = list(blocks)
    before = [vars(block).get("forward") for block in wrapped]  # another pack may have put one there
    try:
        for block in wrapped:
            forward = partial(_with_cloned_inputs, block.forward) if in_place else block.forward
            block.forward = partial(_forward, forward, context)
        yield
    finally:
        for block, own in zip(wrapped, before, strict=True):
            vars(block).pop("forward", None)  # the class's method is in effect again
            if own is not None:
                block.forward = own


def _forward(forward: Callable[..., Any], context: Callable[[], AbstractContextManager[Any]], /, *args, **kwargs):
    # ComfyUI counts blocks in the options that it passes on: the second pass must see what the first one saw.
    args = [dict(value) if isinstance(value, dict) else value for value in args]
    kwargs = {name: dict(value) if isinstance(value, dict) else value for name, value in kwargs.items()}
    # A partial, since `checkpoint` would take some names, such as a block's `debug`, as its own.
    contexts = partial(_contexts, context)
    return checkpoint(partial(forward, **kwargs), *args, use_reentrant=False, context_fn=contexts)


def _contexts(context: Callable[[], AbstractContextManager[Any]]):
    # Called in the first pass: the second one drops what that has dropped.
    return nullcontext(), _both(same_draw_again(), context())


@contextmanager
def _both(first: AbstractContextManager[Any], second: AbstractContextManager[Any]) -> Iterator[None]:
    with first, second:
        yield


def _with_cloned_inputs(forward: Callable[..., Any], /, *args, **kwargs):
    return forward(*map(_clone, args), **{name: _clone(value) for name, value in kwargs.items()})


def _clone(value):
    if isinstance(value, (list, tuple)):  # LTX-2's blocks get the tokens of film and sound as a pair
        return type(value)(map(_clone, value))
    return value.clone() if isinstance(value, Tensor) else value
