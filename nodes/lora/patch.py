"""One layer of a LoRA as ComfyUI has loaded it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from comfy.weight_adapter import LoRAAdapter
from torch import Tensor

Offset = tuple[int, int, int]  # (axis, start, length) of a part of a weight


@dataclass(frozen=True)
class Patch:
    """One layer of a LoRA and the weight that it changes.

    key: the weight's key in the state dict. For a part of a weight (key, (axis, start, length)), in some families with
    a third item, the function that ComfyUI applies to the change.
    adapter: ComfyUI's adapter, or a tuple such as ("diff", (tensor,)). layer: the file's name of the layer. part: of a
    part of a weight its own name, as `diffusion_model.layers.0.attention.to_q`; "" where it is not known.
    """

    key: Any
    adapter: Any
    layer: str
    part: str = ""

    @property
    def weight(self) -> str:
        """The key of the weight in the model's state dict; it may also be that of a bias."""
        return self.key if isinstance(self.key, str) else self.key[0]

    @property
    def weight_layer(self) -> str:
        """`weight` without ".weight" or ".bias"."""
        return self.weight.removesuffix(".weight").removesuffix(".bias")

    @property
    def whole(self) -> bool:
        """Whether it changes the whole weight, not a part of it."""
        return isinstance(self.key, str)

    @property
    def offset(self) -> Offset | None:
        return None if self.whole else self.key[1]

    @property
    def row_order(self) -> Callable[[Tensor], Tensor] | None:
        """The function that brings the change's rows into the model's order; None where they are in it."""
        return None if self.whole or len(self.key) < 3 else self.key[2]

    @property
    def bias_change(self) -> Tensor | None:
        """What is added to a bias; None for a patch of a weight."""
        return self.adapter[1][0] if self.weight.endswith(".bias") and isinstance(self.adapter, tuple) else None

    @property
    def new_shape(self) -> Sequence[int] | None:
        """The shape that the weight is to have, where the LoRA changes it."""
        return self._lora_weights[5]

    @property
    def low_rank(self) -> bool:
        """Whether it is two factors (and a Tucker core) and nothing else."""
        return isinstance(self.adapter, LoRAAdapter) and all(part is None for part in self._lora_weights[4:])

    @property
    def two_factors(self) -> bool:
        """Whether it is two factors and nothing else."""
        return self.low_rank and self._lora_weights[3] is None

    @property
    def factors(self) -> tuple[Tensor, Tensor, float | None, Tensor | None]:
        """(up [out, rank, ...], down [rank, in, ...], alpha, Tucker core [rank, rank, *kernel]) of a `low_rank` patch.

        alpha and the core may be None. Of a convolution without a core, `down` has the kernel.
        """
        up, down, alpha, mid, _, _ = self._lora_weights
        return up, down, alpha, mid

    @property
    def _lora_weights(self) -> tuple[Any, ...]:
        """ComfyUI's (up, down, alpha, Tucker core, DoRA's magnitude, new shape); all None for another adapter."""
        return tuple(self.adapter.weights) if isinstance(self.adapter, LoRAAdapter) else (None,) * 6
