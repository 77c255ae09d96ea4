"""Two heatmaps of a LoRA: the size of its change by block and projection; its energy by direction."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import product

import torch
from PIL import Image

from ....training.layer_names.blocks import COLUMNS, row_order
from ...bridge.drawing.heatmap import Scale, Table, draw, fixed
from ...bridge.drawing.image import stacked
from ...bridge.drawing.palette import RISING, SIGNED
from .compare import Comparison, Shared
from .inspect import Projection
from .report import summary

ALL, REST = "all", "rest"
DIRECTIONS = 12  # columns of the spectrum's table
SHARE_CAPTION = "size of the change as a share of the base's weight"
NORM_CAPTION = "size of the change (Frobenius norm)"
SHARE_TEXT = "How much it changes each block's projections, in percent of the weight's own size."
NORM_TEXT = "How large its change is in each block's projections. Wire a model in to see it beside the base's weights."
SPREAD_TEXT = (
    "How its energy is spread over the directions of a layer, the strongest first, in percent (mean of the "
    "layers). All in a few: a smaller rank would do."
)
LIKENESS_TEXT = (
    "How alike its change and that of the LoRA in compare_with are: 1 is the same change, 0 unrelated, below 0 "
    "opposite."
)


def picture(name: str, found: Sequence[Projection], compared: Comparison | None = None) -> Image.Image:
    """Two tables: the size of the change by block and projection; how the energy is spread over the directions.

    compared: with another LoRA; a third table shows how alike they are.
    """
    relative = any(p.relative is not None for p in found)
    tables = [draw(_sizes(name, found, relative))]
    if any(p.directions for p in found):
        tables.append(draw(_spread([p for p in found if p.directions])))
    if compared is not None and compared.shared:
        tables.append(draw(_likeness(compared)))
    return stacked(tables)


def _columns(found: Sequence[Projection | Shared]) -> list[tuple[str, str]]:
    present = {p.column for p in found}
    return [one for one in COLUMNS if one[1] in present]


def _sizes(name: str, found: Sequence[Projection], relative: bool) -> Table:
    """Per block and projection the root of the summed squares: of the change over that of the weight, or alone."""
    cells = _cells(found, relative)
    inner = [value for (row, column), value in cells.items() if ALL not in (row, column)]
    top = max(inner, default=0.0) or 1.0
    unit, times = ("%", 100.0) if relative else ("", 1.0)
    digits = fixed(top * times)
    return Table(
        name,
        [*sorted({p.row for p in found}, key=row_order), ALL],
        [*_columns(found), ("", ALL)],
        cells,
        Scale(
            RISING,
            lambda value: value / top,
            tuple((i / 4, f"{top * i / 4 * times:.3g} {unit}".strip()) for i in range(5)),
            SHARE_CAPTION if relative else NORM_CAPTION,
        ),
        lambda value: digits(value * times),
        (SHARE_TEXT if relative else NORM_TEXT, *summary(found)[:1]),
        apart={ALL},
        gaps={ALL},
        row_name="block",
        # Norms add up, so that a sum is on no scale of its parts; shares are.
        plain=set() if relative else {ALL},
    )


def _cells(found: Sequence[Projection], relative: bool) -> dict[tuple[str, str], float]:
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for p in found:
        if (p.relative if relative else p.norm) is None:
            continue
        for at in product((p.row, ALL), (p.column, ALL)):
            sums[at][0] += (p.norm or 0.0) ** 2
            sums[at][1] += (p.base or 0.0) ** 2
    if not relative:
        return {at: math.sqrt(change) for at, (change, _) in sums.items()}
    return {at: math.sqrt(change / base) for at, (change, base) in sums.items() if base > 0}


def _spread(found: Sequence[Projection]) -> Table:
    """Per projection the mean share of the energy in its first directions."""
    longest = max(len(p.spectrum) for p in found)
    names = [str(i + 1) for i in range(min(longest, DIRECTIONS))] + ([REST] if longest > DIRECTIONS else [])
    cells: dict[tuple[str, str], float] = {}
    present = [column for _, column in _columns(found)]
    rows = [*present, ALL] if len(present) > 1 else present
    for row in rows:
        of_row = [p for p in found if row in (p.column, ALL)]
        total = torch.zeros(longest, dtype=torch.float64)
        for p in of_row:
            squares = torch.tensor(p.spectrum, dtype=torch.float64) ** 2
            total[: len(squares)] += squares / squares.sum() / len(of_row)
        for i, name in enumerate(names):
            cells[row, name] = float(total[DIRECTIONS:].sum() if name == REST else total[i])

    def digits(share: float) -> str:
        return f"{share * 100:.1f}" if share >= 0.0005 else "0"

    scale = Scale(
        RISING,
        math.sqrt,
        tuple((math.sqrt(t), f"{t:.0%}") for t in (0, 0.05, 0.25, 0.5, 1)),
        "share of the energy, the squared singular values",
    )
    return Table(
        "Spectrum",
        rows,
        [("direction", name) for name in names],
        cells,
        scale,
        digits,
        (SPREAD_TEXT,),
        apart={ALL},
        gaps={REST},
        cell=56,
        row_name="projection",
    )


def _likeness(found: Comparison) -> Table:
    """Per block and projection the cosine of two LoRAs' changes."""
    columns = _columns(found.shared)
    cells: dict[tuple[str, str], float] = {}
    for row, (_, column) in product((*found.rows, ALL), (*columns, ("", ALL))):
        cosine = found.cosine(None if row == ALL else row, None if column == ALL else column)
        if cosine is not None:
            cells[row, column] = cosine
    return Table(
        "Likeness",
        [*found.rows, ALL],
        [*columns, ("", ALL)],
        cells,
        Scale(
            SIGNED,
            lambda cosine: 0.5 + 0.5 * cosine,
            tuple((0.5 + 0.5 * cosine, f"{cosine:g}") for cosine in (-1, -0.5, 0, 0.5, 1)),
            "cosine of the two LoRAs' changes",
            ("-1: opposite", "1: the same"),
        ),
        lambda cosine: "0" if abs(cosine) < 0.005 else f"{cosine:+.2f}",
        (LIKENESS_TEXT,),
        apart={ALL},
        gaps={ALL},
        row_name="block",
    )
