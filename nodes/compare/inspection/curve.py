"""A plot of a run's losses on the fixed grid: of every held-out picture over the steps, and of every trained one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ....training.picture_scores import PictureLosses
from ....training.record import Run
from ...bridge.drawing.image import tensor_of
from ...bridge.drawing.palette import BAR, FAINT, INK, LINE, PAPER, RGB, WARNING
from ...bridge.drawing.pen import Pen, Point

WIDTH, HEIGHT = 960, 560  # px
LEFT, RIGHT, TOP, BOTTOM = 96, 210, 148, 80  # px: margins of the diagram
TITLE, TEXT = 26, 18  # px: see `shown.least_size`
MARGIN, LEGEND = 30, 78  # px: beside the title, and of the legend from the top
MOST_LINES = 500  # pictures that are drawn; the found ones are always
MOST_NAMES, NAME_HEIGHT = 12, 22  # names beside the diagram; px


def draw_curve(run: Run, found: Sequence[PictureLosses]) -> Tensor:
    """[1, 560, 960, 3] in 0..1. found: the rows that are drawn in another colour and named.

    Both axes begin at the least and end at the most; the loss is on a logarithmic scale.
    """
    pen = Pen(WIDTH, HEIGHT, PAPER)
    pen.text((MARGIN, 22), "Loss of each picture on fixed noise levels", TITLE, INK)
    _draw_legend(pen)
    others = [row for row in run.pictures if not any(row is each for each in found)][:MOST_LINES]
    means = [(step, loss) for step, loss in run.held_out if _is_positive(loss)]
    points = [point for row in (*others, *found) for point in row.points if _is_positive(point[1])] + means
    if not points:
        pen.text((LEFT, HEIGHT / 2), "No loss is a number.", 16, INK)
        return tensor_of(pen.picture())
    axes = _Axes([step for step, _ in points], [loss for _, loss in points])
    axes.draw(pen)
    for row in others:
        _draw_row(pen, axes, row.points, FAINT if row.held_out else BAR, 1.0)
    _draw_row(pen, axes, means, INK, 2.5)
    for row in found:
        _draw_row(pen, axes, row.points, WARNING, 2.0)
    _name(pen, axes, [row for row in found if any(_is_positive(loss) for _, loss in row.points)])
    return tensor_of(pen.picture())


class _Axes:
    """Step and loss to px."""

    def __init__(self, steps: Sequence[int], losses: Sequence[float]) -> None:
        self.last = max(1, *steps)
        self.low, self.high = min(losses) / 1.1, max(losses) * 1.1

    def at(self, step: int, loss: float) -> Point:
        """(x, y) in px of a loss above 0 at a step."""
        height = math.log(loss / self.low) / math.log(self.high / self.low)
        return (
            LEFT + (WIDTH - LEFT - RIGHT) * step / self.last,
            HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * height,
        )

    def draw(self, pen: Pen) -> None:
        """Draw the grid with its numbers."""
        for i in range(5):
            loss = self.low * (self.high / self.low) ** (i / 4)
            x, y = self.at(0, loss)
            pen.line([(x, y), (WIDTH - RIGHT, y)], 1, LINE)
            pen.text((x - 8, y), f"{loss:.3g}", TEXT, FAINT, "rm")
            step = round(self.last * i / 4)
            pen.text((self.at(step, self.low)[0], HEIGHT - BOTTOM + 10), f"{step}", TEXT, FAINT, "ma")
        pen.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 36), "step", TEXT, FAINT, "ma")
        pen.text((MARGIN, TOP - 24), "loss", TEXT, FAINT, "lm")


def _draw_legend(pen: Pen) -> None:
    x: float = MARGIN
    for colour, width, text in (
        (BAR, 2.0, "trained"),
        (FAINT, 2.0, "held out"),
        (INK, 4.0, "mean of the held-out"),
        (WARNING, 4.0, "named in the report"),
    ):
        pen.line([(x, LEGEND), (x + 24, LEGEND)], width, colour)
        pen.text((x + 32, LEGEND), text, TEXT, colour, "lm")
        x += 32 + pen.width_of(text, TEXT) + 28


def _draw_row(pen: Pen, axes: _Axes, points: Sequence[tuple[int, float]], colour: RGB, width: float) -> None:
    """A line through the points whose loss is a number, and a dot at the last one."""
    places = [axes.at(step, loss) for step, loss in points if _is_positive(loss)]
    if len(places) > 1:
        pen.line(places, width, colour)
    if places:
        pen.dot(places[-1], 2.5 + width / 2, colour)


def _name(pen: Pen, axes: _Axes, rows: Sequence[PictureLosses]) -> None:
    """The names of the rows at the right, each at the height of its last point or below the name above it."""
    ends = sorted(
        (axes.at(*next(each for each in reversed(row.points) if _is_positive(each[1])))[1], row.path) for row in rows
    )[:MOST_NAMES]
    lowest = HEIGHT - BOTTOM - NAME_HEIGHT * len(ends)
    y = TOP - NAME_HEIGHT
    for i, (height, name) in enumerate(ends):
        y = max(y + NAME_HEIGHT, min(height, lowest + NAME_HEIGHT * i))
        pen.text((WIDTH - RIGHT + 12, y), name[-40:], TEXT, WARNING, "lm", limit=RIGHT - 18)


def _is_positive(loss: float) -> bool:
    return math.isfinite(loss) and loss > 0
