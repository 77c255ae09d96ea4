"""The one training loop: a generator of events, so that display, interruption and saving live outside it."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from .average import RunningMean
from .checkpoint import State, optimizer_state, restore_optimizer
from .config import TrainConfig
from .distributed import World
from .errors import InputError
from .optimizers import Group, check_gradients, clip_gradient, lr_schedule, make_optimizer

# Gradients of half-precision models are of the order of 1e-6, where fp16 keeps few bits or none: the backward pass runs
# on a loss this many times larger. A power of two, so that nothing changes in the wider types, to the bit.
GRADIENT_SCALE = 2.0**12


class Trainable(Protocol):
    """What is learned: adapters or an embedding.

    idle: parameters that may have no part in the loss, and so no gradient. For any other that is an error.
    """

    idle: Sequence[nn.Parameter]

    def groups(self, learning_rate: float) -> Sequence[Group]:
        """The parameters in groups, each with its learning rate; `learning_rate` is the run's."""
        ...

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
    that micro-batch, a scalar with a graph; of several processes each gives its share of that mean, or None where it
    has
    none. held_out: the loss on the fixed grid as it stands now, or None; the same in every process. until: the
    step to stop at where that is known beforehand, on the schedule of the whole run. world: the processes.
    """

    def __init__(
        self,
        what: Trainable,
        loss_of: Callable[[int], Tensor | None],
        config: TrainConfig,
        held_out: Callable[[], float] | None = None,
        state: State | None = None,
        until: int | None = None,
        world: World | None = None,
    ):
        self.last = config.steps if until is None else min(until, config.steps)
        self.what, self.config, self.loss_of, self._held_out = what, config, loss_of, held_out
        self.world = World() if world is None else world
        groups = what.groups(config.learning_rate)
        self.parameters = [parameter for parameters, _ in groups for parameter in parameters]
        self._optimizer = make_optimizer(groups, config)
        self._schedule = lr_schedule(self._optimizer, config)
        self.mean = RunningMean(self.parameters, config.ema)
        self.done, self.best, self.best_loss, self.best_step = 0, {}, math.inf, 0
        if state is not None:
            self._restore(state)

    def _restore(self, state: State) -> None:
        self.what.load_state_dict(state.trained)
        restore_optimizer(self._optimizer, state.optimizer)
        self.mean.load_state_dict(state.average)
        self.done, self.best, self.best_loss = state.step, state.best, state.best_loss
        self.best_step = state.best_step
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it has not seen the optimiser's steps of the earlier sitting
            for _ in range(state.step):
                self._schedule.step()

    def __iter__(self) -> Iterator[Step]:
        """Train until the last step is done or the held-out loss has turned, yielding after each step.

        Raises `NotANumber` before a bad gradient reaches the parameters, and `InputError` at the first step when the
        gradient is missing or zero: nothing would be learned, silently.
        """
        started, config = time.monotonic(), self.config
        while self.done < self.last:
            total, computed = 0.0, False
            for micro in range(config.gradient_accumulation):
                loss = self.loss_of(self.done * config.gradient_accumulation + micro)
                if loss is None:
                    continue
                loss, computed = loss / config.gradient_accumulation, True
                (loss * GRADIENT_SCALE).backward()
                total += loss.item()
            if computed:
                for parameter in self.what.idle:
                    parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                check_gradients(self.parameters)
                torch._foreach_div_([parameter.grad for parameter in self.parameters], GRADIENT_SCALE)
            total = self.world.all_reduce_gradients(self.parameters, total)
            grad_norm = clip_gradient(self.parameters, config.max_grad_norm)
            if not math.isfinite(total) or not math.isfinite(grad_norm):
                self._optimizer.zero_grad()
                raise NotANumber(f"the loss at step {self.done + 1} is {total:g}, the gradient's length {grad_norm:g}")
            if self.done == 0 and grad_norm == 0.0:
                raise InputError(
                    "the gradient is zero at the first step, so nothing would be learned; check the targets, "
                    "that alpha is not 0, and that the masks let something through"
                )
            learning_rate = self._schedule.get_last_lr()[0]
            self._optimizer.step()
            self._optimizer.zero_grad()
            self._schedule.step()
            self.what.after_step()
            self.done += 1
            self.mean.update(self.done)
            held_out = self._score() if self._is_scored(self.done) else None
            yield Step(
                self.done,
                self.last,
                total,
                learning_rate,
                grad_norm,
                time.monotonic() - started,
                held_out,
                held_out is not None and self.best_step == self.done,
            )
            if held_out is not None and self._has_turned():
                return

    def score_start(self) -> float | None:
        """The held-out loss before anything is learned: what every later one is compared with."""
        return self._score() if self._held_out is not None and self.done == 0 else None

    def _has_turned(self) -> bool:
        """Whether the held-out loss has not been as low as its best for as long as the request waits."""
        patience = self.config.patience * self.config.validate_every
        return patience > 0 and self.done - self.best_step >= patience

    def _is_scored(self, step: int) -> bool:
        if self._held_out is None:
            return False
        return step == self.last or step % max(1, self.config.validate_every) == 0

    def _score(self) -> float:
        with torch.no_grad(), self.mean.in_place():
            loss = self._held_out()
            if loss < self.best_loss:
                self.best, self.best_loss, self.best_step = self.what.state_dict(), loss, self.done
        return loss

    def result(self) -> dict[str, Tensor]:
        """What is handed on: the best by the held-out loss where that is kept, else the last (its mean, with `ema`)."""
        if self.config.keep == "best" and self.best:
            return self.best
        return self.learned()

    def learned(self) -> dict[str, Tensor]:
        """What is learned so far (its mean, with `ema`): a copy, on the CPU."""
        with self.mean.in_place():
            return self.what.state_dict()

    def state(self) -> State:
        """The run as it stands, to be gone on with: copies, on the CPU."""
        return State(
            self.done,
            self.what.state_dict(),
            optimizer_state(self._optimizer),
            self.best,
            self.best_loss,
            self.best_step,
            self.mean.state_dict(),
        )


def train(what: Trainable, loss_of: Callable[[int], Tensor], config: TrainConfig) -> Iterator[Step]:
    """A run from its first step to its last, with nothing held out."""
    return iter(Training(what, loss_of, config))
