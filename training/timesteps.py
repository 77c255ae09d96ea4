"""Distributions of the training timestep t: 0 is a clean latent, 1 is noise.

A sampler maps uniform draws to timesteps. It is monotonic, so that stratified draws stay stratified.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from .errors import InputError
from .objective import Denoiser, expected_loss
from .tensors import inverse_normal

SHIFT = 3.0  # SD3's at 1024 px
CELLS = 1000  # cells of the density that importance sampling draws from
UNIFORM_SHARE = 0.1  # the uniform part of that density: it limits the weight of a loss to 10


class TimestepSampler(Protocol):
    """A distribution of timesteps."""

    def sample(self, uniform: Tensor) -> Tensor:
        """Timesteps [B] in 0..1 from uniform draws [B] in 0..1."""
        ...

    def weight(self, t: Tensor) -> Tensor | None:
        """The factor [B] of the loss at each timestep [B], on the CPU; None is 1."""
        ...


@dataclass(frozen=True)
class UniformTimesteps:
    """All timesteps alike."""

    def sample(self, uniform: Tensor) -> Tensor:
        return uniform

    def weight(self, t: Tensor) -> Tensor | None:
        return None


@dataclass(frozen=True)
class LogitNormalTimesteps:
    """The logistic function of a standard normal, which favours the middle (Esser et al. 2024, arXiv 2403.03206,
    eq. 19)."""

    def sample(self, uniform: Tensor) -> Tensor:
        normal = inverse_normal(uniform.double().clamp(1e-7, 1 - 1e-7))
        return torch.sigmoid(normal).to(uniform.dtype)

    def weight(self, t: Tensor) -> Tensor | None:
        return None


@dataclass(frozen=True)
class ShiftedTimesteps:
    """s u / (1 + (s - 1) u) of a uniform u, which favours the noisy end for s > 1 (Esser et al. 2024, eq. 23)."""

    shift: float = SHIFT

    def sample(self, uniform: Tensor) -> Tensor:
        return self.shift * uniform / (1 + (self.shift - 1) * uniform)

    def weight(self, t: Tensor) -> Tensor | None:
        return None


@dataclass(frozen=True)
class ImportanceSampling:
    """Timesteps drawn in proportion to their expected loss; each loss is divided by the density it was drawn with.

    The expectation of the loss is that of uniform timesteps, its variance is smaller: a model that predicts the noise
    has a gradient about twenty times as long at the nearly clean end as at the noisy end (measured on adapters of the
    small model: between the loss and its square root), so that with uniform timesteps the gradient of a small batch
    depends mostly on how many samples fell there. The technique is that of Nichol & Dhariwal 2021, section 3.3. They
    measure the losses during the training, for their L_vlb, and saw no gain on their smoother L_hybrid. Here the
    losses are `expected_loss`, so that a draw stays a pure function of seed, step and position. The gain is measured
    in `tests/bench/bench_lora_concept.py`.

    density: [cells], float64, the density on equal cells of 0..1. Its mean is 1.
    """

    density: Tensor

    @classmethod
    def of(cls, denoiser: Denoiser, weighting: str = "none") -> ImportanceSampling:
        """The density for a model. weighting: one of `objective.LOSS_WEIGHTINGS`.

        Raises `InputError` where its noise levels give none."""
        middles = (torch.arange(CELLS) + 0.5) / CELLS
        sigma = denoiser.sigma(middles).cpu().double()  # in this order: not every device has float64
        expected = expected_loss(denoiser.prediction, sigma, weighting)
        if not (expected.isfinite().all() and expected.sum() > 0):
            raise InputError(
                "timestep_sampling is importance, and this model's noise levels have no density for it (they begin at "
                f"{sigma[0]:g} and end at {sigma[-1]:g}); choose uniform"
            )
        return cls((1 - UNIFORM_SHARE) * expected / expected.mean() + UNIFORM_SHARE)

    @cached_property
    def _cumulative(self) -> Tensor:
        """[cells], the probability of a cell and all before it."""
        return self.density.cumsum(0) / len(self.density)

    def sample(self, uniform: Tensor) -> Tensor:
        """The inverse of the cumulative distribution, linear within a cell; float32 below 1."""
        count = len(self.density)
        u = uniform.double() * self._cumulative[-1]  # the last value is 1 but for rounding
        cell = torch.searchsorted(self._cumulative, u, right=True).clamp(max=count - 1)
        density = self.density[cell]
        within = (u - (self._cumulative[cell] - density / count)) / density
        return (cell / count + within.clamp(0, 1 / count)).float().clamp(max=1 - 2**-24)

    def weight(self, t: Tensor) -> Tensor | None:
        """1 / density, float32."""
        count = len(self.density)
        cell = (t.cpu().double() * count).long().clamp(max=count - 1)
        return (1 / self.density[cell]).float()


class LimitedTimesteps:
    """The part of another distribution that lies in `low` <= t < `high`, so that equal t stay equally likely.

    With weights, the expectation of the loss is that of uniform timesteps in this range.
    """

    def __init__(self, sampler: TimestepSampler, low: float, high: float) -> None:
        """low, high: in 0..1."""
        self._sampler, self.low, self.high = sampler, low, high
        self._first, self._last = (_uniform_of(sampler, t) for t in (low, high))

    def sample(self, uniform: Tensor) -> Tensor:
        t = self._sampler.sample(self._first + (self._last - self._first) * uniform)
        # Rounding must not leave the range: neither that of t nor that of its product with a schedule's length, each of
        # which is off by at most 2^-24 of the value in float32.
        return t.clamp(self.low * (1 + 2**-22), self.high * (1 - 2**-22))

    def weight(self, t: Tensor) -> Tensor | None:
        weight = self._sampler.weight(t)
        return None if weight is None else weight * ((self._last - self._first) / (self.high - self.low))


def _uniform_of(sampler: TimestepSampler, t: float) -> float:
    """The uniform draw that a sampler maps to `t`, by bisection: `sample` is monotonic and has no inverse here."""
    if t <= 0 or t >= 1:
        return float(t >= 1)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if sampler.sample(torch.tensor([middle], dtype=torch.float64)).item() < t:
            low = middle
        else:
            high = middle
    return high


# The trainers' widget lists these names. Each makes its sampler from the model and the loss weighting.
TIMESTEP_SAMPLERS: dict[str, Callable[[Denoiser, str], TimestepSampler]] = {
    "importance": ImportanceSampling.of,
    "uniform": lambda denoiser, weighting: UniformTimesteps(),
    "logit-normal": lambda denoiser, weighting: LogitNormalTimesteps(),
    "shifted": lambda denoiser, weighting: ShiftedTimesteps(),
}


def timestep_sampler(
    denoiser: Denoiser, name: str, weighting: str = "none", limits: tuple[float, float] = (0.0, 1.0)
) -> TimestepSampler:
    """The sampler `name` of `TIMESTEP_SAMPLERS` for a model. weighting: one of `objective.LOSS_WEIGHTINGS`.

    limits: the timesteps to draw from, see `LimitedTimesteps`. Raises `ValueError` for another name.
    """
    if name not in TIMESTEP_SAMPLERS:
        raise ValueError(f"no timestep sampling {name!r}; choose one of {', '.join(TIMESTEP_SAMPLERS)}")
    sampler = TIMESTEP_SAMPLERS[name](denoiser, weighting)
    return sampler if limits == (0.0, 1.0) else LimitedTimesteps(sampler, *limits)
