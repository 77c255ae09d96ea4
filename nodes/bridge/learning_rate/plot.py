"""A plot of what a search has found: the loss over the learning rate."""

from __future__ import annotations

import math

from torch import Tensor

from ..drawing.image import tensor_of
from ..drawing.palette import BAR, FAINT, INK, LINE, PAPER, WARNING
from ..drawing.pen import Pen, Point
from .search import Found

WIDTH, HEIGHT = 960, 560  # px
LEFT, RIGHT, TOP, BOTTOM = 110, 60, 156, 84  # px: margins of the diagram
TITLE, TEXT, LABEL = 26, 18, 20  # px: see `shown.least_size`
MARGIN = 30  # px: beside the title
HIGHEST = 1.25  # times the untrained model's loss: losses above it are drawn at the upper edge


def draw_rates(found: Found) -> Tensor:
    """[1, 560, 960, 3] in 0..1: the loss after the short trainings over the rate, on a logarithmic scale.

    The chosen rate is marked; the dashed line is the loss before anything is learned. A rate that could not be trained
    at, or whose loss is above the diagram, is an empty ring at the upper edge.
    """
    pen, axes = Pen(WIDTH, HEIGHT, PAPER), _Axes(found)
    where = "held-out pictures" if found.held_out else "trained pictures, as none is held out"
    pen.text((MARGIN, 22), "Loss at each learning rate: lower is better", TITLE, INK)
    pen.text(
        (MARGIN, 62),
        f"after {found.plan.steps} of {_steps(found)} steps, on {where} at fixed noise levels",
        TEXT,
        FAINT,
        limit=WIDTH - 2 * MARGIN,
    )
    axes.draw(pen, found)
    tried = [found.probes[rate] for rate in sorted(found.probes)]
    places = [axes.at(probe.rate, probe.loss) for probe in tried if math.isfinite(probe.loss)]
    if len(places) > 1:
        pen.line(places, 2, BAR)
    for probe in tried:
        place = axes.at(probe.rate, probe.loss)
        if axes.is_above(probe.loss):
            pen.dot(place, 6, FAINT)
            pen.dot(place, 4, PAPER)
        else:
            pen.dot(place, 5, BAR)
    _mark(pen, axes, found)
    return tensor_of(pen.picture())


def _steps(found: Found) -> int:
    return next(iter(found.probes.values())).of


class _Axes:
    """Rate and loss to px."""

    def __init__(self, found: Found) -> None:
        losses = [probe.loss for probe in found.probes.values() if math.isfinite(probe.loss)]
        self._first, self._last = found.rates[0], found.rates[-1]
        top = max(min(max([found.base, *losses]), HIGHEST * found.base), min(losses))
        room = max(top - min(losses), 1e-9 * top) * 0.12
        self.low, self.high = min(losses) - room, top + room

    def is_above(self, loss: float) -> bool:
        return not loss <= self.high

    def at(self, rate: float, loss: float) -> Point:
        """(x, y) in px; a loss above the diagram is at its upper edge."""
        across = math.log(rate / self._first) / math.log(self._last / self._first)
        up = 1.0 if self.is_above(loss) else (loss - self.low) / (self.high - self.low)
        return LEFT + (WIDTH - LEFT - RIGHT) * across, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * up

    def draw(self, pen: Pen, found: Found) -> None:
        """Draw the grid with its numbers."""
        for i in range(5):
            loss = self.low + (self.high - self.low) * i / 4
            x, y = self.at(self._first, loss)
            pen.line([(x, y), (WIDTH - RIGHT, y)], 1, LINE)
            pen.text((x - 14, y), f"{loss:.3g}", TEXT, FAINT, "rm")
        every = -(-len(found.rates) // 9)  # so that the names do not touch each other
        for number, rate in enumerate(found.rates):
            x, y = self.at(rate, self.low)
            pen.line([(x, y), (x, y + 5)], 1, FAINT)
            if number % every == 0:
                pen.text((x, y + 10), f"{rate:.2g}", TEXT, INK if rate in found.probes else FAINT, "ma")
        pen.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 36), self._rate_name(found), TEXT, FAINT, "ma")
        pen.text((MARGIN, TOP - 24), "loss", TEXT, FAINT, "lm")
        self._draw_base(pen, found)

    @staticmethod
    def _rate_name(found: Found) -> str:
        return "learning rate" if len(found.probes) == len(found.rates) else "learning rate (grey: not tried)"

    def _draw_base(self, pen: Pen, found: Found) -> None:
        if self.is_above(found.base):
            return
        y = self.at(self._first, found.base)[1]
        for x in range(LEFT, WIDTH - RIGHT - 6, 14):
            pen.line([(x, y), (x + 7, y)], 1.5, FAINT)
        pen.text((LEFT + 6, y - 8), "before anything is learned", TEXT, FAINT, "ls")


def _mark(pen: Pen, axes: _Axes, found: Found) -> None:
    """The chosen rate: a dot in another colour on a line, with its name above the diagram."""
    x, y = axes.at(found.rate, found.probes[found.rate].loss)
    pen.line([(x, TOP), (x, HEIGHT - BOTTOM)], 1.5, WARNING)
    pen.dot((x, y), 8, WARNING)
    anchor = "la" if x < LEFT + 60 else "ra" if x > WIDTH - RIGHT - 60 else "ma"
    pen.text((x, TOP - 32), f"chosen: {found.rate:g}", LABEL, WARNING, anchor)
