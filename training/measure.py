"""The cost of one training step, measured on the first batch."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .adapters.dropout import without_dropout
from .tensors import backward


@dataclass(frozen=True)
class StepCost:
    """seconds: forward and backward of one micro-batch. kept: bytes that the forward pass keeps for the backward."""

    seconds: float
    kept: int


def plain_tensors(tensor: Tensor) -> list[Tensor]:
    """The tensors with storage that `tensor` consists of: itself, or the numbers and scales of a quantised one."""
    flatten: Callable[[], tuple[list[str], Any]] | None = getattr(tensor, "__tensor_flatten__", None)
    return [tensor] if flatten is None else [getattr(tensor, name) for name in flatten()[0]]


def measure_step(
    loss: Callable[[], Tensor | None], frozen: Iterable[Tensor], trained: Iterable[nn.Parameter]
) -> StepCost:
    """Run one micro-batch and drop its gradient. The cost is zero where `loss` returns None.

    frozen: tensors that exist anyway, so that a reference to one costs nothing.
    """
    trained = list(trained)
    known = {
        part.untyped_storage().data_ptr()
        for tensor in (*frozen, *trained)
        for part in plain_tensors(_local_part(tensor))
    }
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        for part in plain_tensors(tensor):
            storage = part.untyped_storage()
            if storage.data_ptr() not in known:
                kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    began = time.perf_counter()
    with without_dropout():  # the most that a step takes; dropout may leave out every adapter of one
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            value = loss()
        if value is None:
            return StepCost(0.0, 0)
        backward(value)
    if value.device.type == "cuda":
        torch.cuda.synchronize(value.device)  # before it the work is only queued
    seconds = time.perf_counter() - began
    for parameter in trained:
        parameter.grad = None
    return StepCost(seconds, sum(kept.values()))


def _local_part(tensor: Tensor) -> Tensor:
    """The part that this process has of a weight that is sharded over processes; others whole."""
    to_local: Callable[[], Tensor] | None = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations within the block create, until each is freed.

    now: the bytes at present. peak: the most so far. Exact for tensors, whatever refers to them (a graph, a gradient, a
    variable); the workspace of a kernel is not counted. Works on fake tensors (torch._subclasses.fake_tensor) too.

    existing: tensors that exist anyway; a view of one costs nothing.
    """

    def __init__(self, existing: Iterable[Tensor]):
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.now = self.peak = 0
        # Kept, since the id of a freed storage may be used again.
        self._existing = [part.untyped_storage() for tensor in existing for part in plain_tensors(tensor)]
        self._known = {id(storage) for storage in self._existing}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._note(value.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
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


def format_duration(seconds: float) -> str:
    """A duration in words, rounded to what is known of one that is estimated."""
    if seconds < 90:
        return f"{math.ceil(seconds / 10) * 10} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
