"""Two heatmaps of an extraction: how large the change is by block and projection, and how much of it the LoRA loses."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import product

from PIL import Image

from ....training.layer_names.blocks import COLUMNS, row_order
from ...bridge.drawing.heatmap import Scale, Table, draw, fixed
from ...bridge.drawing.image import stacked
from ...bridge.drawing.palette import RISING
from .extract import Extraction, Layer
from .report import ranks_line

ALL = "all"
CHANGE_TEXT = "How much the tuned model differs from the base, in percent of the weights' own size."
ERROR_TEXT = "What the LoRA leaves out of that: the relative error of its change, in percent."
NOTHING = "No matrix changed, so there is nothing to show by block."

Cells = dict[tuple[str, str], float]


def picture(done: Extraction) -> Image.Image:
    """Both tables below each other."""
    layers = done.layers
    changes = _cells(layers, lambda layer: layer.change, lambda layer: layer.base)
    errors = _cells(layers, lambda layer: max(layer.lost, 0.0), lambda layer: layer.change)
    under = ranks_line(layers) if layers else NOTHING
    return stacked(
        [
            _table(done.lora.name, layers, changes, "size of the change as a share of the base's weight", CHANGE_TEXT),
            _table("Left out", layers, errors, "relative error of the LoRA's change", ERROR_TEXT, under),
        ]
    )


def _cells(layers: Sequence[Layer], part: Callable[[Layer], float], whole: Callable[[Layer], float]) -> Cells:
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for layer in layers:
        for at in product((layer.row, ALL), (layer.column, ALL)):
            sums[at][0] += part(layer)
            sums[at][1] += whole(layer)
    return {at: math.sqrt(some / of) for at, (some, of) in sums.items() if of > 0}


def _table(title: str, layers: Sequence[Layer], cells: Cells, caption: str, *under: str) -> Image.Image:
    top = max((value for (row, column), value in cells.items() if ALL not in (row, column)), default=0.0) or 1.0
    digits = fixed(top * 100)
    present = {layer.column for layer in layers}
    return draw(
        Table(
            title,
            [*sorted({layer.row for layer in layers}, key=row_order), ALL],
            [*(one for one in COLUMNS if one[1] in present), ("", ALL)],
            cells,
            Scale(
                RISING,
                lambda value: value / top,
                tuple((i / 4, f"{top * i / 4 * 100:.3g} %") for i in range(5)),
                caption,
            ),
            lambda value: digits(value * 100),
            under,
            apart={ALL},
            gaps={ALL},
            row_name="block",
        )
    )
