"""What a training is asked to do: frozen, checked when it is made, with the ranges that the nodes show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from .errors import InputError
from .objective import LOSS_WEIGHTINGS
from .timesteps import TIMESTEP_SAMPLERS

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
    "noise_offset": (0.0, 1.0),
    "caption_dropout": (0.0, 1.0),
    "ema": (0.0, 0.99999),
    "validation": (0, 1000),
    "patience": (0, 1000),
    "save_every": (0, 1_000_000),
    "sample_every": (0, 1_000_000),
    "prior_weight": (0.0, 100.0),
    "text_encoder_lr": (0.0, 1.0),
    "norm_limit": (0.0, 100.0),
}

OPTIMIZERS = ("AdamW", "Adafactor", "SGD")
LR_SCHEDULES = ("constant", "linear", "cosine", "cosine with restarts")
KEEPS = ("best", "last")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
CHOICES = {
    "lr_schedule": LR_SCHEDULES,
    "optimizer": OPTIMIZERS,
    "loss_weighting": tuple(LOSS_WEIGHTINGS),
    "timestep_sampling": tuple(TIMESTEP_SAMPLERS),
    "keep": KEEPS,
}


def check_range(name: str, value: float) -> None:
    """Raise `InputError` unless `value` is a number within `RANGES[name]`."""
    low, high = RANGES[name]
    if (isinstance(value, float) and not math.isfinite(value)) or not low <= value <= high:
        raise InputError(f"{name} is {value}; give a number from {low:g} to {high:g}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise `InputError` unless `value` is one of `choices`."""
    if value not in choices:
        raise InputError(f"{name} is {value!r}; choose one of {', '.join(choices)}")


@dataclass(frozen=True)
class TrainConfig:
    """How long, how fast and in what order. Fields are named as the widgets are.

    steps: optimiser steps. batch_size: images per model call. gradient_accumulation: model calls per step.
    learning_rate: the highest that the schedule reaches. warmup_steps: steps from 0 up to it.
    max_grad_norm: the gradient is scaled down to this length; 0 leaves it.
    loss_weighting: see `objective`. timestep_sampling: see `timesteps`.
    noise_offset: the standard deviation of an offset that is added to each channel's noise.
    caption_dropout: the share of captions replaced by the empty prompt.
    ema: the share of the running mean of the parameters that a step keeps; 0 is off.
    gradient_checkpointing: compute each block anew in the backward pass instead of keeping what is inside it.
    prior_weight: what the loss on prior-preservation images counts beside the training images' own.
    validation: pictures held out of the training and scored on a fixed grid; 0 is off.
    patience: scorings without a new lowest held-out loss after which the run stops; 0 goes on to the end.
    save_every: steps between saves of what is learned; 0 saves at the end and when stopped.
    sample_every: steps between sample images; 0 draws none.
    keep: whether the state with the lowest held-out loss comes out, or the last.
    """

    steps: int
    learning_rate: float
    batch_size: int
    seed: int
    lr_schedule: str = "cosine"
    warmup_steps: int = 0
    optimizer: str = "AdamW"
    gradient_accumulation: int = 1
    max_grad_norm: float = 1.0
    loss_weighting: str = "none"
    timestep_sampling: str = "importance"
    noise_offset: float = 0.0
    caption_dropout: float = 0.0
    ema: float = 0.0
    gradient_checkpointing: bool = False
    prior_weight: float = 1.0
    validation: int = 0
    patience: int = 0
    save_every: int = 0
    sample_every: int = 0
    keep: str = "best"

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name in RANGES:
                check_range(field.name, getattr(self, field.name))
        for name, choices in CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        if self.warmup_steps >= self.steps and self.warmup_steps > 0:
            raise InputError(
                f"warmup_steps is {self.warmup_steps} of {self.steps} steps, so the learning rate would never be "
                "reached; give fewer warm-up steps"
            )

    @property
    def images_per_step(self) -> int:
        return self.batch_size * self.gradient_accumulation

    @property
    def validate_every(self) -> int:
        """Steps between two scores of the held-out pictures: twenty over the run, at least 10 apart."""
        return max(10, self.steps // 20)
