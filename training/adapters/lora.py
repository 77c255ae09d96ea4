"""Low-rank adapters on linear layers (Hu et al. 2021, "LoRA", section 4.1): W x + (alpha / rank) B A x, W frozen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..randomness import generator

UP_RATE = 16.0  # the paper's 2^4; others are compared in `tests/bench/bench_lora_concept.py`


class LowRankAdapters:
    """One pair of factors per target layer, in float32 whatever the base computes in.

    The factors live here and not in the model: `attached` adds their path beside the frozen layers for as long as a
    training step needs it and leaves nothing behind.

    targets: layer by name. `down` [rank, in] starts random (Kaiming uniform, as in the paper's code) and `up`
    [out, rank] at zero, so that step 0 is the base model. rates: learning rates of layers, by the beginning of their
    names, that have one of their own. idle: the beginning of names of layers that may have no part in the output (a
    text encoder's last one under clip skip): they need no gradient.
    """

    def __init__(
        self,
        targets: Mapping[str, nn.Module],
        rank: int,
        alpha: float,
        seed: int,
        device: torch.device,
        rates: Mapping[str, float] | None = None,
        idle: str | None = None,
    ):
        if not targets:
            raise InputError("the targets name no layer of this model; choose another set of targets")
        self.rank, self.alpha, self.rates = rank, alpha, dict(rates or {})
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

        self.idle = [f[name] for name in self.layers if idle and name.startswith(idle) for f in (self.down, self.up)]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def parameters(self) -> list[nn.Parameter]:
        return [*self.down.values(), *self.up.values()]

    def groups(self, learning_rate: float) -> list[tuple[list[nn.Parameter], float]]:
        """The factors with their learning rates: `up` learns `UP_RATE` times as fast (LoRA+, Hayou et al. 2024)."""
        rates: dict[float, list[str]] = {}
        for name in self.layers:
            own = next((rate for start, rate in self.rates.items() if name.startswith(start)), learning_rate)
            rates.setdefault(own, []).append(name)
        return [
            (list(map(factor.get, names)), rate * times)
            for rate, names in rates.items()
            for factor, times in ((self.down, 1.0), (self.up, UP_RATE))
        ]

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
        """Take the factors of another training's state. Raises `InputError` when they do not fit.

        Another alpha is folded into the up factor, so that the LoRA acts as it did.
        """
        beyond = sorted(
            {key.removesuffix(".lora_up.weight") for key in state if key.endswith(".lora_up.weight")} - set(self.layers)
        )
        if beyond:
            raise InputError(
                f"the LoRA to go on from has {len(beyond)} layers that are not trained here, such as {beyond[0]}, "
                "and they "
                "would be lost; choose the targets it was trained with, and train_text_encoder if it has text layers"
            )
        for name in self.layers:
            up, down = state.get(f"{name}.lora_up.weight"), state.get(f"{name}.lora_down.weight")
            if up is None or down is None:
                raise InputError(
                    f"the LoRA to go on from has nothing for {name}; choose the targets it was trained with"
                )
            if up.shape != self.up[name].shape or down.shape != self.down[name].shape:
                raise InputError(
                    f"the LoRA to go on from has rank {down.shape[0]} at {name} and the shape {tuple(up.shape)}; "
                    f"{tuple(self.up[name].shape)} is wanted: set rank to its rank, and wire in the model it was "
                    "made for"
                )
            alpha = float(state.get(f"{name}.alpha", torch.tensor(float(self.rank))))
            self.up[name].copy_(up.float() * (alpha / self.alpha) if self.alpha else up)
            self.down[name].copy_(down)

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
        # The text encoder may run on another device than the model, on which the factors are kept.
        down, up = self.down[name].to(x.device, dtype), self.up[name].to(x.device, dtype)
        hidden = nn.functional.linear(x.to(dtype), down)  # [..., rank]
        # One fused multiply-add instead of a product and a sum over the layer's whole output.
        added = torch.addmm(output.flatten(0, -2), hidden.flatten(0, -2), up.t(), alpha=self.scale)
        return added.view_as(output)
