"""The comparison as one picture: a labelled grid, and under it the table of runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from PIL import Image, ImageDraw
from torch import Tensor

from ..bridge.drawing.fonts import builtin_font, drawable
from ..bridge.drawing.image import scaled_size, stacked, tensor_of
from ..bridge.drawing.palette import EMPTY, FAINT, INK, LINE, PAPER, RGB
from ..bridge.drawing.shown import least_size
from ..bridge.drawing.text_layout import fit_lines
from .layout import Grid
from .table import HEADINGS, Row

MARGIN, GAP, HEAD, TEXT, SMALL_TEXT = 28, 8, 34, 17, 14  # px
ROW = 56  # px: height of a row of the table
UNDER = 22  # px: height of the line below a cell
LABEL = 200  # px: width of the row names
LARGEST, SMALLEST = 512, 64  # px: longer side of a picture in the grid
MOST_OF_SIDE = 0.17  # of a picture's side: the letters are not larger
WIDE, HIGH = 4096, 8192  # px: the picture is kept within these where `SMALLEST` lets it


def draw(grid: Grid, rows: Sequence[Row]) -> Tensor:
    """The grid and the table as an IMAGE [1, H, W, 3] in 0..1; either may be empty, not both."""
    return tensor_of(stacked([part for part in (draw_grid(grid), _table(rows)) if part is not None]))


def draw_grid(grid: Grid, side: int | None = None) -> Image.Image | None:
    """The grid with its names; None for one without rows. side: the longer side of a picture in px, by default as the
    room allows."""
    if not grid.rows:
        return None
    # A cell holds as many pictures side by side as the fullest of its column.
    across = {column: max(len(grid.cells.get((row, column), ())) for row in grid.rows) for column in grid.columns}
    side = side or picture_side(grid.cells.values(), sum(across.values()), len(grid.rows))
    named = any(grid.rows)
    scale = text_scale(side, sum(across.values()))
    widest = max((builtin_font(SMALL_TEXT).getlength(text) for text in grid.under.values()), default=1.0)
    small = SMALL_TEXT * max(1.0, min(scale, side / widest))  # so that all of it has room below a picture
    text_size, label = TEXT * scale, round(LABEL * scale)
    line = round(UNDER * scale) if grid.under else 0
    left, top = MARGIN + (label if named else 0), MARGIN + (round(HEAD * scale) if any(grid.columns) else 0)
    widths = {column: count * (side + GAP) for column, count in across.items()}
    heights = {
        row: line
        + max(scaled_size(picture, side)[1] for column in grid.columns for picture in grid.cells.get((row, column), ()))
        for row in grid.rows
    }
    size = (left + sum(widths.values()) + MARGIN, top + sum(h + GAP for h in heights.values()) + MARGIN)
    image = Image.new("RGB", size, PAPER)
    pad, x = ImageDraw.Draw(image), left
    for column in grid.columns:
        text, font = drawable(column, text_size)
        pad.text((x, MARGIN), fit_lines(text, font, widths[column] - GAP, 1)[0], FAINT, font)
        y = top
        for row in grid.rows:
            if column == grid.columns[0] and named:
                text, font = drawable(row, text_size)
                pad.multiline_text((MARGIN, y), "\n".join(fit_lines(text, font, label - 16, 3)), INK, font, spacing=4)
            _draw_cell(image, pad, grid.cells.get((row, column), ()), (x, y), side, heights[row] - line)
            if text := grid.under.get((row, column), ""):
                ink = INK if (row, column) in grid.marked else FAINT
                pad.text((x, y + heights[row] - line + 3), text, ink, builtin_font(small))
            y += heights[row] + GAP
        x += widths[column]
    return image


def text_scale(side: int, across: int) -> float:
    """By how much letters are larger than `TEXT` and `SMALL_TEXT`, so that they can be read as the page shows the grid.

    side: of a picture in px; across: how many are in a row.
    """
    wanted = least_size(across * (side + GAP) + LABEL + 2 * MARGIN) / SMALL_TEXT
    return max(1.0, min(wanted, side * MOST_OF_SIDE / SMALL_TEXT))


def picture_side(cells: Iterable[Sequence[Image.Image]], across: int, down: int) -> int:
    """The longer side in px of the pictures of a grid with `across` of them in a row, and `down` rows."""
    longest = max(max(picture.size) for cell in cells for picture in cell)
    room = min((WIDE - LABEL - 2 * MARGIN) // across, (HIGH - HEAD) // down) - GAP
    return max(SMALLEST, min(LARGEST, max(longest, 128), room))


def _draw_cell(
    image: Image.Image,
    pad: ImageDraw.ImageDraw,
    pictures: Sequence[Image.Image],
    corner: tuple[int, int],
    side: int,
    height: int,
) -> None:
    """The pictures of one cell side by side, each in the middle of side x height px; a blank box for none."""
    x, y = corner
    if not pictures:
        pad.rectangle((x, y, x + side - 1, y + height - 1), EMPTY)
    for i, picture in enumerate(pictures):
        size = scaled_size(picture, side)
        at = (x + i * (side + GAP) + (side - size[0]) // 2, y + (height - size[1]) // 2)
        image.paste(_resized(picture, size), at)


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    # Pixel art enlarged a few times stays crisp; a photograph is made smaller far more often than larger.
    larger = size[0] >= 2 * picture.width
    return picture.resize(size, Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS)


def _table(rows: Sequence[Row]) -> Image.Image | None:
    if not rows:
        return None
    _, font = drawable("".join(HEADINGS), TEXT)
    names = [drawable(row.name, SMALL_TEXT) for row in rows]
    lines = [HEADINGS, *(row.cells for row in rows)]
    widths = [int(max(font.getlength(line[i]) for line in lines)) + 32 for i in range(len(HEADINGS))]
    longest_name = int(max(small.getlength(name) for name, small in names))
    size = (max(sum(widths), longest_name) + 2 * MARGIN, 2 * MARGIN + HEAD + ROW * len(rows))
    image = Image.new("RGB", size, PAPER)
    pad, y = ImageDraw.Draw(image), MARGIN

    def write(cells: Sequence[str], colour: RGB) -> None:
        x = MARGIN
        for text, width in zip(cells, widths, strict=True):
            pad.text((x, y), text, colour, font)
            x += width

    write(HEADINGS, FAINT)
    y += HEAD
    for row, (name, small) in zip(rows, names, strict=True):
        pad.line((MARGIN, y - 6, image.width - MARGIN, y - 6), LINE)
        write(row.cells, INK)
        pad.text((MARGIN, y + 24), name, FAINT, small)
        y += ROW
    return image
