"""Adapters whose change depends on the base's weight: DoRA, OFT, BOFT and GLoRA, as their own programs define them.

ComfyUI's adapters of these kinds differ from PEFT and LyCORIS: DoRA is normalised by the norm of W instead of W + dW
along the output axis, OFT acts by the square of the strength, ignores `rescale`, and takes the constraint without the
factor of the layer's outputs. The classes here take their place in a model's patches. They follow ComfyUI's protocol,
`WeightAdapterBase`, so merging, offloading and low memory modes treat them like its own.

At a strength other than 1, DoRA's and GLoRA's change is multiplied by the strength, so that 0 is the base; for OFT see
`kinds.oft.rotated`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comfy.lora
import torch
from comfy.model_management import cast_to_device
from comfy.weight_adapter import (
    BOFTAdapter,
    GLoRAAdapter,
    LoHaAdapter,
    LoKrAdapter,
    LoRAAdapter,
    OFTAdapter,
    WeightAdapterBase,
)
from torch import Tensor

from .kinds.dora import decomposed
from .kinds.lokr import rebuilt_tucker
from .kinds.oft import rotated

_MAGNITUDE_AT = {  # where ComfyUI's adapters keep DoRA's magnitude in `weights`
    LoRAAdapter: 4,
    LoHaAdapter: 7,
    LoKrAdapter: 8,
    GLoRAAdapter: 5,
    OFTAdapter: 3,
    BOFTAdapter: 3,
}
_LORA_SHAPE_AT = 5


class BaseAdapter(WeightAdapterBase):
    """An adapter of this pack. ComfyUI makes copies of one as `type(adapter)(loaded_keys, weights)`.

    weights: a tuple of tensors, numbers, None, and other adapters.
    """

    weights: Any

    def __init__(self, loaded_keys: set[str], weights: tuple[Any, ...]) -> None:
        self.loaded_keys, self.weights = loaded_keys, weights

    def change(self, base: Tensor, strength: float) -> Tensor:
        """What is added to the weight `base` [out, in, *kernel], float32. May not change `base`."""
        raise NotImplementedError

    def calculate_weight(
        self,
        weight: Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: Any,
        function: Callable[[Tensor], Tensor],
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight: Any = None,
    ) -> Tensor:
        """ComfyUI's protocol: `weight` is changed in place and returned. Computed in float32 whatever its type is.

        function: what brings the file's rows into the model's order. It exchanges halves, so it is its own inverse.
        """
        base = function(weight.float())
        weight += function(self.change(base, strength)).to(weight.dtype)
        return weight


class DoraAdapter(BaseAdapter):
    """DoRA. weights: (the adapter without the magnitude, the magnitude)."""

    name = "dora"

    def change(self, base: Tensor, strength: float) -> Tensor:
        inner, magnitude = self.weights
        changed = _changed_by(inner, base)
        return strength * (decomposed(changed, cast_to_device(magnitude, base.device, torch.float32)) - base)


class RotationAdapter(BaseAdapter):
    """OFT or BOFT. weights: (blocks, rescale or None, the file's constraint or None)."""

    name = "oft"

    def change(self, base: Tensor, strength: float) -> Tensor:
        blocks, rescale, constraint = self.weights
        blocks = cast_to_device(blocks, base.device, torch.float32)
        if rescale is not None:
            rescale = cast_to_device(rescale, base.device, torch.float32)
        return rotated(base, blocks, float(constraint or 0.0), rescale, strength) - base


class GloraAdapter(BaseAdapter):
    """GLoRA, by ComfyUI's arithmetic. weights: (ComfyUI's adapter,)."""

    name = "glora"

    def change(self, base: Tensor, strength: float) -> Tensor:
        return strength * (_changed_by(self.weights[0], base) - base)


class TargetAdapter(BaseAdapter):
    """A weight or bias given as a whole. weights: (what it is to be at a strength of 1,)."""

    name = "target"

    def change(self, base: Tensor, strength: float) -> Tensor:
        return strength * (cast_to_device(self.weights[0], base.device, torch.float32) - base)


class RowsAdapter(BaseAdapter):
    """Another adapter whose change has a factor for each row. weights: (the adapter, the factors [out])."""

    name = "rows"

    def change(self, base: Tensor, strength: float) -> Tensor:
        inner, factors = self.weights
        factors = cast_to_device(factors, base.device, torch.float32).reshape(-1, *[1] * (base.ndim - 1))
        return factors * (_changed_by(inner, base, strength) - base)


class SumAdapter(BaseAdapter):
    """Several adapters of one weight, each of which sees the weight without the others.

    weights: ((strength, adapter, offset or None, function or None), ...).
    """

    name = "sum"

    def change(self, base: Tensor, strength: float) -> Tensor:
        out = torch.zeros_like(base)
        for own, adapter, offset, function in self.weights:
            part, target = (base, out) if offset is None else (base.narrow(*offset), out.narrow(*offset))
            changed = comfy.lora.calculate_weight([(own, adapter, 1.0, None, function)], part.clone(), "")
            target += strength * (changed - part)
        return out


BASE_ADAPTERS: tuple[type[BaseAdapter], ...] = (
    DoraAdapter,
    RotationAdapter,
    GloraAdapter,
    TargetAdapter,
    RowsAdapter,
    SumAdapter,
)


def _changed_by(adapter: Any, base: Tensor, strength: float = 1.0) -> Tensor:
    return comfy.lora.calculate_weight([(strength, adapter, 1.0, None, None)], base.clone(), "")


def as_defined(adapter: Any) -> Any:
    """ComfyUI's adapter as the one that computes what the kind's own program means; others as they are."""
    at = _MAGNITUDE_AT.get(type(adapter))
    if at is None:
        return adapter
    keys, weights = adapter.loaded_keys, list(adapter.weights)
    magnitude, weights[at] = weights[at], None
    if isinstance(adapter, LoRAAdapter) and (magnitude is None or weights[_LORA_SHAPE_AT] is not None):
        return adapter  # also a DoRA that means to give the weight another shape
    if isinstance(adapter, (OFTAdapter, BOFTAdapter)):
        inner: Any = RotationAdapter(keys, tuple(weights[:3]))
    elif isinstance(adapter, LoKrAdapter):
        try:
            inner = LoKrAdapter(keys, _plain_lokr(weights))
        except (RuntimeError, IndexError):  # factors that do not fit: `fit.check_adapter` refuses ComfyUI's adapter
            return adapter
    else:
        inner = type(adapter)(keys, tuple(weights))
    if magnitude is not None:
        return DoraAdapter(keys, (inner, magnitude))
    return GloraAdapter(keys, (inner,)) if isinstance(adapter, GLoRAAdapter) else inner


def _plain_lokr(weights: Sequence[Any]) -> tuple[Any, ...]:
    """LoKr's weights with both factors whole, where ComfyUI cannot multiply them: with a Tucker core, whose product is
    no contiguous tensor, and for convolutions of one and three dimensions.
    """
    w1, w2, alpha, w1_a, w1_b, w2_a, w2_b, core, magnitude = weights
    if core is None and (w2_b if w2 is None else w2).ndim in (2, 4):
        return tuple(weights)
    rank = None
    if w1 is None:
        w1, rank = w1_a.float() @ w1_b.float(), w1_b.shape[0]
    if w2 is None:
        rank = w2_b.shape[0]
        w2 = w2_a.float() @ w2_b.float() if core is None else rebuilt_tucker(core.float(), w2_a.float(), w2_b.float())
    scale = alpha / rank if alpha is not None and rank is not None else 1.0
    ones = (1,) * (w2.ndim - 2) if w2.ndim != 4 else ()
    return w1.reshape(*w1.shape, *ones), (scale * w2).contiguous(), None, None, None, None, None, None, magnitude


def in_order(patches: list[tuple]) -> list[tuple]:
    """A weight's patches in ComfyUI's form (strength, value, strength of the weight, offset, function), so ordered that
    each adapter of this module sees the base's weight: before the LoRAs that only add, and several as one sum.

    A patch that makes another base comes before them: another model's weights, or one that scales or replaces the
    weight.
    """
    first = max((i + 1 for i, patch in enumerate(patches) if makes_base(patch)), default=0)
    own: list[tuple] = []
    others: list[tuple] = []
    for patch in patches[first:]:
        strength, adapter, _, offset, function = patch
        if not isinstance(adapter, BaseAdapter):
            others.append(patch)
        elif isinstance(adapter, SumAdapter):
            own += [(strength * inner, *rest) for inner, *rest in adapter.weights]
        else:
            own.append((strength, adapter, offset, function))
    if len(own) > 1:
        keys = set().union(*(adapter.loaded_keys for _, adapter, _, _ in own))
        own = [(1.0, SumAdapter(keys, tuple(own)), 1.0, None, None)]
    else:
        own = [(strength, adapter, 1.0, offset, function) for strength, adapter, offset, function in own]
    return [*patches[:first], *own, *others]


def makes_base(patch: tuple) -> bool:
    """Whether a patch is part of the base: a merge of two models, or a replaced weight."""
    _, value, strength_model, *_ = patch
    return (
        strength_model != 1.0
        or isinstance(value, list)
        or (isinstance(value, tuple) and isinstance(value[0], str) and value[0] == "set")
    )
