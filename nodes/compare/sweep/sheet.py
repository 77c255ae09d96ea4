"""A sweep as one picture: a block for each prompt, with its text above it."""

from __future__ import annotations

import math
from collections.abc import Mapping

from PIL import Image, ImageDraw
from torch import Tensor

from ...bridge.drawing.fonts import builtin_font, drawable
from ...bridge.drawing.image import pictures_of, stacked, tensor_of
from ...bridge.drawing.palette import INK, PAPER
from ...bridge.drawing.text_layout import fit_lines
from ..layout import Grid
from ..sheet import MARGIN, SMALL_TEXT, TEXT, draw_grid, picture_side, text_scale
from .losses import Score
from .plan import Block, Column, Plan, Row

HEADING_LINES, LINE = 3, 24  # px of a line

Pictures = Mapping[tuple[int, Row, Column], Tensor]  # (number of the block, row, column) -> IMAGE
Scores = Mapping[tuple[str, float], Score]  # by (column name, strength); the strength is 0 without a LoRA


def draw(plan: Plan, pictures: Pictures, scores: Scores) -> Tensor:
    """The sweep as an IMAGE [1, H, W, 3] in 0..1. scores: see `_under`."""
    grids = [_grid(plan, number, block, pictures) for number, block in enumerate(plan.blocks)]
    rows = sum(len(grid.rows) for grid in grids)
    side = picture_side((cell for grid in grids for cell in grid.cells.values()), len(plan.columns), rows)
    parts = list[Image.Image]()
    for block, grid in zip(plan.blocks, grids, strict=True):
        _under(grid, plan, block, scores, side)
        drawn = draw_grid(grid, side)
        assert drawn is not None  # a block has a row for each strength
        parts += [_heading(block.prompt, drawn.width, text_scale(side, len(plan.columns))), drawn]
    return tensor_of(stacked(parts))


def _grid(plan: Plan, number: int, block: Block, pictures: Pictures) -> Grid:
    """A block's pictures. Without a LoRA a prompt has one, which does not change with the strength."""
    grid = Grid()
    for row in block.rows:
        for column in plan.columns:
            picture = pictures.get((number, row, column))
            if picture is None:
                continue
            if column.lora is None and not _is_first(block, row):
                grid.under[row.name, column.name] = "as above"
            else:
                grid.put(row.name, column.name, pictures_of(picture, column.name))
    return grid


def _is_first(block: Block, row: Row) -> bool:
    """Whether no row above it has the same prompt."""
    return next(other for other in block.rows if other.prompt == row.prompt) is row


def _under(grid: Grid, plan: Plan, block: Block, scores: Scores, side: int) -> None:
    """Write loss and leak below the pictures, side px wide, as far as there is room; the lowest loss is marked.

    A loss is measured at the captions of the node's images, so a row whose prompt has no trigger words has the leak
    alone.
    """
    lowest = min((score.loss for score in scores.values()), default=None)
    for row in block.rows:
        for column in plan.columns:
            score = scores.get((column.name, row.strength if column.lora is not None else 0.0))
            at = row.name, column.name
            if score is None or at in grid.under:
                continue
            if text := _line(score, row.without_trigger, side):
                grid.under[at] = text
            if score.loss == lowest and not row.without_trigger:
                grid.marked.add(at)


def _line(score: Score, without_loss: bool, side: int) -> str:
    """The longest form of a score that has room below a picture; "" where there is nothing to say."""
    leak = f"leak {score.leak:.2f}" if math.isfinite(score.leak) else ""
    if without_loss:
        forms = [leak]
    else:
        losses = [f"loss {score.loss:.4f}", f"{score.loss:.4f}"]
        forms = [*(f"{loss}, {leak}" for loss in losses if leak), *losses]
    font = builtin_font(SMALL_TEXT)
    return next((form for form in forms if font.getlength(form) <= side), forms[-1])


def _heading(prompt: str, width: int, scale: float) -> Image.Image:
    text, font = drawable(prompt, TEXT * scale)
    lines = fit_lines(text, font, width - 2 * MARGIN, HEADING_LINES)
    image = Image.new("RGB", (width, MARGIN + round(LINE * scale) * len(lines)), PAPER)
    ImageDraw.Draw(image).multiline_text((MARGIN, MARGIN), "\n".join(lines), INK, font, spacing=round(6 * scale))
    return image
