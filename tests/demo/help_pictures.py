"""Draws the pictures of the help pages of Crop to Mask, Fill Masked and Match Colors with the nodes' own functions.

    COMFYUI_PATH=... BESPOKE_CACHE=... python tests/demo/help_pictures.py [crop fill_masked match_colors]

The pack imports ComfyUI's modules, so the path of a ComfyUI is needed; no server is started. For `crop` the small model
paints, which takes a minute; the others load no model.
"""

from __future__ import annotations

import asyncio
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


def sheet(rows: list[list[tuple[str, Image.Image]]], height: int = HEIGHT) -> Image.Image:
    """Labelled pictures in rows; each is fitted into WIDTH x height px."""
    columns = max(len(row) for row in rows)
    size = (columns * (WIDTH + GAP) + GAP, len(rows) * (height + LABEL + GAP) + GAP)
    page = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(16)
    for line, row in enumerate(rows):
        for column, (label, shown) in enumerate(row):
            x, y = GAP + column * (WIDTH + GAP), GAP + line * (height + LABEL + GAP)
            pen.text((x, y), label, fill=INK, font=font)
            scale = min(WIDTH / shown.width, height / shown.height)
            fitted = shown.resize((round(shown.width * scale), round(shown.height * scale)), Image.LANCZOS)
            page.paste(fitted, (x + (WIDTH - fitted.width) // 2, y + LABEL + (height - fitted.height) // 2))
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


def crops() -> Image.Image:
    """A red circle 3 latent cells wide repainted as a green cross, in place and with the crop, by the same noise.

    Of two draws of `bench_crop` the first whose crop obeys the prompt is shown, which most do.
    """
    import bench_crop
    import inprocess

    bench_crop.BATCH = 2  # of its 6 pictures
    with torch.inference_mode():
        images, masks = bench_crop.small_shapes(0)
        _, plain, better = bench_crop.both_ways(inprocess.call_node, small_model(), 0, "green", "cross")
        seen = [bench_crop.judged(image, mask) for image, mask in zip(better, masks, strict=True)]
        i = next(n for n, found in enumerate(seen) if (found.colour, found.shape) == ("green", "cross"))
        *_, preview, report = inprocess.call_node(
            "BespokeCropToMask",
            image=images[i : i + 1],
            mask=masks[i : i + 1],
            resolution=128,
            context=bench_crop.CONTEXT,
        )
    # Without its legend, whose letters would be too small here: it stands in the label.
    cut = picture(preview).crop((0, 0, preview.shape[2], preview.shape[2]))
    size = report.splitlines()[-1].split(": ")[1].split(" (")[0].replace(" at", ", at")
    cells = [
        (f"the crop: {size.split(',')[0]} as 128x128 px", cut),
        ("24 px repainted in place", picture(plain[i : i + 1])),
        ("repainted in the crop and put back", picture(better[i : i + 1])),
    ]
    return sheet([[(label, shown.resize((4 * WIDTH,) * 2, Image.NEAREST)) for label, shown in cells]], WIDTH)


def small_model() -> tuple:
    """(model, clip, vae) of the small model."""
    import os

    import comfy.sd
    import model

    made = Path(os.environ["BESPOKE_CACHE"]) / f"bespoke-small-{model.RECIPE}.safetensors"
    return comfy.sd.load_checkpoint_guess_config(str(made))[:3]


PICTURES = {"crop": crops, "fill_masked": fills, "match_colors": matches}


def main() -> None:
    sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("lib", "bench", "server", "small_model")]
    import importlib.util

    spec = importlib.util.spec_from_file_location("conftest", ROOT / "tests" / "conftest.py")
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)  # loads the pack under its fixed name
    import inprocess

    inprocess.start_comfyui()
    import nodes

    asyncio.run(conftest._load_all(nodes))
    OUT.mkdir(exist_ok=True)
    for name in sys.argv[1:] or PICTURES:
        page = PICTURES[name]()
        page.save(OUT / f"{name}.jpg", quality=86, optimize=True)
        print(f"{name}.jpg", page.size)


if __name__ == "__main__":
    main()
