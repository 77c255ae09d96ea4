"""The weight of a target layer, [out, in] of a linear layer or [out, in, *kernel] of a convolution, and its use."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import InputError


@dataclass(frozen=True)
class LayerShape:
    """A linear layer where `kernel` is empty, else a convolution of two dimensions without groups.

    out, inputs: features or channels. kernel, stride, padding, dilation: as `torch.nn.Conv2d` has them.
    """

    out: int
    inputs: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()

    @property
    def columns(self) -> int:
        """The numbers of the weight for each output: in * kernel."""
        return self.inputs * prod(self.kernel)

    @property
    def weight(self) -> tuple[int, ...]:
        """The shape of the layer's weight."""
        return (self.out, self.inputs, *self.kernel)

    def pointwise(self, rows: int, columns: int) -> tuple[int, ...]:
        """The shape of a matrix that mixes channels: [rows, columns], with a kernel of 1 in a convolution."""
        return (rows, columns, *(1 for _ in self.kernel))

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """What the layer would compute of `x` with another weight, without a bias.

        x: [..., in] or [B, in, H, W]. weight: [n, in, *kernel], also flattened after the first axis; a part of the
        input channels will do where x has only those. Gives [..., n] or [B, n, H', W'].
        """
        if not self.kernel:
            return functional.linear(x, weight)
        return functional.conv2d(x, self._filters(weight), None, self.stride, self.padding, self.dilation)

    def mix(self, x: Tensor, weight: Tensor) -> Tensor:
        """`weight` [n, c] or [n, c, 1, 1] applied to the channels of `x` [..., c] or [B, c, H, W]."""
        return (
            functional.conv2d(x, weight.view(*weight.shape[:2], 1, 1)) if self.kernel else functional.linear(x, weight)
        )

    def input_gradient(self, grad: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        """The gradient to an input of `shape` from `grad`, that to the output of `apply`."""
        if not self.kernel:
            return grad @ weight
        return self._convolution_gradients(grad, grad.new_empty(1).expand(shape), weight, (True, False, False))[0]

    def weight_gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        """The gradient [n, columns] to the weight of `apply` from `grad`, that to its output."""
        if not self.kernel:
            return grad.flatten(0, -2).t() @ x.flatten(0, -2)
        like = grad.new_empty(1).expand(grad.shape[1], x.shape[1] * prod(self.kernel))
        return self._convolution_gradients(grad, x, like, (False, True, False))[1].flatten(1)

    def _convolution_gradients(
        self, grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]
    ) -> tuple[Tensor, ...]:
        backward: Any = torch.ops.aten.convolution_backward
        return cast(
            "tuple[Tensor, ...]",
            backward(
                grad,
                x,
                self._filters(weight),
                None,
                self.stride,
                self.padding,
                self.dilation,
                False,
                [0] * len(self.kernel),
                1,
                wanted,
            ),
        )

    def _filters(self, weight: Tensor) -> Tensor:
        return weight.reshape(weight.shape[0], -1, *self.kernel)

    def over_channels(self, factors: Tensor) -> Tensor:
        """[B, c] or [c] as factors of the channels of an output [B, ..., c] or [B, c, H, W]."""
        return factors[..., None, None] if self.kernel else factors

    def times(self, hidden: Tensor, keep: Tensor | None) -> Tensor:
        """`hidden` [B, ..., c] or [B, c, H, W] with each sample's channels times `keep` [B, c], in its own dtype."""
        if keep is None:
            return hidden
        between = (1,) * (hidden.ndim - 2)
        factors = keep.reshape(len(keep), -1, *between) if self.kernel else keep.reshape(len(keep), *between, -1)
        return (hidden * factors).to(hidden.dtype)


def layer_shape(name: str, layer: nn.Module) -> LayerShape:
    """The shape of a linear layer, quantised ones too, or of a `Conv2d`.

    Raises `InputError` for other layers, for a convolution in groups and for one that does not pad with zeros.
    """
    weight = layer.weight
    if isinstance(layer, nn.Conv2d):
        if layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            raise InputError(
                f"{name} is a convolution with groups = {layer.groups}, padding = {layer.padding!r} and padding_mode = "
                f"{layer.padding_mode!r}, which cannot be adapted; set conv_rank to 0, or take off the node that makes "
                "pictures tileable"
            )
        out, inputs = layer.weight.shape[:2]
        return LayerShape(out, inputs, layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise InputError(
            f"{name} is a {type(layer).__name__}; only linear layers and 2D convolutions can be targets, choose others"
        )
    return LayerShape(weight.shape[0], weight.shape[1])
