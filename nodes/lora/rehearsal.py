"""Whether ComfyUI's own adapter can be applied to a layer, found out before anything is changed.

Core takes some shapes for granted, and where one does not fit it either stops in the middle of a sampling or logs an
error and leaves the layer out. So an adapter is asked to patch a weight of the right shape that holds no numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import comfy.lora
import torch
from comfy.weight_adapter import BOFTAdapter, LoRAAdapter, OFTAdapter, WeightAdapterBase
from torch import Tensor

LARGER = 64  # times that a LoRA may make a layer larger; those that do so for a wider input double it
_BY_VALUE = (OFTAdapter, BOFTAdapter)  # their arithmetic asks for a norm, which needs numbers


def fits(adapter: Any, key: str, shape: Sequence[int], offset: tuple[int, int, int] | None = None) -> bool:
    """Whether the adapter changes a weight of this shape by what has the weight's shape, or the one that it is to have.

    offset: (axis, start, length) of the part that is changed. What is no adapter of ComfyUI's is taken to fit, and so
    is
    one of two plain factors, whose shapes are compared elsewhere.
    """
    if not isinstance(adapter, WeightAdapterBase) or _plain(adapter):
        return True
    reshape = adapter.weights[5] if isinstance(adapter, LoRAAdapter) else None  # a new shape for the layer
    weight = torch.zeros(tuple(shape), device="cpu" if isinstance(adapter, _BY_VALUE) else "meta")
    changed: list[Tensor] = []

    def note(change: Tensor) -> Tensor:  # core calls this on what it is about to add
        changed.append(change)
        return change

    try:
        out = comfy.lora.calculate_weight([(1.0, adapter, 1.0, offset, note)], weight, key)
    except (RuntimeError, IndexError, TypeError, ValueError, AttributeError):
        return False
    wanted = tuple(shape) if reshape is None else tuple(reshape)
    return bool(changed) and tuple(out.shape) == wanted and prod(wanted) <= LARGER * prod(shape)


def _plain(adapter: WeightAdapterBase) -> bool:
    return isinstance(adapter, LoRAAdapter) and not any(part is not None for part in adapter.weights[3:])
