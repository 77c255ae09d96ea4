"""Frozen layers that cast their weight at each call and again for the gradient, instead of keeping the cast weight.

ComfyUI's layers cast a weight that is on another device or in another dtype than the computation: fp8, quantised, fp16
under bfloat16, offloaded to the CPU. Autograd would keep each cast weight for the backward pass: the whole model once
more, in the wider dtype, on the device that it was too large for. And where ComfyUI streams weights through one buffer,
the buffer holds another layer's weight by the time of the backward pass.

The gradient to a frozen layer's input is W^T times the gradient to its output. It needs only W, so W is cast again: at
most a few layers' cast weights are on the device at once, in either pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    """Whether the layer casts its weight at each call here, so that autograd never saves it."""
    return getattr(layer, "comfy_cast_weights", False) and _has_frozen_forward(layer)


@contextmanager
def frozen_layers(
    module: nn.Module, compute: torch.dtype | None = None, always: bool = False
) -> Iterator[Callable[[], None]]:
    """Within the block no cast weight of `module` is kept for the backward pass.

    compute: the dtype of autocast, or None: layers whose weight has another low precision cast too. Quantised layers
    multiply in full precision, since rounding the activations has no gradient. always: every layer casts its weight at
    each call, also one whose weight has the dtype of the computation and lies on its device. Gives a function that does
    the same again, after ComfyUI has loaded weights anew.
    """
    changes = _AttributeChanges()

    def apply() -> None:
        for layer in module.modules():
            _freeze(layer, compute, always, changes)

    try:
        apply()
        yield apply
    finally:
        changes.undo()


class _AttributeChanges:
    """Attributes set on layers, past `nn.Module.__setattr__`, and the values that they had before."""

    def __init__(self) -> None:
        self._before: list[tuple[nn.Module, str, Any]] = []

    def set(self, layer: nn.Module, name: str, value: Any) -> None:
        self._before.append((layer, name, vars(layer).get(name, _ABSENT)))
        vars(layer)[name] = value

    def undo(self) -> None:
        for layer, name, value in reversed(self._before):
            if name == "comfy_cast_weights" and "prev_comfy_cast_weights" in vars(layer):
                name = "prev_comfy_cast_weights"  # ComfyUI has offloaded the layer meanwhile and must go on casting
                value = False if value is _ABSENT else value
            if value is _ABSENT:
                vars(layer).pop(name, None)
            else:
                vars(layer)[name] = value


def _freeze(layer: nn.Module, compute: torch.dtype | None, always: bool, changes: _AttributeChanges) -> None:
    if getattr(layer, "_full_precision_mm", True) is False:
        changes.set(layer, "_full_precision_mm", True)
    if not hasattr(layer, "forward_comfy_cast_weights") or not (is_linear(layer) or _is_convolution(layer)):
        return
    frozen = _has_frozen_forward(layer)
    if layer.weight is None or not (frozen or _casts_as_comfyui(layer)):
        return
    if not frozen:
        changes.set(layer, "forward_comfy_cast_weights", partial(_frozen_forward, layer))
    # float32 weights under autocast are copied by `autograd_views`.
    other = compute is not None and layer.weight.dtype not in (compute, torch.float32)
    if (other or always) and not layer.comfy_cast_weights:
        changes.set(layer, "comfy_cast_weights", True)


def _has_frozen_forward(layer: nn.Module) -> bool:
    return getattr(vars(layer).get("forward_comfy_cast_weights"), "func", None) is _frozen_forward


def _casts_as_comfyui(layer: nn.Module) -> bool:
    """Whether ComfyUI's own code casts the weight. The attribute of another pack's layer may not be the matrix."""
    return getattr(layer.forward_comfy_cast_weights, "__module__", "") == comfy.ops.__name__


def _is_convolution(layer: nn.Module) -> bool:
    return isinstance(layer, _CONVOLUTIONS) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _frozen_forward(layer: nn.Module, x: Tensor, *_args, **_kwargs) -> Tensor:
    """Replaces a layer's `forward_comfy_cast_weights`; ComfyUI's quantisation arguments have no effect here."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    if isinstance(layer, _CONVOLUTIONS) or x.ndim == 2:
        return _FrozenLayer.apply(x, layer, dtype)
    # As a matrix: the product of more dimensions is a view, and models may add to a layer's output in place.
    out = _FrozenLayer.apply(x.reshape(-1, x.shape[-1]), layer, dtype)
    return out.view(*x.shape[:-1], out.shape[-1])  # x may have no rows, as LTX-2's sound without one


class _FrozenLayer(torch.autograd.Function):
    """y = W x + b, or a convolution, with a gradient to x alone. Saves the shape of x and no tensor."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: nn.Module, dtype: torch.dtype) -> Tensor:
        ctx.layer, ctx.shape, ctx.input_dtype, ctx.dtype = layer, x.shape, x.dtype, dtype
        with _cast_weight(layer, x.device, dtype) as (weight, bias):
            if isinstance(layer, _CONVOLUTIONS):
                return layer._conv_forward(x.to(dtype), weight, bias)
            return nn.functional.linear(x.to(dtype), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        layer = ctx.layer
        with _cast_weight(layer, grad.device, ctx.dtype) as (weight, _):
            if isinstance(layer, _CONVOLUTIONS):
                out = _convolution_input_gradient(layer, grad.to(ctx.dtype), weight, ctx.shape)
            else:
                out = grad.to(ctx.dtype) @ weight
            return out.to(ctx.input_dtype), None, None


def _convolution_input_gradient(
    layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, grad: Tensor, weight: Tensor, shape: torch.Size
) -> Tensor:
    """The gradient to a convolution's input of `shape`, from that to its output."""
    like = grad.new_empty(1).expand(shape)  # only its shape counts
    return torch.ops.aten.convolution_backward(
        grad,
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


@contextmanager
def _cast_weight(layer: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Within the block: (weight, bias) on `device` in `dtype`, with the patches of the wire applied."""
    # On an accelerator, ComfyUI's buffers may be inference tensors, which cannot be written to outside of that mode.
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
