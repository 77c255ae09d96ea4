"""What a user asks of an extraction: which weights, and how large."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ....training.errors import InputError
from ....training.layer_names.glob import glob_matches
from ....training.layer_names.spelling import COMFY_PREFIX
from ...bridge.models import TARGETS, target_layers
from ...bridge.models.custom import CustomTarget, custom_targets
from .decompose import Size

EVERYTHING = "all that changed"
CHOICES = (EVERYTHING, *TARGETS)
MOST_RANK = 4096
AS_RANK = -1  # of conv_rank

# (a layer's name without `diffusion_model.`, the shape of its weight) -> the size of its part of the LoRA, or None.
Chosen = Callable[[str, tuple[int, ...]], Size | None]


@dataclass(frozen=True)
class Request:
    """rank: of each layer. energy: above 0 each layer's rank is the least that keeps this share of its squared change.

    targets: one of `CHOICES`; custom_targets: patterns for "custom". conv_rank: of convolutions larger than 1x1, 0
    leaves them out, -1 is rank. norms_and_biases: whether what is no matrix is written as a whole difference.
    """

    rank: int = 32
    energy: float = 0.0
    targets: str = EVERYTHING
    custom_targets: str = ""
    conv_rank: int = AS_RANK
    norms_and_biases: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= MOST_RANK:
            raise InputError(f"rank is {self.rank}; give 1 to {MOST_RANK}")
        if not (math.isfinite(self.energy) and 0.0 <= self.energy <= 1.0):
            raise InputError(f"energy is {self.energy}; give 0 to 1, such as 0.95, or 0 to choose by rank")
        if not AS_RANK <= self.conv_rank <= MOST_RANK:
            raise InputError(f"conv_rank is {self.conv_rank}; give -1 for rank, 0 for none, or 1 to {MOST_RANK}")
        if self.targets not in CHOICES:
            raise InputError(f"targets is {self.targets!r}; choose one of {', '.join(CHOICES)}")

    def everything(self) -> Chosen:
        """The size of any layer, without a look at `targets`: of a text encoder."""
        return lambda _, shape: self._size(shape, self.rank)

    def chosen(self, base: Any) -> Chosen:
        """The size of the layers that `targets` chooses in a MODEL. Raises `InputError` where it chooses none."""
        if self.targets == EVERYTHING:
            return self.everything()
        if self.targets == "custom":
            return self._by_pattern(base)
        names = set(target_layers(base.model.diffusion_model, self.targets))
        return lambda name, shape: self._size(shape, self.rank) if name in names else None

    def _by_pattern(self, base: Any) -> Chosen:
        lines = custom_targets(self.custom_targets)
        names = [name.removesuffix(".weight") for name, each in base.model.named_parameters() if each.ndim > 1]
        names = [name.removeprefix(COMFY_PREFIX) for name in names if name.startswith(COMFY_PREFIX)]
        unused = [line.pattern for line in lines if not any(glob_matches(line.pattern, name) for name in names)]
        if unused:
            some = ", ".join(names[:: max(1, len(names) // 4)][:4])
            raise InputError(f"no layer matches {unused[0]!r} in custom_targets; this model's are named like {some}")
        return lambda name, shape: self._size_of_line(_last_match(lines, name), shape)

    def _size_of_line(self, line: CustomTarget | None, shape: tuple[int, ...]) -> Size | None:
        if line is None:
            return None
        return self._size(shape, self.rank) if line.rank is None else Size(line.rank, self.energy)

    def _size(self, shape: tuple[int, ...], rank: int) -> Size | None:
        if math.prod(shape[2:]) > 1 and self.conv_rank != AS_RANK:
            return Size(self.conv_rank, self.energy) if self.conv_rank else None
        return Size(rank, self.energy)


def _last_match(lines: list[CustomTarget], name: str) -> CustomTarget | None:
    return next((line for line in reversed(lines) if glob_matches(line.pattern, name)), None)
