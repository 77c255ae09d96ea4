"""Runs a training for a node: events go to the page and into the record, the state to disk, so that nothing is lost."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import comfy.model_management
import torch
from torch import Tensor

from ...training.config import TrainConfig
from ...training.errors import InputError
from ...training.loop import NotANumber, Step, Trainable, Training
from ...training.record import Run
from .events import RunDisplay
from .run_store import RunStore, take_finish

EMA = 0.98  # of the loss shown: about the last fifty steps
AUTOSAVE_SECONDS = 30.0  # a killed process loses at most this much, or save_every steps


def follow(
    what: Trainable,
    loss_of: Callable[[int], Tensor],
    config: TrainConfig,
    run: Run,
    preflight: str,
    held_out: Callable[[], float] | None = None,
    resume: bool = True,
    save_result: Callable[[int, dict[str, Tensor]], None] = lambda step, state: None,
) -> dict[str, Tensor]:
    """Train to the end, or until the page asks to finish; gives what was learned.

    An interruption saves the state and passes through; the same request goes on from it. save_result is called with
    (step, what is learned) every `config.save_every` steps and when the run is interrupted.
    """
    store, state = RunStore(run.id), None
    take_finish(run.id)  # a request from an earlier sitting is no request for this one
    if resume:
        state, earlier = store.state(), store.record()
        if state is not None and state.step > config.steps:
            store.set_aside()
            state = None
        if state is not None and earlier is not None:
            run.losses, run.held_out, run.seconds = earlier.losses[: state.step], earlier.held_out, earlier.seconds
            if earlier.state == "kept" and config.steps <= int(earlier.settings.get("steps", 0)):
                # It was finished early, on purpose: asking for the same again gives the same.
                run.settings["steps"], run.state = earlier.settings["steps"], "kept"
                return _result(Training(what, loss_of, config, held_out, state), config)
    else:
        store.set_aside()
    training = Training(what, loss_of, config, held_out, state)
    display = RunDisplay(run.id, config.steps)
    run.state = "running"
    store.save_record(run)  # from here on the page can ask for it
    display.start(preflight + (f"; goes on from step {training.done}" if training.done else ""))
    follower = _Follower(training, config, run, display, store, save_result)
    try:
        follower.run_through()
    except NotANumber as error:
        run.state = "failed"
        raise InputError(
            f"{error}; what was learned before it is kept. Lower the learning rate, or choose precision fp32"
        ) from error
    except comfy.model_management.InterruptProcessingException:
        run.state = "interrupted"
        if training.done:
            save_result(training.done, what.state_dict())
        raise
    except BaseException:
        run.state = "failed"
        raise
    finally:
        if training.done:
            store.save(training.state(), run)
        display.end(run.state)
    return _result(training, config)


def _result(training: Training, config: TrainConfig) -> dict[str, Tensor]:
    if config.keep == "best" and training.best:
        training.what.load_state_dict(training.best)
    return training.what.state_dict()


class _Follower:
    """Carries one run's numbers from the loop's events to the display, the record and the disk."""

    def __init__(self, training: Training, config: TrainConfig, run: Run, display: RunDisplay, store: RunStore, save_result):
        self.training, self.config, self.run, self.display = training, config, run, display
        self.store, self.save_result = store, save_result
        self.average: float | None = None
        self.before, self.first = run.seconds, training.done

    def run_through(self) -> None:
        saved = time.monotonic()
        for event in self.training:
            self._note(event)
            due = self.config.save_every and event.step % self.config.save_every == 0
            if due:
                self.save_result(event.step, self.training.what.state_dict())
            if due or time.monotonic() - saved > AUTOSAVE_SECONDS:
                self.store.save(self.training.state(), self.run)
                saved = time.monotonic()
            if take_finish(self.run.id):
                self.run.state = "kept"
                return
        self.run.state = "finished"

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
        self.display.step({
            "step": event.step,
            "steps": event.steps,
            "loss": event.loss,
            "loss_ema": self.average,
            "lr": event.learning_rate,
            "images_per_second": self.config.batch_size * self.config.gradient_accumulation * count / max(event.seconds, 1e-9),
            "eta_s": event.seconds / count * (event.steps - event.step),
            "memory_mb": memory_mb(),
        })  # fmt: skip


def memory_mb() -> float:
    """Memory that this process takes, in megabytes: the accelerator's where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() / 2**20
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096 / 2**20
    import psutil  # comes with ComfyUI

    return psutil.Process().memory_info().rss / 2**20


def base_name(model) -> str:
    """The file that the MODEL came from, as far as ComfyUI knows it."""
    made_from = getattr(model, "cached_patcher_init", None)
    if made_from and made_from[1]:
        path = made_from[1][0]
        path = path[0] if isinstance(path, (list, tuple)) and path else path
        if isinstance(path, (str, Path)):
            return Path(path).name
    return type(model.model).__name__


def identity(model, clip, vae) -> str:
    """What tells these models from others: file, weights (a sample of them), patches on the wire, clip skip."""
    parts = [base_name(model), f"clip skip {clip.layer_idx}"]
    for patcher in (model, clip.patcher, getattr(vae, "patcher", None)):
        if patcher is None:
            continue
        parts += sorted(f"{key}:{[strength for strength, *_ in patches]}" for key, patches in patcher.patches.items())
        # Every sixteenth tensor's first numbers: enough to tell two models apart, and read in a moment.
        for name, parameter in list(patcher.model.named_parameters())[::16]:
            head = parameter.detach().flatten()[:64].float()
            parts.append(f"{name}{tuple(parameter.shape)}{float(head.sum()):.6e}")
    return "|".join(parts)
