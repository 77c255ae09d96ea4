"""A schedule as a picture: every step, the part that runs, where it starts and how much of that is noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont

from ..bridge.drawing.image import tensor_of
from .report import number, percent
from .strength import Plan

WIDTH, HEIGHT = 960, 560
LEFT, RIGHT, TOP, BOTTOM = 84, 190, 92, 64  # margins of the diagram
SHARP = 2  # drawn larger and reduced: Pillow's lines have hard edges

PAPER, GRID, TEXT, FAINT = (24, 26, 31), (46, 49, 57), (226, 228, 233), (139, 144, 156)
SKIPPED, RUNS, START = (98, 104, 118), (255, 171, 64), (255, 92, 122)
NOISE, PICTURE = (255, 171, 64), (76, 141, 206)


@dataclass(frozen=True)
class Axis:
    """Sigma to a height, 0 at the bottom to 1: linear for models whose sigma is at most 1, else logarithmic down to
    0."""

    top: float
    least: float  # the lowest sigma above 0

    @property
    def logarithmic(self) -> bool:
        return self.top > 1.5

    def __call__(self, sigma: float) -> float:
        if not self.logarithmic:
            return sigma / self.top
        floor = 0.08  # sigma 0 lies here below the lowest sigma, off the scale
        if sigma <= 0:
            return 0.0
        span = math.log(self.top / self.least) or 1.0
        return floor + (1 - floor) * math.log(max(sigma, self.least) / self.least) / span

    def ticks(self) -> list[float]:
        if not self.logarithmic:
            return [self.top * i / 4 for i in range(5)]
        inside = [m * 10.0**e for e in range(-4, 5) for m in (1, 3) if self.least <= m * 10.0**e <= self.top]
        return [0.0, *inside]


def places(whole: list[float], sigmas: list[float]) -> list[float]:
    """Where sigmas lie on a falling schedule, in steps from its start: between two of its sigmas by their logarithm."""
    out = []
    for sigma in sigmas:
        after = next((i for i, level in enumerate(whole) if level <= sigma), len(whole) - 1)
        if after == 0 or whole[after] == sigma:
            out.append(float(after))
            continue
        high, low = whole[after - 1], whole[after]
        part = math.log(high / sigma) / math.log(high / low) if low > 0 else 1 - sigma / high
        out.append(after - 1 + part)
    return out


def draw(plan: Plan, headline: str, share: float, timestep: float) -> torch.Tensor:
    """[1, HEIGHT, WIDTH, 3] in 0..1. share: the noise's part of the variance at the start; timestep: the start's."""
    image = Image.new("RGB", (WIDTH * SHARP, HEIGHT * SHARP), PAPER)
    pen = Pen(ImageDraw.Draw(image))
    whole, sigmas = plan.whole.tolist(), plan.sigmas.tolist()
    axis = Axis(max(whole[0], *sigmas[:1], 1e-6), min([s for s in whole + sigmas if s > 0], default=1e-6))
    inner_w, inner_h = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(place: float, sigma: float) -> tuple[float, float]:
        return LEFT + inner_w * place / max(plan.total, 1), TOP + inner_h * (1 - axis(sigma))

    pen.text((LEFT, 24), headline.splitlines()[0], 19, TEXT, limit=WIDTH - LEFT - 24)
    _grid(pen, axis, at, plan.total)
    curve = [at(i, s) for i, s in enumerate(whole)]
    pen.line(curve, 2, SKIPPED)
    _dots(pen, curve, 3.2, SKIPPED)
    if plan.run:
        run = [at(place, s) for place, s in zip(places(whole, sigmas), sigmas, strict=True)]
        pen.line(run, 3.5, RUNS)
        _dots(pen, run, 4.2, RUNS)
        x, y = run[0]
        pen.line([(x, TOP), (x, TOP + inner_h)], 1.5, START)
        pen.line([(LEFT, y), (x, y)], 1.5, START)
        pen.dot((x, y), 7.5, START)
        words = f"start: sigma {number(sigmas[0])}, t = {number(timestep, whole=True)}"
        # Below the curve: left of the line if there is room, as nothing else is drawn there.
        left = x - LEFT > 240
        pen.text((x - 14 if left else x + 14, TOP + inner_h - 30), words, 16, START, anchor="ra" if left else "la")
    _share(pen, share if plan.run else 0.0)
    small = image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    return tensor_of(small)


class Pen:
    """Pillow's drawing in the picture's own units, with text in the font that comes with Pillow."""

    def __init__(self, pad: ImageDraw.ImageDraw):
        self.pad = pad

    def line(self, points, width: float, color) -> None:
        self.pad.line(
            [(x * SHARP, y * SHARP) for x, y in points], fill=color, width=round(width * SHARP), joint="curve"
        )

    def dot(self, point, radius: float, color) -> None:
        (x, y), r = (point[0] * SHARP, point[1] * SHARP), radius * SHARP
        self.pad.ellipse((x - r, y - r, x + r, y + r), fill=color, outline=PAPER, width=SHARP)

    def box(self, left: float, top: float, right: float, bottom: float, color) -> None:
        if bottom > top:
            self.pad.rectangle((left * SHARP, top * SHARP, right * SHARP, bottom * SHARP), fill=color)

    def text(self, point, words: str, size: float, color, anchor: str = "la", limit: float | None = None) -> None:
        font = ImageFont.load_default(size * SHARP)
        if limit:
            while font.getlength(words) > limit * SHARP and size > 10:
                size -= 0.5
                font = ImageFont.load_default(size * SHARP)
        self.pad.text((point[0] * SHARP, point[1] * SHARP), words, fill=color, font=font, anchor=anchor)


def _grid(pen: Pen, axis: Axis, at: Callable[[float, float], tuple[float, float]], total: int) -> None:
    (left, bottom), (right, top) = at(0, 0.0), at(total, axis.top)
    for sigma in axis.ticks():
        y = at(0, sigma)[1]
        pen.line([(left, y), (right, y)], 1, GRID)
        pen.text((left - 12, y), f"{sigma:g}", 14, FAINT, anchor="rm")
    pen.text((left - 12, top - 26), "sigma", 14, FAINT, anchor="rm")
    every = max(1, math.ceil(total / 20))
    every = next((e for e in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if e >= every), every)
    for step in range(0, total + 1, every):
        x = at(step, 0.0)[0]
        pen.line([(x, top), (x, bottom)], 1, GRID)
        pen.text((x, bottom + 10), str(step), 14, FAINT, anchor="ma")
    pen.text(
        ((left + right) / 2, bottom + 32), "steps of the whole schedule; the bright part runs", 14, FAINT, anchor="ma"
    )


def _dots(pen: Pen, points, radius: float, color) -> None:
    if len(points) <= 130:  # closer together they hide the line
        for point in points:
            pen.dot(point, radius, color)


def _share(pen: Pen, share: float) -> None:
    left, right, top, bottom = WIDTH - 118, WIDTH - 74, TOP, HEIGHT - BOTTOM
    middle = bottom - (bottom - top) * share
    pen.box(left, top, right, middle, PICTURE)
    pen.box(left, middle, right, bottom, NOISE)
    x = (left + right) / 2
    pen.text((x, top - 26), "the start", 14, FAINT, anchor="mm")
    pen.text((x, bottom + 10), f"{percent(share)} noise", 16, NOISE, anchor="ma")
    pen.text((x, bottom + 32), f"{percent(1 - share)} picture", 14, PICTURE, anchor="ma")
