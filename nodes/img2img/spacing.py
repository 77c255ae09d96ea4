"""The schedules of diffusers that ComfyUI lacks: how the steps are spread over the training schedule.

diffusers calls this `timestep_spacing` (Lin et al. 2023, "Common diffusion noise schedules and sample steps are
flawed", table 2). Its Stable Diffusion pipelines come with "leading" and `steps_offset` 1; Flux with "trailing".
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...training.errors import InputError

LEADING, LINSPACE, TRAILING = SPACINGS = ("diffusers leading", "diffusers linspace", "diffusers trailing")


def spaced(model_sampling, spacing: str, steps: int) -> Tensor:
    """Sigmas [steps + 1], falling to 0, of a model's training schedule.

    model_sampling: ComfyUI's, with a table `sigmas` [T], one a training timestep (epsilon and v models, T = 1000), or
    with a continuous `sigma(timestep)` and no `log_sigmas` (flow). spacing: one of `SPACINGS`. Raises `InputError` for
    a spacing that the kind of model does not have.
    """
    levels = _discrete if hasattr(model_sampling, "log_sigmas") else _flow
    sigmas = levels(model_sampling, spacing, steps)
    return torch.cat([sigmas.to("cpu", torch.float32), torch.zeros(1)])


def _discrete(model_sampling, spacing: str, steps: int) -> Tensor:
    if not hasattr(model_sampling, "num_timesteps"):
        raise InputError(
            f"the scheduler {spacing!r} needs a model with a table of training timesteps; this model is "
            "continuous, choose karras"
        )
    table = model_sampling.sigmas.to("cpu", torch.float64)  # [T], rising
    count = len(table)
    if steps > count:
        raise InputError(
            f"{steps} steps are more than the {count} training timesteps that {spacing!r} chooses from; lower the steps"
        )
    if spacing == LEADING:
        # The last index is T - 1 at 1,000 steps, where the offset of 1 would leave the table.
        return table[(torch.arange(steps).flip(0) * (count // steps) + 1).clamp(max=count - 1)]
    if spacing == TRAILING:
        # As numpy's arange makes it: the last bit decides how halves are rounded.
        step = (count - count / steps) - count
        return table[(count + torch.arange(steps, dtype=torch.float64) * step).round().long() - 1]
    times = torch.linspace(0, count - 1, steps, dtype=torch.float64).flip(0)
    low = times.floor().long().clamp(max=count - 2)
    return torch.lerp(table[low], table[low + 1], times - low)


def _flow(model_sampling, spacing: str, steps: int) -> Tensor:
    if spacing == LEADING:
        raise InputError(
            f"the scheduler {spacing!r} is one of epsilon and v models; for this flow model choose {TRAILING!r} or "
            f"{LINSPACE!r}"
        )
    first, last = (
        float(model_sampling.timestep(model_sampling.sigma_max)),
        float(model_sampling.timestep(model_sampling.sigma_min)),
    )
    if spacing == TRAILING:  # Flux: linspace(1, 1 / N, N), then the shift
        times = (1.0 - torch.arange(steps, dtype=torch.float64) / steps) * first
    else:  # FlowMatchEulerDiscreteScheduler.set_timesteps, which shifts the ends of its range too
        times = torch.linspace(first, last, steps, dtype=torch.float64)
    return model_sampling.sigma(times)
