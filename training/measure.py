"""What one training step takes, measured on the first batch instead of guessed from a table."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class StepCost:
    """seconds: forward and backward of one micro-batch. kept: bytes that the forward pass keeps for the backward."""

    seconds: float
    kept: int


def plain_tensors(tensor: Tensor) -> list[Tensor]:
    """What a tensor is made of: itself, or the numbers and scales of a quantised kind."""
    parts = getattr(tensor, "__tensor_flatten__", None)
    return [tensor] if parts is None else [getattr(tensor, name) for name in parts()[0]]


def measure_step(
    loss_of: Callable[[], Tensor | None], frozen: Iterable[Tensor], trained: list[nn.Parameter]
) -> StepCost:
    """Run one micro-batch and throw its gradient away. Nothing is measured where `loss_of` gives None.

    frozen: tensors that exist anyway, so that a reference to one costs nothing.
    """
    # Of a weight that is spread over processes this one holds a part.
    held = (tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in (*frozen, *trained))
    known = {part.untyped_storage().data_ptr() for tensor in held for part in plain_tensors(tensor)}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        for part in plain_tensors(tensor):
            storage = part.untyped_storage()
            if storage.data_ptr() not in known:
                kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    began = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = loss_of()
    if loss is None:
        return StepCost(0.0, 0)
    loss.backward()
    if loss.device.type == "cuda":
        torch.cuda.synchronize(loss.device)  # until here the work was only handed over
    seconds = time.perf_counter() - began
    for parameter in trained:
        parameter.grad = None
    return StepCost(seconds, sum(kept.values()))


class LiveBytes(TorchDispatchMode):
    """Counts, within the block, the bytes of the tensors that operations make, until each is freed: `now`, and the
    `peak`.

    Exact for tensors, whatever keeps them (a graph, a gradient, a variable); what a kernel takes for itself while it
    runs is not seen. Works on fake tensors (torch._subclasses.fake_tensor) as on real ones.

    there: tensors that exist anyway; a view of one costs nothing.
    """

    def __init__(self, there: Iterable[Tensor]):
        super().__init__()
        self.now = self.peak = 0
        self._there = [part.untyped_storage() for tensor in there for part in plain_tensors(tensor)]  # kept alive: ids
        self._known = {id(storage) for storage in self._there}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._note(value.untyped_storage())
        return out

    def _note(self, storage) -> None:
        if id(storage) in self._known:
            return
        size = storage.nbytes()
        self._known.add(id(storage))
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, id(storage), size).atexit = False

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def in_words(seconds: float) -> str:
    """A time to come, in words that do not claim more than is known."""
    if seconds < 90:
        return f"{math.ceil(seconds / 10) * 10} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
