"""Weight-decomposed adapters (DoRA: Liu et al. 2024, arXiv 2402.09353, equations 5 and 11).

W' = m (W + dW) / ||W + dW|| with dW = (alpha / rank) B A and a magnitude m for each output of the layer. The norm is
taken as a constant in the backward pass, as in section 4.3 of the paper and in PEFT.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..tensors import length
from .adapter import AdapterConfig
from .lora import UP_RATE, LoraAdapter


class DoraAdapter(LoraAdapter):
    """LoRA's factors, and the magnitude [out, 1] under the name that kohya's files have."""

    KIND = "DoRA"

    def __init__(self, down: Tensor, up: Tensor, alpha: float, layer: nn.Module):
        super().__init__(down, up, alpha)
        self._layers = (layer,)  # in a tuple, so that it is no submodule
        self.dora_scale = nn.Parameter(length(self._base(), keepdim=True).to(up.device))

    @classmethod
    def for_layer(cls, name: str, layer: nn.Module, config: AdapterConfig, device: torch.device) -> DoraAdapter:
        """The factors start as LoRA's, the magnitude as the norm of each row of the weight: nothing is changed."""
        lora = LoraAdapter.for_layer(name, layer, config, device)
        return cls(lora.down.detach(), lora.up.detach(), config.alpha, layer)

    def _base(self) -> Tensor:
        """The frozen weight [out, in] in float32; a quantised one is brought back to numbers."""
        weight: Any = self._layers[0].weight
        dequantize = getattr(weight, "dequantize", None)
        return (weight if dequantize is None else dequantize()).detach().float()

    def _norm(self, device: torch.device) -> Tensor:
        """||W + dW|| of each row, [out, 1], without a gradient."""
        with torch.no_grad():
            changed = self._base().to(device) + self.scale * self.up.float().to(device) @ self.down.float().to(device)
            return length(changed, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        """Written as PEFT writes it: with an unchanged weight and its own norm as magnitude, the output to the bit."""
        dtype, bias = output.dtype, getattr(self._layers[0], "bias", None)
        base = output if bias is None else output - bias.to(x.device, dtype)
        down, up = self.down.to(x.device, dtype), self.up.to(x.device, dtype)
        change = functional.linear(functional.linear(x.to(dtype), down), up)
        factor = (self.dora_scale.to(x.device) / self._norm(x.device)).flatten()
        return output + (factor - 1).to(dtype) * base + (self.scale * factor).to(dtype) * change

    def delta_weight(self) -> Tensor:
        base = self._base().to(self.up.device)
        return self.dora_scale / self._norm(base.device) * (base + self.scale * self.up @ self.down) - base

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
            change = self.scale * up @ down
            magnitude = length(self._base().to(device) + change, keepdim=True)
        return converted | {"dora_scale": magnitude.reshape(self.dora_scale.shape)}
