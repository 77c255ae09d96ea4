"""The schedules of diffusers that ComfyUI has not: where the steps lie on the training schedule.

diffusers calls this `timestep_spacing` (Lin et al. 2023, "Common diffusion noise schedules and sample steps are
flawed", table 2). Its Stable Diffusion pipelines come with "leading" and `steps_offset` 1; Flux with "trailing".
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..bridge.errors import InputError

LEADING, LINSPACE, TRAILING = SPACINGS = ("diffusers leading", "diffusers linspace", "diffusers trailing")


def spaced(sampling, spacing: str, steps: int) -> Tensor:
    """Sigmas [steps + 1], falling to 0, of a model's training schedule.

    sampling: a model_sampling with a table `sigmas` [T], one a training timestep (epsilon and v models, T = 1000), or a
    continuous `sigma(timestep)` without `log_sigmas` (flow). Raises InputError where the spacing has no meaning.
    """
    levels = (
        _flow(sampling, spacing, steps) if not hasattr(sampling, "log_sigmas") else _discrete(sampling, spacing, steps)
    )
    return torch.cat([levels.to("cpu", torch.float32), torch.zeros(1)])


def _discrete(sampling, spacing: str, steps: int) -> Tensor:
    if not hasattr(sampling, "num_timesteps"):
        raise InputError(
            f"the scheduler {spacing!r} needs a model with a table of training timesteps; this model is "
            "continuous, choose karras"
        )
    table = sampling.sigmas.to("cpu", torch.float64)  # [T], rising
    count = len(table)
    if steps > count:
        raise InputError(
            f"{steps} steps are more than the {count} training timesteps that {spacing!r} chooses from; lower the steps"
        )
    if spacing == LEADING:
        # The last index is T - 1 at 1,000 steps, where the offset of 1 would leave the table.
        return table[(torch.arange(steps).flip(0) * (count // steps) + 1).clamp(max=count - 1)]
    if spacing == TRAILING:
        step = (
            count - count / steps
        ) - count  # as numpy's arange makes it: the last bit decides how halves are rounded
        return table[(count + torch.arange(steps, dtype=torch.float64) * step).round().long() - 1]
    times = torch.linspace(0, count - 1, steps, dtype=torch.float64).flip(0)
    low = times.floor().long().clamp(max=count - 2)
    return torch.lerp(table[low], table[low + 1], times - low)


def _flow(sampling, spacing: str, steps: int) -> Tensor:
    if spacing == LEADING:
        raise InputError(
            f"the scheduler {spacing!r} is one of epsilon and v models; for this flow model choose {TRAILING!r} or "
            f"{LINSPACE!r}"
        )
    first, last = float(sampling.timestep(sampling.sigma_max)), float(sampling.timestep(sampling.sigma_min))
    if spacing == TRAILING:  # Flux: linspace(1, 1 / N, N), then the shift
        times = (1.0 - torch.arange(steps, dtype=torch.float64) / steps) * first
    else:  # FlowMatchEulerDiscreteScheduler.set_timesteps, which shifts the ends of its range too
        times = torch.linspace(first, last, steps, dtype=torch.float64)
    return sampling.sigma(times)
