"""DoRA (Liu et al. 2024, arXiv 2402.09353): the rows or columns of the weight that another kind has changed are
scaled.

A layer of this kind has the other kind's parts too. Its delta depends on the base's weight.
"""

from __future__ import annotations

from ....training.layer_names.parts import DORA_SCALE
from .kind import AdapterKind, Parts

DORA = AdapterKind("DoRA", found=lambda parts: DORA_SCALE in parts)


def magnitude_fits(parts: Parts, out: int, weight: tuple[int, ...]) -> bool:
    """Whether the magnitude, where there is one, is [out, 1, ...] or [1, in, ...] of the weight [out, in, ...]."""
    scale = parts.get(DORA_SCALE)
    ones = (1,) * (len(weight) - 2)
    return scale is None or tuple(scale.shape) in ((out, 1, *ones), (1, *weight[1:2], *ones))
