"""The grounds of the picture model: plain colour and five flat scenes, each with a few layouts."""

from __future__ import annotations

import numpy as np
from pen import PAPER, Colour, Pen, arc, ellipse, smooth

WHITE = (255, 255, 255)
SKY: dict[str, Colour] = {
    "plain": (251, 244, 228),
    "meadow": (186, 226, 250),
    "night": (38, 42, 92),
    "beach": (166, 224, 246),
    "snow": (196, 212, 238),
    "sunset": (252, 172, 128),
}
# The land under the figure's feet, where its shadow falls.
SHADE: dict[str, Colour] = {
    "plain": (251, 244, 228),
    "meadow": (118, 192, 92),
    "night": (62, 74, 138),
    "beach": (250, 224, 164),
    "snow": (250, 252, 255),
    "sunset": (98, 62, 124),
}
# How a caption says each.
GROUNDS = {
    "plain": "on a plain background",
    "meadow": "in a meadow",
    "night": "at night",
    "beach": "on the beach",
    "snow": "in the snow",
    "sunset": "at sunset",
}


def draw(pen: Pen, ground: str, layout: int) -> None:
    """Draw the scene behind a figure. `layout` 0 to 3 moves what lies in it; the even ones are the odd mirrored.

    In the line style the scene is outlined only.
    """
    if ground not in GROUNDS:
        raise ValueError(f"no ground {ground!r}: one of {', '.join(GROUNDS)}")
    if ground == "plain":
        return
    globals()[f"_{ground}"](pen, (lambda x: 128 - x) if layout % 2 else (lambda x: x), layout // 2)


def _flip(points, side):
    return [(side(x), y) for x, y in points]


def _land(pen: Pen, points, side, colour: Colour) -> None:
    """Land from a horizon line down to the lower edge."""
    curve = smooth(_flip(points, side), closed=False)
    pen.shape(np.concatenate([curve, [(curve[-1][0], 140), (curve[0][0], 140)]]), colour, 0)
    if pen.style == "line":
        pen.line(curve, 2.0)


def _cloud(pen: Pen, x: float, y: float, colour: Colour = WHITE) -> None:
    if pen.style == "line":
        pen.line(arc(x, y, 13, 8, 180, 360), 2.0)
        return
    for dx, dy, rx, ry in ((-9, 2, 8, 6), (0, -2, 9, 8), (9, 2, 8, 6)):
        pen.solid(ellipse(x + dx, y + dy, rx, ry), colour)


def _disc(pen: Pen, x: float, y: float, r: float, colour: Colour) -> None:
    if pen.style == "line":
        pen.shape(ellipse(x, y, r, r), PAPER, 2.0)
    else:
        pen.solid(ellipse(x, y, r, r), colour)


def _meadow(pen: Pen, side, layout: int) -> None:
    _disc(pen, side(18), 18, 10, (255, 222, 92))
    _cloud(pen, side(102), 22 + 6 * layout)
    _land(pen, [(-8, 92), (24, 82), (64, 90), (100, 80), (136, 90)], side, (158, 214, 122))
    _land(pen, [(-8, 106), (40, 98), (90, 106), (136, 98)], side, (118, 192, 92))
    for x, y in ((14, 114), (112, 112), (100, 122), (26, 123)):
        for dx, dy in ((-2.6, 0), (2.6, 0), (0, -2.6), (0, 2.6)):
            pen.solid(ellipse(side(x) + dx, y + dy, 2.1, 2.1), WHITE if pen.style == "flat" else PAPER)
        pen.solid(ellipse(side(x), y, 1.8, 1.8), (255, 206, 70))


def _night(pen: Pen, side, layout: int) -> None:
    _disc(pen, side(22), 22, 11, (255, 240, 190))
    if pen.style == "flat":
        pen.solid(ellipse(side(22) + 6, 18, 9, 9), SKY["night"])
    for x, y in ((108, 18), (90, 8 + 4 * layout), (118, 46), (10, 58), (52, 7), (12, 84)):
        star = [(0, -4), (1.2, -1.2), (4, 0), (1.2, 1.2), (0, 4), (-1.2, 1.2), (-4, 0), (-1.2, -1.2)]
        pen.solid([(side(x) + dx, y + dy) for dx, dy in star], (255, 240, 190))
    _land(pen, [(-8, 104), (36, 96), (84, 104), (136, 94)], side, (62, 74, 138))


def _beach(pen: Pen, side, layout: int) -> None:
    _disc(pen, side(106), 18, 11, (255, 226, 104))
    _cloud(pen, side(22), 26 + 6 * layout)
    _land(pen, [(-8, 74), (136, 74)], side, (74, 166, 222))
    _land(pen, [(-8, 100), (30, 94), (64, 99), (100, 93), (136, 100)], side, (250, 224, 164))
    for x in (16, 44, 84, 112):
        pen.line(arc(side(x), 83, 5, 2.4, 200, 340), 1.8, WHITE)


def _snow(pen: Pen, side, layout: int) -> None:
    _land(pen, [(-8, 88), (30, 74), (64, 86), (98, 70), (136, 84)], side, (222, 232, 248))
    _land(pen, [(-8, 104), (40, 96), (88, 104), (136, 96)], side, (250, 252, 255))
    for x, y in (
        (12, 14),
        (34, 34),
        (92, 10),
        (116, 30),
        (108, 56),
        (10, 60),
        (58, 8 + 4 * layout),
        (26, 82),
        (118, 80),
    ):
        _disc(pen, side(x), y, 2.4, WHITE)


def _sunset(pen: Pen, side, layout: int) -> None:
    _land(pen, [(-8, 46), (136, 46)], side, (252, 142, 122))
    _disc(pen, side(100 - 8 * layout), 72, 17, (255, 222, 116))
    _land(pen, [(-8, 86), (28, 74), (66, 88), (100, 78), (136, 88)], side, (148, 88, 150))
    _land(pen, [(-8, 106), (44, 98), (90, 106), (136, 100)], side, (98, 62, 124))
