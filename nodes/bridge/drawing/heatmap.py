"""A table of numbers as a picture: a coloured cell for each number, with the number written in it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image, ImageDraw

from .fonts import builtin_font
from .palette import EMPTY, FAINT, INK, PAPER, RGB, UNSCALED, interpolate, is_dark
from .text_layout import shorten_middle, wrap_words

CELL, ROW, GAP, MARGIN = 70, 34, 10, 26  # px
TITLE_TEXT, TEXT, CELL_TEXT, SMALL_TEXT = 28, 20, 20, 20  # px: see `shown.least_size`
LINE_HEIGHT, SMALL_LINE_HEIGHT = 27, 26  # px
LEAST_WIDTH, SHORTEST_BAR, LONGEST_BAR = 640, 460, 620  # px
BAR_HEIGHT, TICK = 14, 6  # px
HEADINGS, SUBHEAD = 60, 42  # px: height of the headings, and the middle of their second line
SHORT = {"query": "q", "key": "k", "value": "v", "feed-forward": "ff"}


@dataclass(frozen=True)
class Scale:
    """Numbers to colours: `place` maps a number to 0..1 along `colours`; `ticks` are written under the bar."""

    colours: tuple[RGB, ...]
    place: Callable[[float], float]
    ticks: tuple[tuple[float, str], ...]  # (position on the bar in 0..1, text)
    caption: str
    ends: tuple[str, str] | None = None  # what the colours at the left and at the right end mean, in a word or two

    def colour(self, number: float) -> RGB:
        return interpolate(self.colours, self.place(number))


@dataclass(frozen=True)
class Table:
    """What is drawn. columns: (group, name), neighbours of one group share a heading; cells: by (row, column name)."""

    title: str
    rows: list[str]
    columns: list[tuple[str, str]]
    cells: dict[tuple[str, str], float]
    scale: Scale
    write: Callable[[float], str]
    under: tuple[str, ...] = ()  # paragraphs below the title, wrapped to the width
    apart: set[str] = field(default_factory=set)  # rows with a little space above them, such as totals
    gaps: set[str] = field(default_factory=set)  # columns with a little space before them
    plain: set[str] = field(default_factory=set)  # rows and columns whose numbers are not on the scale of the others
    cell: int = CELL  # px
    row_name: str = ""  # what the rows are, written above their names


def fixed(top: float) -> Callable[[float], str]:
    """A function that writes numbers of 0 to `top` with as many decimals as give `top` three figures.

    At most 3 decimals; smaller numbers are written with an exponent.
    """
    decimals = 2 - math.floor(math.log10(top)) if top > 0 else 2
    if decimals > 4:
        return lambda value: f"{value:.1e}"
    return lambda value: f"{value:.{min(max(decimals, 0), 3)}f}"


def draw(table: Table) -> Image.Image:
    """The picture, as large as the table needs."""
    names = [table.row_name, *table.rows]
    left = MARGIN + max(60, *(int(builtin_font(TEXT).getlength(name)) for name in names)) + 14
    xs, right = _column_positions(table, left)
    width = max(right + MARGIN, left + SHORTEST_BAR + MARGIN, LEAST_WIDTH)
    under = [line for text in table.under for line in wrap_words(text, builtin_font(TEXT), width - 2 * MARGIN)]
    head = 66 + LINE_HEIGHT * len(under) + 16
    ys, bottom = _row_positions(table, head + HEADINGS)
    caption = wrap_words(table.scale.caption, builtin_font(SMALL_TEXT), width - MARGIN - left)
    below = bottom + 22 + BAR_HEIGHT + TICK + SMALL_LINE_HEIGHT * (2 if table.scale.ends else 1) + 10
    image = Image.new("RGB", (width, below + SMALL_LINE_HEIGHT * len(caption) + MARGIN // 2), PAPER)
    pad = ImageDraw.Draw(image)
    title_font = builtin_font(TITLE_TEXT)
    pad.text((MARGIN, 20), shorten_middle(table.title, title_font, width - 2 * MARGIN), INK, title_font)
    for i, line in enumerate(under):
        pad.text((MARGIN, 62 + LINE_HEIGHT * i), line, FAINT, builtin_font(TEXT))
    _draw_headings(pad, table, xs, head)
    pad.text((left - 12, head + SUBHEAD), table.row_name, FAINT, builtin_font(TEXT), anchor="rm")
    for row, y in zip(table.rows, ys, strict=True):
        pad.text((left - 12, y + ROW / 2), row, INK, builtin_font(TEXT), anchor="rm")
        for (_, name), x in zip(table.columns, xs, strict=True):
            _draw_cell(pad, table, row, name, (x, y, x + table.cell - 2, y + ROW - 2))
    _draw_scale(pad, table.scale, left, bottom + 22, min(max(right - left, SHORTEST_BAR), LONGEST_BAR))
    for i, line in enumerate(caption):
        pad.text((left, below + SMALL_LINE_HEIGHT * i), line, FAINT, builtin_font(SMALL_TEXT))
    return image


def _column_positions(table: Table, left: int) -> tuple[list[int], int]:
    """(the left of each column, the right of the last one) in px."""
    xs: list[int] = []
    x, group = left, None
    for kind, name in table.columns:
        if xs and (kind != group or name in table.gaps):
            x += GAP
        xs.append(x)
        x, group = x + table.cell, kind
    return xs, x


def _row_positions(table: Table, top: int) -> tuple[list[int], int]:
    """(the top of each row, the bottom of the last one) in px."""
    ys: list[int] = []
    y = top
    for row in table.rows:
        if row in table.apart and ys:
            y += GAP
        ys.append(y)
        y += ROW
    return ys, y


def _draw_cell(pad: ImageDraw.ImageDraw, table: Table, row: str, name: str, box: tuple[int, int, int, int]) -> None:
    number = table.cells.get((row, name))
    if number is None:
        pad.rectangle(box, EMPTY)
        return
    colour = UNSCALED if {row, name} & table.plain else table.scale.colour(number)
    pad.rectangle(box, colour)
    centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    text_colour = PAPER if is_dark(colour) else INK
    pad.text(centre, table.write(number), text_colour, builtin_font(CELL_TEXT), anchor="mm")


def _draw_headings(pad: ImageDraw.ImageDraw, table: Table, xs: list[int], head: int) -> None:
    groups: list[tuple[str, int, int]] = []
    for (kind, _), x in zip(table.columns, xs, strict=True):
        if groups and groups[-1][0] == kind and kind:
            groups[-1] = (kind, groups[-1][1], x + table.cell)
        else:
            groups.append((kind, x, x + table.cell))
    for kind, start, stop in groups:
        if kind:
            font = builtin_font(TEXT)
            pad.text(((start + stop) / 2, head + 10), shorten_middle(kind, font, stop - start), INK, font, anchor="mm")
            pad.line((start, head + 25, stop - 3, head + 25), FAINT, 1)
    for (_, name), x in zip(table.columns, xs, strict=True):
        last_word = name.split()[-1]
        font = builtin_font(CELL_TEXT)
        text = shorten_middle(SHORT.get(last_word, last_word), font, table.cell - 4)
        pad.text((x + table.cell / 2 - 1, head + SUBHEAD), text, FAINT, font, anchor="mm")


def _draw_scale(pad: ImageDraw.ImageDraw, scale: Scale, left: int, top: int, width: int) -> None:
    for i in range(width):
        pad.line((left + i, top, left + i, top + BAR_HEIGHT), interpolate(scale.colours, i / (width - 1)))
    for position, text in scale.ticks:
        x = left + position * (width - 1)
        pad.line((x, top + BAR_HEIGHT, x, top + BAR_HEIGHT + TICK), FAINT)
        pad.text((x, top + BAR_HEIGHT + TICK + 2), text, FAINT, builtin_font(SMALL_TEXT), anchor="ma")
    if scale.ends:
        y, font = top + BAR_HEIGHT + TICK + SMALL_LINE_HEIGHT + 2, builtin_font(SMALL_TEXT)
        pad.text((left, y), scale.ends[0], INK, font)
        pad.text((left + width, y), scale.ends[1], INK, font, anchor="ra")
