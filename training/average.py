"""An exponential moving average (EMA) of trained parameters."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .tensors import interpolate


class ParameterAverage:
    """The EMA of `parameters` with a warm-up: the decay at step n is at most n / (n + 9).

    decay: in 0..1, the share of the average that a step keeps; 0 is off, and then every method does nothing.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float):
        self._parameters, self.decay = list(parameters), decay
        self._means = [p.detach().clone() for p in self._parameters] if decay else []

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Average in the parameters after optimiser step `step`, counted from 1."""
        if self.decay:
            decay = min(self.decay, step / (step + 9))
            interpolate(self._means, [p.detach() for p in self._parameters], 1 - decay)

    @contextmanager
    def applied(self) -> Generator[None, None, None]:
        """Within the block the parameters have the averaged values; afterwards their own again, to the bit."""
        own = [p.detach().clone() for p in self._parameters] if self.decay else []
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
        """The averages by the parameters' indices, copied to the CPU; empty if off."""
        return {str(i): mean.to("cpu", copy=True) for i, mean in enumerate(self._means)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for i, mean in enumerate(self._means):
            mean.copy_(state[str(i)])
