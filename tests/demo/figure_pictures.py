"""The demo's inputs for the picture model: the files of `pictures.py` under the same names, with its figures.

The concepts are those that the picture model has never seen: the colour teal and the octopus. What the prompts of the
example workflows say then is `FIGURE_TEXTS`.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pictures
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "picture_model"))

import figures

SEED = 7
GROWN, SHRUNK = 1.16, 0.74  # scales of the pairs of the slider
# What the small model is told in `small_values.VALUES`: what the picture model is told instead. Texts not named
# here mean the same to both.
FIGURE_TEXTS = {
    "a circle": "a cat",
    "a circle on white": "a happy cat in a meadow",
    "a red circle": "a red cat",
    "a blue circle": "a blue cat",
    "a teal cross on white": "a happy teal rabbit in a meadow",
    "a teal circle on white": "a happy teal cat in a meadow",
    "a teal square on white": "a surprised teal robot at night",
    "a teal heart on white": "a happy teal octopus on the beach",
    "a red heart on white": "a happy red octopus on the beach",
    "a red circle on white": "a happy red cat in a meadow",
    "a blue square on white": "a sleepy blue owl in the snow",
    "a green cross on white": "an angry green frog in a meadow",
    "a embedding:my-word heart on white": "a happy embedding:my-word octopus on the beach",
    "a": "a happy",
    "circle on white": "cat in a meadow",
}


def make(folder: Path) -> None:
    """Draw everything into `folder`; existing files are written again with the same content."""
    rng = np.random.default_rng(SEED)
    teal = _set(rng, 12, colour="teal")
    _write(folder / pictures.TEAL, teal)
    _write(folder / pictures.TEAL_WORD, [(image, text.replace("teal", "{word}")) for image, text in teal])
    teal[0][0].save(folder / pictures.ONE)
    pink = _set(rng, 8, colour="pink")
    _write(folder / pictures.PINK, [(image, text.replace("pink", "{word}")) for image, text in pink])
    _write(folder / pictures.HEART, _set(rng, 12, subject="octopus"))
    _write(folder / pictures.CLASS, _set(rng, 12))
    cats = [figures.random_figure(rng, subject="cat") for _ in range(8)]
    for name, scale in ((pictures.LARGE, GROWN), (pictures.SMALL, SHRUNK)):
        _write(folder / name, [(figures.image(replace(each, scale=scale)), "a cat") for each in cats])
    _write_pairs(folder / pictures.PAIRS, rng)
    figures.image(figures.Figure("cat", "red", "happy", "meadow")).save(folder / pictures.PICTURE)
    mask = np.zeros((128, 128), np.uint8)
    mask[16:112, 16:112] = 255
    Image.fromarray(mask).convert("RGB").save(folder / pictures.MASK)


def _set(rng: np.random.Generator, count: int, **words: str) -> list[tuple[Image.Image, str]]:
    """Figures with whole captions, so that a colour stands in each."""
    drawn = [figures.random_figure(rng, **words) for _ in range(count)]
    return [(figures.image(figure), figures.say(figure)) for figure in drawn]


def _write(folder: Path, pairs: list[tuple[Image.Image, str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, (image, text) in enumerate(pairs, 1):
        image.save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(text + "\n", "utf-8")


def _write_pairs(folder: Path, rng: np.random.Generator) -> None:
    others = [name for name in figures.COLOURS if name != "green"]
    drawn = [figures.random_figure(rng, colour=others[i % len(others)]) for i in range(12)]
    _write(folder, [(figures.image(replace(figure, colour="green")), pictures.EDIT) for figure in drawn])
    for i, figure in enumerate(drawn, 1):
        figures.image(figure).save(folder / f"{i:02}-control.png")
