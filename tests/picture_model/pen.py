"""A pen that draws filled, outlined shapes for `figures.py`: polygons from curves, drawn large and reduced.

Coordinates are pixels of a picture of 128x128, x to the right and y down. A pen has a transform (scale, tilt, shift
about the middle) and a style: `flat` fills shapes with colour and outlines them in ink, `line` draws the outlines
alone on white paper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

SIZE = 128  # pixels a side of a picture
LARGE = 4  # pixels of the drawing for one pixel of the picture
INK = (46, 36, 54)
PAPER = (255, 255, 255)
STYLES = ("flat", "line")

Colour = tuple[int, int, int]


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """The colour between `a` (share 0) and `b` (share 1)."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))


def ellipse(x: float, y: float, rx: float, ry: float, tilt: float = 0.0) -> np.ndarray:
    """Points [64, 2] of an ellipse; `tilt` in degrees, clockwise."""
    turn = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    points = np.stack([rx * np.cos(turn), ry * np.sin(turn)], 1)
    return points @ _rotation(tilt).T + (x, y)


def arc(x: float, y: float, rx: float, ry: float, start: float, end: float) -> np.ndarray:
    """Points [24, 2] of an ellipse's arc from `start` to `end` degrees, clockwise from the right."""
    turn = np.radians(np.linspace(start, end, 24))
    return np.stack([x + rx * np.cos(turn), y + ry * np.sin(turn)], 1)


def smooth(points, closed: bool = True) -> np.ndarray:
    """Catmull-Rom curve through the points (Catmull and Rom 1974), eight steps between two points."""
    p = np.asarray(points, float)
    p = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([p[:1], p, p[-1:]])
    a, b, c, d = p[:-3, None], p[1:-2, None], p[2:-1, None], p[3:, None]
    t = np.linspace(0, 1, 8, endpoint=False)[None, :, None]
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    curve = curve.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, p[-1:]])


def rounded(points, radius: float) -> np.ndarray:
    """The polygon with its corners cut by quadratic curves that begin `radius` pixels from each corner."""
    p = np.asarray(points, float)
    out = []
    for before, corner, after in zip(np.roll(p, 1, 0), p, np.roll(p, -1, 0), strict=True):
        start, end = _towards(corner, before, radius), _towards(corner, after, radius)
        t = np.linspace(0, 1, 8)[:, None]
        out.append((1 - t) ** 2 * start + 2 * t * (1 - t) * corner + t**2 * end)
    return np.concatenate(out)


def box(x: float, y: float, width: float, height: float, radius: float) -> np.ndarray:
    """A rounded rectangle about its centre."""
    w, h = width / 2, height / 2
    return rounded([(x - w, y - h), (x + w, y - h), (x + w, y + h), (x - w, y + h)], radius)


def mirrored(points: np.ndarray, x: float = SIZE / 2) -> np.ndarray:
    """The points mirrored left to right about the vertical line at `x`."""
    return np.asarray(points, float) * (-1, 1) + (2 * x, 0)


def _towards(a: np.ndarray, b: np.ndarray, distance: float) -> np.ndarray:
    length = float(np.linalg.norm(b - a))
    return a + (b - a) * min(distance / max(length, 1e-6), 0.5)


def _rotation(degrees: float) -> np.ndarray:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[c, -s], [s, c]])


@dataclass
class Pen:
    """Draws on a picture of its own; `picture()` reduces it to 128x128."""

    style: str = "flat"
    ground: Colour = PAPER
    outline: float = 2.6
    scale: float = 1.0
    tilt: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    large: Image.Image = field(init=False)

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ValueError(f"no style {self.style!r}: one of {', '.join(STYLES)}")
        ground = PAPER if self.style == "line" else self.ground
        self.large = Image.new("RGB", (SIZE * LARGE,) * 2, ground)
        self.draw = ImageDraw.Draw(self.large)

    def place(self, points) -> list[tuple[float, float]]:
        """The points in pixels of the large drawing."""
        p = (np.asarray(points, float) - SIZE / 2) * self.scale @ _rotation(self.tilt).T
        return [tuple(q) for q in (p + SIZE / 2 + self.shift) * LARGE]

    def shape(self, points, fill: Colour, outline: float | None = None) -> None:
        """A filled polygon with an outline; `outline` 0 draws none, and then nothing at all in the line style."""
        width = (self.outline if outline is None else outline) * LARGE
        placed = self.place(points)
        if self.style == "line":
            if not width:
                return
            fill = PAPER
        self.draw.polygon(placed, fill=fill)
        if width:
            self._stroke([*placed, placed[0], placed[1]], INK, width)

    def solid(self, points, fill: Colour = INK) -> None:
        """A polygon in one colour, ink in the line style."""
        self.draw.polygon(self.place(points), fill=INK if self.style == "line" and fill != PAPER else fill)

    def line(self, points, width: float = 2.6, colour: Colour = INK) -> None:
        """An open line with round ends."""
        self._stroke(self.place(points), INK if self.style == "line" else colour, width * LARGE)

    def tube(self, points, width: float, fill: Colour) -> None:
        """An outlined band of `width` pixels along an open line."""
        placed = self.place(points)
        self._stroke(placed, INK, (width + 2 * self.outline) * LARGE)
        self._stroke(placed, PAPER if self.style == "line" else fill, width * LARGE)

    def _stroke(self, placed, colour: Colour, width: float) -> None:
        self.draw.line(placed, fill=colour, width=round(width), joint="curve")
        r = width / 2
        for x, y in (placed[0], placed[-1]):
            self.draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def picture(self) -> Image.Image:
        """The drawing at 128x128, each pixel the mean of 4x4."""
        return self.large.resize((SIZE, SIZE), Image.BOX)
