"""Weight-decomposed adapters (DoRA: Liu et al. 2024, arXiv 2402.09353, equations 5 and 11).

W' = m (W + dW) / ||W + dW|| with dW = (alpha / rank) B A and a magnitude m for each output of the layer. The norm is
taken as a constant in the backward pass, as in section 4.3 of the paper and in PEFT. An output of a convolution is a
channel, and its norm that of all numbers of its filter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..tensors import length
from .adapter import AdapterConfig
from .layer_shape import LayerShape
from .lora import UP_RATE, LoraAdapter


class DoraAdapter(LoraAdapter):
    """LoRA's factors, and the magnitude [out, 1], of a convolution [out, 1, 1, 1], under the name in kohya's files."""

    KIND = "DoRA"

    def __init__(self, down: Tensor, up: Tensor, alpha: float, shape: LayerShape, layer: nn.Module):
        super().__init__(down, up, alpha, shape)
        self._layers = (layer,)  # in a tuple, so that it is no submodule
        magnitude = length(self._base(), keepdim=True).view(shape.pointwise(shape.out, 1))
        self.dora_scale = nn.Parameter(magnitude.to(up.device))

    @classmethod
    def for_layer(cls, name: str, layer: nn.Module, config: AdapterConfig, device: torch.device) -> DoraAdapter:
        """The factors start as LoRA's, the magnitude as the norm of each row of the weight: nothing is changed."""
        lora = LoraAdapter.for_layer(name, layer, config, device)
        return cls(lora.down.detach(), lora.up.detach(), config.alpha, lora.shape, layer)

    def _base(self) -> Tensor:
        """The frozen weight [out, in * kernel] in float32; a quantised one is brought back to numbers."""
        weight: Any = self._layers[0].weight
        # Only where there is something to do: Apple's and Intel's devices have no kernel for `Tensor.dequantize`.
        if weight.is_quantized or hasattr(weight, "__tensor_flatten__"):
            weight = weight.dequantize()
        return weight.detach().float().flatten(1)

    def _norm(self, device: torch.device) -> Tensor:
        """||W + dW|| of each row, [out, 1], without a gradient."""
        with torch.no_grad():
            change = self.low_rank_change(self.up.float().to(device), self.down.float().to(device))
            changed = self._base().to(device) + change
            return length(changed, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)

    def forward(self, x: Tensor, output: Tensor, keep: Tensor | None = None) -> Tensor:
        """Written as PEFT writes it: with an unchanged weight and its own norm as magnitude, the output to the bit.

        keep: of the ranks of dW; the norm is that of the whole W + dW.
        """
        dtype, bias, shape = output.dtype, getattr(self._layers[0], "bias", None), self.shape
        base = output if bias is None else output - shape.over_channels(bias.to(x.device, dtype))
        down, up = self.down.to(x.device, dtype), self.up.to(x.device, dtype)
        change = shape.mix(shape.times(shape.apply(x.to(dtype), down), keep), up)
        factor = (self.dora_scale.to(x.device).flatten(1) / self._norm(x.device)).flatten()
        factor = shape.over_channels(factor)
        return output + (factor - 1).to(dtype) * base + (self.scale * factor).to(dtype) * change

    def delta_weight(self) -> Tensor:
        base = self._base().to(self.up.device)
        factor = self.dora_scale.flatten(1) / self._norm(base.device)
        return (factor * (base + self.low_rank_change(self.up, self.down)) - base).view(self.shape.weight)

    def learning_rates(self) -> dict[str, float]:
        """As LoRA's; the magnitude learns at the run's rate."""
        return {"lora_down.weight": 1.0, "lora_up.weight": UP_RATE, "dora_scale": 1.0}

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As LoRA's, with the magnitude last."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        key = f"{kwargs.get('prefix', '')}dora_scale"
        state[key] = state.pop(key)
        return state

    def convert_state(self, layer: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As LoRA's. Without a magnitude, which a LoRA has not, the one that leaves its change as it is is taken."""
        converted = super().convert_state(layer, state)
        magnitude = state.get("dora_scale")
        if magnitude is None:
            device = self.up.device
            up, down = (converted[f"lora_{part}.weight"].float().to(device) for part in ("up", "down"))
            change = self.low_rank_change(up, down)
            magnitude = length(self._base().to(device) + change, keepdim=True)
        return converted | {"dora_scale": magnitude.reshape(self.dora_scale.shape)}
