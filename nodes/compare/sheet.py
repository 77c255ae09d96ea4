"""The comparison as one picture: a labelled grid, and under it the table of runs."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw
from torch import Tensor

from ..bridge.drawing import text_layout
from ..bridge.drawing.image import tensor_of
from .layout import Grid
from .table import HEADINGS, Row

INK, FAINT, PAPER, LINE, EMPTY = (28, 28, 32), (122, 120, 114), (250, 249, 246), (222, 218, 208), (238, 236, 230)
MARGIN, GAP, HEAD, TEXT = 28, 8, 34, 17
LABEL = 200  # px: width of the row names
LARGEST, SMALLEST = 512, 64  # px: longer side of a picture in the grid
WIDE, HIGH = 4096, 8192  # px: the picture is kept within these where `SMALLEST` lets it


def draw(grid: Grid, rows: Sequence[Row]) -> Tensor:
    """[1, H, W, 3] in 0..1."""
    parts = [part for part in (_grid(grid), _table(rows)) if part is not None]
    width = max(part.width for part in parts)
    image = Image.new("RGB", (width, sum(part.height for part in parts)), PAPER)
    y = 0
    for part in parts:
        image.paste(part, (0, y))
        y += part.height
    return tensor_of(image)


def _grid(grid: Grid) -> Image.Image | None:
    if not grid.rows:
        return None
    # A cell holds as many pictures side by side as the fullest of its column.
    across = {column: max(len(grid.cells.get((row, column), ())) for row in grid.rows) for column in grid.columns}
    longest = max(max(picture.size) for cell in grid.cells.values() for picture in cell)
    room = min((WIDE - LABEL - 2 * MARGIN) // sum(across.values()), (HIGH - HEAD) // len(grid.rows)) - GAP
    side = max(SMALLEST, min(LARGEST, max(longest, 128), room))
    headed = any(grid.columns)
    named = any(grid.rows)
    left = MARGIN + (LABEL if named else 0)
    widths = {column: count * (side + GAP) for column, count in across.items()}
    heights = {
        row: max(_fitted(picture, side)[1] for column in grid.columns for picture in grid.cells.get((row, column), ()))
        for row in grid.rows
    }
    top = MARGIN + (HEAD if headed else 0)
    image = Image.new(
        "RGB", (left + sum(widths.values()) + MARGIN, top + sum(h + GAP for h in heights.values()) + MARGIN), PAPER
    )
    pad, x = ImageDraw.Draw(image), left
    for column in grid.columns:
        words, font = text_layout.set_in(column, TEXT)
        pad.text((x, MARGIN), text_layout.lines(words, font, widths[column] - GAP, 1)[0], FAINT, font)
        y = top
        for row in grid.rows:
            if column == grid.columns[0] and named:
                words, font = text_layout.set_in(row, TEXT)
                pad.multiline_text(
                    (MARGIN, y), "\n".join(text_layout.lines(words, font, LABEL - 16, 3)), INK, font, spacing=4
                )
            cell = grid.cells.get((row, column), ())
            if not cell:
                pad.rectangle((x, y, x + side - 1, y + heights[row] - 1), EMPTY)
            for i, picture in enumerate(cell):
                size = _fitted(picture, side)
                at = (x + i * (side + GAP) + (side - size[0]) // 2, y + (heights[row] - size[1]) // 2)
                image.paste(_resized(picture, size), at)
            y += heights[row] + GAP
        x += widths[column]
    return image


def _fitted(picture: Image.Image, side: int) -> tuple[int, int]:
    scale = side / max(picture.size)
    return tuple(max(1, round(length * scale)) for length in picture.size)


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    # Pixel art a few times enlarged stays crisp; a photograph is made smaller far more often than larger.
    larger = size[0] >= 2 * picture.width
    return picture.resize(size, Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS)


def _table(rows: Sequence[Row]) -> Image.Image | None:
    if not rows:
        return None
    (_, font), named = text_layout.set_in("".join(HEADINGS), TEXT), [text_layout.set_in(row.name, 14) for row in rows]
    lines = [HEADINGS, *(row.cells for row in rows)]
    widths = [int(max(font.getlength(line[i]) for line in lines)) + 32 for i in range(len(HEADINGS))]
    name = int(max(small.getlength(words) for words, small in named))
    image = Image.new("RGB", (max(sum(widths), name) + 2 * MARGIN, 2 * MARGIN + HEAD + 56 * len(rows)), PAPER)
    pad, y = ImageDraw.Draw(image), MARGIN

    def write(cells: Sequence[str], colour) -> None:
        x = MARGIN
        for word, width in zip(cells, widths, strict=True):
            pad.text((x, y), word, colour, font)
            x += width

    write(HEADINGS, FAINT)
    y += HEAD
    for row, (words, small) in zip(rows, named, strict=True):
        pad.line((MARGIN, y - 6, image.width - MARGIN, y - 6), LINE)
        write(row.cells, INK)
        pad.text((MARGIN, y + 24), words, FAINT, small)
        y += 56
    return image
