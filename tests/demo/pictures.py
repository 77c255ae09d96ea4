"""Draws the demo's inputs into ComfyUI's input folder: training sets, a picture and a mask.

    python tests/demo/pictures.py INPUT_FOLDER

* `bespoke_teal_style/`: 12 sprites in teal, a colour that the small model has never seen, each with a caption.
* `bespoke_pink/`: 8 sprites in pink, a colour that it knows; the captions have `{word}` for the new word.
* `bespoke_teal_word/`: the pictures of the first set, with `{word}` for teal. `bespoke_teal.png`: one of them.
* `bespoke_heart/`: 12 hearts, a shape that it has never seen. `bespoke_shapes/`: 12 of the shapes that it knows.
* `bespoke_pairs/`: 12 sprites in green, each with the same in another colour as its source, `01-control.png`.
* `bespoke_picture.png`: a red circle on white. `bespoke_mask.png`: white around and on the circle, black elsewhere.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "small_model"))

import sprites

TEAL, PINK, PICTURE, MASK = "bespoke_teal_style", "bespoke_pink", "bespoke_picture.png", "bespoke_mask.png"
LARGE, SMALL = "bespoke_large", "bespoke_small"  # pairs
# Radii in cells. The small model's own circles lie between them (5.8 in the mean), so that both directions are to be
# learned; strength 2 has room up to 8, the picture's border.
SIZES = {LARGE: 6.5, SMALL: 5.0}
TEAL_WORD, ONE, HEART, CLASS = "bespoke_teal_word", "bespoke_teal.png", "bespoke_heart", "bespoke_shapes"
PAIRS, EDIT = "bespoke_pairs", "make it green"
SEED = 7
FIGURES = "picture"  # in the name of the picture model's checkpoint


def are_figures(checkpoint: Path | None) -> bool:
    """Whether a checkpoint is the picture model, by its name: it draws figures, and the small model sprites."""
    return checkpoint is not None and FIGURES in Path(checkpoint).name


def make(folder: Path, checkpoint: Path | None = None) -> None:
    """Draw everything into `folder`; existing files are written again with the same content.

    checkpoint: the model for which it is drawn; without one the small model.
    """
    if are_figures(checkpoint):
        import figure_pictures  # which takes the names of the files from here

        figure_pictures.make(folder)
        return
    rng = np.random.default_rng(SEED)
    teal = sprites.training_set(rng, 12, colour="teal")
    _write_set(folder / TEAL, teal)
    _write_set(folder / TEAL_WORD, [(image, text.replace("teal", "{word}")) for image, text in teal])
    teal[0][0].save(folder / ONE)
    _write_set(
        folder / PINK,
        [(image, text.replace("pink", "{word}")) for image, text in sprites.training_set(rng, 8, colour="pink")],
    )
    _write_set(folder / HEART, sprites.training_set(rng, 12, shape="heart"))
    _write_set(folder / CLASS, sprites.training_set(rng, 12))
    for name, radius in SIZES.items():
        _write_set(folder / name, [(sprites.image(each), "a circle") for each in sized(radius)])
    _write_pairs(folder / PAIRS)
    circle = sprites.Sprite("red", "circle", "white", cx=8.0, cy=8.0, radius=5.0)
    sprites.image(circle).save(folder / PICTURE)
    # The circle's box and one cell more on each side, on the grid of cells.
    low, high = ((8 - 6) * sprites.CELL, (8 + 6) * sprites.CELL)
    mask = np.zeros((sprites.CELLS * sprites.CELL,) * 2, np.uint8)
    mask[low:high, low:high] = 255
    Image.fromarray(mask).convert("RGB").save(folder / MASK)


def sized(radius: float) -> list[sprites.Sprite]:
    """Eight circles of one size, in cells, in the middle as the small model draws them; those of two are pairs."""
    colours, grounds = list(sprites.COLOURS), list(sprites.GROUNDS)
    return [sprites.Sprite(colours[i % len(colours)], "circle", grounds[i % 2], 8.0, 8.0, radius) for i in range(8)]


def _write_set(folder: Path, pairs) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, (image, caption) in enumerate(pairs, 1):
        image.save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(caption + "\n", "utf-8")


def _write_pairs(folder: Path) -> None:
    rng, colours = np.random.default_rng(SEED), [name for name in sprites.COLOURS if name != "green"]
    kinds = [
        sprites.random_sprite(rng, colours[i % 6], sprites.SHAPES[i // 2 % 6], list(sprites.GROUNDS)[i % 2])
        for i in range(12)
    ]
    _write_set(folder, [(sprites.image(replace(kind, colour="green")), EDIT) for kind in kinds])
    for i, kind in enumerate(kinds, 1):
        sprites.image(kind).save(folder / f"{i:02}-control.png")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
