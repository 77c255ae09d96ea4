"""The part of the schedule that a training is limited to, by its settings and by its model."""

from __future__ import annotations

from typing import Any

from ...training.config import TrainConfig
from ...training.errors import InputError
from ...training.record import Run
from ...training.timestep_range import TimestepRange
from .identity import base_path
from .models.experts import NoiseRange, noise_range


def range_of_model(model: Any) -> NoiseRange:
    """The levels of noise that a MODEL denoises: an expert's part of them, else all."""
    return noise_range(model.model.diffusion_model, base_path(model))


def trained_range(model: Any, config: TrainConfig) -> TimestepRange:
    """The levels of noise that a training on a MODEL is limited to: those of the settings that are the model's own too.

    Raises `InputError` where there are none.
    """
    own = range_of_model(model)
    part = own.overlap(TimestepRange(config.min_timestep, config.max_timestep))
    if part is None:
        raise InputError(
            f"min_timestep {config.min_timestep:g} to max_timestep {config.max_timestep:g} lies outside of the "
            f"timesteps {own}, which this model, by its file's name Wan 2.2's {own.expert} expert, is for; set them to "
            "0 and 1 for the whole of its part, or load the other expert"
        )
    return part


def describe_part(model: Any, run: Run, use: str) -> list[str]:
    """The report's lines on a training that was limited to a part of the schedule; none for the whole.

    use: a sentence on where the result acts.
    """
    note = range_of_model(model).note
    lines = [note] if note else []
    settings = run.info.settings
    if "min_timestep" in settings or "max_timestep" in settings:
        lines.append(
            f"Trained on a part of the schedule alone: timesteps {run.info.part} (the model's own over 1000: 0 is "
            f"clean, 1 is noise). The held-out and picture losses are of this part too. {use}"
        )
    return lines
