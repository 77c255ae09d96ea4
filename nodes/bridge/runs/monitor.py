"""Passes the numbers of one training from the loop to the display and the record, and saves its state and files."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

import torch

from ....training.loop import Step, Training
from ....training.measure import measure_step
from ....training.record import RunState
from .context import Display, RunContext, Store
from .failures import Failure, LastStep
from .task import TrainingTask

LOSS_AVERAGE = 0.98  # share that the shown mean of the loss keeps per step: about the last fifty steps
AUTOSAVE_SECONDS = 30.0  # a killed process loses at most this much, or `save_every` steps


class RunMonitor:
    """Shows, records and saves one training while it runs.

    `run_training` calls `start` once, `record` and `save_if_due` after each step, and `end` in every case.
    """

    def __init__(
        self, task: TrainingTask, training: Training, display: Display, store: Store, context: RunContext
    ) -> None:
        self._task, self._training, self._display = task, training, display
        self._store, self._context = store, context
        self._mean_loss: float | None = None
        self._seconds_before, self._first_step = task.run.seconds, training.steps_done
        self._last_save = time.monotonic()

    def start(self) -> None:
        """Measure a step and show the line before the first step; validate the untrained model and draw a sample."""
        task, training = self._task, self._training
        if training.steps_done >= training.last_step:
            return
        first = training.steps_done * task.config.gradient_accumulation
        cost = measure_step(lambda: task.loss(first), task.frozen, training.parameters)
        resumed = f"; goes on from step {training.steps_done}" if training.steps_done else ""
        self._display.start(task.describe_start(cost) + resumed)
        loss = training.initial_validation_loss()
        if loss is not None:
            task.run.held_out.append((0, loss))
            self._display.validation(0, loss, True)
        if training.steps_done == 0 and task.config.sample_every:
            self._draw_sample(0)
        self._last_save = time.monotonic()

    def record(self, step: Step) -> None:
        """Append a step to the record and show it."""
        run, count = self._task.run, step.step - self._first_step
        run.losses.append(step.loss)
        run.seconds = self._seconds_before + step.seconds
        # A plain mean over the first 1 / (1 - LOSS_AVERAGE) steps, so that the first value has no larger weight.
        keep = min(LOSS_AVERAGE, (count - 1) / count)
        self._mean_loss = step.loss if self._mean_loss is None else keep * self._mean_loss + (1 - keep) * step.loss
        if step.validation_loss is not None:
            run.held_out.append((step.step, step.validation_loss))
            self._display.validation(step.step, step.validation_loss, step.best)
        self._display.step(
            {
                "step": step.step,
                "steps": step.steps,
                "loss": step.loss,
                "loss_ema": self._mean_loss,
                "lr": step.learning_rate,
                "images_per_second": self._task.config.images_per_step * count / max(step.seconds, 1e-9),
                "eta_s": step.seconds / count * (step.steps - step.step),
                "memory_mb": memory_mb(),
            }
        )

    def save_if_due(self, step: int) -> None:
        """Draw a sample, write a file and save the state, each if it is due after `step`."""
        config = self._task.config
        if _is_due(config.sample_every, step):
            self._draw_sample(step)
        if _is_due(config.save_every, step):
            self._save_file()
        if _is_due(config.save_every, step) or time.monotonic() - self._last_save > AUTOSAVE_SECONDS:
            self._store.save(self._training.state(), self._task.run)
            self._last_save = time.monotonic()

    def end(self, failure: Failure | None) -> None:
        """Save the state, write a file where `failure` says so, and show the end.

        failure: None where the loop ended without an exception, after the last step or early.

        A run whose last state cannot be saved is shown as failed, and the error is raised.
        """
        run, training = self._task.run, self._training
        last_step = LastStep.SAVED if failure is None else failure.last_step
        if last_step is LastStep.SAVED_IF_RECORDED:
            last_step = LastStep.SAVED if len(run.losses) == training.steps_done else LastStep.DISCARDED
        try:
            try:
                if not training.steps_done:
                    self._store.save_record(run)
                elif last_step is LastStep.SAVED:
                    self._store.save(training.state(), run)
            except Exception:
                run.state = RunState.FAILED
                raise
            if failure is not None and failure.saves_file and training.steps_done:
                self._save_file_after(failure)
        finally:
            self._display.end(run.state)

    def _save_file_after(self, failure: Failure) -> None:
        try:
            self._save_file()
        except Exception:
            if failure.state is not RunState.FAILED:
                raise
            # The failure itself is the error that the user must read.
            logging.exception("Bespoke: what was learned before the failure could not be written as a file")

    def _save_file(self) -> None:
        self._context.save(self._training.steps_done, self._training.current(), self._task.run)

    def _draw_sample(self, step: int) -> None:
        if self._task.draw_sample is None:
            return
        with self._training.average.applied():
            picture = self._task.draw_sample()
        name = self._store.save_sample(step, picture)
        self._task.run.samples.append((step, name))
        self._display.sample(step, name)


def _is_due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


def memory_mb() -> float:
    """Memory that this process uses, in MiB: on the GPU with CUDA, else the resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() / 2**20
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096 / 2**20
    import psutil  # comes with ComfyUI

    return psutil.Process().memory_info().rss / 2**20
