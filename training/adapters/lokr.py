"""Kronecker-product adapters (KronA: Edalati et al. 2022, arXiv 2212.10650, equation 4; LyCORIS' LoKr).

dW = (alpha / rank) W1 x W2, where W2 is a product of two factors of `rank` if that is smaller than W2 itself. Of
a convolution the kernel is W2's: W1 mixes blocks of channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..randomness import generator
from ..tensors import length
from .adapter import Adapter, AdapterConfig
from .layer_shape import LayerShape, layer_shape


def factorization(size: int, factor: int = -1) -> tuple[int, int]:
    """(small, large) with small * large = size, as LyCORIS divides an axis.

    factor: one of the two where it divides the size; else the small one is the largest divisor up to it. -1 takes the
    divisors nearest to the square root.
    """
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    most = math.isqrt(size) if factor < 0 else min(factor, math.isqrt(size))
    small = max(divisor for divisor in range(1, most + 1) if size % divisor == 0)
    return small, size // small


class LokrAdapter(Adapter):
    """w1 [out / k, in / n] and w2 [k, n], or w2_a [k, rank] and w2_b [rank, n], with the names of LyCORIS' files.

    Of a convolution w2 is [k, n, *kernel] and w2_b [rank, n * kernel].
    """

    KIND = "LoKr"
    SHAPE_MEND = (
        "set rank and lokr_factor to those it was trained with (conv_rank, and single layers by a line of "
        "custom_targets), and "
    )
    ZERO_PARTS: ClassVar[tuple[str, ...]] = ("lokr_w2", "lokr_w2_b")

    def __init__(self, w1: Tensor, w2: tuple[Tensor, ...], rank: int, alpha: float, shape: LayerShape):
        super().__init__()
        self.shape = shape
        self.lokr_w1 = nn.Parameter(w1)
        if len(w2) == 1:
            self.lokr_w2, alpha = nn.Parameter(w2[0]), rank  # LyCORIS' rule: no factor of the rank, so no scale
        else:
            self.lokr_w2_a, self.lokr_w2_b = map(nn.Parameter, w2)
        self.scale = alpha / rank
        self.register_buffer("alpha", torch.tensor(float(alpha)))

    @classmethod
    def for_layer(cls, name: str, layer: nn.Module, config: AdapterConfig, device: torch.device) -> LokrAdapter:
        """W1 starts as LyCORIS' (Kaiming uniform with a of the root of 5), W2 or its second factor at zero."""
        shape = layer_shape(name, layer)
        (out_small, out_large), (in_small, in_large) = (
            factorization(size, config.factor) for size in (shape.out, shape.inputs)
        )

        def uniform(part: str, rows: int, columns: int) -> Tensor:
            draw = torch.rand(rows, columns, generator=generator(config.seed, part, name))
            return ((2 * draw - 1) / math.sqrt(columns)).to(device)

        w1 = uniform("lokr_w1", out_small, in_small)
        if config.rank < max(out_large, in_large) / 2:
            columns = in_large * math.prod(shape.kernel)
            w2 = (uniform("lokr_w2_a", out_large, config.rank), torch.zeros(config.rank, columns, device=device))
        else:
            w2 = (torch.zeros(out_large, in_large, *shape.kernel, device=device),)
        return cls(w1, w2, config.rank, config.alpha, shape)

    @property
    def dropout_units(self) -> int:
        """The layer's outputs: LyCORIS' rank dropout of a LoKr drops rows of dW."""
        return self.shape.out

    def forward(self, x: Tensor, output: Tensor, keep: Tensor | None = None) -> Tensor:
        change = self._convolved(x, output.dtype) if self.shape.kernel else self._multiplied(x, output.dtype)
        return torch.add(output, self.shape.times(change, keep), alpha=self.scale)

    def _convolved(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Each block of input channels is convolved with W2, and W1 mixes the results: [B, out, H', W']."""
        w1 = self.lokr_w1.to(x.device, dtype)
        inner, *outer = [factor.to(x.device, dtype) for factor in reversed(self._second())]
        blocks = x.to(dtype).reshape(len(x) * w1.shape[1], -1, *x.shape[2:])  # [B * in_small, in_large, H, W]
        hidden = self.shape.apply(blocks, inner)
        for factor in outer:
            hidden = self.shape.mix(hidden, factor)
        hidden = hidden.reshape(len(x), w1.shape[1], *hidden.shape[1:])  # [B, in_small, out_large, H', W']
        return torch.einsum("om,bmkhw->bokhw", w1, hidden).flatten(1, 2)

    def _multiplied(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        # (W1 x W2) x without the product: W2 acts on the inner axis of x, then W1 on the outer one.
        w1 = self.lokr_w1.to(x.device, dtype)
        folded = x.to(dtype).reshape(*x.shape[:-1], w1.shape[1], -1)  # [..., in_small, in_large]
        for factor in reversed(self._second()):
            folded = folded @ factor.to(x.device, dtype).t()
        return torch.einsum("om,...mk->...ok", w1, folded).flatten(-2)

    def _second(self) -> tuple[Tensor, ...]:
        """The factors of W2, the one that acts last first."""
        return (self.lokr_w2,) if hasattr(self, "lokr_w2") else (self.lokr_w2_a, self.lokr_w2_b)

    def convert_state(self, layer: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `Adapter.convert_state`. For another alpha w2_b is scaled; a whole w2 has no scale."""
        converted = super().convert_state(layer, {"alpha": self.alpha, **state})
        if hasattr(self, "lokr_w2"):
            return converted | {"alpha": self.alpha}
        return self._in_own_scale(converted, self.lokr_w2_b.shape[0])

    def delta_weight(self) -> Tensor:
        second = self._second()
        whole = second[0] if len(second) == 1 else second[0] @ second[1]
        small_out, small_in = self.lokr_w1.shape
        large = (self.shape.out // small_out, self.shape.inputs // small_in, *self.shape.kernel)
        first = self.lokr_w1.view(self.shape.pointwise(small_out, small_in))
        return self.scale * torch.kron(first, whole.reshape(large))

    def factors(self) -> list[nn.Parameter]:
        return (
            [self.lokr_w1, self.lokr_w2]
            if hasattr(self, "lokr_w2")
            else [
                self.lokr_w1,
                self.lokr_w2_a,
                self.lokr_w2_b,
            ]
        )

    def change_norm(self) -> Tensor:
        """|W1 x W2| = |W1| |W2|."""
        second = self._second()
        whole = second[0] if len(second) == 1 else second[0] @ second[1]
        return abs(self.scale) * length(self.lokr_w1.flatten()) * length(whole.flatten())
