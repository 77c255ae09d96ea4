"""What the layers of LoRAs are called in reports and heatmaps, and in which row they lie, in any program's spelling."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...training.formats import LayerName
from ...training.layer_names.blocks import block_names, place
from ...training.layer_names.spelling import COMFY_PREFIX, KOHYA_PREFIX, common_name
from ..bridge.models.names import unet_names
from .keys import names_in_files
from .named_lora import NamedLora

_IN_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.")


@dataclass(frozen=True)
class OverviewNames:
    """table: that of `common_name`. blocks: {a U-Net's block by the checkpoint's name: by diffusers'}, where it is
    known; for the others two residual blocks a resolution are taken."""

    table: Mapping[str, str]
    blocks: Mapping[str, str]

    def common(self, layer: str) -> str:
        """The common name of a file's layer."""
        return common_name(layer, self.table)

    def place(self, name: str) -> tuple[str, str]:
        """(row, column) of a layer by its common name."""
        return place(name, self.blocks)


def overview_names(*loras: NamedLora, base: Any = None) -> OverviewNames:
    """The names by what the LoRAs, and a model (`BaseModel`) where there is one, know of their layers.

    A file alone does not say how many residual blocks a resolution has: names in diffusers' way are read as SD1.5's,
    SD2's and SDXL's then.
    """
    known: dict[str, Mapping[str, LayerName]] = {}
    for lora in reversed(loras):
        known |= lora.layer_names
    if base is not None:
        known |= names_in_files(base)
    table, blocks = dict(unet_names()), dict[str, str]()
    for layer, forms in known.items():
        theirs, kohya = forms.get("diffusers"), forms.get("kohya")
        found = _IN_BLOCK.search(theirs) if isinstance(theirs, str) else None
        fine = block_names(layer)
        if found is None or len(fine) < 2 or not layer.startswith(COMFY_PREFIX):
            continue
        blocks[fine[1]] = f"{found[1]}.{found[2]}"
        if isinstance(kohya, str):
            table[kohya.removeprefix(KOHYA_PREFIX)] = layer
        table[layer.removeprefix(COMFY_PREFIX).replace(".", "_")] = layer
    return OverviewNames(table, blocks)
