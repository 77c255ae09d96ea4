"""A plot of a schedule: every step, the part that runs, its start, and the share of noise at the start."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..bridge.drawing.fonts import builtin_font
from ..bridge.drawing.image import tensor_of
from ..bridge.drawing.palette import (
    DARK_FAINT,
    DARK_GRID,
    DARK_GROUND,
    DARK_TEXT,
    NOISE,
    PICTURE,
    RGB,
    RUNS,
    SKIPPED,
    START,
)
from ..bridge.drawing.pen import Pen, Point
from ..bridge.drawing.text_layout import fit_lines
from .report import number, percent
from .strength import Plan

WIDTH, HEIGHT = 960, 560  # px
LEFT, RIGHT, TOP, BOTTOM = 84, 190, 132, 84  # px: margins of the diagram
HEADLINE, TEXT, LABEL, LINE = 24, 18, 20, 30  # px: see `shown.least_size`
MARGIN = 30  # px: beside the headline
SHORTEST_PART = 110  # px across: a shorter part of the schedule has no name in it
MOST_DOTS = 130  # on a line; closer together they hide it


@dataclass(frozen=True)
class Axis:
    """Sigma to a height from 0 (bottom) to 1 (top).

    Linear for models whose sigma is at most 1, else logarithmic, with 0 below the lowest sigma.
    """

    top: float
    least: float  # the lowest sigma above 0

    @property
    def logarithmic(self) -> bool:
        return self.top > 1.5

    def __call__(self, sigma: float) -> float:
        if not self.logarithmic:
            return sigma / self.top
        floor = 0.08  # height of the lowest sigma, so that sigma 0 has a place below it
        if sigma <= 0:
            return 0.0
        span = math.log(self.top / self.least) or 1.0
        return floor + (1 - floor) * math.log(max(sigma, self.least) / self.least) / span

    def ticks(self) -> list[float]:
        if not self.logarithmic:
            return [self.top * i / 4 for i in range(5)]
        inside = [m * 10.0**e for e in range(-4, 5) for m in (1, 3) if self.least <= m * 10.0**e <= self.top]
        return [0.0, *inside]


def schedule_positions(whole: Sequence[float], sigmas: Sequence[float]) -> list[float]:
    """The positions of sigmas on a falling schedule, in steps from its start.

    Between two of the schedule's sigmas the position is linear in log sigma, and in sigma where the lower one is 0.
    """
    positions = []
    for sigma in sigmas:
        after = next((i for i, level in enumerate(whole) if level <= sigma), len(whole) - 1)
        if after == 0 or whole[after] == sigma:
            positions.append(float(after))
            continue
        high, low = whole[after - 1], whole[after]
        part = math.log(high / sigma) / math.log(high / low) if low > 0 else 1 - sigma / high
        positions.append(after - 1 + part)
    return positions


def draw(plan: Plan, headline: str, share: float, timestep: float) -> Tensor:
    """The plot as an IMAGE [1, HEIGHT, WIDTH, 3] in 0..1.

    share: the noise's part of the variance at the start, 0..1. timestep: the model's timestep at the start.
    """
    pen = Pen(WIDTH, HEIGHT, DARK_GROUND)
    whole, sigmas = plan.whole.tolist(), plan.sigmas.tolist()
    axis = Axis(max(whole[0], *sigmas[:1], 1e-6), min([s for s in whole + sigmas if s > 0], default=1e-6))
    inner_w, inner_h = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(step: float, sigma: float) -> Point:
        return LEFT + inner_w * step / max(plan.total, 1), TOP + inner_h * (1 - axis(sigma))

    lines = fit_lines(headline.splitlines()[0], builtin_font(HEADLINE), WIDTH - 2 * MARGIN, 2)
    for i, line in enumerate(lines):
        pen.text((MARGIN, 20 + LINE * i), line, HEADLINE, DARK_TEXT)
    _draw_grid(pen, axis, at, plan.total)
    curve = [at(i, s) for i, s in enumerate(whole)]
    pen.line(curve, 2, SKIPPED)
    _draw_dots(pen, curve, 3.2, SKIPPED)
    if plan.run:
        run = [at(step, s) for step, s in zip(schedule_positions(whole, sigmas), sigmas, strict=True)]
        pen.line(run, 3.5, RUNS)
        _draw_dots(pen, run, 4.2, RUNS)
        x, y = run[0]
        pen.line([(x, TOP), (x, TOP + inner_h)], 1.5, START)
        pen.line([(LEFT, y), (x, y)], 1.5, START)
        pen.dot((x, y), 8.5, START)
        _name_parts(pen, x, inner_w)
        # Below the curve: left of the line if there is room, as nothing else is drawn there.
        left = x - LEFT > 200
        place, anchor = x - 14 if left else x + 14, "ra" if left else "la"
        pen.text((place, TOP + inner_h - 60), f"start: sigma {number(sigmas[0])}", LABEL, START, anchor)
        pen.text((place, TOP + inner_h - 34), f"t = {number(timestep, whole=True)}", LABEL, START, anchor)
    _draw_share(pen, share if plan.run else 0.0)
    return tensor_of(pen.picture())


def _draw_grid(pen: Pen, axis: Axis, at: Callable[[float, float], Point], total: int) -> None:
    (left, bottom), (right, top) = at(0, 0.0), at(total, axis.top)
    for sigma in axis.ticks():
        y = at(0, sigma)[1]
        pen.line([(left, y), (right, y)], 1, DARK_GRID)
        if sigma <= 0 or bottom - y >= TEXT:  # the lowest is written over 0 otherwise
            pen.text((left - 12, y), f"{sigma:g}", TEXT, DARK_FAINT, anchor="rm")
    pen.text((MARGIN, top - 22), "noise level (sigma)", TEXT, DARK_FAINT, anchor="lm")
    every = max(1, math.ceil(total / 14))
    every = next((e for e in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if e >= every), every)
    for step in range(0, total + 1, every):
        x = at(step, 0.0)[0]
        pen.line([(x, top), (x, bottom)], 1, DARK_GRID)
        pen.text((x, bottom + 10), str(step), TEXT, DARK_FAINT, anchor="ma")
    pen.text(((left + right) / 2, bottom + 42), "step of the whole schedule", TEXT, DARK_FAINT, anchor="ma")


def _name_parts(pen: Pen, start: float, inner_w: float) -> None:
    """Say over the curve which part is left out and which runs, each where it has room."""
    y = TOP + 14
    if start - LEFT >= SHORTEST_PART:
        pen.text(((LEFT + start) / 2, y), "left out", LABEL, SKIPPED, anchor="ma")
    if LEFT + inner_w - start >= SHORTEST_PART:
        pen.text(((start + LEFT + inner_w) / 2, y), "runs", LABEL, RUNS, anchor="ma")


def _draw_dots(pen: Pen, points: Sequence[Point], radius: float, colour: RGB) -> None:
    if len(points) <= MOST_DOTS:
        for point in points:
            pen.dot(point, radius, colour)


def _draw_share(pen: Pen, share: float) -> None:
    left, right, top, bottom = WIDTH - 118, WIDTH - 74, TOP, HEIGHT - BOTTOM
    middle = bottom - (bottom - top) * share
    pen.box(left, top, right, middle, PICTURE)
    pen.box(left, middle, right, bottom, NOISE)
    x = (left + right) / 2
    pen.text((x, top - 22), "the start is", TEXT, DARK_FAINT, anchor="mm")
    pen.text((x, bottom + 10), f"{percent(share)} noise", LABEL, NOISE, anchor="ma")
    pen.text((x, bottom + 40), f"{percent(1 - share)} picture", LABEL, PICTURE, anchor="ma")
