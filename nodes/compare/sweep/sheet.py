"""A sweep as one picture: a block for each prompt, with its text above it."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image, ImageDraw
from torch import Tensor

from ...bridge.drawing.fonts import drawable
from ...bridge.drawing.image import pictures_of, stacked, tensor_of
from ...bridge.drawing.palette import INK, PAPER
from ...bridge.drawing.text_layout import fit_lines
from ..layout import Grid
from ..sheet import MARGIN, TEXT, draw_grid, picture_side
from .plan import Block, Column, Plan, Row

HEADING_LINES, LINE = 3, 24  # px of a line

Pictures = Mapping[tuple[int, Row, Column], Tensor]  # (number of the block, row, column) -> IMAGE


def draw(plan: Plan, pictures: Pictures, losses: Mapping[tuple[str, float], float]) -> Tensor:
    """The sweep as an IMAGE [1, H, W, 3] in 0..1. losses: by (column name, strength); see `under`."""
    grids = [_grid(plan, number, block, pictures, losses) for number, block in enumerate(plan.blocks)]
    rows = sum(len(grid.rows) for grid in grids)
    side = picture_side((cell for grid in grids for cell in grid.cells.values()), len(plan.columns), rows)
    parts = list[Image.Image]()
    for block, grid in zip(plan.blocks, grids, strict=True):
        drawn = draw_grid(grid, side)
        assert drawn is not None  # a block has a row for each strength
        parts += [_heading(block.prompt, drawn.width), drawn]
    return tensor_of(stacked(parts))


def _grid(plan: Plan, number: int, block: Block, pictures: Pictures, losses: Mapping[tuple[str, float], float]) -> Grid:
    grid, columns = Grid(), list(plan.columns)
    drawn = set[str]()  # the prompts that the model without a LoRA has drawn: they do not change with the strength
    for row in block.rows:
        for column in columns:
            picture = pictures.get((number, row, column))
            if column.lora is None and row.prompt in drawn:
                continue
            if picture is not None:
                grid.put(row.name, column.name, pictures_of(picture, column.name))
            strength = row.strength if column.lora is not None else 0.0
            if (loss := losses.get((column.name, strength))) is not None:
                grid.under[row.name, column.name] = f"loss {loss:.4f}"
        drawn.add(row.prompt)
    return grid


def _heading(prompt: str, width: int) -> Image.Image:
    text, font = drawable(prompt, TEXT)
    lines = fit_lines(text, font, width - 2 * MARGIN, HEADING_LINES)
    image = Image.new("RGB", (width, MARGIN + LINE * len(lines)), PAPER)
    ImageDraw.Draw(image).multiline_text((MARGIN, MARGIN), "\n".join(lines), INK, font, spacing=6)
    return image
