"""What one training step takes, measured on the first batch instead of guessed from a table."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class StepCost:
    """seconds: forward and backward of one micro-batch. kept: bytes that the forward pass keeps for the backward."""

    seconds: float
    kept: int


def measure_step(loss_of: Callable[[], Tensor | None], frozen: Iterable[Tensor], trained: list[nn.Parameter]) -> StepCost:
    """Run one micro-batch and throw its gradient away. Nothing is measured where `loss_of` gives None.

    frozen: tensors that exist anyway, so that a reference to one costs nothing.
    """
    # Of a weight that is spread over processes this one holds a part.
    held = (tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in (*frozen, *trained))
    known = {tensor.untyped_storage().data_ptr() for tensor in held}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
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


def in_words(seconds: float) -> str:
    """A time to come, in words that do not claim more than is known."""
    if seconds < 90:
        return f"{math.ceil(seconds / 10) * 10} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
