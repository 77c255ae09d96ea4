"""Optimisers and learning-rate schedules, from torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim import lr_scheduler as schedulers
from torch.optim.lr_scheduler import LRScheduler

from .errors import InputError

Group = tuple[list[nn.Parameter], float]  # parameters and their learning rate
Settings = list[dict[str, Any]]  # the same as torch takes it


def _adamw(groups: Settings, learning_rate: float) -> Optimizer:
    # One kernel for all parameters instead of a dozen each: a LoRA has hundreds of small ones.
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999), weight_decay=0.0, fused=fused)


def _adafactor(groups: Settings, learning_rate: float) -> Optimizer:
    # Its steps are relative to the size of a parameter, and the up factor of LoRA starts at zero: sizes below 1 count
    # as 1.
    return torch.optim.Adafactor(groups, lr=learning_rate, eps=(None, 1.0), weight_decay=0.0)


def _sgd(groups: Settings, learning_rate: float) -> Optimizer:
    return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9)


@dataclass(frozen=True)
class OptimizerKind:
    """One optimiser.

    make: (the groups, the run's learning rate) -> the optimiser. state_bytes: bytes of its float32 state for each
    trained number; the number itself and its gradient come on top.
    """

    make: Callable[[Settings, float], Optimizer]
    state_bytes: int


# The trainers' widget lists these names, and the memory forecast reads `state_bytes`. No weight decay: training starts
# at the base model, not at zero.
OPTIMIZERS: dict[str, OptimizerKind] = {
    "AdamW": OptimizerKind(_adamw, 8),
    "Adafactor": OptimizerKind(_adafactor, 1),
    "SGD": OptimizerKind(_sgd, 4),
}

# (the optimiser, steps) -> the learning rate over that many steps after the warm-up. The trainers' widget lists these
# names. "cosine with restarts" has a cycle per 500 steps, at least two.
LR_SCHEDULES: dict[str, Callable[[Optimizer, int], LRScheduler]] = {
    "constant": lambda optimizer, steps: schedulers.ConstantLR(optimizer, 1.0),
    "linear": lambda optimizer, steps: schedulers.LinearLR(optimizer, 1.0, 0.0, steps),
    "cosine": lambda optimizer, steps: schedulers.CosineAnnealingLR(optimizer, steps),
    "cosine with restarts": lambda optimizer, steps: schedulers.CosineAnnealingWarmRestarts(
        optimizer, math.ceil(steps / max(2, steps // 500))
    ),
}


def make_optimizer(name: str, groups: Sequence[Group], learning_rate: float) -> Optimizer:
    """The optimiser `name` of `OPTIMIZERS` over groups of parameters. learning_rate: the run's."""
    return OPTIMIZERS[name].make([{"params": parameters, "lr": rate} for parameters, rate in groups], learning_rate)


def state_shapes(name: str, parameters: Sequence[nn.Parameter]) -> list[dict[str, tuple[int, ...]]]:
    """The shapes of the tensors that the optimiser keeps for each parameter after a step: {name: shape} for each.

    Found by a step on zeros, once for each shape of parameter.
    """
    known: dict[tuple[int, ...], dict[str, tuple[int, ...]]] = {}
    for parameter in parameters:
        shape = tuple(parameter.shape)
        if shape not in known:
            probe = nn.Parameter(torch.zeros(shape))
            probe.grad = torch.zeros(shape)
            optimizer = make_optimizer(name, [([probe], 0.0)], 0.0)
            optimizer.step()
            kept: dict[str, Any] = optimizer.state[probe]
            known[shape] = {key: tuple(value.shape) for key, value in kept.items() if isinstance(value, Tensor)}
    return [known[tuple(parameter.shape)] for parameter in parameters]


def make_lr_schedule(name: str, optimizer: Optimizer, steps: int, warmup_steps: int) -> LRScheduler:
    """The learning rate over `steps`: a linear rise over `warmup_steps`, then `name` of `LR_SCHEDULES`.

    The first step has the rate 1 / (warmup_steps + 1) of the highest, since a step at rate 0 learns nothing.
    """
    main = LR_SCHEDULES[name](optimizer, steps - warmup_steps)
    if not warmup_steps:
        return main
    rise = schedulers.LinearLR(optimizer, 1 / (warmup_steps + 1), 1.0, warmup_steps)
    return schedulers.SequentialLR(optimizer, [rise, main], [warmup_steps])


def check_gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """The gradients. Raises `InputError` where a parameter has none."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if len(gradients) < len(parameters):
        raise InputError("a trained parameter got no gradient, so it would never learn; check the targets")
    return gradients


def clip_gradient(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """Scale the gradient down to the length `max_norm` (0 is no limit). Returns the length before."""
    return float(nn.utils.clip_grad_norm_(parameters, max_norm or math.inf))
