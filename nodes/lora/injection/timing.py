"""When a LoRA acts: its share of strength at every noise level.

As for ComfyUI's conditionings, a percent of the denoising is a sigma through the model's own `percent_to_sigma`, and a
model call is inside a range when its sigma is: start >= sigma >= end. So the range means the same with any scheduler
and any number of steps. The part of the schedule that a LoRA was trained on is compared as levels of noise instead,
which are those of the training to the last bit.
"""

from __future__ import annotations

import contextlib
import math
import re
from dataclasses import dataclass

import torch

from ....training.errors import InputError
from ....training.timestep_range import WHOLE, TimestepRange
from ...bridge.noise_level import noise_level


@dataclass(frozen=True)
class Keyframe:
    """From `percent` (0..1) of the denoising on, the strength is this."""

    percent: float
    strength: float


def parse_keyframes(text: str) -> tuple[Keyframe, ...]:
    """Keyframes from `0:1, 0.5:0.3`, one a line or separated by commas, in rising order; none for an empty text.

    A percent is 0 to 1, or with a sign 0 % to 100 %.
    """
    frames = []
    for part in re.split(r"[,;\n]", text):
        if not part.strip():
            continue
        found = re.fullmatch(r"\s*([^:%\s]+)\s*(%?)\s*:\s*(\S+)\s*", part)
        percent = strength = math.nan
        if found:
            with contextlib.suppress(ValueError):
                percent, strength = float(found[1]) / (100 if found[2] else 1), float(found[3])
        if not (0.0 <= percent <= 1.0 and math.isfinite(strength)):
            raise InputError(
                f"keyframes has {part.strip()!r}; write a percent from 0 to 1 and a strength, such as 0.5:0.3"
            )
        if frames and percent <= frames[-1].percent:
            raise InputError(f"keyframes has {part.strip()!r} after {frames[-1].percent:g}; write them in rising order")
        frames.append(Keyframe(percent, strength))
    return tuple(frames)


@dataclass(frozen=True)
class Timing:
    """The range of the denoising, 0 (all noise) to 1 (done), and the strengths on the way.

    A keyframe's strength holds until the next one; before the first it is 1, outside the range 0. part: the levels of
    noise outside of which the strength is 0 too.
    """

    start: float = 0.0
    end: float = 1.0
    keyframes: tuple[Keyframe, ...] = ()
    part: TimestepRange = WHOLE

    def __post_init__(self) -> None:
        for name, value in (("start_percent", self.start), ("end_percent", self.end)):
            if not 0.0 <= value <= 1.0:
                raise InputError(f"{name} is {value}; give 0 to 1")
        if self.start > self.end:
            raise InputError(f"start_percent {self.start:g} is after end_percent {self.end:g}; exchange them")

    def __repr__(self) -> str:
        """As version 0.1, which has no `part`, wrote it: the ids of its runs are made of this text."""
        part = "" if self.part.is_whole else f", part={self.part!r}"
        return f"Timing(start={self.start!r}, end={self.end!r}, keyframes={self.keyframes!r}{part})"

    @property
    def always(self) -> bool:
        """Whether nothing changes from step to step."""
        return self.start <= 0.0 and self.end >= 1.0 and not self.keyframes and self.part.is_whole

    def strength(self, sigma: float, model_sampling) -> float:
        """The factor of the LoRA's strength at noise level `sigma`. model_sampling: the model's own."""

        def sigma_at(percent: float) -> float:
            # `sigma` comes from float32: without rounding, a step right at the edge of the range falls to either side.
            return torch.tensor(float(model_sampling.percent_to_sigma(percent)), dtype=torch.float32).item()

        if not self.part.is_whole:
            level = noise_level(model_sampling, torch.tensor([sigma], dtype=torch.float32)).item()
            if not self.part.contains(level):
                return 0.0
        if not sigma_at(self.start) >= sigma >= sigma_at(self.end):
            return 0.0
        reached = [frame for frame in self.keyframes if sigma <= sigma_at(frame.percent)]
        return reached[-1].strength if reached else 1.0

    def describe(self) -> str:
        words = (
            []
            if self.start <= 0.0 and self.end >= 1.0
            else [f"from {self.start:.0%} to {self.end:.0%} of the denoising"]
        )
        words += [] if self.part.is_whole else [f"at the timesteps {self.part} of 1"]
        words += [f"from {frame.percent:.0%} on times {frame.strength:g}" for frame in self.keyframes]
        return ", ".join(words)
