"""Frozen layers that make their weight ready for each call and once more for its gradient, instead of keeping it.

ComfyUI's layers cast a weight that lies elsewhere or in another type than the computation: fp8, quantised, fp16 under
bfloat16, offloaded to the CPU. Autograd would keep each cast for the backward pass, which is the whole model once more,
in the wider type, on the device that it was too large for. And where ComfyUI streams weights through one buffer,
another
layer's weight lies there by the time of the backward pass.

The gradient to a frozen layer's input is W^T times that to its output. It needs W and nothing else, so W is fetched
again: at most a few layers' weights are on the device at once, in either pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import comfy.ops
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..models.layers import is_linear

_ABSENT = object()
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def is_frozen_layer(layer: nn.Module) -> bool:
    """Whether the layer's weight is made ready at each call here, so that autograd never saves it."""
    return getattr(layer, "comfy_cast_weights", False) and _has_frozen_forward(layer)


@contextmanager
def frozen_layers(module: nn.Module, compute: torch.dtype | None = None) -> Iterator[Any]:
    """Within the block no cast weight of `module` is kept for the backward pass.

    compute: the type of autocast, if there is one: layers whose weight has another low precision cast too. Quantised
    layers multiply in full precision: rounding the activations has no gradient. Gives a function that does the same
    once
    more, after ComfyUI has loaded weights anew.
    """
    before: list[tuple[nn.Module, str, Any]] = []

    def put(layer: nn.Module, name: str, value: Any) -> None:
        before.append((layer, name, vars(layer).get(name, _ABSENT)))
        vars(layer)[name] = value

    def prepare() -> None:
        for layer in module.modules():
            if getattr(layer, "_full_precision_mm", True) is False:
                put(layer, "_full_precision_mm", True)
            if not hasattr(layer, "forward_comfy_cast_weights") or not (is_linear(layer) or _is_convolution(layer)):
                continue
            if layer.weight is None or not (_has_frozen_forward(layer) or _is_comfyuis(layer)):
                continue
            if not _has_frozen_forward(layer):
                put(layer, "forward_comfy_cast_weights", partial(_frozen, layer))
            # float32 weights under autocast have their copies elsewhere.
            other = compute is not None and layer.weight.dtype not in (compute, torch.float32)
            if other and not layer.comfy_cast_weights:
                put(layer, "comfy_cast_weights", True)

    try:
        prepare()
        yield prepare
    finally:
        for layer, name, value in reversed(before):
            if name == "comfy_cast_weights" and "prev_comfy_cast_weights" in vars(layer):
                name = "prev_comfy_cast_weights"  # ComfyUI has offloaded the layer meanwhile and must go on casting
                value = False if value is _ABSENT else value
            if value is _ABSENT:
                vars(layer).pop(name, None)
            else:
                vars(layer)[name] = value


def _has_frozen_forward(layer: nn.Module) -> bool:
    return getattr(vars(layer).get("forward_comfy_cast_weights"), "func", None) is _frozen


def _is_comfyuis(layer: nn.Module) -> bool:
    """Whether ComfyUI's own code makes the weight ready. Another pack's may hold something else than the matrix
    itself."""
    return getattr(layer.forward_comfy_cast_weights, "__module__", "") == comfy.ops.__name__


def _is_convolution(layer: nn.Module) -> bool:
    return isinstance(layer, _CONVOLUTIONS) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _frozen(layer: nn.Module, x: Tensor, *_given, **_how) -> Tensor:
    """In the place of a layer's `forward_comfy_cast_weights`; how ComfyUI would have it quantised does not matter
    here."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    if isinstance(layer, _CONVOLUTIONS) or x.ndim == 2:
        return _FrozenLayer.apply(x, layer, dtype)
    # Rows and not more dimensions: a product of more is a view, and models may add to a layer's output in place.
    return _FrozenLayer.apply(x.reshape(-1, x.shape[-1]), layer, dtype).view(*x.shape[:-1], -1)


class _FrozenLayer(torch.autograd.Function):
    """y = W x + b, or a convolution, with a gradient to x alone. Keeps the shape of x and no tensor."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: nn.Module, dtype: torch.dtype) -> Tensor:
        ctx.layer, ctx.shape, ctx.given, ctx.dtype = layer, x.shape, x.dtype, dtype
        with _ready(layer, x.device, dtype) as (weight, bias):
            if isinstance(layer, _CONVOLUTIONS):
                return layer._conv_forward(x.to(dtype), weight, bias)
            return nn.functional.linear(x.to(dtype), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        layer = ctx.layer
        with _ready(layer, grad.device, ctx.dtype) as (weight, _):
            if isinstance(layer, _CONVOLUTIONS):
                like = grad.new_empty(1, dtype=ctx.dtype).expand(ctx.shape)  # its numbers do not count
                out = torch.ops.aten.convolution_backward(
                    grad.to(ctx.dtype),
                    like,
                    weight,
                    None,
                    layer.stride,
                    layer.padding,
                    layer.dilation,
                    False,
                    [0] * (weight.ndim - 2),
                    layer.groups,
                    (True, False, False),
                )[0]
            else:
                out = grad.to(ctx.dtype) @ weight
            return out.to(ctx.given), None, None


@contextmanager
def _ready(layer: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor | None]]:
    """(weight, bias) on the device and in the type of the computation, patches of the wire applied, for a moment."""
    # An accelerator's buffers in ComfyUI may be of inference mode, and could not be written to outside.
    with torch.inference_mode(device.type != "cpu"):
        weight, bias, stream = comfy.ops.cast_bias_weight(
            layer, dtype=dtype, bias_dtype=dtype, device=device, offloadable=True
        )
        if isinstance(weight, QuantizedTensor):
            weight = weight.to(dtype).dequantize()
    try:
        yield weight, bias
    finally:
        comfy.ops.uncast_bias_weight(layer, weight, bias, stream)
