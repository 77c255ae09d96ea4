"""Low-rank adapters on linear layers (Hu et al. 2021, "LoRA", section 4.1): W x + (alpha / rank) B A x, W frozen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from .errors import InputError
from .randomness import generator


class LowRankAdapters:
    """One pair of factors per target layer, in float32 whatever the base computes in.

    The factors live here and not in the model: `attached` adds their path beside the frozen layers for as long as a
    training step needs it and leaves nothing behind.

    targets: layer by name. `down` [rank, in] starts random (Kaiming uniform, as in the paper's code) and `up`
    [out, rank] at zero, so that step 0 is the base model.
    """

    def __init__(self, targets: Mapping[str, nn.Module], rank: int, alpha: float, seed: int, device: torch.device):
        if not targets:
            raise InputError("the targets name no layer of this model; choose another set of targets")
        self.rank, self.alpha = rank, alpha
        self.layers = dict(targets)
        self.down: dict[str, nn.Parameter] = {}
        self.up: dict[str, nn.Parameter] = {}
        for name, layer in self.layers.items():
            out_features, in_features = layer.weight.shape[:2]
            if layer.weight.ndim != 2:
                raise InputError(f"{name} is a convolution; only linear layers can be targets")
            bound = 1 / math.sqrt(in_features)
            down = torch.rand(rank, in_features, generator=generator(seed, "down", name)) * 2 * bound - bound
            self.down[name] = nn.Parameter(down.to(device))
            self.up[name] = nn.Parameter(torch.zeros(out_features, rank, device=device))

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def parameters(self) -> list[nn.Parameter]:
        return [*self.down.values(), *self.up.values()]

    def after_step(self) -> None:
        """Nothing holds the factors back."""

    def state_dict(self) -> dict[str, Tensor]:
        """{layer.lora_down.weight, layer.lora_up.weight, layer.alpha}: a copy, float32 on the CPU."""
        out = {}
        for name in self.layers:
            out[f"{name}.lora_up.weight"] = self.up[name].detach().to("cpu", copy=True)
            out[f"{name}.lora_down.weight"] = self.down[name].detach().to("cpu", copy=True)
            out[f"{name}.alpha"] = torch.tensor(float(self.alpha))
        return out

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name in self.layers:
            self.up[name].copy_(state[f"{name}.lora_up.weight"])
            self.down[name].copy_(state[f"{name}.lora_down.weight"])

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The adapters' path beside every target layer, until the block is left."""
        hooks = [layer.register_forward_hook(partial(self._add, name)) for name, layer in self.layers.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _add(self, name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        dtype = output.dtype
        down, up = self.down[name].to(dtype), self.up[name].to(dtype)
        hidden = nn.functional.linear(x.to(dtype), down)  # [..., rank]
        # One fused multiply-add instead of a product and a sum over the layer's whole output.
        added = torch.addmm(output.flatten(0, -2), hidden.flatten(0, -2), up.t(), alpha=self.scale)
        return added.view_as(output)


def count_parameters(adapters: LowRankAdapters) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in adapters.parameters())
