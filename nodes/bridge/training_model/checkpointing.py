"""Gradient checkpointing by block (Chen et al. 2016, arXiv 1604.06174), for the duration of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ....training.adapters.dropout import same_draw_again
from ....training.adapters.strength import same_strength_again


@contextmanager
def checkpointed(
    blocks: Iterable[nn.Module],
    in_place: bool = False,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[None]:
    """Within the block, each of `blocks` saves only its inputs and is computed again in the backward pass.

    in_place: the blocks, or what comes after them, write to their arguments; copies of these are saved. context: makes
    the context of the second pass; the first one is in the caller's.
    """
    wrapped = list(blocks)
    before = [vars(block).get("forward") for block in wrapped]  # another pack may have put one there
    try:
        for block in wrapped:
            block.forward = partial(_forward, block.forward, context, in_place)
        yield
    finally:
        for block, own in zip(wrapped, before, strict=True):
            vars(block).pop("forward", None)  # the class's method is in effect again
            if own is not None:
                block.forward = own


def _forward(
    forward: Callable[..., Any], context: Callable[[], AbstractContextManager[Any]], in_place: bool, /, *args, **kwargs
):
    # What the second pass gets, as it was before the first: ComfyUI counts blocks in the options that it passes on.
    saved = [_copied(value, in_place) for value in args]
    named = {name: _copied(value, in_place) for name, value in kwargs.items()}
    first = [(args, kwargs)]

    def run(*saved):
        if first:  # on the caller's own arguments, which it may read again
            args, kwargs = first.pop()
            return forward(*args, **kwargs)
        again = {name: _copied(value, in_place) for name, value in named.items()}
        return forward(*(_copied(value, in_place) for value in saved), **again)

    return checkpoint(run, *saved, use_reentrant=False, context_fn=partial(_contexts, context))


def _contexts(context: Callable[[], AbstractContextManager[Any]]):
    # Called in the first pass: the second one drops what that has dropped, at the strength that it had.
    return nullcontext(), _all(same_draw_again(), same_strength_again(), context())


@contextmanager
def _all(*contexts: AbstractContextManager[Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for each in contexts:
            stack.enter_context(each)
        yield


def _copied(value: Any, tensors: bool) -> Any:
    """A copy of a list, tuple or dictionary; with `tensors`, of tensors too."""
    if isinstance(value, dict):
        return dict(value)
    if type(value) in (list, tuple):  # LTX-2's blocks get the tokens of film and sound as a pair
        return type(value)(_copied(each, tensors) for each in value)
    return value.clone() if tensors and isinstance(value, Tensor) else value
