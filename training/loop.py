"""The training loop: an iterator of steps, so that display, interruption and saving are outside of it."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .adapters.dropout import without_dropout
from .average import ParameterAverage
from .checkpoint import State, UnusableState, check_state, copy_state, optimizer_state, restore_optimizer, shapes_of
from .config import TrainConfig
from .distributed import World
from .errors import InputError
from .optimizers import (
    Group,
    check_gradients,
    clip_gradient,
    evaluation_weights,
    found_rate,
    group_numbers,
    hold_between_steps,
    make_lr_schedule,
    make_optimizer,
    schedule_of,
    set_group_numbers,
    state_shapes,
    without_rate,
)
from .stopping import StopRule
from .tensors import backward, divide

# Gradients of half-precision models are of the order of 1e-6, where fp16 has few bits or none: the backward pass runs
# on a loss this many times larger. A power of two, so that the result in wider types is the same to the bit.
GRADIENT_SCALE = 2.0**12


class Trainable(Protocol):
    """What is trained: adapters or an embedding."""

    @property
    def optional_parameters(self) -> Sequence[nn.Parameter]:
        """Parameters that may not contribute to the loss and so get no gradient. For any other that is an error."""
        ...

    def parameter_groups(self, learning_rate: float) -> Sequence[Group]:
        """All parameters in the optimiser's groups, each with its learning rate; `learning_rate` is the run's."""
        ...

    @property
    def is_limited(self) -> bool:
        """Whether `hold` and `after_step` can change anything."""
        ...

    def hold(self) -> object:
        """Restore what must hold of the parameters wherever they are used (a norm limit)."""
        ...

    def after_step(self) -> None:
        """`hold` after an optimiser step."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """The trained tensors by name, not copied."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> object:
        """Copy in the tensors of another `state_dict`."""
        ...


@runtime_checkable
class RestsEarly(Protocol):
    """What a `Trainable` has besides, of which a part stops learning before the last step."""

    def resting(self, steps_done: int) -> Sequence[nn.Parameter]:
        """The parameters that the step after `steps_done` leaves as they are, to the bit; whole groups of them."""
        ...


@dataclass(frozen=True)
class Step:
    """One optimiser step that is done.

    step: its number, from 1, of `steps`. loss: the mean over the global batch. learning_rate: of the first group, with
    what the optimiser found itself.
    grad_norm: the length of the gradient before it was clipped. seconds: since the loop began.
    validation_loss: where this step was validated. best: whether that is the lowest so far.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    seconds: float
    validation_loss: float | None = None
    best: bool = False


class NotANumber(ArithmeticError):
    """The loss or the gradient is not finite. The trainable still holds the last good state."""


class Training:
    """A run that can be iterated step by step, stopped, saved and resumed.

    trainable: what is trained. loss: (number of the micro-batch, counted over the whole run) -> the mean loss of that
    micro-batch, a scalar with a graph; one process of several returns its share of that mean, or None where it has no
    sample. validation_loss: computes the loss on the validation batches, the same in every process; None is no
    validation. state: to resume from, see `restore`. until: a step to stop at, on the learning-rate schedule of the
    whole run.
    world: the processes that train together. stopping: is given the losses of the held-out samples by
    `validation_loss`, and ends the run; None where nothing does.
    """

    def __init__(
        self,
        trainable: Trainable,
        loss: Callable[[int], Tensor | None],
        config: TrainConfig,
        validation_loss: Callable[[], float] | None = None,
        state: State | None = None,
        until: int | None = None,
        world: World | None = None,
        stopping: StopRule | None = None,
    ):
        self.trainable, self.loss, self.config, self.validation_loss = trainable, loss, config, validation_loss
        self.world = World() if world is None else world
        self.stopping = stopping
        groups = trainable.parameter_groups(config.learning_rate)
        self.parameters = [parameter for parameters, _ in groups for parameter in parameters]
        self._optimizer = make_optimizer(config.optimizer, groups, config.learning_rate)
        schedule = schedule_of(config.optimizer, config.lr_schedule)
        self._schedule = make_lr_schedule(schedule, self._optimizer, config.steps, config.warmup_steps)
        self.average = ParameterAverage(self.parameters, config.ema)
        self.steps_done, self.last_step = 0, config.steps if until is None else min(until, config.steps)
        self.best: dict[str, Tensor] = {}
        self.best_loss, self.best_step = math.inf, 0
        # The step whose parameters are updated and which was not yielded, as its validation failed; else None.
        self.unrecorded: Step | None = None
        self.is_updating = False  # within the optimiser's step: what is trained may be of neither step
        self._scored_step: int | None = 0
        self._scored_late = False
        if state is not None:
            self.restore(state)

    def __iter__(self) -> Iterator[Step]:
        """Train up to the last step, or until the config's patience or `stopping` ends the run after a validation.

        Yields after each step. Raises `NotANumber` before a bad gradient reaches the parameters, and `InputError` at
        the first step when a gradient is missing or all are zero, since nothing would be learned.
        """
        if self._scored_late and self._ends_early():
            return
        started = time.monotonic()
        while self.steps_done < self.last_step:
            loss = self._compute_gradients()
            resting = self._resting()
            grad_norm = clip_gradient(self.parameters, self.config.max_grad_norm)
            self._check_step(loss, grad_norm)
            found = found_rate(self._optimizer)
            learning_rate = self._schedule.get_last_lr()[0] * (1.0 if found is None else found)
            self._update_parameters(resting)
            seconds = time.monotonic() - started
            self.unrecorded = Step(self.steps_done, self.last_step, loss, float(learning_rate), grad_norm, seconds)
            yield self._scored(self.unrecorded, started)
            if self._scored_step == self.steps_done and self._ends_early():
                return

    def initial_validation_loss(self) -> float | None:
        """The validation loss before the first step; None when resumed or without validation."""
        return self._validate() if self.validation_loss is not None and self.steps_done == 0 else None

    def score_missing_step(self) -> float | None:
        """The validation loss after the last step of a resumed run, where the run ended before that was computed.

        None where nothing is missing.
        """
        missing = self._scored_step is not None and self._scored_step < self.steps_done and self._is_validation_step()
        self._scored_late = missing
        return self._validate() if missing else None

    def result(self) -> dict[str, Tensor]:
        """The state with the lowest validation loss if the config keeps the best, else the last; see `current`.

        The last also where no step had a lower loss than the start: the start is no result, since nothing is learned
        there (a LoRA of zeros). A state that was saved by an earlier version may hold the start as the best.
        """
        return self.best if self._keeps_best() else self.current()

    @property
    def result_step(self) -> int:
        """The step of which `result` is."""
        return self.best_step if self._keeps_best() else self.steps_done

    @contextmanager
    def result_loaded(self) -> Generator[None]:
        """A context in which the trained parameters are `result`. Afterwards they have their values of before."""
        with self.loaded(self.result()):
            yield

    @contextmanager
    def loaded(self, state: Mapping[str, Tensor]) -> Generator[None]:
        """A context in which the trained parameters are `state`. Afterwards they have their values of before."""
        present = copy_state(self.trainable.state_dict())
        self.trainable.load_state_dict(state)
        try:
            yield
        finally:
            self.trainable.load_state_dict(present)

    def _keeps_best(self) -> bool:
        return self.config.keep == "best" and bool(self.best) and self.best_step > 0

    @property
    def found_rate(self) -> float | None:
        """The learning rate that the optimiser has found so far; None where it is given one."""
        return found_rate(self._optimizer)

    @contextmanager
    def evaluated(self) -> Generator[None]:
        """Within the block the trained parameters are those to be used: with `ema` their average.

        Of a schedule-free optimiser they are its evaluation weights. Afterwards they have their own values, to the bit.
        """
        with self._evaluation_weights(), self.average.applied():
            if self.trainable.is_limited and self.average.decay:
                self.trainable.hold()  # means of two factors can have a longer product than any that they are means of
            yield

    @contextmanager
    def _evaluation_weights(self) -> Generator[None]:
        with evaluation_weights(self._optimizer, self.parameters) as differ:
            if differ and self.trainable.is_limited:
                self.trainable.hold()  # what holds between steps holds for these too
            yield

    def current(self) -> dict[str, Tensor]:
        """The trained tensors as they are to be used, see `evaluated`, copied to the CPU."""
        with self.evaluated():
            return copy_state(self.trainable.state_dict())

    def state(self) -> State:
        """The run as it is, to resume from: copies, on the CPU."""
        return State(
            self.steps_done,
            copy_state(self.trainable.state_dict()),
            optimizer_state(self._optimizer),
            self.best,
            self.best_loss,
            self.best_step,
            self.average.state_dict(),
            self._scored_step,
            group_numbers(self.config.optimizer, self._optimizer),
            {} if self.stopping is None else self.stopping.state(),
        )

    def restore(self, state: State) -> None:
        """Go on from a saved state. Raises `UnusableState`, before anything is changed, where that is not possible."""
        trained, average = (shapes_of(each) for each in (self.trainable.state_dict(), self.average.state_dict()))
        kept, groups = (
            state_shapes(self.config.optimizer, self.parameters),
            group_numbers(self.config.optimizer, self._optimizer),
        )
        check_state(state, trained, kept, average, groups)
        if self.stopping is not None:
            try:
                self.stopping.restore(state.stopping)
            except ValueError as error:
                raise UnusableState(f"it does not say when to stop ({error})") from error
        self.trainable.load_state_dict(state.trained)
        restore_optimizer(self._optimizer, state.optimizer)
        set_group_numbers(self._optimizer, state.groups)
        self.average.load_state_dict(state.average)
        self.steps_done, self.best, self.best_loss = state.step, state.best, state.best_loss
        self.best_step, self._scored_step = state.best_step, state.scored_step
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the schedule warns as it did not see the optimiser's earlier steps
            for _ in range(state.step):
                self._schedule.step()

    def _compute_gradients(self) -> float:
        """Accumulate the gradient of one step over micro-batches and processes; the mean loss of the global batch."""
        accumulation = self.config.gradient_accumulation
        mean, any_loss = 0.0, False
        for micro in range(accumulation):
            loss = self.loss(self.steps_done * accumulation + micro)
            if loss is None:
                continue
            any_loss = True
            loss = loss / accumulation
            if loss.requires_grad:  # not where dropout has left out every adapter
                backward(loss * GRADIENT_SCALE)
            mean += loss.item()
        if any_loss:
            for parameter in self.trainable.optional_parameters:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            divide(check_gradients(self.parameters), GRADIENT_SCALE)  # in place
        return self.world.all_reduce_gradients(self.parameters, mean)

    def _resting(self) -> Sequence[nn.Parameter]:
        """The parameters that this step leaves as they are. Their gradients become zero: they are not clipped with."""
        resting = self.trainable.resting(self.steps_done) if isinstance(self.trainable, RestsEarly) else ()
        for parameter in resting:
            parameter.grad = torch.zeros_like(parameter)
        return resting

    def _check_step(self, loss: float, grad_norm: float) -> None:
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            self._optimizer.zero_grad()
            raise NotANumber(f"the loss at step {self.steps_done + 1} is {loss:g}, the gradient's length {grad_norm:g}")
        if self.steps_done == 0 and grad_norm == 0.0 and self._is_zero_without_dropout():
            raise InputError(
                "the gradient is zero at the first step, so nothing would be learned; check the targets, "
                "that alpha is not 0, and that the masks let something through"
            )

    def _is_zero_without_dropout(self) -> bool:
        """Whether the gradient is zero too where dropout leaves out nothing. The gradient is zero afterwards."""
        with without_dropout():
            self._compute_gradients()
        is_zero = clip_gradient(self.parameters, 0.0) == 0.0
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        return is_zero

    def _update_parameters(self, resting: Sequence[nn.Parameter]) -> None:
        self.is_updating = True
        with without_rate(self._optimizer, resting):
            self._optimizer.step()
        self._optimizer.zero_grad()
        self._schedule.step()
        if self.trainable.is_limited:
            hold_between_steps(self._optimizer, self.trainable.after_step)
        self.steps_done += 1
        if self.average.decay:
            with self._evaluation_weights():
                self.average.update(self.steps_done)
        self.is_updating = False

    def _scored(self, step: Step, started: float) -> Step:
        """The step with its validation, where it has one. It counts as recorded from now on."""
        if self._is_validation_step():
            loss = self._validate()
            seconds, best = time.monotonic() - started, self.best_step == self.steps_done
            step = replace(step, seconds=seconds, validation_loss=loss, best=best)
        self.unrecorded = None
        return step

    def _is_validation_step(self) -> bool:
        if self.validation_loss is None:
            return False
        return self.steps_done == self.last_step or self.steps_done % max(1, self.config.validate_every) == 0

    def _validate(self) -> float:
        """The validation loss, of what `evaluated` loads; remembers the state if it is the lowest.

        Of the start only the loss is remembered, see `result`.
        """
        assert self.validation_loss is not None
        with torch.no_grad(), self.evaluated():
            loss = self.validation_loss()
            if loss < self.best_loss:
                self.best = copy_state(self.trainable.state_dict()) if self.steps_done else {}
                self.best_loss, self.best_step = loss, self.steps_done
            if self.stopping is not None:
                self.stopping.add(self.steps_done)
        self._scored_step = self.steps_done
        return loss

    def _ends_early(self) -> bool:
        return self._patience_is_over() or (self.stopping is not None and self.stopping.is_over)

    def _patience_is_over(self) -> bool:
        patience = self.config.patience * self.config.validate_every  # in steps; 0 is without end
        return patience > 0 and self.steps_done - self.best_step >= patience
