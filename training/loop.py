"""The one training loop: a generator of events, so that display, interruption and saving live outside it."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from .checkpoint import State, optimizer_state, restore_optimizer
from .config import TrainConfig
from .errors import InputError


class Trainable(Protocol):
    """What is learned: adapters or an embedding."""

    def parameters(self) -> list[nn.Parameter]: ...

    def after_step(self) -> None:
        """Called after every optimiser step, for what must hold between steps (a norm limit)."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of what is learned, on the CPU."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Step:
    """One optimiser step is done. `step` counts from 1; `seconds` since the loop began; `loss` is the batch's mean.

    held_out: the loss on the fixed grid, where this step was scored; `best` whether it is the lowest so far.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    seconds: float
    held_out: float | None = None
    best: bool = False


class NotANumber(ArithmeticError):
    """The loss or the gradient is no number any more. The trainable still holds the last good state."""


class Training:
    """A run that can be followed, stopped, saved and gone on with.

    what: the parameters that are trained. loss_of: micro-batch index (counted over the whole run) -> the mean loss of
    that micro-batch, a scalar with a graph. held_out: the loss on the fixed grid as it stands now, or None.
    """

    def __init__(
        self,
        what: Trainable,
        loss_of: Callable[[int], Tensor],
        config: TrainConfig,
        held_out: Callable[[], float] | None = None,
        state: State | None = None,
    ):
        self.what, self.config, self._loss_of, self._held_out = what, config, loss_of, held_out
        self._parameters = what.parameters()
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=config.learning_rate, betas=(0.9, 0.999), weight_decay=0.0
        )
        self._schedule = lr_schedule(self._optimizer, config)
        self.done, self.best, self.best_loss, self.best_step = 0, {}, math.inf, 0
        if state is not None:
            what.load_state_dict(state.trained)
            restore_optimizer(self._optimizer, state.optimizer)
            self.done, self.best, self.best_loss = state.step, state.best, state.best_loss
            self.best_step = state.best_step
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it has not seen the optimiser's steps of the earlier sitting
                for _ in range(state.step):
                    self._schedule.step()

    def __iter__(self) -> Iterator[Step]:
        """Train until `config.steps` steps are done, yielding after each.

        Raises `NotANumber` before a bad gradient reaches the parameters, and `InputError` at the first step when the
        gradient is missing or zero: nothing would be learned, silently.
        """
        started, config = time.monotonic(), self.config
        while self.done < config.steps:
            total = 0.0
            for micro in range(config.gradient_accumulation):
                loss = self._loss_of(self.done * config.gradient_accumulation + micro) / config.gradient_accumulation
                loss.backward()
                total += loss.item()
            grad_norm = clip_gradient(self._parameters, config.max_grad_norm)
            if not math.isfinite(total) or not math.isfinite(grad_norm):
                self._optimizer.zero_grad()
                raise NotANumber(f"the loss at step {self.done + 1} is {total:g}, the gradient's length {grad_norm:g}")
            if self.done == 0 and grad_norm == 0.0:
                raise InputError("the gradient is zero at the first step, so nothing would be learned; check the targets")
            learning_rate = self._schedule.get_last_lr()[0]
            self._optimizer.step()
            self._optimizer.zero_grad()
            self._schedule.step()
            self.what.after_step()
            self.done += 1
            held_out = self._score() if self._is_scored(self.done) else None
            yield Step(
                self.done, config.steps, total, learning_rate, grad_norm, time.monotonic() - started, held_out,
                held_out is not None and self.best_step == self.done,
            )  # fmt: skip

    def _is_scored(self, step: int) -> bool:
        if self._held_out is None:
            return False
        return step == self.config.steps or step % max(1, self.config.validate_every) == 0

    def _score(self) -> float:
        with torch.no_grad():
            loss = self._held_out()
        if loss < self.best_loss:
            self.best, self.best_loss, self.best_step = self.what.state_dict(), loss, self.done
        return loss

    def state(self) -> State:
        """The run as it stands, to be gone on with: copies, on the CPU."""
        return State(
            self.done, self.what.state_dict(), optimizer_state(self._optimizer), self.best, self.best_loss, self.best_step
        )


def train(what: Trainable, loss_of: Callable[[int], Tensor], config: TrainConfig) -> Iterator[Step]:
    """A run from its first step to its last, with nothing held out."""
    return iter(Training(what, loss_of, config))


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
