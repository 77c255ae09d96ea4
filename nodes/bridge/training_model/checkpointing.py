"""Gradient checkpointing by block (Chen et al. 2016, arXiv 1604.06174), for the length of a training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def checkpointed(blocks: Iterable[nn.Module], in_place: bool = False) -> Iterator[None]:
    """Within the block, each of `blocks` keeps only its inputs and is computed anew in the backward pass.

    in_place: the blocks add to their inputs; each pass then begins with a copy of what the first one began with.
    """
    wrapped = list(blocks)
    before = [vars(block).get("forward") for block in wrapped]  # another pack may have put one there
    try:
        for block in wrapped:
            block.forward = partial(_forward, partial(_on_copies, block.forward) if in_place else block.forward)
        yield
    finally:
        for block, own in zip(wrapped, before, strict=True):
            vars(block).pop("forward", None)  # what the class says holds again
            if own is not None:
                block.forward = own


def _forward(forward, *args, **kwargs):
    # ComfyUI counts blocks in the options it hands on: the second pass must see what the first saw.
    args = [dict(value) if isinstance(value, dict) else value for value in args]
    kwargs = {name: dict(value) if isinstance(value, dict) else value for name, value in kwargs.items()}
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _on_copies(forward, *args, **kwargs):
    return forward(*map(_copy, args), **{name: _copy(value) for name, value in kwargs.items()})


def _copy(value):
    return value.clone() if isinstance(value, Tensor) else value
