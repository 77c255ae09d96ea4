"""What a training is asked to do: frozen, checked when it is made, with the ranges that the nodes show."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .errors import InputError

# (smallest, largest) of each number: the nodes' widgets take their min and max from here.
RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, 1_000_000),
    "batch_size": (1, 256),
    "learning_rate": (0.0, 1.0),
    "seed": (0, 2**64 - 1),
    "rank": (1, 1024),
    "alpha": (0.0, 4096.0),
    "vectors": (1, 75),
    "warmup_steps": (0, 1_000_000),
    "gradient_accumulation": (1, 1024),
    "max_grad_norm": (0.0, 1000.0),
    "caption_dropout": (0.0, 1.0),
    "validation": (0, 1000),
    "save_every": (0, 1_000_000),
    "norm_limit": (0.0, 100.0),
}

LR_SCHEDULES = ("constant", "linear", "cosine", "cosine with restarts")
KEEPS = ("best", "last")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def check_range(name: str, value: float) -> None:
    """Raise `InputError` unless `value` is a number within `RANGES[name]`."""
    low, high = RANGES[name]
    if (isinstance(value, float) and not math.isfinite(value)) or not low <= value <= high:
        raise InputError(f"{name} is {value}; give a number from {low:g} to {high:g}")


@dataclass(frozen=True)
class TrainConfig:
    """How long, how fast and in what order. Fields are named as the widgets are.

    steps: optimiser steps. batch_size: images per model call. gradient_accumulation: model calls per step.
    learning_rate: the highest that the schedule reaches. warmup_steps: steps from 0 up to it.
    max_grad_norm: the gradient is scaled down to this length; 0 leaves it.
    validation: pictures held out of the training and scored on a fixed grid; 0 is off.
    save_every: steps between saves of what is learned; 0 saves at the end and when stopped.
    keep: whether the state with the lowest held-out loss comes out, or the last.
    """

    steps: int
    learning_rate: float
    batch_size: int
    seed: int
    lr_schedule: str = "cosine"
    warmup_steps: int = 0
    gradient_accumulation: int = 1
    max_grad_norm: float = 1.0
    caption_dropout: float = 0.0
    validation: int = 0
    save_every: int = 0
    keep: str = "best"

    def __post_init__(self) -> None:
        for name in ("steps", "learning_rate", "batch_size", "seed", "warmup_steps", "gradient_accumulation",
                     "max_grad_norm", "caption_dropout", "validation", "save_every"):  # fmt: skip
            check_range(name, getattr(self, name))
        if self.lr_schedule not in LR_SCHEDULES:
            raise InputError(f"lr_schedule is {self.lr_schedule!r}; choose one of {', '.join(LR_SCHEDULES)}")
        if self.keep not in KEEPS:
            raise InputError(f"keep is {self.keep!r}; choose one of {', '.join(KEEPS)}")
        if self.warmup_steps >= self.steps and self.warmup_steps > 0:
            raise InputError(
                f"warmup_steps is {self.warmup_steps} of {self.steps} steps, so the learning rate would never be "
                "reached; give fewer warm-up steps"
            )

    @property
    def validate_every(self) -> int:
        """Steps between two scores of the held-out pictures: twenty over the run, at least 10 apart."""
        return max(10, self.steps // 20)
