"""The settings of a training, checked when they are made, and their ranges, which the nodes' widgets have too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from .errors import InputError
from .objective import LOSS_TYPES, LOSS_WEIGHTINGS, ErrorMeasure
from .optimizers import LR_SCHEDULES, OPTIMIZERS
from .stopping import STOPS
from .timesteps import TIMESTEP_SAMPLERS

# (smallest, largest) of each number: the min and max of the nodes' widgets.
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
    "preserve_weight": (0.0, 100.0),
    "text_encoder_lr": (0.0, 1.0),
    "norm_limit": (0.0, 100.0),
    "min_timestep": (0.0, 1.0),
    "max_timestep": (0.0, 1.0),
    "conv_rank": (0, 1024),
    "rank_dropout": (0.0, 0.99),
    "module_dropout": (0.0, 0.99),
    "max_norm": (0.0, 1000.0),
    "huber_c": (0.001, 1.0),
    "multires_noise": (0.0, 1.0),
    "ip_noise_gamma": (0.0, 1.0),
    "training_adapter_strength": (-10.0, 10.0),
    "guidance": (0.1, 100.0),
    "resolution": (64, 4096),
    "word_learning_rate": (0.0, 1.0),
    "word_until": (0.0, 1.0),
}

# Fields of `TrainConfig` that version 0.1 lacks.
ADDED = (
    *("score_pictures", "min_timestep", "max_timestep", "loss_type", "huber_c", "multires_noise", "ip_noise_gamma"),
    *("compile", "stop"),
)

KEEPS = ("best", "last")
SCORE_PICTURES = ("auto", "off", "on")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
CHOICES: dict[str, tuple[str, ...]] = {
    "lr_schedule": tuple(LR_SCHEDULES),
    "optimizer": tuple(OPTIMIZERS),
    "loss_weighting": tuple(LOSS_WEIGHTINGS),
    "timestep_sampling": tuple(TIMESTEP_SAMPLERS),
    "keep": KEEPS,
    "score_pictures": SCORE_PICTURES,
    "loss_type": tuple(LOSS_TYPES),
    "stop": STOPS,
}


def check_range(name: str, value: float, where: str = "") -> None:
    """Raise `InputError` unless `value` is a number within `RANGES[name]`. where: follows the name in the error."""
    low, high = RANGES[name]
    if (isinstance(value, float) and not math.isfinite(value)) or not low <= value <= high:
        raise InputError(f"{name}{where} is {value}; give a number from {_shown(low)} to {_shown(high)}")


def _shown(limit: float) -> str:
    return f"{int(limit):,}" if limit == int(limit) else f"{limit:g}"


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise `InputError` unless `value` is one of `choices`."""
    if value not in choices:
        raise InputError(f"{name} is {value!r}; choose one of {', '.join(choices)}")


@dataclass(frozen=True)
class TrainConfig:
    """The settings that all techniques have. Fields have the names of the widgets.

    steps: optimiser steps. batch_size: images per model call. gradient_accumulation: model calls per step.
    learning_rate: the highest of the schedule. warmup_steps: steps in which it rises from nearly 0.
    optimizer, lr_schedule: see `optimizers`. max_grad_norm: longer gradients are scaled down to it; 0 is no limit.
    loss_weighting: see `objective`. timestep_sampling: see `timesteps`.
    noise_offset: the standard deviation of an offset that is added to each channel's noise.
    caption_dropout: in 0..1, the share of captions that are replaced by the empty prompt.
    ema: in 0..1, the decay of the parameters' moving average; 0 is off.
    gradient_checkpointing: compute the activations within a block again in the backward pass instead of keeping them.
    prior_weight: the weight of the loss on prior-preservation images; that on training images has 1.
    validation: the number of held-out images, which are scored and not trained on; 0 is off.
    patience: validations without a new lowest loss after which the run stops; 0 is without end.
    save_every: steps between files of the result so far; 0 writes one only where the run is interrupted or fails. The
    state to resume from is saved in any case.
    sample_every: steps between sample images; 0 is none.
    keep: whether the result is the state with the lowest validation loss ("best") or the last.
    score_pictures: whether every trained picture is scored at the start and at the end; "auto" does where that makes
    the run at most 5 % longer, see `picture_scores.share_of_run`.
    min_timestep, max_timestep: in 0..1, the part of the schedule that is trained on and scored, see `timestep_range`.
    loss_type, huber_c: see `objective.LOSS_TYPES` and `objective.huber_threshold`.
    multires_noise: in 0..1, the discount of `noises.multires`; 0 is off.
    ip_noise_gamma: in 0..1, the standard deviation of the noise that is added to the noise in the model's input; see
    `noises.perturbations`. 0 is off.
    compile: compile the model's blocks where the device can; the result is the same but for rounding.
    stop: one of `stopping.STOPS`: whether the run ends before its last step by the held-out loss.

    Raises `InputError` for a value out of its range, for a warm-up as long as the run, and for a part of the schedule
    that is empty.
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
    score_pictures: str = "auto"
    min_timestep: float = 0.0
    max_timestep: float = 1.0
    loss_type: str = "mse"
    huber_c: float = 0.1
    multires_noise: float = 0.0
    ip_noise_gamma: float = 0.0
    compile: bool = False
    stop: str = STOPS[0]

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
        if self.min_timestep >= self.max_timestep:
            raise InputError(
                f"min_timestep {self.min_timestep:g} is not below max_timestep {self.max_timestep:g}, so no timestep "
                "would be left to train on; 0 and 1 are the whole schedule"
            )

    def settings(self) -> dict[str, Any]:
        """{field: value}; of the fields that version 0.1 lacks those that are not at their defaults.

        What a training writes of its settings is then what version 0.1 writes and reads.
        """
        left_out = {name for name in ADDED if getattr(self, name) == getattr(type(self), name)}
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    @property
    def measure(self) -> ErrorMeasure:
        """How the error of a training sample counts."""
        return ErrorMeasure(self.loss_type, self.huber_c)

    @property
    def images_per_step(self) -> int:
        return self.batch_size * self.gradient_accumulation

    @property
    def validate_every(self) -> int:
        """Steps between two validations: twenty in a run, at least 10 apart."""
        return max(10, self.steps // 20)
