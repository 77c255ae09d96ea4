"""The strip of an evidence card that shows what a run was trained on."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from ....training.images import TrainingImage, by_picture
from ..drawing.fonts import drawable
from ..drawing.image import paste_middle, scaled
from ..drawing.palette import FAINT, INK, LINE, PAPER, WARNING
from ..drawing.text_layout import fit_lines

WIDTH = 1368  # px
COLUMNS, ROWS, GAP = 12, 2, 10  # pictures in a row, rows, px between them
SIDE = (WIDTH - (COLUMNS - 1) * GAP) // COLUMNS  # px of a picture
PAIR = 2 * SIDE + GAP  # px of a source and its result
TEXT, LINE_HEIGHT, LINES = 13, 16, 2  # px, px, lines of a caption
HEADING = 34  # px


def draw_training_sheet(trained: Sequence[TrainingImage], held_out: Sequence[TrainingImage]) -> Image.Image | None:
    """The first pictures, without mirrored and repeated copies, each with its caption; None without any pixels.

    A second picture stands to the left of its picture, and takes the place of another one.
    Trained ones come first; a held-out one has a frame. `WIDTH` px wide.
    """
    one, other = _distinct(trained), _distinct(held_out)
    shown = [(item, False) for item in one] + [(item, True) for item in other]
    shown = [(item, is_held_out) for item, is_held_out in shown if item.pixels.shape[-1] == 3]
    if not shown:
        return None
    cell, columns = (SIDE, COLUMNS) if all(item.control is None for item, _ in shown) else (PAIR, COLUMNS // 2)
    room = columns * ROWS
    if other and len(shown) > room:  # some of each
        keep = min(len(other), max(2, room // 6))
        shown = shown[: room - keep] + shown[len(one) : len(one) + keep]
    shown = shown[:room]
    rows = -(-len(shown) // columns)
    sheet = Image.new("RGB", (WIDTH, HEADING + rows * (SIDE + LINES * LINE_HEIGHT + GAP + 4)), PAPER)
    pad = ImageDraw.Draw(sheet)
    text, font = drawable(_heading(len(one), len(other), len(shown)), 19)
    pad.text((0, 2), text, INK, font)
    for i, (item, is_held_out) in enumerate(shown):
        x, y = i % columns * (cell + GAP), HEADING + i // columns * (SIDE + LINES * LINE_HEIGHT + GAP + 4)
        wide = SIDE if item.control is None else cell
        pad.rectangle((x, y, x + wide - 1, y + SIDE - 1), LINE)
        pictures = [each[0] if item.is_clip else each for each in (item.control, item.pixels) if each is not None]
        for number, pixels in enumerate(pictures):
            at = x + number * (wide - SIDE), y
            paste_middle(sheet, scaled(Image.fromarray(pixels.contiguous().numpy()), SIDE), at, SIDE)
        if is_held_out:
            pad.rectangle((x, y, x + wide - 1, y + SIDE - 1), outline=WARNING, width=4)
        text, font = drawable(item.caption or "(no caption)", TEXT)
        for number, line in enumerate(fit_lines(text, font, wide, LINES)):
            pad.text((x, y + SIDE + 3 + number * LINE_HEIGHT), line, FAINT, font)
    return sheet


def _heading(trained: int, held_out: int, shown: int) -> str:
    text = f"Trained on {trained:,} picture{'' if trained == 1 else 's'}"
    if held_out:
        text += f"; {held_out:,} held out (framed), which only measure"
    return text + (f". The first {shown} are shown" if shown < trained + held_out else "")


def _distinct(items: Sequence[TrainingImage]) -> list[TrainingImage]:
    return [items[own[0]] for own in by_picture(items)]
