"""The pictures of the small model: one coloured shape on a plain ground, 16x16 cells of 8x8 pixels.

The vocabulary is split so that trainings have something to learn:

* `COLOURS`, `SHAPES`, `GROUNDS` are the words that the small model is trained on;
* `UNSEEN_COLOURS`, `UNSEEN_SHAPES` never occur in its training: they are the concepts for LoRA;
* a test can hide a known word and learn it again (textual inversion), with the word as the reference.

`judge.py` judges pictures and shares no code with the drawing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

CELLS = 16  # cells a side
CELL = 8  # pixels a side of one cell: one latent

COLOURS = {
    "red": (214, 40, 48),
    "green": (48, 162, 62),
    "blue": (48, 84, 214),
    "yellow": (240, 208, 48),
    "purple": (140, 60, 184),
    "orange": (242, 128, 30),
    "pink": (244, 140, 190),
}
UNSEEN_COLOURS = {"teal": (28, 190, 190)}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
UNSEEN_SHAPES = ("heart",)
GROUNDS = {"black": (24, 26, 38), "white": (244, 241, 232)}

# The first six colours and the six shapes are the grid of tests/comfy/test_small_model.py.
GRID_COLOURS = tuple(COLOURS)[:6]

# Word order and filler words vary, so that the model learns words and not the length of a prompt.
TEMPLATES = (
    "a {c} {s} on {g}",
    "{c} {s}, {g} background",
    "a picture of a {c} {s} on {g}",
    "a photo of a {c} {s}, {g} background",
    "the {c} {s} on {g}",
    "{g} background, a {c} {s}",
    "a {s} in {c} on {g}",
)
PARTIAL_TEMPLATES = (
    "a {c} {s}",
    "{c} {s}",
    "a photo of a {c} {s}",
    "a picture of a {s}",
    "a {s} on {g}",
    "a photo of a {c} shape",
    "{c}",
    "{s}",
)


@dataclass(frozen=True)
class Sprite:
    """One picture: colour, shape and ground by name; centre and radius in cells."""

    colour: str
    shape: str
    ground: str
    cx: float
    cy: float
    radius: float


def random_sprite(rng: np.random.Generator, colour: str, shape: str, ground: str, anywhere: bool = False) -> Sprite:
    """A sprite of the given kind in one of two sizes in the middle, or at a random size and place within the
    picture."""
    if not anywhere:
        return Sprite(colour, shape, ground, 8.0, 8.0, float(rng.choice((5.0, 6.0))))
    radius = rng.choice((4.0, 5.0, 5.5, 6.0))
    reach = int(8.0 - radius)
    cx, cy = (8.0 + rng.integers(-reach, reach + 1, 2)).tolist()  # between cells, so every shape is symmetric
    return Sprite(colour, shape, ground, cx, cy, float(radius))


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether points (in units of the radius, y down) lie inside the unit shape."""
    box = (np.abs(x) <= 1) & (np.abs(y) <= 1)
    if shape == "circle":
        return x**2 + y**2 <= 1
    if shape == "square":
        return (np.abs(x) <= 0.88) & (np.abs(y) <= 0.88)
    if shape == "triangle":
        return box & (np.abs(x) <= (y + 1) / 2 + 0.05)
    if shape == "cross":
        return box & ((np.abs(x) <= 0.34) | (np.abs(y) <= 0.34))
    if shape == "ring":
        return (x**2 + y**2 <= 1) & (x**2 + y**2 >= 0.27)
    if shape == "diamond":
        return np.abs(x) + np.abs(y) <= 1.02
    if shape == "heart":
        lobes = (np.abs(x) - 0.5) ** 2 + (y + 0.45) ** 2 <= 0.30
        point = (y >= -0.42) & (np.abs(x) <= 1.0 - (y + 0.42) * 0.72)
        return box & (lobes | point)
    raise ValueError(f"no shape {shape!r}")


def cells(sprite: Sprite) -> np.ndarray:
    """The sprite as [CELLS, CELLS, 3] uint8, one value a cell."""
    centre = np.arange(CELLS) + 0.5
    x, y = np.meshgrid((centre - sprite.cx) / sprite.radius, (centre - sprite.cy) / sprite.radius)
    colour = COLOURS.get(sprite.colour) or UNSEEN_COLOURS[sprite.colour]
    inside = _inside(sprite.shape, x, y)[..., None]
    return np.where(inside, np.uint8(colour), np.uint8(GROUNDS[sprite.ground]))


def image(sprite: Sprite) -> Image.Image:
    """The sprite as a picture of 128x128 pixels."""
    return Image.fromarray(cells(sprite)).resize((CELLS * CELL,) * 2, Image.NEAREST)


def caption(rng: np.random.Generator, sprite: Sprite) -> str:
    """One of the captions that describe the sprite; three in ten leave something out."""
    templates = PARTIAL_TEMPLATES if rng.random() < 0.3 else TEMPLATES
    return templates[rng.integers(len(templates))].format(c=sprite.colour, s=sprite.shape, g=sprite.ground)


def training_set(rng: np.random.Generator, n: int, colour: str | None = None, shape: str | None = None):
    """n (image, caption) pairs that share a colour or a shape; the rest varies over the known words."""
    pairs = []
    for i in range(n):
        sprite = random_sprite(
            rng,
            colour or list(COLOURS)[i % len(COLOURS)],
            shape or SHAPES[i % len(SHAPES)],
            list(GROUNDS)[i // 2 % 2],
        )
        pairs.append((image(sprite), f"a {sprite.colour} {sprite.shape} on {sprite.ground}"))
    return pairs
