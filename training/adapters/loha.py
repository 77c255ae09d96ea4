"""Hadamard-product adapters (FedPara: Hyeon-Woo et al. 2022, arXiv 2108.06098, proposition 2; LyCORIS' LoHa).

dW = (alpha / rank) (W1a W1b) * (W2a W2b), element by element: of rank up to rank^2 with the numbers of two LoRAs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ..randomness import generator
from .adapter import Adapter, AdapterConfig, linear_shape


class LohaAdapter(Adapter):
    """Four factors: w1_a, w2_a [out, rank] and w1_b, w2_b [rank, in], with the names that LyCORIS' files have."""

    KIND = "LoHa"
    ZERO_PARTS: ClassVar[tuple[str, ...]] = ("hada_w2_a",)

    def __init__(self, factors: tuple[Tensor, Tensor, Tensor, Tensor], alpha: float):
        super().__init__()
        self.hada_w1_a, self.hada_w1_b, self.hada_w2_a, self.hada_w2_b = map(nn.Parameter, factors)
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.scale = alpha / factors[1].shape[0]

    @classmethod
    def for_layer(cls, name: str, layer: nn.Module, config: AdapterConfig, device: torch.device) -> LohaAdapter:
        """LyCORIS' initial values: w1_a normal with 0.1, w1_b and w2_b with 1, w2_a zero."""
        out_features, in_features = linear_shape(name, layer)
        rank = config.rank

        def normal(part: str, *shape: int) -> Tensor:
            return torch.randn(shape, generator=generator(config.seed, part, name)).to(device)

        return cls(
            (
                normal("hada_w1_a", out_features, rank) * 0.1,
                normal("hada_w1_b", rank, in_features),
                torch.zeros(out_features, rank, device=device),
                normal("hada_w2_b", rank, in_features),
            ),
            config.alpha,
        )

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        factors = (self.hada_w1_a, self.hada_w1_b, self.hada_w2_a, self.hada_w2_b)
        moved = [factor.to(x.device, output.dtype) for factor in factors]
        apply = cast("Callable[..., Tensor]", _HadamardLinear.apply)  # pyright: ignore[reportUnknownMemberType]
        change = apply(x.to(output.dtype), *moved)
        return torch.add(output, change, alpha=self.scale)

    def convert_state(self, layer: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `Adapter.convert_state`. For another alpha w2_a is scaled, so that the effect is the same."""
        rank = self.hada_w1_b.shape[0]
        return self._in_own_scale(super().convert_state(layer, {"alpha": torch.tensor(float(rank)), **state}), rank)

    def delta_weight(self) -> Tensor:
        return self.scale * (self.hada_w1_a @ self.hada_w1_b) * (self.hada_w2_a @ self.hada_w2_b)


class _HadamardLinear(torch.autograd.Function):
    """x ((W1a W1b) * (W2a W2b))^T. The backward pass makes the products again: kept, they would be two more copies of
    every target layer's weight.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor) -> Tensor:
        ctx.save_for_backward(x, w1_a, w1_b, w2_a, w2_b)
        return functional.linear(x, (w1_a @ w1_b) * (w2_a @ w2_b))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, w1_a, w1_b, w2_a, w2_b = ctx.saved_tensors
        first, second = w1_a @ w1_b, w2_a @ w2_b
        to_x = grad @ (first * second) if ctx.needs_input_grad[0] else None
        to_weight = grad.flatten(0, -2).t() @ x.flatten(0, -2)  # [out, in]
        to_first, to_second = to_weight * second, to_weight * first
        return to_x, to_first @ w1_b.t(), w1_a.t() @ to_first, to_second @ w2_b.t(), w2_a.t() @ to_second
