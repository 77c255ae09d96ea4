"""The running mean of trained parameters, which is steadier than the parameters themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class RunningMean:
    """An exponential moving average of `parameters` with a warm-up: early values are forgotten sooner.

    keep: the share of the mean that a step keeps; 0 is off, and then every method does nothing.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], keep: float):
        self._parameters, self.keep = list(parameters), keep
        self._means = [p.detach().clone() for p in self._parameters] if keep else []

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimiser step `step`, counted from 1."""
        if self.keep:
            keep = min(self.keep, step / (step + 9))
            torch._foreach_lerp_(self._means, [p.detach() for p in self._parameters], 1 - keep)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the parameters hold the mean; afterwards their own values again, to the bit."""
        own = [p.detach().clone() for p in self._parameters] if self.keep else []
        self._write(self._means)
        try:
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=False):
            parameter.copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        return {str(i): mean.to("cpu", copy=True) for i, mean in enumerate(self._means)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for i, mean in enumerate(self._means):
            mean.copy_(state[str(i)])
