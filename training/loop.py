"""The one training loop: a generator of events, so that display, interruption and saving live outside it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from .config import TrainConfig
from .errors import InputError


class Trainable(Protocol):
    """What is learned: adapters or an embedding."""

    def parameters(self) -> list[nn.Parameter]: ...

    def after_step(self) -> None:
        """Called after every optimiser step, for what must hold between steps (a norm limit)."""
        ...

    def state_dict(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Step:
    """One optimiser step is done. `step` counts from 1; `seconds` since the loop began; `loss` is the batch's mean."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    seconds: float


class NotANumber(ArithmeticError):
    """The loss or the gradient is no number any more. The trainable still holds the last good state."""


def train(what: Trainable, loss_of: Callable[[int], Tensor], config: TrainConfig) -> Iterator[Step]:
    """Train `what` for `config.steps` steps and yield after each.

    loss_of: micro-batch index (counted over the whole run) -> the mean loss of that micro-batch, a scalar with a graph.
    Raises `NotANumber` before a bad gradient reaches the parameters, and `InputError` at the first step when the
    gradient is missing or zero: nothing would be learned, silently.
    """
    parameters = what.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(0.9, 0.999), weight_decay=0.0)
    schedule = lr_schedule(optimizer, config)
    started = time.monotonic()
    for step in range(config.steps):
        total = 0.0
        for micro in range(config.gradient_accumulation):
            loss = loss_of(step * config.gradient_accumulation + micro) / config.gradient_accumulation
            loss.backward()
            total += loss.item()
        grad_norm = clip_gradient(parameters, config.max_grad_norm)
        if not math.isfinite(total) or not math.isfinite(grad_norm):
            optimizer.zero_grad()
            raise NotANumber(f"the loss at step {step + 1} is {total:g}, the gradient's length {grad_norm:g}")
        if step == 0 and grad_norm == 0.0:
            raise InputError("the gradient is zero at the first step, so nothing would be learned; check the targets")
        learning_rate = schedule.get_last_lr()[0]
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        what.after_step()
        yield Step(step + 1, config.steps, total, learning_rate, grad_norm, time.monotonic() - started)


def clip_gradient(parameters: list[nn.Parameter], max_norm: float) -> float:
    """Scale the gradient down to `max_norm` (0 leaves it) and give the length it had."""
    if any(parameter.grad is None for parameter in parameters):
        raise InputError("a trained parameter got no gradient, so it would never learn; check the targets")
    return float(nn.utils.clip_grad_norm_(parameters, max_norm or math.inf))


def lr_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate over the steps, from transformers."""
    from transformers.optimization import get_scheduler

    names = {"cosine with restarts": "cosine_with_restarts", "constant": "constant_with_warmup"}
    return get_scheduler(names.get(config.lr_schedule, config.lr_schedule), optimizer, config.warmup_steps, config.steps)
