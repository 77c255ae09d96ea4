"""DoRA (Liu et al. 2024, arXiv 2402.09353): the rows or columns of the weight that another kind has changed are
scaled.

A layer of this kind has the other kind's parts too. Its delta depends on the base's weight. PEFT, LyCORIS (and with it
kohya's scripts) and OneTrainer agree on it; the magnitude's shape says along which axis the norm is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....training.layer_names.parts import DORA_SCALE
from .kind import AdapterKind, Parts

DORA = AdapterKind("DoRA", found=lambda parts: DORA_SCALE in parts)


def magnitude_fits(parts: Parts, out: int, weight: tuple[int, ...]) -> bool:
    """Whether the magnitude, where there is one, is [out, 1, ...] or [1, in, ...] of the weight [out, in, ...]."""
    scale = parts.get(DORA_SCALE)
    ones = (1,) * (len(weight) - 2)
    return scale is None or tuple(scale.shape) in ((out, 1, *ones), (1, *weight[1:2], *ones))


def decomposed(changed: Tensor, magnitude: Tensor) -> Tensor:
    """m V / ||V|| with V = W + dW: the weight with DoRA's magnitude (eq. 5 of the paper).

    changed: V, [out, in, *kernel], float32. magnitude: m, [out, 1, ...] or [1, in, ...]; the norm is taken over the
    axes where it is 1. A row of zeros stays zeros.
    """
    axes = [axis for axis in range(changed.ndim) if magnitude.shape[axis] == 1]
    norm = torch.linalg.vector_norm(changed, dim=axes, keepdim=True)
    return changed * (magnitude / norm.clamp_min(torch.finfo(changed.dtype).tiny))
