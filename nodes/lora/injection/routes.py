"""GET /bespoke/lora: what a LoRA file changes, by block and projection, for the dial on the LoRA nodes."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

from aiohttp import web

from ....training.errors import InputError
from ....training.layer_names.blocks import PROJECTIONS, block_names, block_order, file_block, projection_of
from ....training.layer_names.parts import layers_of
from ....training.layer_names.spelling import common_name
from ...bridge.files.listing import find_file
from ...bridge.models.names import unet_names
from ...bridge.web import SHOWN_ON_THE_NODE, HasRoutes, json_answer
from .. import kinds
from ..files import read_lora

REST = "rest"  # the column of what has no projection's strength: feed-forward, convolutions, q, k and v in one


def register(server: HasRoutes) -> None:
    """Add the route to ComfyUI's server."""

    @server.routes.get("/bespoke/lora")
    async def lora(request: web.Request) -> web.Response:
        name = request.query.get("name", "")
        return await json_answer(answer_to, name, errors=(OSError,), error_status=SHOWN_ON_THE_NODE)


def answer_to(name: str) -> dict:
    """The table of a file in the loras folder, see `table`. Raises `InputError` for what is not there or no LoRA."""
    _, path = find_file("loras", name)
    stat = path.stat()
    return {"name": name, **table(path, stat.st_size, stat.st_mtime_ns)}


@lru_cache(maxsize=32)
def table(path: Path, _size: int, _changed: int) -> dict:
    """{"columns", "rows": [{"block", "names", "norms"}]}: rows from the model's input to its output.

    norms: by column the Frobenius norm of what is added to the weights there at strength 1, the root of the sum of
    squares over the layers; null where it depends on the base (DoRA, OFT). names: the names that `blocks` knows the
    row's layers by, one list a layer group; none for a text encoder, which strength_clip alone governs.
    """
    squares: dict[str, dict[str, float]] = {}
    names: dict[str, set[tuple[str, ...]]] = {}
    for layer, parts in layers_of(read_lora(path)).items():
        name = common_name(layer, unet_names())
        block, column = file_block(name), projection_of(name) or REST
        column = column if column in PROJECTIONS else REST
        row = squares.setdefault(block, {})
        row[column] = row.get(column, 0.0) + _square(layer, parts)
        names.setdefault(block, set())
        if not block.startswith("text"):
            names[block].add(_names(name, block))
    rows = [
        {
            "block": block,
            "names": sorted(list(group) for group in names[block]),
            "norms": {
                column: math.sqrt(value) if math.isfinite(value) else None for column, value in squares[block].items()
            },
        }
        for block in sorted(squares, key=lambda block: (block.startswith("text"), block_order(block)))
    ]
    there = {column for row in rows for column in row["norms"]}
    return {"columns": [column for column in (*PROJECTIONS, REST) if column in there], "rows": rows}


def _names(name: str, block: str) -> tuple[str, ...]:
    # A file in diffusers' spelling of a model that is not known by it: its block's own name is all there is.
    return block_names(name) if block in block_names(name) else (block,)


def _square(layer: str, parts) -> float:
    try:
        return kinds.norm(layer, parts) ** 2
    except InputError:
        return math.nan
