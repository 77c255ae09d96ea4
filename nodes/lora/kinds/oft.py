"""OFT (Qiu et al. 2023, arXiv 2306.07280) and BOFT (Liu et al. 2024, arXiv 2311.06243): the weight's rows are rotated.

`.oft_blocks` is [blocks, size, size], of BOFT with one more axis in front; blocks * size rows. The delta depends on
the base's weight.
"""

from __future__ import annotations

from ....training.layer_names.parts import OFT_BLOCKS
from .kind import AdapterKind, Parts


def _shape(parts: Parts) -> tuple[int, None] | None:
    blocks = parts[OFT_BLOCKS]
    if blocks.ndim not in (3, 4):
        return None
    *_, count, size, other = blocks.shape
    return (count * size, None) if size == other else (0, None)


OFT = AdapterKind(
    "OFT",
    found=lambda parts: OFT_BLOCKS in parts and parts[OFT_BLOCKS].ndim == 3,
    matrices=(OFT_BLOCKS,),
    shape=_shape,
)
BOFT = AdapterKind(
    "BOFT",
    found=lambda parts: OFT_BLOCKS in parts and parts[OFT_BLOCKS].ndim != 3,
    matrices=(OFT_BLOCKS,),
    shape=_shape,
)
