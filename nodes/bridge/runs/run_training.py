"""Runs a training for a node: events go to the page and into the record, the state to disk, so that nothing is lost."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import torch
from PIL import Image
from torch import Tensor

from ....training.config import TrainConfig
from ....training.distributed import FINISH, STOP, PeerLost, from_a_collective
from ....training.errors import InputError
from ....training.loop import NotANumber, Step, Trainable, Training
from ....training.measure import StepCost, measure_step
from ....training.record import Run
from .context import Display, RunContext
from .graph import keep_graph
from .store import RunStore

EMA = 0.98  # of the loss shown: about the last fifty steps
AUTOSAVE_SECONDS = 30.0  # a killed process loses at most this much, or save_every steps


@dataclass(frozen=True)
class Callbacks:
    """What a run hands out on its way.

    preflight: the line before the first step, from what a step costs. save: called with (step, what is learned) every
    `save_every` steps and when the run is interrupted. sample: draws one image as the model stands, or None. frozen:
    the tensors that are there anyway, for the count of what a step needs.
    """

    preflight: Callable[[StepCost], str]
    save: Callable[[int, dict[str, Tensor]], None] = lambda step, state: None
    sample: Callable[[], Image.Image] | None = None
    frozen: Sequence[Tensor] = ()


def follow(
    what: Trainable,
    loss_of: Callable[[int], Tensor | None],
    config: TrainConfig,
    run: Run,
    outlets: Callbacks,
    held_out: Callable[[], float] | None = None,
    resume: bool = True,
    until: int | None = None,
    where: RunContext | None = None,
) -> dict[str, Tensor]:
    """Train to the end (or to step `until`), or until the page asks to finish; gives what was learned.

    An interruption saves the state and passes through; the same request goes on from it. where: the page's process, or
    one of several that all call this and all get the same.
    """
    where = where or RunContext()
    store, state = where.store(run.id), None
    where.wish(run.id)  # a request from an earlier sitting is no request for this one
    if resume:
        state, earlier = store.state(), store.record()
        if state is not None and state.step > (config.steps if until is None else until):
            store.set_aside()
            state = None
        if state is not None and earlier is not None:
            # The record is written before the state, so it may be ahead of it, after a kill.
            run.losses, run.seconds = earlier.losses[: state.step], earlier.seconds
            if held_out is not None:
                run.held_out = [(step, loss) for step, loss in earlier.held_out if step <= state.step]
            run.samples = [(step, name) for step, name in earlier.samples if step <= state.step]
            if earlier.state == "kept" and config.steps <= int(earlier.settings.get("steps", 0)):
                # It was finished early, on purpose: asking for the same again gives the same.
                run.settings["steps"], run.state = earlier.settings["steps"], "kept"
                return _handed_on(Training(what, loss_of, config, held_out, state, until, where.world))
    else:
        store.set_aside()
    training = Training(what, loss_of, config, held_out, state, until, where.world)
    display = where.display(run.id, training.last)
    run.node, run.workflow, run.state = str(display.node_id or ""), keep_graph(store.folder), "running"
    store.save_record(run)  # from here on the page can ask for it
    follower, whole = _RunMonitor(training, config, run, display, store, outlets, where), True
    try:
        follower.run_through()
    except NotANumber as error:
        run.state = "failed"
        raise InputError(
            f"{error}; what was learned before it is kept. Lower the learning rate, or choose precision fp32"
        ) from error
    except torch.OutOfMemoryError as error:
        run.state = "failed"
        raise InputError(
            f"the memory is full after {training.done} steps, which are kept; lower batch_size or the pictures' "
            "resolution, or switch gradient_checkpointing on"
        ) from error
    except PeerLost:
        # Lost while the held-out pictures were scored, the last step has no score yet: an earlier save is gone on from.
        run.state, whole = "interrupted", len(run.losses) == training.done
        raise
    except RuntimeError as error:
        if where.sharded and from_a_collective(error):  # the model itself waits for the others
            run.state, whole = "interrupted", len(run.losses) == training.done
            raise PeerLost(f"another process ended or did not answer in time ({str(error).splitlines()[0]})") from error
        run.state = "failed"
        if "modified by an inplace operation" not in str(error):
            raise
        raise InputError(
            "this model, or a patch on the wire before the trainer, overwrites values that a gradient needs, so it "
            "cannot "
            "be trained here; take the patch off, or use a model of a family that is known"
        ) from error
    except comfy.model_management.InterruptProcessingException:
        run.state = "interrupted"
        if training.done:
            outlets.save(training.done, training.learned())
        raise
    except KeyboardInterrupt:
        # It may have come in the middle of an optimiser's step, half done: an earlier save is gone on from.
        run.state, whole = "interrupted", False
        raise
    except BaseException:
        run.state = "failed"
        raise
    finally:
        if training.done and whole:
            store.save(training.state(), run)
        elif not training.done:
            store.save_record(run)
        if training.done and run.state == "failed":
            _save_what_there_is(outlets, training)
        display.end(run.state)
    return _handed_on(training)


def _handed_on(training: Training) -> dict[str, Tensor]:
    """The result, which the trained parameters then hold too."""
    result = training.result()
    training.what.load_state_dict(result)
    return result


def _save_what_there_is(outlets: Callbacks, training: Training) -> None:
    """Write what was learned before the failure as a file of its own; the failure is what the person must read."""
    try:
        outlets.save(training.done, training.learned())
    except Exception:
        logging.exception("Bespoke: what was learned before the failure could not be written as a file")


class _RunMonitor:
    """Carries one run's numbers from the loop's events to the display, the record and the disk."""

    def __init__(
        self,
        training: Training,
        config: TrainConfig,
        run: Run,
        display: Display,
        store: RunStore,
        outlets: Callbacks,
        where: RunContext,
    ):
        self.training, self.config, self.run, self.display = training, config, run, display
        self.store, self.outlets, self.where = store, outlets, where
        self.average: float | None = None
        self.before, self.first = run.seconds, training.done

    def run_through(self) -> None:
        self._begin()
        saved = time.monotonic()
        for event in self.training:
            self._note(event)
            if self._due(self.config.sample_every, event.step):
                self._sample(event.step)
            due = self._due(self.config.save_every, event.step)
            if due:
                self.outlets.save(event.step, self.training.learned())
            if due or time.monotonic() - saved > AUTOSAVE_SECONDS:
                self.store.save(self.training.state(), self.run)
                saved = time.monotonic()
            wish = self.where.world.agree(self.where.wish(self.run.id))
            if wish == STOP:
                raise comfy.model_management.InterruptProcessingException
            if wish == FINISH:
                self.run.state = "kept"
                return
        # Where the held-out loss has turned, asking for the same again gives the same: as if it had been finished.
        self.run.state = "finished" if self.training.done >= self.training.last else "kept"

    def _due(self, every: int, step: int) -> bool:
        return every > 0 and step % every == 0

    def _begin(self) -> None:
        """The preflight line, and what later numbers are compared with."""
        training = self.training
        if training.done >= training.last:
            return
        first = training.done * self.config.gradient_accumulation
        cost = measure_step(lambda: training.loss_of(first), self.outlets.frozen, training.parameters)
        said = self.outlets.preflight(cost)
        self.display.start(said + (f"; goes on from step {training.done}" if training.done else ""))
        start = training.score_start()
        if start is not None:
            self.run.held_out.append((0, start))
            self.display.validation(0, start, True)
        if training.done == 0 and self.config.sample_every:
            self._sample(0)

    def _sample(self, step: int) -> None:
        if self.outlets.sample is None:
            return
        with self.training.mean.in_place():
            picture = self.outlets.sample()
        name = self.store.save_sample(step, picture)
        self.run.samples.append((step, name))
        self.display.sample(step, name)

    def _note(self, event: Step) -> None:
        run = self.run
        run.losses.append(event.loss)
        run.seconds = self.before + event.seconds
        # The average forgets its first value as fast as a plain mean would (as Adam's bias correction).
        count = event.step - self.first
        keep = min(EMA, (count - 1) / count)
        self.average = event.loss if self.average is None else keep * self.average + (1 - keep) * event.loss
        if event.held_out is not None:
            run.held_out.append((event.step, event.held_out))
            self.display.validation(event.step, event.held_out, event.best)
        self.display.step(
            {
                "step": event.step,
                "steps": event.steps,
                "loss": event.loss,
                "loss_ema": self.average,
                "lr": event.learning_rate,
                "images_per_second": self.config.images_per_step * count / max(event.seconds, 1e-9),
                "eta_s": event.seconds / count * (event.steps - event.step),
                "memory_mb": memory_mb(),
            }
        )


def memory_mb() -> float:
    """Memory that this process takes, in megabytes: the accelerator's where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() / 2**20
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096 / 2**20
    import psutil  # comes with ComfyUI

    return psutil.Process().memory_info().rss / 2**20
