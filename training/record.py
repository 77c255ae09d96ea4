"""The record of a training run: what was asked, what happened, what came out."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import Any

from .plain_json import read_json

# What may change between two requests that are still the same run, only longer or watched more closely.
NOT_IDENTITY = frozenset({"steps", "save_every", "sample_every", "sample_prompt", "keep"})

LONGEST_TEXT = 2000  # characters of a text in a summary
MOST_SETTINGS = 200  # in a summary


def run_id(technique: str, settings: Mapping[str, Any], images: str, base: str) -> str:
    """A short name for a run: equal for equal requests, whatever their number of steps.

    images: the training set's fingerprint. base: what tells this model from another.
    """
    identity = {k: v for k, v in sorted(settings.items()) if k not in NOT_IDENTITY}
    text = json.dumps([technique, identity, images, base], default=str)
    return f"{technique.replace(' ', '-')}-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"


@dataclass
class Run:
    """What `BESPOKE_RUN` carries.

    technique: "lora" or "textual inversion". settings: the request, by widget name. base: the model's name.
    architecture: the base's name in the model specification. base_hash: a checksum of its weights. trained: how many
    numbers were trained. names: what files call each trained layer, by format.
    rotations: how many trainings without some of the pictures said when to stop; held_out is then their mean.
    losses: of each step. held_out: (step, loss) on the fixed grid, step 0 before anything is learned. samples: (step,
    file in the run's folder). node: the trainer's id in the graph, a path inside subgraphs. workflow: the graph's id.
    state: running, finished, kept, interrupted, failed.
    """

    id: str
    technique: str
    settings: dict[str, Any]
    base: str
    images: int
    trigger: str = ""
    tags: dict[str, int] = field(default_factory=dict)
    resolution: str = ""
    prediction: str = ""
    architecture: str = ""
    base_hash: str = ""
    clip_skip: str = ""
    trained: int = 0
    rotations: int = 0
    names: dict[str, dict[str, str]] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    samples: list[tuple[int, str]] = field(default_factory=list)
    node: str = ""
    workflow: str = ""
    seconds: float = 0.0
    state: str = "running"
    started: float = field(default_factory=time.time)

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, loss) of the lowest held-out loss."""
        return min(
            (point for point in self.held_out if math.isfinite(point[1])), key=lambda point: point[1], default=None
        )

    def quarters(self) -> tuple[float, float]:
        """The mean loss over the first and the last quarter of the steps."""
        count = max(1, len(self.losses) // 4)
        return sum(self.losses[:count]) / count, sum(self.losses[-count:]) / count

    def over_fitting_since(self) -> int | None:
        """The step from which the held-out loss only rose above its lowest by more than 2 %, or None."""
        if self.best is None:
            return None
        after = [(step, loss) for step, loss in self.held_out if step > self.best[0]]
        return self.best[0] if after and min(loss for _, loss in after) > 1.02 * self.best[1] else None

    def to_json(self, leave_out: Collection[str] = ()) -> str:
        """The record as strict JSON: numbers that are not finite become null. leave_out: names of fields."""
        values = {name: value for name, value in vars(self).items() if name not in leave_out}
        return json.dumps(_finite(values), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Run:
        """The record that `to_json` wrote. Raises `ValueError` when it is none."""
        try:
            values = read_json(text)
            known = {f.name for f in fields(cls)}
            run = cls(**{key: value for key, value in values.items() if key in known})
            run.losses = [math.nan if loss is None else float(loss) for loss in run.losses]
            run.held_out = [(int(step), math.nan if loss is None else float(loss)) for step, loss in run.held_out]
            run.samples = [(int(step), str(name)) for step, name in run.samples]
        except (AttributeError, TypeError, OverflowError) as error:
            raise ValueError(f"no record of a run: {error}") from error
        return run


@dataclass(frozen=True)
class Summary:
    """The part of a run's record that a list needs: no losses, held-out curve, samples or layer names.

    settings: the request, its texts, numbers and booleans only. steps_done: the number of losses. best: (step, loss) of
    the lowest held-out loss.
    """

    id: str
    technique: str
    base: str
    trigger: str
    images: int
    trained: int
    seconds: float
    started: float
    state: str
    node: str
    workflow: str
    settings: dict[str, str | float | bool]
    resolution: str
    prediction: str
    architecture: str
    steps_done: int
    best: tuple[int, float] | None

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Summary:
        """The summary with these values by field name; long texts are cut, other keys are ignored.

        Raises `ValueError` where a value is missing or has another type, so that a list can rely on the types.
        """
        try:
            texts = {name: _text(values[name]) for name in _TEXTS}
            numbers = {name: _number(values[name]) for name in _NUMBERS}
            best = None if values["best"] is None else tuple(_number(value) for value in values["best"])
            if best is not None and len(best) != 2:
                raise ValueError(f"best has {len(best)} values")
            return cls(**texts, **numbers, settings=plain_settings(values["settings"]), best=best)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"no summary of a run: {error}") from error


_TEXTS = ("id", "technique", "base", "trigger", "state", "node", "workflow", "resolution", "prediction", "architecture")
_NUMBERS = ("images", "trained", "seconds", "started", "steps_done")
_LARGEST = sys.float_info.max


def summary_of(run: Run) -> Summary:
    """What a list shows of a run. Raises `ValueError` where the record has a value of a wrong type."""
    return Summary.from_values(vars(run) | {"steps_done": len(run.losses), "best": run.best})


def plain_settings(values: Mapping[str, Any]) -> dict[str, str | float | bool]:
    """The settings that `plain_value` does not drop, at most `MOST_SETTINGS`."""
    plain = {}
    for name, value in islice(values.items(), MOST_SETTINGS):
        value = plain_value(value)
        if value is not None:
            plain[name[:LONGEST_TEXT]] = value
    return plain


def plain_value(value: Any) -> str | float | bool | None:
    """The value if it is a boolean, a finite number or a text, which is cut to `LONGEST_TEXT`; else None."""
    if isinstance(value, str):
        return value[:LONGEST_TEXT]
    return value if _is_finite(value) else None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{type(value).__name__} instead of a text")
    return value[:LONGEST_TEXT]


def _number(value: Any) -> float:
    if isinstance(value, bool) or not _is_finite(value):
        raise ValueError(f"{type(value).__name__} instead of a finite number")
    return value


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) <= _LARGEST  # true for booleans, false for nan


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def tag_frequency(captions: Iterable[str]) -> dict[str, int]:
    """How often each comma-separated tag occurs in the captions, as `ss_tag_frequency` counts."""
    return dict(Counter(tag.strip() for caption in captions for tag in caption.split(",") if tag.strip()))
