"""The kinds of layers, independent of their classes."""

from __future__ import annotations

import comfy.ops
from torch import nn


def is_linear(layer: nn.Module) -> bool:
    """Whether a layer computes y = W x + b: torch's class, or ComfyUI's own for quantised models."""
    if isinstance(layer, nn.Linear):
        return True
    quantised = isinstance(layer, comfy.ops.CastWeightBiasOp) and hasattr(layer, "in_features")
    return quantised and getattr(getattr(layer, "weight", None), "ndim", 0) == 2


def is_convolution(layer: nn.Module) -> bool:
    """Whether a layer is a convolution of pictures, as the U-Nets have them."""
    return isinstance(layer, nn.Conv2d)
