"""Runs a training for a node: the loop's events go to the page and into the run's record."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ...training.config import TrainConfig
from ...training.errors import InputError
from ...training.loop import NotANumber, Trainable, train
from ...training.record import Run
from .events import RunDisplay

EMA = 0.98  # of the loss shown: about the last fifty steps


def follow(
    what: Trainable, loss_of: Callable[[int], Tensor], config: TrainConfig, run: Run, preflight: str
) -> None:
    """Train to the end. An interruption by the user passes through after the page was told."""
    display = RunDisplay(run.id, config.steps)
    display.start(preflight)
    images = config.batch_size * config.gradient_accumulation
    average = None
    try:
        for event in train(what, loss_of, config):
            run.losses.append(event.loss)
            run.seconds = event.seconds
            # The average forgets its first value as fast as a plain mean would (Adam's bias correction).
            keep = min(EMA, (event.step - 1) / event.step)
            average = event.loss if average is None else keep * average + (1 - keep) * event.loss
            display.step({
                "step": event.step,
                "steps": event.steps,
                "loss": event.loss,
                "loss_ema": average,
                "lr": event.learning_rate,
                "images_per_second": images * event.step / max(event.seconds, 1e-9),
                "eta_s": event.seconds / event.step * (event.steps - event.step),
                "memory_mb": memory_mb(),
            })  # fmt: skip
        run.state = "finished"
    except NotANumber as error:
        run.state = "failed"
        raise InputError(f"{error}; lower the learning rate, or choose precision fp32") from error
    except BaseException as error:  # ComfyUI's interruption is no Exception
        run.state = "interrupted" if type(error).__name__ == "InterruptProcessingException" else "failed"
        raise
    finally:
        display.end(run.state)


def memory_mb() -> float:
    """Memory that this process takes, in megabytes: the accelerator's where there is one."""
    import torch

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
