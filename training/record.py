"""The record of a training run: what was asked, how it went, and the summary that lists show."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from itertools import islice
from typing import Any, cast

from .leak import LeakPoint
from .picture_scores import PictureLosses, read_rows, until
from .plain_json import read_json
from .stopping import Comparison, read_comparisons, turned_at
from .timestep_range import TimestepRange

LONGEST_TEXT = 2000  # characters of a text in a summary
MOST_SETTINGS = 200  # in a summary
DEFAULT, SET = "default", "set"  # of `RunInfo.rate_source`: the widget's default, another value in the widget
TOLERATED_RISE = 1.02  # of the held-out loss over its lowest, before it counts as over-fitting


class RunState(str, Enum):
    """How far a run is. The values are the words in files, events and the routes' answers."""

    RUNNING = "running"
    FINISHED = "finished"  # all steps are done
    KEPT = "kept"  # ended early, by the user or because the held-out loss rose; the result is handed on
    INTERRUPTED = "interrupted"
    FAILED = "failed"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class RunInfo:
    """What was asked, and what it was asked of. Change it with `dataclasses.replace`.

    technique: "lora" or "textual inversion". settings: the request, by widget name. base: the model's name. images: how
    many pictures are trained on. tags: how often each tag occurs in the captions. architecture: the base's name in the
    model specification. base_hash: a checksum of its weights. trained: how many numbers are trained. names: what files
    call each trained layer, {layer: {format: name}}. node: the trainer's id in the graph, a path inside subgraphs.
    workflow: the graph's id. started: seconds since 1970. label: the name that the user gave the run, or "".
    timestep_range: (low, high) in 0..1, the part of the schedule that is trained on; empty for all of it. rate_source:
    where the learning rate came from: `DEFAULT`, `SET`, the class of the node that is wired in, "" where not known.
    """

    id: str
    technique: str
    settings: Mapping[str, Any]
    base: str
    images: int
    trigger: str = ""
    tags: Mapping[str, int] = field(default_factory=dict[str, int])
    resolution: str = ""
    prediction: str = ""
    architecture: str = ""
    base_hash: str = ""
    clip_skip: str = ""
    trained: int = 0
    names: Mapping[str, Mapping[str, str]] = field(default_factory=dict[str, Mapping[str, str]])
    node: str = ""
    workflow: str = ""
    started: float = field(default_factory=time.time)
    label: str = ""
    timestep_range: Sequence[float] = ()
    rate_source: str = ""

    @property
    def part(self) -> TimestepRange:
        """The part of the schedule that is trained on."""
        return TimestepRange(*self.timestep_range)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> RunInfo:
        """The info with these values by field name; other keys are ignored.

        Raises `ValueError` where a value has another type, and `TypeError` where one without a default is missing.
        """
        given = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        for name, value in given.items():
            _check_kind(name, value, _INFO_KINDS.get(name, str))
        _check_range(given.get("timestep_range", ()))
        return cls(**given)


_NUMBER_KINDS = (int, float)
_INFO_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "settings": dict,
    "tags": dict,
    "names": dict,
    "images": _NUMBER_KINDS,
    "trained": _NUMBER_KINDS,
    "started": _NUMBER_KINDS,
    "timestep_range": (list, tuple),
}


@dataclass
class Run:
    """What `BESPOKE_RUN` carries: the run's info, which is replaced as a whole, and its progress, which grows.

    losses: of each step, the first at index 0. held_out: (step, loss) on the fixed grid, step 0 before anything is
    learned. samples: (step, file in the run's folder). seconds: spent on steps, over all sittings. folds: how many
    trainings without some of the pictures (cross-validation) decided when to stop; held_out is then their mean. notes:
    what the user must know of how the run went, a sentence each. start_line: what was shown before the first step.
    pictures: the losses of single pictures: of each held-out one at every validation, and of each trained one at the
    start and at the end where these were scored. leak: how far prompts without the trigger moved, where that was
    measured; of folds the mean, as held_out. found_rate: the learning rate that the optimiser has found itself, up
    to the last step, before factor and schedule; 0 where it was given one. comparisons: each validation beside the
    lowest one before it, where the setting `stop` may end the run; of a run that folds came before none. memory_mb: the
    most memory that was in use, in MiB: on the GPU with CUDA, else of the process; 0 where it was not measured.
    useful_strengths: (lowest, highest) strength at which a slider was found to work; empty where that was not measured.
    """

    info: RunInfo
    losses: list[float] = field(default_factory=list[float])
    held_out: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    samples: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    seconds: float = 0.0
    state: RunState = RunState.RUNNING
    folds: int = 0
    notes: list[str] = field(default_factory=list[str])
    start_line: str = ""
    pictures: list[PictureLosses] = field(default_factory=list[PictureLosses])
    leak: list[LeakPoint] = field(default_factory=list[LeakPoint])
    found_rate: float = 0.0
    comparisons: list[Comparison] = field(default_factory=list[Comparison])
    memory_mb: float = 0.0
    useful_strengths: Sequence[float] = ()

    def note(self, sentence: str) -> None:
        """Add a note, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    @property
    def id(self) -> str:
        """The id in the run's info, which also names its folder."""
        return self.info.id

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, loss) of the lowest held-out loss."""
        return min(
            (point for point in self.held_out if math.isfinite(point[1])), key=lambda point: point[1], default=None
        )

    @property
    def best_after_start(self) -> tuple[int, float] | None:
        """(step, loss) of the lowest held-out loss after the first step; None where no finite one is known."""
        later = (point for point in self.held_out if point[0] > 0 and math.isfinite(point[1]))
        return min(later, key=lambda point: point[1], default=None)

    @property
    def no_step_improved(self) -> bool:
        """Whether held-out losses after the first step are known, and none is lower than the one before it."""
        return self.best is not None and self.best[0] == 0 and self.best_after_start is not None

    @property
    def kept_step(self) -> int:
        """The step whose state is the result: the best one where `keep` is so and there is one, else the last."""
        best, settings = self.best, self.info.settings
        if best is not None and not self.folds and settings.get("keep", "best") == "best":
            return best[0] or len(self.losses)
        return len(self.losses)

    @property
    def leak_of_result(self) -> LeakPoint | None:
        """The leak at the step that was kept, or at the nearest step where it was measured; None without any."""
        kept = self.kept_step
        return min(self.leak, key=lambda point: (abs(point.step - kept), -point.step), default=None)

    def quarters(self) -> tuple[float, float]:
        """The mean loss over the first and the last quarter of the steps whose loss is known.

        A loss is NaN where the file of losses was damaged, or where an earlier sitting ended in a validation, before
        the step was recorded. NaN where no loss is known, and 0 before the first step.
        """
        losses = [loss for loss in self.losses if math.isfinite(loss)]
        if self.losses and not losses:
            return math.nan, math.nan
        count = max(1, len(losses) // 4)
        return sum(losses[:count]) / count, sum(losses[-count:]) / count

    @property
    def rise_is_noise(self) -> bool:
        """Whether the noise was measured and the held-out loss ended above its lowest by no more than that."""
        rows = self.comparisons
        return bool(rows) and not rows[-1].is_above and turned_at(rows) is None

    def over_fitting_since(self) -> int | None:
        """The step of the lowest held-out loss if every later one lies more than 2 % above it, else None.

        None also where the rise to the end is not more than the measured noise.
        """
        if self.best is None or self.rise_is_noise:
            return None
        step, lowest = self.best
        after = [loss for later, loss in self.held_out if later > step]
        return step if after and min(after) > TOLERATED_RISE * lowest else None

    def restore_progress(self, earlier: Run | None, step: int, held_out: bool = True) -> None:
        """Take over the progress of an earlier sitting up to `step`, where its state goes on.

        The number of losses is `step` afterwards: what lies beyond is cut off, and what is missing becomes NaN, so that
        every later loss stands at its own step. earlier: None where its record cannot be read. held_out: whether to
        take over the held-out curve too.
        """
        losses = [] if earlier is None else earlier.losses[:step]
        self.losses = losses + [math.nan] * (step - len(losses))
        if earlier is None:
            return
        self.seconds, self.notes = earlier.seconds, list(earlier.notes)
        self.memory_mb, self.useful_strengths = earlier.memory_mb, earlier.useful_strengths
        self.samples = [(at, name) for at, name in earlier.samples if at <= step]
        self.pictures = until(earlier.pictures, step, held_out) + [
            row for row in self.pictures if row.held_out and not held_out
        ]
        if held_out:
            self.held_out = [(at, loss) for at, loss in earlier.held_out if at <= step]
            self.leak = [point for point in earlier.leak if point.step <= step]
            self.comparisons = [row for row in earlier.comparisons if row.step <= step]

    def to_json(self, leave_out: Collection[str] = (), **more: Any) -> str:
        """Info and progress as one flat object of strict JSON: numbers that are not finite become null.

        leave_out: names of fields. more: further values by name. What version 0.1 lacks is left out where it is empty.
        """
        later = ("leak", "found_rate", "comparisons", "memory_mb", "useful_strengths")
        absent = {name for name in later if not vars(self)[name]} | {"info"}
        progress = {name: value for name, value in vars(self).items() if name not in absent}
        leave_out = {*leave_out, *(name for name in ("timestep_range", "rate_source") if not vars(self.info)[name])}
        values = {name: value for name, value in (vars(self.info) | progress).items() if name not in leave_out}
        return json.dumps(_finite(values | more), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Run:
        """The record that `to_json` wrote, also that of version 0.1. Raises `ValueError` when it is none."""
        return cls.from_values(read_json(text))

    @classmethod
    def from_values(cls, values: Any) -> Run:
        """The record with these values by name. Raises `ValueError` where one is missing or has another type."""
        try:
            seconds, folds = values.get("seconds", 0.0), values.get("folds", values.get("rotations", 0))
            _check_kind("seconds", seconds, _NUMBER_KINDS)
            _check_kind("folds", folds, int)
            found_rate = values.get("found_rate") or 0.0
            memory_mb = values.get("memory_mb") or 0.0
            _check_kind("found_rate", found_rate, _NUMBER_KINDS)
            _check_kind("memory_mb", memory_mb, _NUMBER_KINDS)
            return cls(
                RunInfo.from_values(values),
                [_loss(loss) for loss in values.get("losses", [])],
                [(int(step), _loss(loss)) for step, loss in values.get("held_out", [])],
                [(int(step), str(name)) for step, name in values.get("samples", [])],
                seconds,
                RunState(values.get("state", RunState.RUNNING)),
                folds,
                [str(note) for note in values.get("notes", [])],
                str(values.get("start_line", "")),
                read_rows(values.get("pictures", [])),
                [LeakPoint(int(step), _loss(other), _loss(own)) for step, other, own in values.get("leak", [])],
                float(found_rate),
                read_comparisons(values.get("comparisons", [])),
                memory_mb=float(memory_mb),
                useful_strengths=_pair_of_numbers(values.get("useful_strengths", ())),
            )
        except (AttributeError, TypeError, OverflowError) as error:
            raise ValueError(f"no record of a run: {error}") from error


def _loss(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _check_kind(name: str, value: Any, kind: type | tuple[type, ...]) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"no record of a run: {name} is of type {type(value).__name__}")


def _pair_of_numbers(value: Any) -> Sequence[float]:
    if not isinstance(value, (list, tuple)):
        raise ValueError("no record of a run: useful_strengths is no list")
    numbers = cast("Sequence[Any]", value)
    if len(numbers) not in (0, 2) or not all(_is_finite(number) for number in numbers):
        raise ValueError("no record of a run: useful_strengths is not two numbers")
    return [float(number) for number in numbers]


def _check_range(value: Sequence[Any]) -> None:
    if len(value) not in (0, 2) or not all(_is_finite(number) for number in value):
        raise ValueError("no record of a run: timestep_range is not two numbers")


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
    state: RunState
    node: str
    workflow: str
    settings: dict[str, str | float | bool]
    resolution: str
    prediction: str
    architecture: str
    steps_done: int
    best: tuple[int, float] | None
    label: str = ""

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Summary:
        """The summary with these values by field name; long texts are cut, other keys are ignored.

        Raises `ValueError` where a value is missing or has another type, so that a list can rely on the types.
        """
        try:
            plain: dict[str, Any] = {name: _text(values[name]) for name in _TEXTS}
            plain |= {name: _number(values[name]) for name in _NUMBERS}
            state, settings, best = RunState(values["state"]), plain_settings(values["settings"]), values["best"]
            if best is not None:
                step, loss = best
                best = _number(step), _number(loss)
            label = _text(values.get("label", ""))  # no summary of an earlier version has one
            return cls(**plain, state=state, settings=settings, best=best, label=label)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"no summary of a run: {error}") from error


_TEXTS = ("id", "technique", "base", "trigger", "node", "workflow", "resolution", "prediction", "architecture")
_NUMBERS = ("images", "trained", "seconds", "started", "steps_done")
_LARGEST = sys.float_info.max


def summary_of(run: Run, steps_done: int | None = None) -> Summary:
    """What a list shows of a run. Raises `ValueError` where the record has a value of a wrong type.

    steps_done: the number of losses, where `run` was read without them.
    """
    steps_done = len(run.losses) if steps_done is None else steps_done
    return Summary.from_values(vars(run.info) | vars(run) | {"steps_done": steps_done, "best": run.best})


def plain_settings(values: Mapping[str, Any]) -> dict[str, str | float | bool]:
    """The settings that `plain_value` does not drop, at most `MOST_SETTINGS`."""
    plain: dict[str, str | float | bool] = {}
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


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not _is_finite(value):
        raise ValueError(f"{type(value).__name__} instead of a finite number")
    return value


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) <= _LARGEST  # true for booleans, false for nan


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in cast("list[Any]", value)]
    return value


def tag_frequency(captions: Iterable[str]) -> dict[str, int]:
    """How often each comma-separated tag occurs in the captions, as `ss_tag_frequency` counts."""
    return dict(Counter(tag.strip() for caption in captions for tag in caption.split(",") if tag.strip()))
