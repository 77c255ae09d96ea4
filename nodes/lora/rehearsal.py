"""Whether ComfyUI's own adapter can be applied to a layer, found out before anything is changed.

Core takes some shapes for granted, and where one does not fit it either stops in the middle of a sampling or logs an
error and leaves the layer out. So an adapter is asked to patch a weight of the right shape that holds no numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.lora
import torch
from comfy.weight_adapter import BOFTAdapter, LoRAAdapter, OFTAdapter, WeightAdapterBase
from torch import Tensor

_BY_VALUE = (OFTAdapter, BOFTAdapter)  # their arithmetic asks for a norm, which needs numbers


def fits(adapter: Any, key: str, shape: Sequence[int], offset: tuple[int, int, int] | None = None) -> bool:
    """Whether the adapter changes a weight of this shape by what has the weight's shape, or broadcasts to it.

    offset: (axis, start, length) of the part that is changed. What is no adapter of ComfyUI's is taken to fit, and so is
    one of two plain factors, whose shapes are compared elsewhere.
    """
    if not isinstance(adapter, WeightAdapterBase) or _plain(adapter):
        return True
    weight = torch.zeros(tuple(shape), device="cpu" if isinstance(adapter, _BY_VALUE) else "meta")
    changed: list[Tensor] = []

    def note(change: Tensor) -> Tensor:  # core calls this on what it is about to add
        changed.append(change)
        return change

    try:
        out = comfy.lora.calculate_weight([(1.0, adapter, 1.0, offset, note)], weight, key)
    except (RuntimeError, IndexError, TypeError, ValueError, AttributeError):
        return False
    return bool(changed) and tuple(out.shape) == tuple(shape)


def _plain(adapter: WeightAdapterBase) -> bool:
    if not isinstance(adapter, LoRAAdapter):
        return False
    _, _, _, mid, dora_scale, reshape = adapter.weights
    # One that reshapes its layer is meant to have another shape than the model's.
    return reshape is not None or (mid is None and dora_scale is None)
