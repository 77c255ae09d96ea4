"""The losses of a run over its steps, with the kept step and the leak, for the evidence card."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

from ....training.evidence import UNFINISHED
from ....training.record import Run
from ..drawing.palette import BAR, FAINT, INK, LINE, PAPER, RGB, WARNING
from ..drawing.pen import Pen, Point

LEFT, RIGHT, TOP, BOTTOM = 66, 54, 62, 46  # px: margins of the diagram
TEXT = 15  # px of a card, which is shown larger than a plot on a node
MOST_POINTS = 240  # of the training loss
WINDOW = 25  # the training loss is a mean over this part of its steps
GRID = 4  # lines of each axis
TRAINING: RGB = (186, 182, 170)


def draw_curve(run: Run, width: int, height: int) -> Image.Image:
    """The picture, `width` x `height` px: the held-out loss, the mean of the training loss, the leak.

    The losses share the left axis, which is logarithmic; the leak has the right one, from 0.
    """
    pen = Pen(width, height, PAPER)
    held_out = [(step, loss) for step, loss in run.held_out if _is_positive(loss)]
    training = averaged(run.losses)
    leak = [(point.step, point.leak) for point in run.leak if math.isfinite(point.leak)]
    _draw_legend(pen, bool(held_out), bool(training), bool(leak))
    losses = [loss for _, loss in (*held_out, *training)]
    if not losses:
        pen.text((width / 2, height / 2), "No loss is a number.", TEXT, FAINT, "mm")
        return pen.picture()
    axes = _Axes(width, height, max(1, len(run.losses), *(step for step, _ in held_out)), losses, leak)
    axes.draw(pen)
    _draw_line(pen, [axes.at(*point) for point in training], TRAINING, 2)
    _draw_line(pen, [axes.of_leak(*point) for point in leak], WARNING, 2)
    _draw_line(pen, [axes.at(*point) for point in held_out], INK, 2.5)
    for point in held_out if len(held_out) <= 40 else ():
        pen.dot(axes.at(*point), 3.5, INK)
    _draw_kept(pen, axes, run, held_out or training)
    return pen.picture()


def averaged(losses: Sequence[float]) -> list[tuple[float, float]]:
    """(step, mean loss around it), at most `MOST_POINTS`; the mean is over 1 / `WINDOW` of the steps.

    Losses that are not above 0 or no numbers are left out.
    """
    count = len(losses)
    half, out = max(0, count // WINDOW // 2), list[tuple[float, float]]()
    shown = min(count, MOST_POINTS)
    for number in range(shown):
        middle = round(number * (count - 1) / max(1, shown - 1))
        first = min(max(0, middle - half), count - 2 * half - 1)
        near = [loss for loss in losses[first : first + 2 * half + 1] if _is_positive(loss)]
        if near:
            out.append((middle + 1, sum(near) / len(near)))
    return out


class _Axes:
    """Step, loss and leak to px."""

    def __init__(
        self, width: int, height: int, last: int, losses: Sequence[float], leak: Sequence[tuple[int, float]]
    ) -> None:
        self.left, self.right, self.top, self.bottom = LEFT, width - RIGHT, TOP, height - BOTTOM
        self.last = last
        spread = max(losses) / min(losses)
        pad = max(1.02, spread**0.06)
        self.low, self.high = min(losses) / pad, max(losses) * pad
        # 1, 2, 4, ...: its quarters are short numbers.
        self.most = 2.0 ** math.ceil(math.log2(max(1.0, *(value for _, value in leak)))) if leak else 0.0

    def x(self, step: float) -> float:
        return self.left + (self.right - self.left) * step / self.last

    def at(self, step: float, loss: float) -> Point:
        """Of a loss above 0."""
        share = math.log(loss / self.low) / math.log(self.high / self.low)
        return self.x(step), self.bottom - (self.bottom - self.top) * share

    def of_leak(self, step: float, leak: float) -> Point:
        return self.x(step), self.bottom - (self.bottom - self.top) * leak / self.most

    def draw(self, pen: Pen) -> None:
        """The grid with its numbers."""
        for i in range(GRID + 1):
            loss = self.low * (self.high / self.low) ** (i / GRID)
            _, y = self.at(0, loss)
            pen.line([(self.left, y), (self.right, y)], 1, LINE)
            pen.text((self.left - 8, y), f"{loss:.3g}", TEXT, FAINT, "rm", limit=LEFT - 12)
            if self.most:
                pen.text((self.right + 8, y), f"{self.most * i / GRID:.2g}", TEXT, WARNING, "lm", limit=RIGHT - 12)
        for step in range(0, self.last + 1, interval(self.last)):
            pen.text((self.x(step), self.bottom + 8), f"{step:,}", TEXT, FAINT, "ma")
        pen.text(((self.left + self.right) / 2, self.bottom + 26), "step", TEXT, FAINT, "ma")
        pen.text((self.left - 8, self.top - 20), "loss", TEXT, FAINT, "rm")


def interval(last: int) -> int:
    """The steps between two marks of an axis up to `last`: 1, 2 or 5 times a power of ten, four marks or fewer."""
    unit = 10 ** math.floor(math.log10(max(1, last / GRID)))
    return int(next(times * unit for times in (1, 2, 5, 10) if times * unit >= last / GRID))


def _draw_legend(pen: Pen, held_out: bool, training: bool, leak: bool) -> None:
    x: float = LEFT
    for is_there, colour, text in (
        (held_out, INK, "loss on held-out pictures"),
        (training, TRAINING, "training loss, averaged"),
        (leak, WARNING, "leak (right)"),
    ):
        if not is_there:
            continue
        pen.line([(x, 12), (x + 18, 12)], 3, colour)
        pen.text((x + 24, 12), text, TEXT, FAINT if colour == TRAINING else colour, "lm")
        x += 24 + pen.width_of(text, TEXT) + 20


def _draw_kept(pen: Pen, axes: _Axes, run: Run, curve: Sequence[tuple[float, float]]) -> None:
    """A line at the kept step, with its number above the diagram and a dot on the curve."""
    step, is_chosen = run.kept_step, run.state not in UNFINISHED
    if not step or not curve or (not is_chosen and run.best_after_start is None):
        return
    x = axes.x(step)
    pen.line([(x, axes.top - 6), (x, axes.bottom)], 2, BAR)
    pen.dot(axes.at(*min(curve, key=lambda point: abs(point[0] - step))), 6, BAR)
    text = f"step {step:,} is kept" if is_chosen else f"step {step:,} is the best so far"
    half = pen.width_of(text, TEXT) / 2
    middle = min(max(x, axes.left + half), axes.right + RIGHT - 4 - half)
    pen.text((middle, axes.top - 18), text, TEXT, BAR, "mm")


def _draw_line(pen: Pen, points: Sequence[Point], colour: RGB, width: float) -> None:
    if len(points) > 1:
        pen.line(points, width, colour)
    elif points:
        pen.dot(points[0], 2 + width, colour)


def _is_positive(loss: float) -> bool:
    return math.isfinite(loss) and loss > 0
