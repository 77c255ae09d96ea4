"""The cosines between LoRAs' changes as a heatmap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

from PIL import Image

from ....training.layer_names.blocks import COLUMNS
from ...bridge.drawing.heatmap import Scale, Table, draw
from ...bridge.drawing.palette import SIGNED
from .compose import Composition
from .overlap import Overlap
from .report import sentence

MOST_PAIRS = 15  # columns
ALL = "all"
Columns = list[tuple[str, str]]  # (group, name)
Cells = dict[tuple[str, str], float]

# The root spreads the small values, where the interesting ones lie.
_COSINE = Scale(
    SIGNED,
    lambda c: 0.5 + 0.5 * math.copysign(math.sqrt(min(abs(c), 1.0)), c),
    tuple((0.5 + 0.5 * math.copysign(math.sqrt(abs(c)), c), f"{c:g}") for c in (-1, -0.5, -0.1, 0, 0.1, 0.5, 1)),
    "Each number is the cosine of two LoRAs' changes. Grey: only one of them changes this place.",
    ("-1: they cancel", "1: they add up"),
)


def picture(done: Composition, titles: Sequence[str]) -> Image.Image:
    """The cosines: of two LoRAs by block and projection, of more by block and pair (the 15 that meet most)."""
    overlap, names = done.overlap, done.names
    words = sentence(overlap, names).removeprefix("Interference: ")
    under = [
        words[0].upper() + words[1:],
        *(f"{name} = {title}" for name, title in zip(names, titles, strict=True)),
    ]
    if overlap.count == 2:
        columns, cells = _by_projection(overlap)
    else:
        columns, cells, left_out = _by_pair(overlap, names)
        if left_out:
            under.append(f"Shown are the {len(columns)} of {len(columns) + left_out} pairs that interfere most.")
    return draw(
        Table(
            f"Interference of {overlap.count} LoRA" + "s" * (overlap.count != 1),
            [*overlap.rows, ALL],
            columns or [("", ALL)],  # a single LoRA
            cells,
            _COSINE,
            _cosine,
            tuple(under),
            apart={ALL},
            gaps={ALL},
            row_name="block",
        )
    )


def _by_projection(overlap: Overlap) -> tuple[Columns, Cells]:
    """Of two LoRAs: a column for each projection where they meet, and one for all."""
    present = {column for _, column in overlap.products}
    columns = [one for one in COLUMNS if one[1] in present]
    cells: Cells = {}
    for row in (*overlap.rows, ALL):
        block = None if row == ALL else row
        for _, column in columns:
            cells[row, column] = float(overlap.cosines(block, column)[0, 1])
        cells[row, ALL] = float(overlap.cosines(block)[0, 1])
    cells = {at: value for at, value in cells.items() if not math.isnan(value)}
    met = [one for one in columns if any(column == one[1] for _, column in cells)]
    return [*(met or columns), ("", ALL)], cells


def _by_pair(overlap: Overlap, names: Sequence[str]) -> tuple[Columns, Cells, int]:
    """(columns, cells, how many pairs are left out) of any number of LoRAs: the pairs that interfere most."""
    by_block = {row: overlap.cosines(row) for row in overlap.rows} | {ALL: overlap.cosines()}
    pairs = list(combinations(range(overlap.count), 2))
    most = {
        (i, j): max((abs(float(c[i, j])) for c in by_block.values() if not c[i, j].isnan()), default=-1.0)
        for i, j in pairs
    }
    shown = sorted(sorted(pairs, key=lambda pair: -most[pair])[:MOST_PAIRS])
    columns = [(f"{names[i]} with", f"{names[i]} {names[j]}") for i, j in shown]
    cells = {
        (row, column): float(cosines[i, j])
        for (i, j), (_, column) in zip(shown, columns, strict=True)
        for row, cosines in by_block.items()
        if not cosines[i, j].isnan()
    }
    return columns, cells, len(pairs) - len(shown)


def _cosine(value: float) -> str:
    return "0" if abs(value) < 0.005 else f"{value:+.2f}"
