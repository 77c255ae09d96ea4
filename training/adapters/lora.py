"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685, section 4.1): W x + (alpha / rank) B A x with W frozen.

Of a convolution (LoCon, LyCORIS: Yeh et al. 2024, arXiv 2309.14859): A is a convolution with the layer's own kernel,
stride and padding to `rank` channels, and B mixes these (a kernel of 1), as kohya's and LyCORIS' files have them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..randomness import generator
from .adapter import Adapter, AdapterConfig, nothing_for
from .layer_shape import LayerShape, layer_shape

# The learning rate of the up factor as a multiple of the down factor's: 2^4, as in the paper on LoRA+. Others are
# compared in `tests/bench/bench_lora_concept.py`.
UP_RATE = 16.0


class Factor(nn.Module):
    """A trainable matrix with the key `<factor>.weight`."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)


class LoraAdapter(Adapter):
    """Two factors: down [rank, in] and up [out, rank], with the names that kohya's files have.

    Of a convolution down [rank, in, *kernel] and up [out, rank, 1, 1].
    """

    KIND = "LoRA"
    ZERO_PARTS: ClassVar[tuple[str, ...]] = ("lora_up.weight",)

    def __init__(self, down: Tensor, up: Tensor, alpha: float, shape: LayerShape):
        super().__init__()
        self.lora_up, self.lora_down = Factor(up), Factor(down)
        # The buffer is for the state dict. `alpha_value` is the same number without a copy from the device.
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.rank, self.alpha_value, self.shape = down.shape[0], alpha, shape

    @classmethod
    def for_layer(cls, name: str, layer: nn.Module, config: AdapterConfig, device: torch.device) -> LoraAdapter:
        """Down starts random (Kaiming uniform, as in the paper's code), up at zero."""
        shape, rank = layer_shape(name, layer), config.rank
        bound = 1 / math.sqrt(shape.columns)
        draw = torch.rand(rank, shape.columns, generator=generator(config.seed, "down", name))
        down = (draw * 2 * bound - bound).view(rank, *shape.weight[1:])
        up = torch.zeros(shape.pointwise(shape.out, rank), device=device)
        return cls(down.to(device), up, config.alpha, shape)

    @property
    def down(self) -> nn.Parameter:
        return self.lora_down.weight

    @property
    def up(self) -> nn.Parameter:
        return self.lora_up.weight

    @property
    def scale(self) -> float:
        return self.alpha_value / self.rank

    @property
    def dropout_units(self) -> int:
        return self.rank

    def forward(self, x: Tensor, output: Tensor, keep: Tensor | None = None) -> Tensor:
        dtype = output.dtype
        # A text encoder may run on another device than the diffusion model, where the factors are.
        down, up = self.down.to(x.device, dtype), self.up.to(x.device, dtype)
        hidden = self.shape.times(self.shape.apply(x.to(dtype), down), keep)  # [..., rank]
        if self.shape.kernel:
            return torch.add(output, self.shape.mix(hidden, up), alpha=self.scale)
        # One fused multiply-add instead of a product and a sum over the layer's whole output.
        adapted = torch.addmm(output.flatten(0, -2), hidden.flatten(0, -2), up.t(), alpha=self.scale)
        return adapted.view_as(output)

    def low_rank_change(self, up: Tensor, down: Tensor) -> Tensor:
        """(alpha / rank) B A as a matrix [out, in * kernel]."""
        return self.scale * up.flatten(1) @ down.flatten(1)

    def delta_weight(self) -> Tensor:
        return self.low_rank_change(self.up, self.down).view(self.shape.weight)

    def factors(self) -> list[nn.Parameter]:
        return [self.up, self.down]

    def change_norm(self) -> Tensor:
        """|B A|^2 is the sum over (B^T B) * (A A^T), two matrices [rank, rank]."""
        up, down = self.up.flatten(1), self.down.flatten(1)
        square = ((up.t() @ up) * (down @ down.t())).sum().clamp_min(0)
        return abs(self.scale) * square.sqrt()

    @property
    def _rank_widget(self) -> str:
        """The setting that decides the rank of this layer, besides an own rank in custom_targets."""
        return "conv_rank" if any(size > 1 for size in self.shape.kernel) else "rank"

    def learning_rates(self) -> dict[str, float]:
        """Up learns `UP_RATE` times as fast (LoRA+, Hayou et al. 2024, arXiv 2402.12354)."""
        return {"lora_down.weight": 1.0, "lora_up.weight": UP_RATE}

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As torch's `state_dict`, with alpha after the factors."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        key = f"{kwargs.get('prefix', '')}alpha"
        state[key] = state.pop(key)
        return state

    def convert_state(self, layer: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `Adapter.convert_state`. For another alpha the up factor is scaled, so that the effect is the same.

        A state without alpha counts as one with alpha equal to the rank.
        """
        up, down = state.get("lora_up.weight"), state.get("lora_down.weight")
        if up is None or down is None:
            raise InputError(nothing_for(self.KIND, layer))
        if up.numel() == self.up.numel() and up.shape[:2] == self.up.shape[:2]:
            up = up.reshape(self.up.shape)  # a 1x1 convolution's factors may be matrices in a file
            down = down.reshape(self.down.shape) if down.numel() == self.down.numel() else down
        if up.shape != self.up.shape or down.shape != self.down.shape:
            raise InputError(
                f"the LoRA to go on from has rank {down.shape[0]} at {layer} and the shape {tuple(up.shape)}; "
                f"{tuple(self.up.shape)} is wanted: set {self._rank_widget} to its rank, for single layers by "
                "a line of custom_targets, and wire in the model it was made for"
            )
        # Compared with the buffer: `alpha_value` has more digits than a state, and the ratio would not be 1.
        alpha, own = float(state.get("alpha", self.rank)), float(self.alpha)
        if own:
            up = up.float() * (alpha / own)
        return {"lora_up.weight": up, "lora_down.weight": down, "alpha": self.alpha}
