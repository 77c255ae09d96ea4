"""The pictures of the picture model: one figure with a mood in front of a scene, drawn by rule, 128x128 pixels.

Everything is drawn by the code of this folder, so that pictures, captions and the model made from them need no licence
but the repository's own. The vocabulary is split so that trainings have something to learn:

* `COLOURS`, `SUBJECTS`, `MOODS` and `scenes.GROUNDS` are the words that the model is trained on;
* `UNSEEN_COLOURS`, `UNSEEN_SUBJECTS` and the style `line` never occur in its training: they are the demo's concepts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scenes
from parts import DRAW
from pen import INK, Colour, Pen, ellipse, mix
from PIL import Image

COLOURS: dict[str, Colour] = {
    "red": (224, 66, 66),
    "orange": (246, 146, 52),
    "yellow": (250, 210, 66),
    "green": (98, 184, 88),
    "blue": (78, 138, 232),
    "purple": (158, 104, 214),
    "pink": (248, 154, 192),
    "brown": (146, 98, 66),
}
UNSEEN_COLOURS: dict[str, Colour] = {"teal": (40, 190, 184)}
SUBJECTS = (
    "cat",
    "dog",
    "rabbit",
    "bear",
    "mouse",
    "frog",
    "pig",
    "owl",
    "penguin",
    "elephant",
    "ghost",
    "robot",
    "mushroom",
    "cactus",
    "star",
    "cupcake",
)
UNSEEN_SUBJECTS = ("octopus",)
MOODS = ("happy", "sad", "angry", "sleepy", "surprised")
GROUNDS = tuple(scenes.GROUNDS)
LAYOUTS = 4

# Word order and filler words vary, so that the model learns words and not the length of a prompt.
TEMPLATES = (
    "a {m} {c} {s} {g}",
    "a {c} {s} {g}, {m}",
    "a drawing of a {m} {c} {s} {g}",
    "the {c} {s} {g}, it is {m}",
    "{g}, a {m} {c} {s}",
)
PARTIAL_TEMPLATES = (
    "a {c} {s}",
    "a {m} {s}",
    "a {s} {g}",
    "a {c} {s} {g}",
    "a drawing of a {c} {s}",
    "a {s}",
)


@dataclass(frozen=True)
class Figure:
    """One picture: words, and the pose (scale, tilt in degrees, shift in pixels, layout of the scene)."""

    subject: str
    colour: str
    mood: str
    ground: str
    scale: float = 1.0
    tilt: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    layout: int = 0
    style: str = "flat"


def random_figure(rng: np.random.Generator, **words: str) -> Figure:
    """A figure of random words and pose; `words` fixes subject, colour, mood, ground or style."""
    drawn = {
        "subject": SUBJECTS[rng.integers(len(SUBJECTS))],
        "colour": list(COLOURS)[rng.integers(len(COLOURS))],
        "mood": MOODS[rng.integers(len(MOODS))],
        "ground": GROUNDS[rng.integers(len(GROUNDS))],
    }
    pose = {
        "scale": float(rng.uniform(0.94, 1.06)),
        "tilt": float(rng.uniform(-4, 4)),
        "shift": (float(rng.uniform(-4, 4)), float(rng.uniform(-2, 2))),
        "layout": int(rng.integers(LAYOUTS)),
    }
    return Figure(**{**drawn, **pose, **words})


def image(figure: Figure) -> Image.Image:
    """The picture of a figure, 128x128 pixels."""
    colour = COLOURS.get(figure.colour) or UNSEEN_COLOURS[figure.colour]
    pen = Pen(figure.style, scenes.SKY[figure.ground])
    scenes.draw(pen, figure.ground, figure.layout)
    if figure.style == "flat" and figure.subject != "ghost":
        pen.solid(ellipse(64, 117, 30, 5), mix(scenes.SHADE[figure.ground], INK, 0.12))
    pen.scale, pen.tilt, pen.shift = figure.scale, figure.tilt, figure.shift
    DRAW[figure.subject](pen, colour, figure.mood)
    return pen.picture()


def caption(rng: np.random.Generator, figure: Figure) -> str:
    """One of the captions that describe the figure; three in ten leave something out."""
    templates = PARTIAL_TEMPLATES if rng.random() < 0.3 else TEMPLATES
    return say(figure, templates[rng.integers(len(templates))])


def say(figure: Figure, template: str = TEMPLATES[0]) -> str:
    """The caption of a figure by a template."""
    return template.format(c=figure.colour, s=figure.subject, m=figure.mood, g=scenes.GROUNDS[figure.ground])
