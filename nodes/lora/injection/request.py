"""What a user asks of an injection."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from ....training.errors import InputError
from .scope import Scope
from .timing import Timing

MODES = ("merge", "bypass")
STRENGTH: dict[str, Any] = {"min": -10.0, "max": 10.0}


@dataclass(frozen=True)
class Request:
    """How a LoRA is injected.

    mode: "merge" lets ComfyUI add it to the weights when the model is loaded. "bypass" computes it at each call of a
    layer, where the layer allows that. A `timing` that changes between steps needs "bypass" and implies it. partial:
    whether a LoRA that has no place here for much of itself is applied all the same.
    """

    strength_model: float = 1.0
    strength_clip: float = 1.0
    scope: Scope = field(default_factory=Scope)
    timing: Timing = field(default_factory=Timing)
    mode: str = MODES[0]
    partial: bool = False

    def times(self, model: float, clip: float) -> Request:
        """The same with both strengths multiplied."""
        return replace(self, strength_model=self.strength_model * model, strength_clip=self.strength_clip * clip)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"mode is {self.mode!r}; choose one of {', '.join(MODES)}")
        for name in ("strength_model", "strength_clip"):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"{name} is {getattr(self, name)}; give a number")
