"""All that a network's class needs so that the backward pass through it is right, by what `models` knows of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn

from ..forward_pass.differentiable import differentiable, with_differentiable
from ..forward_pass.in_place import clone_layer_inputs, fresh_key_caches
from ..models import (
    checkpoint_blocks,
    compiled_layout,
    has_plain_backward,
    layers_with_overwritten_input,
    rewrites_blocks,
)
from .checkpointing import checkpointed
from .compiled_blocks import BlockCompiler


@contextmanager
def prepared_for_backward(
    network: nn.Module,
    gradient_checkpointing: bool,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    compiler: BlockCompiler | None = None,
) -> Iterator[None]:
    """Within the block the diffusion model's forward pass has a backward pass, by blocks with `gradient_checkpointing`.

    context: makes the context of checkpointing's second pass, see `checkpointed`. compiler: compiles the same blocks.
    Raises `InputError` for checkpointing of a class whose blocks are not known.
    """
    blocks = checkpoint_blocks(network) if gradient_checkpointing else []
    compiled = nullcontext() if compiler is None else compiler.compiling(*compiled_layout(network))
    overwritten = layers_with_overwritten_input(network)
    needed = not has_plain_backward(network)
    in_place = bool(overwritten) or needed or rewrites_blocks(network)
    with (
        clone_layer_inputs(overwritten),
        fresh_key_caches(network),
        differentiable(network, needed),
        compiled,  # within checkpointing, whose second pass then calls the compiled block again
        checkpointed(blocks, in_place, with_differentiable(context, needed)),
    ):
        yield
