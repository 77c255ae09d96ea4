"""A table of numbers as a picture: blocks down, projections (or pairs of LoRAs) across, the number in every cell."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

INK, FAINT, PAPER, EMPTY = (28, 28, 32), (122, 120, 114), (250, 249, 246), (238, 236, 230)
# From light to dark: readable without colour, too.
RISING = ((244, 239, 226), (247, 206, 140), (229, 128, 66), (168, 50, 58), (74, 18, 52))
# Blue and orange, which every kind of colour blindness tells apart; nothing is the paper's own white.
SIGNED = ((18, 62, 122), (74, 136, 190), (250, 249, 246), (232, 150, 70), (150, 60, 14))
CELL, ROW, GAP, MARGIN = 66, 26, 10, 24
SHORT = {"query": "q", "key": "k", "value": "v", "feed-forward": "ff"}
PLAIN = (226, 223, 215)


@dataclass(frozen=True)
class Scale:
    """Numbers to colours: `place` maps a number to 0..1 along `colours`; `ticks` are written under the bar."""

    colours: tuple[tuple[int, int, int], ...]
    place: Callable[[float], float]
    ticks: tuple[tuple[float, str], ...]  # (where from 0 to 1, words)
    caption: str

    def colour(self, number: float) -> tuple[int, int, int]:
        return blend(self.colours, self.place(number))


def blend(colours: Sequence[tuple[int, int, int]], at: float) -> tuple[int, int, int]:
    """The colour at 0..1 along evenly spaced ones."""
    at = min(max(at, 0.0), 1.0) * (len(colours) - 1)
    i = min(int(at), len(colours) - 2)
    return tuple(round(a + (b - a) * (at - i)) for a, b in zip(colours[i], colours[i + 1], strict=True))


@dataclass
class Table:
    """What is drawn. columns: (group, name), neighbours of one group share a heading; cells: by (row, column name)."""

    title: str
    rows: list[str]
    columns: list[tuple[str, str]]
    cells: dict[tuple[str, str], float]
    scale: Scale
    write: Callable[[float], str]
    under: tuple[str, ...] = ()  # lines below the title, wrapped where they are too long
    apart: set[str] = field(default_factory=set)  # rows that get a little space above them, such as totals
    gaps: set[str] = field(default_factory=set)  # columns that get a little space before them
    plain: set[str] = field(default_factory=set)  # rows and columns without colours: not on the scale of the others
    cell: int = CELL  # px


def font(size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def clipped(text: str, width: float, size: float) -> str:
    """The text, shortened in its middle where it is wider than `width` px."""
    if font(size).getlength(text) <= width:
        return text
    keep = len(text) - 1
    while keep > 2 and font(size).getlength(text[: keep // 2] + "..." + text[-(keep // 2) :]) > width:
        keep -= 1
    return text[: keep // 2] + "..." + text[-(keep // 2) :]


def wrapped(text: str, width: float, size: float) -> list[str]:
    """The text in lines of at most `width` px, broken between words."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font(size).getlength(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def fixed(top: float) -> Callable[[float], str]:
    """How to write numbers of 0 to `top` in few digits: as many decimals as give `top` three figures."""
    decimals = 2 - math.floor(math.log10(top)) if top > 0 else 2
    return (lambda v: f"{v:.1e}") if decimals > 4 else (lambda v: f"{v:.{min(max(decimals, 0), 3)}f}")


def draw(table: Table) -> Image.Image:
    """The picture, as large as the table needs."""
    left = MARGIN + max(60, *(int(font(14).getlength(row)) for row in table.rows)) + 14
    xs, x, group = [], left, None
    for kind, name in table.columns:
        if xs and (kind != group or name in table.gaps):
            x += GAP
        xs.append(x)
        x, group = x + table.cell, kind
    right = x
    width = max(right + MARGIN, 560)
    under = [line for text in table.under for line in wrapped(text, width - 2 * MARGIN, 14)]
    head = 52 + 19 * len(under) + 12
    top = head + 46
    ys, y = [], top
    for row in table.rows:
        if row in table.apart and ys:
            y += GAP
        ys.append(y)
        y += ROW
    caption = wrapped(table.scale.caption, width - MARGIN - left, 12)
    image = Image.new("RGB", (width, y + 58 + 16 * len(caption)), PAPER)
    pad = ImageDraw.Draw(image)
    pad.text((MARGIN, 20), clipped(table.title, width - 2 * MARGIN, 20), INK, font(20))
    for i, line in enumerate(under):
        pad.text((MARGIN, 50 + 19 * i), line, FAINT, font(14))
    _headings(pad, table, xs, head)
    for row, y0 in zip(table.rows, ys, strict=True):
        pad.text((left - 12, y0 + ROW / 2), row, INK, font(14), anchor="rm")
        for (_, name), x0 in zip(table.columns, xs, strict=True):
            box = (x0, y0, x0 + table.cell - 2, y0 + ROW - 2)
            number = table.cells.get((row, name))
            if number is None:
                pad.rectangle(box, EMPTY)
                continue
            colour = PLAIN if {row, name} & table.plain else table.scale.colour(number)
            pad.rectangle(box, colour)
            dark = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] < 140
            words = table.write(number)
            pad.text(
                ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), words, PAPER if dark else INK, font(13), anchor="mm"
            )
    _bar(pad, table.scale, left, y + 18, min(right - left, 360))
    for i, line in enumerate(caption):
        pad.text((left, y + 52 + 16 * i), line, FAINT, font(12))
    return image


def _headings(pad: ImageDraw.ImageDraw, table: Table, xs: list[int], head: int) -> None:
    groups: list[tuple[str, int, int]] = []
    for (kind, _), x in zip(table.columns, xs, strict=True):
        if groups and groups[-1][0] == kind and kind:
            groups[-1] = (kind, groups[-1][1], x + table.cell)
        else:
            groups.append((kind, x, x + table.cell))
    for kind, start, stop in groups:
        if kind:
            pad.text(((start + stop) / 2, head + 8), clipped(kind, stop - start, 14), INK, font(14), anchor="mm")
            pad.line((start, head + 20, stop - 3, head + 20), FAINT, 1)
    for (_, name), x in zip(table.columns, xs, strict=True):
        words = name.split()[-1]
        words = SHORT.get(words, words)
        pad.text((x + table.cell / 2 - 1, head + 33), clipped(words, table.cell - 4, 13), FAINT, font(13), anchor="mm")


def _bar(pad: ImageDraw.ImageDraw, scale: Scale, left: int, top: int, width: int) -> None:
    for i in range(width):
        pad.line((left + i, top, left + i, top + 9), blend(scale.colours, i / (width - 1)))
    for at, words in scale.ticks:
        x = left + at * (width - 1)
        pad.line((x, top + 9, x, top + 13), FAINT)
        pad.text((x, top + 16), words, FAINT, font(12), anchor="ma")
