"""How strongly each layer of a LoRA acts on a model: its place, and its strength by the scope."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor

from ....training.layer_names.blocks import fused_rows, projection_of
from ....training.layer_names.spelling import COMFY_PREFIX
from ..base_adapters import RowsAdapter
from ..keys import keys_of
from ..match import Matched, check_found, match
from ..named_lora import NamedLora
from ..patch import Patch
from .request import Request
from .scope import Scope

Weighted = list[tuple[float, Patch]]  # each patch with its strength


@dataclass(frozen=True)
class Strength:
    """The strength of one patch. rows: of a layer that holds query, key and value, the factor of each row [out]; None
    where all are 1 or cannot be told apart."""

    value: float
    rows: Tensor | None = None


@dataclass(frozen=True)
class Placed:
    """A LoRA's patches with their strengths. unet_config: ComfyUI's, of the diffusion model."""

    found: Matched
    model: list[Strength]
    clip: list[Strength]
    unet_config: Mapping[str, Any] | None

    def of_model(self) -> Weighted:
        return [
            (strength.value, scaled_rows(patch, strength.rows))
            for strength, patch in zip(self.model, self.found.model, strict=True)
        ]

    def of_clip(self) -> Weighted:
        return [(strength.value, patch) for strength, patch in zip(self.clip, self.found.clip, strict=True)]


def place(model: Any, clip: Any, lora: NamedLora, request: Request) -> Placed:
    """The LoRA's patches for the model (and the text encoder, which may be None) with their strengths.

    Raises `InputError` where the LoRA does not fit the model or the scope names no block of it.
    """
    found = match(model, clip, lora)
    if not request.partial:
        check_found(found, lora, model, "switch partial on to apply the rest of it")
    unet_config = getattr(model.model.model_config, "unet_config", None)
    scope = request.scope
    shapes = keys_of(model.model, is_clip=False).shapes
    if scope.blocks:
        scope.check((key for key in shapes if key.startswith(COMFY_PREFIX)), unet_config)
    of_model = [
        Strength(
            request.strength_model * scope.strength(layer_of(patch), unet_config),
            _row_factors(patch, scope, unet_config, shapes.get(patch.weight)),
        )
        for patch in found.model
    ]
    of_clip = [Strength(strength_of_text(layer_of(patch), request)) for patch in found.clip]
    return Placed(found, of_model, of_clip, unet_config)


def strength_of_text(layer: str, request: Request) -> float:
    """The strength of a text encoder's layer. Blocks are those of the diffusion model: it has projections only."""
    return request.strength_clip * request.scope.projections.get(projection_of(layer) or "", 1.0)


def layer_of(patch: Patch) -> str:
    """The layer's name for the scope: the key of its weight or bias without ".weight" or ".bias".

    Where the patch changes a part of a fused weight: the part's name, which says which projection it is.
    """
    return patch.part or (patch.layer if patch.offset else patch.weight_layer)


def _row_factors(
    patch: Patch, scope: Scope, unet_config: Mapping[str, Any] | None, shape: tuple[int, ...] | None
) -> Tensor | None:
    """The factor of each row of a layer that holds query, key and value; None where all are 1, and where the rows
    cannot be told apart. shape: the weight's, or None for a bias that the layer does not have.
    """
    strengths = scope.rows(layer_of(patch))
    bias = patch.bias_change
    if strengths is None:
        return None
    if patch.low_rank or bias is not None:
        count = (patch.factors[0] if bias is None else bias).shape[0]
    elif shape is None or patch.new_shape is not None or (patch.offset is not None and patch.offset[0] != 0):
        return None
    else:
        count = shape[0] if patch.offset is None else patch.offset[2]
    rows = fused_rows(count, unet_config)
    return None if rows is None else torch.tensor(strengths).repeat_interleave(torch.tensor(rows))


def scaled_rows(patch: Patch, factors: Tensor | None) -> Patch:
    """The patch with each row of its change times its factor [out]; as it is for None."""
    if factors is None:
        return patch
    bias = patch.bias_change
    if patch.low_rank or bias is not None:
        up, *rest = patch.adapter.weights if bias is None else (bias,)
        up = up.float() if up.dtype.itemsize == 1 else up  # torch multiplies no fp8
        scaled = up * factors.to(up.dtype).reshape(-1, *[1] * (up.ndim - 1))
        adapter = LoRAAdapter(patch.adapter.loaded_keys, (scaled, *rest)) if bias is None else ("diff", (scaled,))
        return replace(patch, adapter=adapter)
    return replace(patch, adapter=RowsAdapter(getattr(patch.adapter, "loaded_keys", set()), (patch.adapter, factors)))
