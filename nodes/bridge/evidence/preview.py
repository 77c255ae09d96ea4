"""The thumbnail of a saved LoRA: a sample of what was kept, and below it the base and the figures that chose the step.

LoRA managers show it about 200 px wide, so the sample fills it. It has no picture of the training set, as previews
are shared along with LoRAs.
"""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image, ImageDraw

from ....training.record import Run
from ..drawing.fonts import drawable
from ..drawing.image import paste_middle
from ..drawing.palette import FAINT, INK, PAPER
from ..drawing.text_layout import shorten_middle
from .card import enlarged
from .facts import title_of
from .samples import pairs_of

WIDTH, STRIP, GAP = 512, 116, 12  # px
HIGHEST = 1.5  # height of the sample over its width; a higher one is cropped in the middle
TEXT, SMALL = 27, 20  # px


def draw_preview(run: Run, folder: Path | None, name: str = "") -> Image.Image | None:
    """`WIDTH` px wide; None where no sample of the result can be read.

    folder: the run's. name: the LoRA's, where the run has neither a label nor a trigger.
    """
    pair = next((pair for pair in pairs_of(run, folder, frames=1) if pair.kept is not None), None)
    if pair is None or pair.kept is None:
        return None
    sample = _to_width(pair.kept)
    image = Image.new("RGB", (WIDTH, sample.height + STRIP), PAPER)
    image.paste(sample, (0, 0))
    pad = ImageDraw.Draw(image)
    x, y = GAP, sample.height + GAP
    side = STRIP - 2 * GAP
    if pair.base is not None:
        paste_middle(image, enlarged(pair.base, side), (x, y), side)
        pad.rectangle((x, y, x + 48, y + 22), PAPER)
        pad.text((x + 3, y - 2), "base", INK, drawable("base", SMALL)[1])
        x += side + GAP
    lines = ((title_of(run, name), TEXT, INK), *((text, SMALL, FAINT) for text in _figures(run, pair.step)))
    for text, size, colour in lines:
        text, font = drawable(" ".join(text[:200].split()), size)
        pad.text((x, y), shorten_middle(text, font, WIDTH - x - GAP), colour, font)
        y += round(1.2 * size)
    return image


def _figures(run: Run, step: int) -> list[str]:
    """Two lines: the step, and what chose it."""
    best, lines = run.best_after_start, [f"step {step:,} of {len(run.losses):,}"]
    first, start = next(iter(run.held_out), (1, math.nan))
    if best is not None and first == 0 and start > 0 and not run.no_step_improved:
        lines.append(f"held-out loss {100 * (best[1] / start - 1):+.0f} %")
    leak = run.leak_of_result
    if leak is not None and math.isfinite(leak.leak):
        lines[-1] += f", leak {leak.leak:.2f}"
    return lines


def _to_width(picture: Image.Image) -> Image.Image:
    height = max(1, round(picture.height * WIDTH / picture.width))
    kind = Image.Resampling.NEAREST if 4 * picture.width <= WIDTH else Image.Resampling.LANCZOS
    made = picture.resize((WIDTH, height), kind)
    most = round(HIGHEST * WIDTH)
    top = (height - most) // 2
    return made if height <= most else made.crop((0, top, WIDTH, top + most))
