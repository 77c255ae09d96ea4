"""Draws the pictures of the help pages of Fill Masked and Match Colors with the nodes' own functions.

    COMFYUI_PATH=... python tests/demo/help_pictures.py

The pack imports ComfyUI's modules, so the path of a ComfyUI is needed; no server is started and no model is loaded.
"""

from __future__ import annotations

import sys
from pathlib import Path

import landscape
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "js" / "docs" / "img"
WIDTH, HEIGHT = 336, 224  # px of one picture
GAP, LABEL = 10, 26
PAPER, INK = (250, 249, 246), (32, 33, 38)


def tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).float()[None] / 255


def picture(image: torch.Tensor) -> Image.Image:
    return Image.fromarray((image[0].clamp(0, 1) * 255).round().to(torch.uint8).numpy())


def sheet(rows: list[list[tuple[str, Image.Image]]]) -> Image.Image:
    """Labelled pictures in rows; each is fitted into WIDTH x HEIGHT px."""
    columns = max(len(row) for row in rows)
    size = (columns * (WIDTH + GAP) + GAP, len(rows) * (HEIGHT + LABEL + GAP) + GAP)
    page = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(16)
    for line, row in enumerate(rows):
        for column, (label, shown) in enumerate(row):
            x, y = GAP + column * (WIDTH + GAP), GAP + line * (HEIGHT + LABEL + GAP)
            pen.text((x, y), label, fill=INK, font=font)
            scale = min(WIDTH / shown.width, HEIGHT / shown.height)
            fitted = shown.resize((round(shown.width * scale), round(shown.height * scale)), Image.LANCZOS)
            page.paste(fitted, (x + (WIDTH - fitted.width) // 2, y + LABEL + (HEIGHT - fitted.height) // 2))
    return page


def fills() -> Image.Image:
    from bespoke.nodes.inpaint.fill.contents import FILLS
    from bespoke.nodes.inpaint.fill.fill import FillSettings, fill_masked

    drawn = tensor(landscape.draw(WIDTH * 2, HEIGHT * 2))
    mask = torch.from_numpy(landscape.balloon_mask(WIDTH * 2, HEIGHT * 2))[None]
    hatched = torch.where(mask[..., None] > 0, 0.35 * drawn + 0.65, drawn)
    named = {fill: fill_masked(drawn, mask, FillSettings(fill, seed=2))[0] for fill in FILLS}
    wide = WIDTH // 2
    small = tensor(landscape.draw(WIDTH, HEIGHT))
    borders = {fill: fill_masked(small, None, FillSettings(fill, right=wide, seed=2))[0] for fill in FILLS}
    cells = [("the picture", drawn), ("the mask", hatched), *named.items()]
    cells += [(f"new border: {fill}", borders[fill]) for fill in ("carry", "noise")]
    shown = [(label, picture(image)) for label, image in cells]
    return sheet([shown[:3], shown[3:6], shown[6:]])


def matches() -> Image.Image:
    from bespoke.nodes.inpaint.colors.match import METHODS, MatchSettings, match_colors

    drawn = tensor(landscape.draw(WIDTH * 2, HEIGHT * 2))
    side = torch.linspace(0, 1, WIDTH * 2)[None, None, :, None]
    drifted = 0.86 * drawn + torch.tensor([0.07, -0.02, 0.08]) * (0.4 + 1.2 * side)
    named = [(method, match_colors(drifted, drawn, None, MatchSettings(method))[0]) for method in METHODS]
    cells = [("the reference", drawn), ("drifted, more on the right", drifted.clamp(0, 1)), *named]
    difference = [(f"{label}: what is left, x 8", 0.5 + 8 * (image - drawn)) for label, image in cells[1:]]
    shown = [(label, picture(image)) for label, image in cells + difference[-3:]]
    return sheet([shown[:2], shown[2:5], shown[5:]])


def main() -> None:
    sys.path.insert(0, str(ROOT / "tests" / "lib"))
    import importlib.util

    spec = importlib.util.spec_from_file_location("conftest", ROOT / "tests" / "conftest.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))  # loads the pack under its fixed name
    import inprocess

    inprocess.start_comfyui()
    OUT.mkdir(exist_ok=True)
    for name, page in (("fill_masked", fills()), ("match_colors", matches())):
        page.save(OUT / f"{name}.jpg", quality=86, optimize=True)
        print(f"{name}.jpg", page.size)


if __name__ == "__main__":
    main()
