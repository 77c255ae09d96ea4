"""The level of noise that a model works at, on one scale for all models; see `training.timestep_range`."""

from __future__ import annotations

from typing import Any

import comfy.model_sampling
import torch
from torch import Tensor

from ...training.timestep_range import THOUSANDTHS, TimestepRange

_FLOW_OF_SIGMA_RATIO = comfy.model_sampling.COSMOS_RFLOW


def noise_level(sampling: Any, sigma: Tensor) -> Tensor:
    """The levels [N], float32 in 0..1, of the noise levels `sigma` [N]; computed on the CPU.

    sampling: ComfyUI's `model_sampling`. Where it has a table of whole timesteps (epsilon and v models) the level is
    the timestep that the network reads, over 1000. For flow models it is sigma, of Cosmos sigma / (1 + sigma). The
    schedules of EDM have no such timestep: theirs is the place in the table of sigmas, as a share of its length.
    """
    sigma = sigma.detach().float().cpu()
    timestep = sampling.timestep(sigma)
    if not timestep.is_floating_point():  # not on the device: CUDA divides by a scalar less exactly
        return timestep.cpu().float() / THOUSANDTHS
    if _is_flow(sampling):
        return sigma
    if isinstance(sampling, _FLOW_OF_SIGMA_RATIO):
        return sigma / (1 + sigma)
    table = sampling.sigmas.detach().float().cpu()  # [T], rising
    return (torch.searchsorted(table, sigma, right=True) - 1).clamp(min=0).float() / len(table)


def sigma_of_timestep(sampling: Any, timestep: Tensor) -> Tensor:
    """The noise levels of the timesteps that a network was called with, the inverse of `sampling.timestep`.

    A flow model's `sampling.sigma` is no inverse: it takes a place of the schedule and shifts it.
    """
    if _is_flow(sampling):
        return timestep / sampling.timestep(torch.ones((), device=timestep.device))
    return sampling.sigma(timestep)


def percents_of(part: TimestepRange, sampling: Any) -> tuple[float, float]:
    """(start, end): the part of the denoising, 0 all noise and 1 done, in which a model works at levels of `part`.

    By bisection on the model's own `percent_to_sigma`: the level falls as the percent rises.
    """

    def level(percent: float) -> float:
        return noise_level(sampling, torch.tensor([float(sampling.percent_to_sigma(percent))])).item()

    def first_below(limit: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if level(middle) < limit else (middle, high)
        return high

    return (0.0 if part.high >= 1 else first_below(part.high)), (1.0 if part.low <= 0 else first_below(part.low))


def _is_flow(sampling: Any) -> bool:
    return isinstance(sampling, comfy.model_sampling.CONST)
