"""The losses of single pictures on the fixed grid, as a run's record keeps them; see `validation.TIMESTEPS`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

if TYPE_CHECKING:
    from .config import TrainConfig

MOST_PICTURES = 10_000  # in a record
LONGEST_NAME = 200  # characters of a name or a source in a record
MOST_COST = 0.05  # of a run's time, for scores that nobody asked for
# The time of a sample that is trained on, in forward passes. The base's weights need no gradient, so a backward pass
# takes little longer than a forward pass; checkpointing adds one. 2.3 was measured on the small model of the tests. A
# lower number estimates the cost of scoring too high rather than too low.
TRAINED_SAMPLE = 2.2

Picture = tuple[str, str]  # (source, name), see `TrainingImage.picture`


class PictureLosses(NamedTuple):
    """The losses of one picture: a row of the record, in JSON a list in this order.

    points: (step, mean loss over the grid) in the order of the steps, step 0 before anything is learned.
    caption_gain: log(loss without caption / loss with it) at step 0: above 0 where the caption helps, NaN where a loss
    is no number, None where it was not computed.
    """

    source: str
    name: str
    held_out: bool
    points: list[tuple[int, float]]
    caption_gain: float | None = None

    @property
    def picture(self) -> Picture:
        return self.source, self.name

    @property
    def path(self) -> str:
        """The name with its source before it, as `TrainingImage.path`."""
        return "/".join(part for part in self.picture if part)

    @property
    def start(self) -> float:
        """The loss before anything was learned; NaN where it is not known."""
        return self.points[0][1] if self.points and self.points[0][0] == 0 else math.nan

    @property
    def end(self) -> float:
        """The loss at the last step that was scored; NaN where none after the start was."""
        return self.points[-1][1] if self.points and self.points[-1][0] > 0 else math.nan

    @property
    def change(self) -> float:
        """log(end / start): below 0 where the loss has fallen; NaN where one of the two is not known."""
        return _log_ratio(self.end, self.start)


def _log_ratio(a: float, b: float) -> float:
    return math.log(a / b) if 0 < a < math.inf and 0 < b < math.inf else math.nan


def as_stored(picture: Picture) -> Picture:
    """(source, name) as a record has them: long ones lose their beginning, where paths differ least."""
    source, name = picture
    return source[-LONGEST_NAME:], name[-LONGEST_NAME:]


def add_losses(
    rows: list[PictureLosses],
    step: int,
    losses: Mapping[Picture, float],
    held_out: bool,
    caption_gains: Mapping[Picture, float] | None = None,
) -> None:
    """Add the losses of a step to the rows of a record; pictures beyond `MOST_PICTURES` rows are left out.

    A loss of the same step is replaced. Losses are kept with six digits, which is what float32 has.
    """
    caption_gains = caption_gains or {}
    known = {row.picture: number for number, row in enumerate(rows) if row.held_out == held_out}
    for picture, loss in losses.items():
        key, point = as_stored(picture), (step, _short(loss))
        gain = _short(caption_gains[picture]) if picture in caption_gains else None
        number = known.get(key)
        if number is not None:
            row = rows[number]
            points = sorted([*(each for each in row.points if each[0] != step), point])
            rows[number] = row._replace(points=points, caption_gain=row.caption_gain if gain is None else gain)
        elif len(rows) < MOST_PICTURES:
            known[key] = len(rows)
            rows.append(PictureLosses(*key, held_out, [point], gain))


def _short(number: float) -> float:
    return float(f"{number:.6g}")


def until(rows: Iterable[PictureLosses], step: int, held_out: bool = True) -> list[PictureLosses]:
    """The rows with their points up to `step`, without those that have none there. held_out: whether to keep those."""
    cut = [row._replace(points=[each for each in row.points if each[0] <= step]) for row in rows]
    return [row for row in cut if row.points and (held_out or not row.held_out)]


def joined(folds: Iterable[Sequence[PictureLosses]]) -> list[PictureLosses]:
    """The held-out rows of several trainings as one list. A picture that several left out has the points of the first.

    Each training of a cross-validation leaves out other pictures.
    """
    rows: dict[Picture, PictureLosses] = {}
    for fold in folds:
        for row in fold:
            if row.held_out and len(rows) < MOST_PICTURES:
                rows.setdefault(row.picture, row)
    return list(rows.values())


def read_rows(values: Any) -> list[PictureLosses]:
    """The rows that a record has, checked. Raises `ValueError`, `TypeError` or `AttributeError` for anything else."""
    if not isinstance(values, list):
        raise ValueError(f"no record of a run: pictures is of type {type(values).__name__}")
    return [_row(*each) for each in cast("list[Any]", values)[:MOST_PICTURES]]


def _row(source: Any, name: Any, held_out: Any, points: Any, caption_gain: Any = None, *_: Any) -> PictureLosses:
    if not isinstance(source, str) or not isinstance(name, str) or not isinstance(held_out, bool):
        raise ValueError("no record of a run: a row of pictures does not begin with two texts and a boolean")
    losses = sorted((int(step), _number(loss)) for step, loss in points)
    gain = None if caption_gain is None else float(caption_gain)
    return PictureLosses(*as_stored((source, name)), held_out, losses, gain)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def share_of_run(config: TrainConfig, forward_passes: int) -> float:
    """How much longer a run takes for `forward_passes` samples that are only scored: 0.05 is 5 %."""
    return forward_passes / passes_of_run(config)


def passes_of_run(config: TrainConfig) -> float:
    """The time of a run's steps, in forward passes of one sample."""
    return (TRAINED_SAMPLE + config.gradient_checkpointing) * config.steps * config.images_per_step
