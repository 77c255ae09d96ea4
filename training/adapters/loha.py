"""Hadamard-product adapters (FedPara: Hyeon-Woo et al. 2022, arXiv 2108.06098, proposition 2; LyCORIS' LoHa).

dW = (alpha / rank) (W1a W1b) * (W2a W2b), element by element: of rank up to rank^2 with the numbers of two LoRAs.
Of a convolution the product is of the weight as a matrix [out, in * kernel], LyCORIS' form without a Tucker core.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..randomness import generator
from .adapter import Adapter, AdapterConfig
from .layer_shape import LayerShape, layer_shape


class LohaAdapter(Adapter):
    """Four factors: w1_a, w2_a [out, rank] and w1_b, w2_b [rank, in * kernel], with the names of LyCORIS' files."""

    KIND = "LoHa"
    SHAPE_MEND = "set rank to its rank (conv_rank, and single layers by a line of custom_targets), and "
    ZERO_PARTS: ClassVar[tuple[str, ...]] = ("hada_w2_a",)

    def __init__(self, factors: tuple[Tensor, Tensor, Tensor, Tensor], alpha: float, shape: LayerShape):
        super().__init__()
        self.hada_w1_a, self.hada_w1_b, self.hada_w2_a, self.hada_w2_b = map(nn.Parameter, factors)
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.scale, self.shape = alpha / factors[1].shape[0], shape

    @classmethod
    def for_layer(cls, name: str, layer: nn.Module, config: AdapterConfig, device: torch.device) -> LohaAdapter:
        """LyCORIS' initial values: w1_a normal with 0.1, w1_b and w2_b with 1, w2_a zero."""
        layout, rank = layer_shape(name, layer), config.rank

        def normal(part: str, *shape: int) -> Tensor:
            return torch.randn(shape, generator=generator(config.seed, part, name)).to(device)

        return cls(
            (
                normal("hada_w1_a", layout.out, rank) * 0.1,
                normal("hada_w1_b", rank, layout.columns),
                torch.zeros(layout.out, rank, device=device),
                normal("hada_w2_b", rank, layout.columns),
            ),
            config.alpha,
            layout,
        )

    @property
    def dropout_units(self) -> int:
        """The layer's outputs: LyCORIS' rank dropout of a LoHa drops rows of dW."""
        return self.shape.out

    def forward(self, x: Tensor, output: Tensor, keep: Tensor | None = None) -> Tensor:
        factors = (self.hada_w1_a, self.hada_w1_b, self.hada_w2_a, self.hada_w2_b)
        moved = [factor.to(x.device, output.dtype) for factor in factors]
        apply = cast("Callable[..., Tensor]", _Hadamard.apply)  # pyright: ignore[reportUnknownMemberType]
        change = apply(x.to(output.dtype), self.shape, *moved)
        return torch.add(output, self.shape.times(change, keep), alpha=self.scale)

    def convert_state(self, layer: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `Adapter.convert_state`. For another alpha w2_a is scaled, so that the effect is the same."""
        rank = self.hada_w1_b.shape[0]
        return self._in_own_scale(super().convert_state(layer, {"alpha": torch.tensor(float(rank)), **state}), rank)

    def delta_weight(self) -> Tensor:
        change = self.scale * (self.hada_w1_a @ self.hada_w1_b) * (self.hada_w2_a @ self.hada_w2_b)
        return change.view(self.shape.weight)

    def factors(self) -> list[nn.Parameter]:
        return [self.hada_w1_a, self.hada_w1_b, self.hada_w2_a, self.hada_w2_b]


class _Hadamard(torch.autograd.Function):
    """The layer with the weight (W1a W1b) * (W2a W2b). The backward pass makes the products again: kept, they would be
    two more copies of every target layer's weight.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shape: LayerShape, w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, w1_a, w1_b, w2_a, w2_b)
        ctx.shape = shape
        return shape.apply(x, (w1_a @ w1_b) * (w2_a @ w2_b))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        shape: LayerShape = ctx.shape
        x, w1_a, w1_b, w2_a, w2_b = ctx.saved_tensors
        first, second = w1_a @ w1_b, w2_a @ w2_b
        to_x = shape.input_gradient(grad, first * second, x.shape) if ctx.needs_input_grad[0] else None
        to_weight = shape.weight_gradient(grad, x)  # [out, in * kernel]
        to_first, to_second = to_weight * second, to_weight * first
        return to_x, None, to_first @ w1_b.t(), w1_a.t() @ to_first, to_second @ w2_b.t(), w2_a.t() @ to_second
