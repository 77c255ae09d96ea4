"""Passes the numbers of one training from the loop to the display and the record, and saves its state and files."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ....training.distributed import StopRequest
from ....training.errors import InputError
from ....training.leak import LeakPoint
from ....training.loop import Step, Training
from ....training.measure import measure_step
from ....training.picture_scores import add_losses
from ....training.record import RunState
from ..drawing.animated import SamplePicture
from ..files.writing import reason_of
from .context import Display, RunContext, Store
from .events import MOST_PER_SECOND
from .failures import Failure, LastStep
from .lease import LeaseLost
from .live import add_live, remove_live
from .report import NO_CARD
from .task import TrainingTask
from .training_picture import keep_training_picture

LOSS_AVERAGE = 0.98  # share that the shown mean of the loss keeps per step: about the last fifty steps
AUTOSAVE_SECONDS = 30.0  # a killed process loses at most this much, or `save_every` steps


class RunMonitor:
    """Shows, records and saves one training while it runs.

    `run_training` calls `start` once, `record` and `save_if_due` after each step, and `end` in every case.
    """

    def __init__(
        self,
        task: TrainingTask,
        training: Training,
        display: Display,
        store: Store,
        context: RunContext,
        broke_off: bool = False,
        initial: Mapping[str, Tensor] | None = None,
    ) -> None:
        """broke_off: whether an earlier training of the run broke off, perhaps before all was done after a step.

        initial: what is trained as it was before the first step; needed where the pictures of a resumed run are scored,
        and where a sample is drawn.
        """
        self._task, self._training, self._display = task, training, display
        self._store, self._context, self._broke_off = store, context, broke_off
        self._initial = initial
        self.stop = StopRequest.CONTINUE  # FINISH where that was asked for while pictures were scored
        if training.validation_loss is not None:
            training.validation_loss = self._in_phase("validation", self._with_leak(training.validation_loss))
        self._leak: LeakPoint | None = None  # measured with the last validation
        self._mean_loss: float | None = None
        self._seconds_before, self._first_step = task.run.seconds, training.steps_done
        self._last_save = time.monotonic()

    def start(self) -> None:
        """Measure a step and show the line before the first step; validate the untrained model and draw a sample.

        The record takes the line. Of a resumed run, make up for the validation and the sample of its last step, where
        it broke off before them.
        """
        task, training = self._task, self._training
        add_live(task.run)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        if training.steps_done < training.last_step:
            first = training.steps_done * task.config.gradient_accumulation
            task.check(first)
            self._display.phase("measuring")
            cost = measure_step(lambda: task.loss(first), task.frozen, training.parameters)
            resumed = f"; goes on from step {training.steps_done}" if training.steps_done else ""
            task.run.start_line = task.describe_start(cost) + resumed
            self._display.start(task.run.start_line)
            # A page that is loaded during the run reads the line from the record.
            self._try("the record", lambda: self._store.save_record(task.run))
        if training.steps_done:
            self._make_up()
        else:
            self._start_anew()
        if task.drift is not None and training.steps_done < training.last_step:
            self._display.phase("sample")
            task.drift.start()
        self._last_save = time.monotonic()

    def _start_anew(self) -> None:
        loss = self._training.initial_validation_loss()
        if loss is not None:
            check_initial_loss(loss, self._task.precision_advice)
            self._add_validation(0, loss, True)
        self._score_pictures(0)
        if self._draws_ends:
            self._draw_sample(0)

    def _make_up(self) -> None:
        step, training = self._training.steps_done, self._training
        loss = training.score_missing_step()
        if loss is not None:
            self._add_validation(step, loss, training.best_step == step)
        if self._initial is not None and self._wants_scores() and not self._is_scored(0):
            with training.loaded(self._initial):
                self._score_pictures(0)
        drawn = {at for at, _ in self._task.run.samples}
        goes_on = self._broke_off or training.steps_done < training.last_step
        if self._initial is not None and goes_on and self._draws_ends and 0 not in drawn:
            with training.loaded(self._initial):  # its first steps were a probe, or its samples were of other prompts
                self._draw(0)
        if self._broke_off and _is_due(self._task.config.sample_every, step) and step not in drawn:
            self._draw_sample(step)

    def _add_validation(self, step: int, loss: float, best: bool) -> None:
        self._task.run.held_out.append((step, loss))
        add_losses(self._task.run.pictures, step, self._task.held_out_losses, held_out=True)
        more: dict[str, Any] = {}
        if self._leak is not None:
            self._task.run.leak.append(self._leak)
            more["leak"] = self._leak.leak
        rows = [] if self._training.stopping is None else self._training.stopping.rows
        if rows and rows[-1].step == step:
            self._task.run.comparisons.append(rows[-1])
            more["comparison"] = rows[-1]
        self._display.validation(step, loss, best, **more)

    def _with_leak(self, validate: Callable[[], float]) -> Callable[[], float]:
        """A function that validates, and measures the leak where it is due, of the same parameters."""

        def validate_and_measure() -> float:
            loss, meter, step = validate(), self._task.leak, self._training.steps_done
            self._leak = meter.measure(step) if meter is not None and step in meter.steps else None
            return loss

        return validate_and_measure

    def record(self, step: Step) -> None:
        """Append a step to the record and show it."""
        count = step.step - self._first_step
        self._add_loss(step)
        # A plain mean over the first 1 / (1 - LOSS_AVERAGE) steps, so that the first value has no larger weight.
        keep = min(LOSS_AVERAGE, (count - 1) / count)
        self._mean_loss = step.loss if self._mean_loss is None else keep * self._mean_loss + (1 - keep) * step.loss
        if step.validation_loss is not None:
            self._add_validation(step.step, step.validation_loss, step.best)
        self._display.step(
            {
                "step": step.step,
                "steps": step.steps,
                "loss": step.loss,
                "loss_ema": self._mean_loss,
                "lr": step.learning_rate,
                "found_rate": None if self._training.found_rate is None else step.learning_rate,
                "images_per_second": self._task.config.images_per_step * count / max(step.seconds, 1e-9),
                "eta_s": step.seconds / count * (step.steps - step.step),
                "memory_mb": memory_mb(),
                "seconds": self._task.run.seconds,
            }
        )

    def save_if_due(self, step: int) -> None:
        """Draw a sample, write a file and save the state, each if it is due after `step`."""
        config = self._task.config
        if _is_due(config.sample_every, step):
            self._draw_sample(step)
        if _is_due(config.save_every, step):
            self._try("the file of a step", self._save_file)
        if _is_due(config.save_every, step) or time.monotonic() - self._last_save > AUTOSAVE_SECONDS:
            self._try("the state to go on from", lambda: self._store.save(self._training.state(), self._task.run))
            self._last_save = time.monotonic()

    def draw_result(self) -> None:
        """Draw a sample of what is kept, where samples are drawn and there is none of its step.

        Not where an earlier training of the run came to its end and this one had no step to do.
        """
        task, training = self._task, self._training
        has_worked = training.steps_done > self._first_step or self._broke_off
        drawn = any(at == training.result_step for at, _ in task.run.samples)
        if not self._draws_ends or not has_worked or drawn:
            return
        with training.result_loaded():
            self._draw(training.result_step)

    @property
    def _draws_ends(self) -> bool:
        return self._task.config.sample_every > 0 or self._task.draws_ends

    def measure_drift(self) -> None:
        """Measure the drift of what is kept, where it is measured; its note takes the place of an earlier sitting's."""
        task, training = self._task, self._training
        if task.drift is None or self.stop is StopRequest.ABORT:
            return
        self._display.phase("scoring", done=0, total=1)
        with training.result_loaded():
            note = task.drift.measure(task.run)
        if note:
            kind = note.partition(":")[0]
            task.run.notes = [other for other in task.run.notes if not other.startswith(f"{kind}:")]
            task.run.note(note)

    def score_result(self) -> None:
        """Score the trained pictures with what is kept, where they are scored and were not yet at its step."""
        training = self._training
        is_due = self._wants_scores() or training.steps_done > self._first_step or self._broke_off
        if self._task.scorer is not None and is_due and not self._is_scored(training.result_step):
            with training.result_loaded():
                self._score_pictures(training.result_step)

    def _wants_scores(self) -> bool:
        """Not where an earlier training of the run came to its end, and nobody asks for scores by name."""
        return self._first_step < self._training.last_step or self._task.config.score_pictures == "on"

    def _is_scored(self, step: int) -> bool:
        rows = self._task.run.pictures
        return any(not row.held_out and any(at == step for at, _ in row.points) for row in rows)

    def _score_pictures(self, step: int) -> None:
        """Score the trained pictures with the model as it is, as those of `step`; nothing is kept of a part of them.

        Raises ComfyUI's `InterruptProcessingException` where the user cancels. Where the user asks to finish, the
        scoring ends and `stop` says so.
        """
        task = self._task
        if task.scorer is None or self.stop is not StopRequest.CONTINUE:
            return
        found = task.scorer.score(task.scorer.captions and step == 0, self._shown_scoring())
        if found is not None:
            gains = {each.picture: each.caption_gain for each in found if each.caption_gain is not None}
            losses = {each.picture: each.loss for each in found}
            add_losses(task.run.pictures, step, losses, held_out=False, caption_gains=gains)

    def _shown_scoring(self) -> Callable[[int, int], bool]:
        """What `PictureScorer.score` calls before each batch: shows how far it is, and ends it where the user asks."""
        last_event = -math.inf

        def goes_on(done: int, total: int) -> bool:
            nonlocal last_event
            comfy.model_management.throw_exception_if_processing_interrupted()
            if time.monotonic() - last_event >= 1 / MOST_PER_SECOND:
                last_event = time.monotonic()
                self._display.phase("scoring", done=done, total=total)
            self.stop = self._context.world.agree(self._context.stop_request(self._task.run.id))
            if self.stop is StopRequest.ABORT:
                raise comfy.model_management.InterruptProcessingException
            return self.stop is StopRequest.CONTINUE

        return goes_on

    def _try(self, what: str, write: Callable[[], object]) -> bool:
        """Write something that the training can do without. A failure is noted in the record; returns success."""
        try:
            write()
        except OSError as error:
            run, step = self._task.run, self._training.steps_done
            run.note(f"{what} could not be written ({reason_of(error)}; first at step {step}); free space on that disk")
            logging.exception("Bespoke: %s could not be written", what)
            return False
        return True

    def end(self, failure: Failure | None) -> None:
        """Save the state, write a file where `failure` says so, and show the end.

        failure: None where the loop ended without an exception, after the last step or early.

        Where the state cannot be saved, what was learned is written as a file too, and a note in the record says so.
        """
        run, training = self._task.run, self._training
        if training.unrecorded is not None:  # its validation failed
            self._add_loss(training.unrecorded)
        last_step = LastStep.SAVED if failure is None else failure.last_step
        if training.is_updating or (last_step is LastStep.SAVED_IF_RECORDED and len(run.losses) < training.steps_done):
            last_step = LastStep.DISCARDED
        try:
            saved = self._save_end(last_step)
            if training.steps_done and (not saved or (failure is not None and failure.saves_file)):
                self._save_file_at_end(failure)
            if last_step is not LastStep.DISCARDED:
                self._draw_card()
        except LeaseLost:
            run.state = RunState.INTERRUPTED
            raise
        finally:
            remove_live(run)
            self._display.end(run.state)

    def _draw_card(self) -> None:
        """Draw the evidence card into the run's folder. The result does not need it: a failure is a note."""
        run = self._task.run
        if self._task.card is None or not run.losses or self._context.world.rank != 0:
            return
        try:
            self._task.card(run, self._store.folder)
        except Exception as error:
            run.note(f"{NO_CARD} ({reason_of(error)})")
            logging.exception("Bespoke: the evidence card of %s could not be drawn", run.id)

    def _save_end(self, last_step: LastStep) -> bool:
        """Save the last state and the record. Where that fails, the record alone says that the run has failed."""
        run, training = self._task.run, self._training

        def save() -> None:
            if not training.steps_done:
                self._store.save_record(run)
            elif last_step is LastStep.DISCARDED:
                self._store.save_end(run.state)
            else:
                self._store.save(training.state(), run)

        if self._try("the end of the run", save):
            return True
        run.state = RunState.FAILED
        with contextlib.suppress(OSError):  # it needs less room than the state
            self._store.save_end(run.state)
        return False

    def _save_file_at_end(self, failure: Failure | None) -> None:
        try:
            self._try("the file of a step", self._save_file)
        except Exception:
            if failure is None or failure.state is not RunState.FAILED:
                raise
            # The failure itself is the error that the user must read.
            logging.exception("Bespoke: what was learned before the failure could not be written as a file")

    def _add_loss(self, step: Step) -> None:
        self._task.run.losses.append(step.loss)
        self._task.run.found_rate = self._training.found_rate or 0.0
        self._task.run.seconds = self._seconds_before + step.seconds
        self._task.run.memory_mb = max(self._task.run.memory_mb, peak_memory_mb())

    def _save_file(self) -> None:
        self._context.save(self._training.steps_done, self._training.current(), self._task.run)

    def _draw_sample(self, step: int) -> None:
        with self._training.evaluated():
            self._draw(step)

    def _draw(self, step: int) -> None:
        """Draw a sample of each prompt with the model as it is, and save them as those of `step`."""
        if self._task.draw_sample is None:
            return
        self._display.phase("sample")
        for number, picture in enumerate(self._task.draw_sample()):
            self._try("a sample image", partial(self._save_sample, step, number, picture))

    def _in_phase(self, name: str, work: Callable[[], float]) -> Callable[[], float]:
        """A function that shows the phase and then does the work."""

        def shown() -> float:
            self._display.phase(name)
            return work()

        return shown

    def _save_sample(self, step: int, number: int, picture: SamplePicture) -> None:
        keep_training_picture(self._store.folder, self._task.training_picture)
        name = self._store.save_sample(step, picture, number)
        self._task.run.samples.append((step, name))
        self._task.run.samples.sort()  # the sample of what is kept comes last and can be of an earlier step
        self._display.sample(step, name)


def check_initial_loss(loss: float, precision_advice: str) -> None:
    """Raise `InputError` where the held-out loss is not finite before anything is trained."""
    if not math.isfinite(loss):
        raise InputError(
            f"the held-out loss is {loss:g} before the first step, so the base model gives no numbers for the held-out "
            "pictures; check that the model draws pictures with KSampler, take nodes between it and the trainer off"
            f"{', or ' if precision_advice else ''}{precision_advice}"
        )


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


def peak_memory_mb() -> float:
    """The most memory in use since the run began, in MiB: on the GPU with CUDA, else what this process uses now."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return memory_mb()
