"""What a layer is, whatever class it has."""

from __future__ import annotations

import comfy.ops
from torch import nn


def is_linear(layer: nn.Module) -> bool:
    """Whether a layer is y = W x + b with one matrix: torch's, or ComfyUI's own class for quantised models."""
    if isinstance(layer, nn.Linear):
        return True
    of_comfyui = isinstance(layer, comfy.ops.CastWeightBiasOp) and hasattr(layer, "in_features")
    return of_comfyui and getattr(getattr(layer, "weight", None), "ndim", 0) == 2
