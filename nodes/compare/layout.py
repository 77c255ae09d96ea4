"""The row and column of each picture of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor

from ..bridge.drawing.image import pictures_of

SPLIT = "|"  # "row | column" in a label
MOST = 64  # pictures of one input


@dataclass
class Grid:
    """Pictures by row and column.

    rows, columns: names in the order of their first use. cells: the pictures of each (row, column). under: the line
    below a cell's pictures. marked: the cells whose line is drawn darker. notes: for the report.
    """

    rows: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    cells: dict[tuple[str, str], list[Image.Image]] = field(default_factory=dict)
    under: dict[tuple[str, str], str] = field(default_factory=dict)
    marked: set[tuple[str, str]] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def put(self, row: str, column: str, pictures: Sequence[Image.Image]) -> None:
        if row not in self.rows:
            self.rows.append(row)
        if column not in self.columns:
            self.columns.append(column)
        self.cells.setdefault((row, column), []).extend(pictures)


def arrange(images: Sequence[Tensor], labels: str) -> Grid:
    """The grid of images [B, H, W, 1, 3 or 4] in 0..1 of any sizes. labels: one a line, in the order of the images.

    A plain label names a row, and the pictures of its batch are the numbered columns: batches made with the same seeds
    have one seed in a column. Where a label is "row | column", every image goes into the cell of its label, its batch
    side by side. Raises `InputError` for what is no image.
    """
    lines = labels.splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    names = [line.strip() for line in lines]
    grid = Grid()
    if len(names) > len(images):
        grid.notes.append(
            f"{len(names)} labels for {len(images)} images: left over are "
            f"{', '.join(repr(n) for n in names[len(images) :])}."
        )
    crossed = any(SPLIT in name for name in names[: len(images)])
    for i, batch in enumerate(images):
        name = (names[i] if i < len(names) else "") or f"image {i + 1}"
        pictures = pictures_of(batch, name)
        if len(pictures) > MOST:
            grid.notes.append(f"{name}: the first {MOST} of {len(pictures)} pictures are shown.")
            pictures = pictures[:MOST]
        if crossed:
            row, _, column = (part.strip() for part in name.partition(SPLIT))
            grid.put(row, column, pictures)
            continue
        row, again = name, 2
        while row in grid.rows:  # two inputs with one name stay two rows
            row, again = f"{name} ({again})", again + 1
        for j, picture in enumerate(pictures):
            grid.put(row, str(j + 1), [picture])
    if not crossed and grid.columns == ["1"]:
        grid = Grid(grid.rows, [""], {(row, ""): cell for (row, _), cell in grid.cells.items()}, notes=grid.notes)
    return grid
