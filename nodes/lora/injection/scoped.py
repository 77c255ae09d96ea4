"""A LoRA as the dials scope it: the strengths of its layers folded into its parts, as a LoRA of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import comfy.lora
import comfy.model_management
import torch
from torch import Tensor

from ....training import strength_range
from ....training.errors import InputError
from ....training.layer_names.parts import (
    ALPHA,
    DIFF,
    DIFF_BIAS,
    DOWN,
    HADA_T1,
    HADA_W1_A,
    LOKR_W1,
    LOKR_W1_A,
    NORM_BIAS,
    NORM_WEIGHT,
    SET_WEIGHT,
    UNKNOWN,
    UP,
    WHOLE_BIAS,
    adapts,
    layers_of,
)
from ....training.layer_names.spelling import TEXT_PREFIX, common_name
from ....training.timestep_range import OWN_KEY, SPEC_KEY, SS_KEYS, WHOLE, TimestepRange, range_in
from ...bridge.models.names import unet_names
from ...bridge.noise_level import noise_level
from ...bridge.wire.effective import weight_of
from .. import kinds
from ..keys import names_in_files
from ..kinds.loha import LOHA
from ..kinds.lokr import LOKR
from ..kinds.lora import LORA
from ..named_lora import NamedLora
from ..patch import Patch
from .request import Request
from .strengths import Strength, place, scaled_rows, strength_of_text
from .timing import Timing

_ADDED = (DIFF, DIFF_BIAS, NORM_WEIGHT, NORM_BIAS)  # parts that are added as they are, times the strength


def scoped_lora(
    model: Any, clip: Any, lora: NamedLora, request: Request, use_range: bool = True
) -> tuple[NamedLora, list[str]]:
    """(the LoRA that does at strength 1 what `lora` does by the request's strengths and scope, remarks).

    Its layers have ComfyUI's names; a part of a fused layer keeps the file's name. Layers without a place in the model,
    and those of strength 0, are left out. Without `clip` the text encoder's layers are scaled too. A layer whose change
    depends on the base's weight (DoRA, OFT, ...) stays as it is at strength 1, and else becomes the whole difference
    that it makes on this base. A start and end go into the metadata, see `part_of_timing`; without them the file's own
    part of the schedule stays there where `use_range` is set. Raises `InputError` as `strengths.place` does.
    """
    placed = place(model, clip, lora, request)
    layers = layers_of(lora)
    out = _Folded({layer for layer, parts in layers.items() if adapts(parts)})
    for patcher, prefix, patches, strengths in (
        (model, "", placed.found.model, placed.model),
        (getattr(clip, "patcher", None), TEXT_PREFIX, placed.found.clip, placed.clip),
    ):
        by_layer: dict[str, list[tuple[Patch, Strength]]] = {}
        for patch, strength in zip(patches, strengths, strict=True):
            by_layer.setdefault(patch.layer, []).append((patch, strength))
        for layer, group in by_layer.items():
            out.add(out.name(prefix, group[0][0]), layers[layer], group, patcher)
    for layer in placed.found.no_clip:
        strength = Strength(strength_of_text(common_name(layer, unet_names()), request))
        folded = _folded(layer, layers[layer], strength)
        out.keep(layer, layers[layer] if folded is None else folded, strength)
    meta, remarks = _meta(lora, model, request.timing, use_range)
    if request.strength_model != 1.0:
        meta.pop(strength_range.KEY, None)  # strength 1 of the scoped LoRA is another of the file's
    if out.from_base:
        remarks.append(
            f"{out.from_base} layers depend on the base's weights (DoRA, OFT, ...): in the lora output they are whole "
            "differences for this base, which take more room."
        )
    names = names_in_files(model.model, None if clip is None else clip.cond_stage_model)
    return NamedLora(out.tensors, lora.name, meta, layer_names=names, words=lora.words), remarks


@dataclass
class _Folded:
    """The tensors of the scoped LoRA.

    own_names: names that are taken: those of the file's layers, and those that were given. from_base: how many layers
    needed the base.
    """

    own_names: set[str]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    from_base: int = 0

    def name(self, prefix: str, patch: Patch) -> str:
        """ComfyUI's name of the layer; the file's, where the patch is for a part of a weight or in another order of
        rows, and where the file has ComfyUI's name beside this one."""
        whole = prefix + patch.weight_layer
        if not patch.whole or whole in self.own_names:
            return patch.layer
        self.own_names.add(whole)  # a further spelling of the layer keeps its name
        return whole

    def add(self, name: str, parts: Mapping[str, Tensor], group: list[tuple[Patch, Strength]], patcher: Any) -> None:
        """Add a layer of the file with its patches: of the weight, of the bias, or of both."""
        strength = next((one for _, one in group if one.rows is not None), group[0][1])
        folded = _folded(name, parts, strength)
        if folded is None:
            folded = {}
            for patch, own in group:
                change = self._on_base(patch, own, patcher)
                folded[DIFF_BIAS if patch.weight.endswith(".bias") else DIFF] = change
            self.from_base += strength.value != 0.0
        self.keep(name, folded, strength)

    def keep(self, name: str, parts: Mapping[str, Tensor], strength: Strength) -> None:
        if strength.value != 0.0:
            self.tensors |= {name + part: tensor.contiguous() for part, tensor in parts.items() if part != UNKNOWN}

    def _on_base(self, patch: Patch, strength: Strength, patcher: Any) -> Tensor:
        """What the patch adds to the base's own weight, in the file's order of rows, float32."""
        base = weight_of(patcher, patch.weight).own_value()
        base = base if patch.offset is None else base.narrow(*patch.offset)
        base = base if patch.row_order is None else patch.row_order(base)
        if patch.new_shape is not None:
            raise InputError(
                f"{patch.layer} gives the base's layer another shape by a DoRA, which a file cannot hold at a strength "
                "of its own; leave lora unwired, or set the strengths to 1"
            )
        adapter = scaled_rows(patch, strength.rows).adapter
        changed = comfy.lora.calculate_weight([(strength.value, adapter, 1.0, None, None)], base.clone(), patch.weight)
        return changed - base


def _folded(layer: str, parts: Mapping[str, Tensor], strength: Strength) -> dict[str, Tensor] | None:
    """The parts with the strength in them; None where that takes the base's weight."""
    if strength.value == 1.0 and strength.rows is None:
        return dict(parts)
    added = {part: _times(tensor, strength) for part, tensor in parts.items() if part in _ADDED}
    rest = {part: tensor for part, tensor in parts.items() if part not in _ADDED}
    if WHOLE_BIAS in rest or (SET_WEIGHT in rest and strength.rows is not None):
        return None
    if not adapts(rest) or SET_WEIGHT in rest:  # ComfyUI sets a weight whatever the strength is
        return added | rest
    kind = kinds.kind_of(rest)
    if kind is LORA:
        return added | rest | {UP: _times(rest[UP], strength)}
    if kind is LOHA:
        return added | rest | {HADA_W1_A: _times(rest[HADA_W1_A], strength, 1 if HADA_T1 in rest else 0)}
    if kind is LOKR:
        if strength.rows is not None:
            return added | _plain(layer, rest, strength)
        first = LOKR_W1 if LOKR_W1 in rest else LOKR_W1_A
        return added | rest | {first: _times(rest[first], strength)}
    return None


def _times(tensor: Tensor, strength: Strength, axis: int = 0) -> Tensor:
    """The tensor times the strength, its places along `axis` times the factors of the rows; float32."""
    scaled = strength.value * tensor.detach().float()
    if strength.rows is None:
        return scaled
    shape = [1] * tensor.ndim
    shape[axis] = -1
    return scaled * strength.rows.to(scaled.device).reshape(shape)


def _plain(layer: str, parts: Mapping[str, Tensor], strength: Strength) -> dict[str, Tensor]:
    """A layer whose rows differ in strength as two plain factors, or as a whole difference where that is smaller."""
    delta = kinds.factors(layer, parts)
    up, kernel = _times(delta.up, strength), delta.kernel
    rows, columns = delta.shape
    if delta.rank * (rows + columns) >= rows * columns:
        return {DIFF: (up @ delta.down).reshape(rows, columns // math.prod(kernel), *kernel)}
    ones = [1] * len(kernel)
    down = delta.down.reshape(delta.rank, columns // math.prod(kernel), *kernel)
    alpha = torch.tensor(float(delta.rank))
    return {UP: up.reshape(rows, delta.rank, *ones), DOWN: down, ALPHA: alpha}


def _meta(lora: NamedLora, model: Any, timing: Timing, use_range: bool) -> tuple[dict[str, str], list[str]]:
    """(metadata, remarks) of the scoped LoRA: the file's, with the range that it is to act in."""
    part, remarks = range_in(lora.meta) if use_range else WHOLE, []
    if timing.start > 0.0 or timing.end < 1.0:
        part = part_of_timing(timing, model)
        remarks.append(
            f"A file holds no start and end. The lora output proposes the timesteps {part.low:.4g} to {part.high:.4g} "
            "(of 1) in its metadata: Inject LoRA keeps to them while use_range is on, other programs use it at every "
            "step."
        )
    if timing.keyframes:
        remarks.append("A file holds no keyframes: the lora output is without them.")
    meta = {key: value for key, value in lora.meta.items() if key not in (OWN_KEY, SPEC_KEY, *SS_KEYS)}
    return meta | part.metadata(), remarks


def part_of_timing(timing: Timing, model: Any) -> TimestepRange:
    """The levels of noise between start and end on this model's schedule.

    The level of the start lies inside, as with `Timing`, so the range ends at the next float32 above it.
    """
    sampling = model.get_model_object("model_sampling")

    def level(percent: float) -> Tensor:
        return noise_level(sampling, torch.tensor([float(sampling.percent_to_sigma(percent))]))

    above = torch.nextafter(level(timing.start), torch.tensor([math.inf])).item()
    low = level(timing.end).item() if timing.end < 1.0 else 0.0
    low = min(low, torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)).item())  # a range that ends where it begins
    return TimestepRange(low, min(above, 1.0) if timing.start > 0.0 else 1.0)
