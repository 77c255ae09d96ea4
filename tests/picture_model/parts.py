"""Draws each subject of the picture model with a pen, in a colour and a mood: `DRAW[subject](pen, colour, mood)`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pen import INK, Colour, Pen, arc, box, ellipse, mirrored, mix, rounded, smooth

WHITE = (255, 255, 255)
CREAM = (252, 238, 212)
ROSE = (250, 150, 160)
BEAK = (250, 170, 56)
MOUTH = (150, 44, 66)
TEAR = (120, 196, 250)
DRAW: dict[str, Callable[[Pen, Colour, str], None]] = {}


def _subject(draw):
    DRAW[draw.__name__.strip("_")] = draw
    return draw


def pale(colour: Colour) -> Colour:
    """The colour's light tint, for bellies and muzzles."""
    return mix(colour, WHITE, 0.62)


def deep(colour: Colour) -> Colour:
    """The colour's shade, for ears and wings."""
    return mix(colour, INK, 0.3)


def face(pen: Pen, mood: str, x: float, y: float, apart: float, mouth: float) -> None:
    """Eyes `apart` pixels to each side of (x, y) and a mouth at the height `mouth`, in a mood."""
    _EYES[mood](pen, x, y, apart)
    _MOUTHS[mood](pen, x, mouth)


def _open_eyes(pen: Pen, x: float, y: float, apart: float) -> None:
    for side in (-1, 1):
        pen.solid(ellipse(x + side * apart, y, 4.6, 5.6))
        pen.solid(ellipse(x + side * apart - 1.4, y - 2.0, 1.9, 1.9), WHITE)


def _happy_eyes(pen: Pen, x: float, y: float, apart: float) -> None:
    _open_eyes(pen, x, y, apart)
    for side in (-1, 1):
        if pen.style == "flat":
            pen.solid(ellipse(x + side * (apart + 6.5), y + 8, 4.2, 2.8), ROSE)


def _sad_eyes(pen: Pen, x: float, y: float, apart: float) -> None:
    _open_eyes(pen, x, y + 1, apart)
    for side in (-1, 1):
        pen.line([(x + side * (apart + 5.5), y - 7), (x + side * (apart - 3), y - 10.5)], 2.6)
    drop = smooth([(x + apart + 2, y + 7), (x + apart + 5, y + 13), (x + apart + 2, y + 16), (x + apart - 1, y + 13)])
    pen.shape(drop, TEAR, 1.4)


def _angry_eyes(pen: Pen, x: float, y: float, apart: float) -> None:
    _open_eyes(pen, x, y + 1, apart)
    for side in (-1, 1):
        pen.line([(x + side * (apart + 6), y - 10), (x + side * (apart - 5), y - 4.5)], 3.4)


def _sleepy_eyes(pen: Pen, x: float, y: float, apart: float) -> None:
    for side in (-1, 1):
        pen.line(arc(x + side * apart, y, 5.2, 4.2, 10, 170), 2.8)


def _surprised_eyes(pen: Pen, x: float, y: float, apart: float) -> None:
    for side in (-1, 1):
        pen.shape(ellipse(x + side * apart, y - 1, 7, 7.6), WHITE, 2.2)
        pen.solid(ellipse(x + side * apart, y - 1, 2.8, 2.8))


_EYES = {
    "happy": _happy_eyes,
    "sad": _sad_eyes,
    "angry": _angry_eyes,
    "sleepy": _sleepy_eyes,
    "surprised": _surprised_eyes,
}
_MOUTHS: dict[str, Callable[[Pen, float, float], None]] = {
    "happy": lambda pen, x, y: pen.shape(arc(x, y - 2, 6.5, 7, 0, 180), MOUTH, 2.2),
    "sad": lambda pen, x, y: pen.line(arc(x, y + 4, 5.5, 5, 200, 340), 2.6),
    "angry": lambda pen, x, y: pen.line([(x - 6, y + 2.5), (x - 2, y - 0.5), (x + 2, y + 2.5), (x + 6, y - 0.5)], 2.6),
    "sleepy": lambda pen, x, y: pen.line(arc(x, y, 3.4, 2, 10, 170), 2.4),
    "surprised": lambda pen, x, y: pen.shape(ellipse(x, y + 2, 3.8, 5), MOUTH, 2.2),
}


def _both(pen: Pen, points, fill: Colour, outline: float | None = None) -> None:
    """A shape and its mirror image."""
    for p in (np.asarray(points, float), mirrored(points)):
        pen.shape(p, fill, outline)


def _body(pen: Pen, colour: Colour, belly: Colour | None = None) -> None:
    """The small body, feet and arms of the animals with a head."""
    _both(pen, ellipse(51, 113, 9.5, 5.5), colour)
    pen.shape(smooth([(64, 78), (82, 88), (86, 104), (76, 114), (52, 114), (42, 104), (46, 88)]), colour)
    pen.shape(ellipse(64, 102, 12.5, 10.5), belly or pale(colour), 0)
    _both(pen, ellipse(42, 95, 5.5, 10, 28), colour)


def _head(pen: Pen, colour: Colour) -> None:
    pen.shape(smooth([(64, 32), (88, 38), (98, 58), (90, 79), (64, 86), (38, 79), (30, 58), (40, 38)]), colour)


def _nose(pen: Pen, y: float, colour: Colour = INK) -> None:
    pen.solid(smooth([(59.5, y - 2), (68.5, y - 2), (64, y + 3)]), colour)


@_subject
def _cat(pen: Pen, colour: Colour, mood: str) -> None:
    tail = [(80, 108), (98, 106), (108, 92), (104, 80)]
    pen.tube(smooth(tail, closed=False), 6.4, colour)
    _body(pen, colour)
    _both(pen, rounded([(33, 56), (33, 14), (62, 38)], 6), colour)
    _both(pen, rounded([(38, 44), (38, 24), (52, 36)], 4), ROSE, 0)
    _head(pen, colour)
    for side in (-1, 1):
        for dy in (-2, 4):
            pen.line([(64 + side * 27, 70 + dy / 2), (64 + side * 43, 68 + dy * 1.6)], 1.9)
    _nose(pen, 69)
    face(pen, mood, 64, 58, 15, 76)


@_subject
def _dog(pen: Pen, colour: Colour, mood: str) -> None:
    _body(pen, colour)
    _head(pen, colour)
    _both(pen, smooth([(44, 34), (32, 34), (20, 52), (18, 74), (28, 82), (36, 70), (38, 50)]), deep(colour))
    pen.shape(ellipse(64, 72, 15, 11.5), WHITE, 0)
    pen.solid(ellipse(64, 66.5, 6, 4.2))
    face(pen, mood, 64, 55, 14, 75)


@_subject
def _rabbit(pen: Pen, colour: Colour, mood: str) -> None:
    _body(pen, colour)
    _both(pen, ellipse(50, 30, 9, 22, -8), colour)
    _both(pen, ellipse(50, 31, 4, 15, -8), ROSE, 0)
    _head(pen, colour)
    _nose(pen, 68, ROSE)
    face(pen, mood, 64, 58, 15, 75)


@_subject
def _bear(pen: Pen, colour: Colour, mood: str) -> None:
    _body(pen, colour)
    _both(pen, ellipse(38, 37, 12, 12), colour)
    _both(pen, ellipse(38, 37, 6, 6), pale(colour), 0)
    _head(pen, colour)
    pen.shape(ellipse(64, 72, 14, 11.5), pale(colour), 0)
    pen.solid(ellipse(64, 66.5, 5.4, 3.8))
    face(pen, mood, 64, 55, 15, 75)


@_subject
def _mouse(pen: Pen, colour: Colour, mood: str) -> None:
    tail = [(82, 110), (100, 112), (106, 102), (114, 104)]
    pen.line(smooth(tail, closed=False), 3.4)
    _body(pen, colour)
    _both(pen, ellipse(30, 38, 20, 20), colour)
    _both(pen, ellipse(30, 38, 12, 12), ROSE, 0)
    pen.shape(smooth([(64, 36), (86, 44), (92, 62), (80, 80), (64, 86), (48, 80), (36, 62), (42, 44)]), colour)
    pen.solid(ellipse(64, 70, 4.4, 3.6), ROSE)
    face(pen, mood, 64, 59, 13, 76)


@_subject
def _frog(pen: Pen, colour: Colour, mood: str) -> None:
    _body(pen, colour)
    _both(pen, ellipse(42, 40, 14.5, 14.5), colour)
    pen.shape(smooth([(64, 44), (92, 48), (104, 64), (92, 80), (64, 85), (36, 80), (24, 64), (36, 48)]), colour)
    _both(pen, ellipse(42, 40, 13, 13), colour, 0)
    _both(pen, ellipse(42, 41, 9.5, 9.5), WHITE, 0)
    for x in (61, 67):
        pen.solid(ellipse(x, 60, 1.3, 1.3))
    face(pen, mood, 64, 41, 22, 70)


@_subject
def _pig(pen: Pen, colour: Colour, mood: str) -> None:
    _body(pen, colour)
    _head(pen, colour)
    _both(pen, rounded([(32, 50), (32, 24), (56, 36)], 7), deep(colour))
    pen.shape(ellipse(64, 67, 12.5, 8.5), pale(colour), 2.2)
    for x in (59.5, 68.5):
        pen.solid(ellipse(x, 67, 2, 3.2))
    face(pen, mood, 64, 53, 17, 80)


@_subject
def _owl(pen: Pen, colour: Colour, mood: str) -> None:
    _both(pen, ellipse(53, 113, 7, 4.5), BEAK)
    pen.shape(
        smooth(
            [
                (64, 30),
                (84, 26),
                (92, 20),
                (96, 44),
                (97, 76),
                (86, 106),
                (64, 114),
                (42, 106),
                (31, 76),
                (32, 44),
                (36, 20),
                (44, 26),
            ]
        ),
        colour,
    )
    pen.shape(ellipse(64, 94, 19, 17), pale(colour), 0)
    for x, y in ((56, 88), (72, 88), (64, 97)):
        pen.line(arc(x, y, 4.4, 4, 20, 160), 2.2, deep(colour))
    _both(pen, smooth([(32, 64), (42, 78), (38, 102), (28, 92), (26, 74)]), deep(colour))
    _both(pen, ellipse(48.5, 53, 16, 16), pale(colour), 2.2)
    pen.shape(rounded([(58, 60), (70, 60), (64, 72)], 3), BEAK, 2.2)
    _EYES[mood](pen, 64, 53, 14.5)


@_subject
def _penguin(pen: Pen, colour: Colour, mood: str) -> None:
    _both(pen, ellipse(52, 114, 10.5, 4.6), BEAK)
    _both(pen, smooth([(35, 62), (26, 78), (18, 96), (28, 98), (38, 88)]), colour)
    pen.shape(
        smooth([(64, 20), (86, 30), (94, 56), (96, 88), (84, 112), (64, 115), (44, 112), (32, 88), (34, 56), (42, 30)]),
        colour,
    )
    pen.shape(
        smooth(
            [
                (64, 44),
                (80, 38),
                (88, 54),
                (82, 70),
                (87, 92),
                (78, 108),
                (64, 110),
                (50, 108),
                (41, 92),
                (46, 70),
                (40, 54),
                (48, 38),
            ]
        ),
        WHITE,
        0,
    )
    pen.shape(rounded([(56, 62), (72, 62), (64, 71)], 3), BEAK, 2.2)
    face(pen, mood, 64, 53, 13, 77)


@_subject
def _elephant(pen: Pen, colour: Colour, mood: str) -> None:
    _body(pen, colour)
    _both(pen, smooth([(42, 38), (22, 30), (8, 46), (12, 72), (28, 82), (42, 74)]), colour)
    _both(pen, smooth([(36, 46), (24, 40), (16, 50), (19, 66), (29, 72), (36, 66)]), ROSE, 0)
    pen.shape(smooth([(64, 30), (86, 36), (93, 56), (84, 76), (64, 82), (44, 76), (35, 56), (42, 36)]), colour)
    _EYES[mood](pen, 64, 54, 15)
    pen.shape(
        smooth([(57, 58), (71, 58), (73, 76), (72, 92), (82, 94), (84, 102), (72, 105), (60, 100), (57, 80)]), colour
    )
    for y in (72, 81):
        pen.line([(62, y), (69, y)], 2.0, deep(colour))


@_subject
def _ghost(pen: Pen, colour: Colour, mood: str) -> None:
    pen.shape(
        np.concatenate(
            [
                arc(64, 56, 34, 36, 180, 360),
                smooth(
                    [
                        (98, 56),
                        (102, 110),
                        (90, 100),
                        (80, 112),
                        (70, 101),
                        (60, 112),
                        (50, 101),
                        (39, 112),
                        (27, 108),
                        (30, 56),
                    ],
                    closed=False,
                ),
            ]
        ),
        mix(colour, WHITE, 0.25),
    )
    _both(pen, ellipse(28, 78, 6, 10, 40), mix(colour, WHITE, 0.25))
    face(pen, mood, 64, 56, 15, 72)


@_subject
def _robot(pen: Pen, colour: Colour, mood: str) -> None:
    metal = (196, 204, 216)
    pen.line([(64, 32), (64, 18)], 3.4)
    pen.shape(ellipse(64, 16, 6, 6), (255, 214, 84))
    _both(pen, box(52, 112, 15, 9, 3), metal)
    _both(pen, box(36, 96, 9, 20, 4), metal)
    pen.shape(box(64, 96, 46, 30, 6), colour)
    pen.shape(box(64, 96, 22, 13, 3), metal, 2.2)
    _both(pen, box(26, 58, 10, 18, 3), metal)
    pen.shape(box(64, 58, 72, 50, 10), colour)
    pen.shape(box(64, 58, 56, 36, 7), (226, 240, 246), 2.2)
    face(pen, mood, 64, 54, 14, 68)


@_subject
def _mushroom(pen: Pen, colour: Colour, mood: str) -> None:
    pen.shape(smooth([(46, 62), (82, 62), (84, 88), (92, 108), (80, 116), (48, 116), (36, 108), (44, 88)]), CREAM)
    pen.shape(smooth([(64, 18), (94, 28), (112, 54), (104, 68), (64, 71), (24, 68), (16, 54), (34, 28)]), colour)
    for x, y, r in ((64, 34, 9), (36, 50, 7.5), (92, 50, 7.5), (64, 57, 5)):
        pen.shape(ellipse(x, y, r, r * 0.85), WHITE, 0)
    face(pen, mood, 64, 88, 12, 101)


@_subject
def _cactus(pen: Pen, colour: Colour, mood: str) -> None:
    _both(pen, smooth([(48, 78), (34, 78), (32, 58), (22, 56), (18, 72), (26, 92), (48, 92)]), colour)
    pen.shape(box(64, 64, 42, 80, 21), colour)
    for x, y in ((54, 36), (74, 36), (64, 44), (52, 86), (76, 86)):
        pen.line([(x, y), (x, y + 4)], 2.2, deep(colour))
    for dx, dy in ((-6, 0), (6, 0), (0, -6), (-4, 4), (4, 4)):
        pen.shape(ellipse(64 + dx, 24 + dy, 4.6, 4.6), ROSE, 1.6)
    pen.solid(ellipse(64, 24, 3.4, 3.4), (255, 220, 90))
    pen.shape(rounded([(38, 94), (90, 94), (84, 117), (44, 117)], 4), (206, 120, 84))
    pen.shape(box(64, 94, 60, 9, 4), (224, 140, 100))
    face(pen, mood, 64, 59, 11, 73)


@_subject
def _star(pen: Pen, colour: Colour, mood: str) -> None:
    turn = np.radians(np.arange(10) * 36 - 90)
    reach = np.where(np.arange(10) % 2 == 0, 52, 30)
    points = np.stack([64 + reach * np.cos(turn), 70 + reach * np.sin(turn)], 1)
    pen.shape(rounded(points, 10), colour)
    face(pen, mood, 64, 66, 13, 80)


@_subject
def _cupcake(pen: Pen, colour: Colour, mood: str) -> None:
    pen.shape(rounded([(34, 72), (94, 72), (86, 117), (42, 117)], 4), CREAM)
    for x in (45, 83):
        pen.line([(x, 82), (x + (64 - x) * 0.12, 112)], 2.2, (226, 196, 150))
    pen.shape(
        smooth(
            [
                (28, 78),
                (22, 66),
                (32, 56),
                (36, 42),
                (50, 38),
                (56, 26),
                (64, 22),
                (72, 26),
                (78, 38),
                (92, 42),
                (96, 56),
                (106, 66),
                (100, 78),
                (64, 80),
            ]
        ),
        colour,
    )
    pen.line(smooth([(38, 57), (62, 62), (88, 56)], closed=False), 2.2, deep(colour))
    pen.line(smooth([(52, 40), (64, 43), (76, 39)], closed=False), 2.2, deep(colour))
    pen.shape(ellipse(64, 18, 7.5, 7.5), (226, 52, 72))
    face(pen, mood, 64, 91, 12, 103)


@_subject
def _octopus(pen: Pen, colour: Colour, mood: str) -> None:
    for points in (
        [(40, 80), (26, 92), (10, 92), (8, 104), (26, 108), (46, 98)],
        [(52, 84), (44, 102), (30, 112), (38, 120), (56, 112), (62, 92)],
    ):
        _both(pen, smooth(points), colour)
    pen.shape(smooth([(64, 84), (70, 100), (68, 116), (60, 116), (58, 100)]), colour)
    pen.shape(smooth([(64, 18), (92, 30), (100, 56), (90, 82), (64, 92), (38, 82), (28, 56), (36, 30)]), colour)
    for x, y, r in ((46, 32, 4), (56, 26, 2.6), (84, 36, 3.4)):
        pen.shape(ellipse(x, y, r, r), pale(colour), 0)
    face(pen, mood, 64, 60, 15, 74)
