"""Optimisers and learning-rate schedules, from torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedulers

from .config import TrainConfig
from .errors import InputError

Group = tuple[list[nn.Parameter], float]  # parameters and their learning rate


def make_optimizer(groups: Sequence[Group], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of `config.optimizer`. No weight decay: training starts at the base model, not at zero."""
    settings = [{"params": parameters, "lr": rate} for parameters, rate in groups]
    if config.optimizer == "AdamW":
        # One kernel for all parameters instead of a dozen each: a LoRA has hundreds of small ones.
        fused = all(p.device.type in ("cpu", "cuda") for parameters, _ in groups for p in parameters)
        return torch.optim.AdamW(settings, lr=config.learning_rate, betas=(0.9, 0.999), weight_decay=0.0, fused=fused)
    if config.optimizer == "Adafactor":
        # Its steps are relative to the size of a parameter, and the up factor of LoRA starts at zero: sizes below 1
        # count as 1.
        return torch.optim.Adafactor(settings, lr=config.learning_rate, eps=(None, 1.0), weight_decay=0.0)
    return torch.optim.SGD(settings, lr=config.learning_rate, momentum=0.9)


def lr_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate over the steps: a linear rise over `warmup_steps`, then `config.lr_schedule`, down to 0.

    "cosine with restarts" has a cycle per 500 steps, at least two.
    """
    left = config.steps - config.warmup_steps
    if config.lr_schedule == "linear":
        main = schedulers.LinearLR(optimizer, 1.0, 0.0, left)
    elif config.lr_schedule == "cosine":
        main = schedulers.CosineAnnealingLR(optimizer, left)
    elif config.lr_schedule == "cosine with restarts":
        main = schedulers.CosineAnnealingWarmRestarts(optimizer, math.ceil(left / max(2, left // 500)))
    else:
        main = schedulers.ConstantLR(optimizer, 1.0)
    if not config.warmup_steps:
        return main
    rise = schedulers.LinearLR(optimizer, 1 / (config.warmup_steps + 1), 1.0, config.warmup_steps)
    return schedulers.SequentialLR(optimizer, [rise, main], [config.warmup_steps])


def check_gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """The gradients. Raises `InputError` where a parameter has none."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if len(gradients) < len(parameters):
        raise InputError("a trained parameter got no gradient, so it would never learn; check the targets")
    return gradients


def clip_gradient(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """Scale the gradient down to the length `max_norm` (0 is no limit). Returns the length before."""
    return float(nn.utils.clip_grad_norm_(parameters, max_norm or math.inf))
