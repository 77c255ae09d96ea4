"""What a LoRA does, layer by layer: how large its change is beside the base's weight, and in how many directions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import comfy.lora
import comfy.model_management
import torch
from torch import Tensor

from ....training.errors import InputError
from ....training.layer_names.blocks import row_order
from ....training.layer_names.parts import (
    ALPHA,
    DIFF,
    DIFF_BIAS,
    NORM_BIAS,
    NORM_WEIGHT,
    UNKNOWN,
    adapts,
    layers_of,
)
from ...bridge.wire.effective import weight_of
from .. import kinds, lowrank
from ..bases import base_of_model
from ..kinds.full import OF_BIAS
from ..kinds.kind import Parts
from ..match import describe_unmatched, match
from ..named_lora import NamedLora
from ..overview_names import OverviewNames, overview_names
from ..patch import Patch

ENERGY = 0.9  # the share of the energy that `Projection.directions` asks for
_VECTORS = (DIFF, DIFF_BIAS, NORM_WEIGHT, NORM_BIAS)  # of biases and norms


@dataclass(frozen=True)
class Projection:
    """One layer of a LoRA.

    layer, name: the file's name and the common one. row, column: its place in the heatmap. kind: of its adapter.
    norm, base: Frobenius norms of its change and of the weight under it, where they are known.
    """

    layer: str
    name: str
    row: str
    column: str
    kind: str
    rank: int | None
    alpha: float | None
    norm: float | None
    base: float | None
    spectrum: tuple[float, ...]  # singular values, falling; empty where they are not known

    @property
    def relative(self) -> float | None:
        return self.norm / self.base if self.norm is not None and self.base else None

    @property
    def directions(self) -> int | None:
        """How many directions hold 90 % of the energy, the squared singular values."""
        squares = torch.tensor(self.spectrum, dtype=torch.float64) ** 2
        if not len(squares) or squares.sum() <= 0:
            return None
        return lowrank.least_rank(squares, ENERGY * float(squares.sum()))


def inspect(lora: NamedLora, model=None) -> tuple[list[Projection], list[str]]:
    """(every projection in the model's order, what there is to say about the model).

    model: a ModelPatcher or None; with one, the norms of its own weights and the change that DoRA, OFT and the like
    make.
    """
    patches, remarks = _patches(lora, model)
    names, found = overview_names(lora, base=None if model is None or not patches else model.model), []
    for layer, parts in layers_of(lora).items():
        if not adapts(parts):
            continue
        patch = patches.get(layer)
        base = None if patch is None else _own_weight(model, patch)
        found.append(_projection(names, layer, parts, patch, base))
    return sorted(found, key=lambda p: (row_order(p.row), p.name)), remarks


def _patches(lora: NamedLora, model) -> tuple[dict[str, Patch], list[str]]:
    if model is None:
        return {}, [
            "No model is wired in: the changes are given in numbers of their own, not beside the base's weights."
        ]
    try:
        found = match(model, None, lora)
    except InputError as error:
        return {}, [f"It does not fit the model that is wired in: {error}."]
    lines = [f"Beside the weights of the model that is wired in ({base_of_model(model.model)})."]
    found.no_clip.clear()  # here no text encoder can be wired in
    patches: dict[str, Patch] = {}
    for patch in found.model:
        if patch.weight.endswith(".weight"):
            patches.setdefault(patch.layer, patch)
    return patches, lines + describe_unmatched(found, lora, model)


def _own_weight(model, patch: Patch) -> Tensor:
    """The base's own weight that the patch is for, or the part of it."""
    weight = weight_of(model, patch.weight).own_value()
    return weight if patch.offset is None else weight.narrow(*patch.offset)


def _projection(names: OverviewNames, layer: str, parts: Parts, patch: Patch | None, base: Tensor | None) -> Projection:
    name = names.common(layer)
    alpha = float(parts[ALPHA]) if ALPHA in parts else None
    norm, spectrum = _change(layer, parts, patch, base)
    own = None if base is None else float(base.norm())
    kind, rank = kinds.kind_of(parts).name, kinds.rank_of(parts)
    return Projection(layer, name, *names.place(name), kind, rank, alpha, norm, own, spectrum)


def _change(
    layer: str, parts: Parts, patch: Patch | None, base: Tensor | None
) -> tuple[float | None, tuple[float, ...]]:
    """(Frobenius norm, singular values) of a layer's change; (None, ()) where it is not known."""
    vectors = [tensor for part, tensor in parts.items() if part in _VECTORS and tensor.ndim < 2]
    if vectors and len(vectors) == len(set(parts) - {UNKNOWN, ALPHA}):
        return math.sqrt(sum(float(t.double().square().sum()) for t in vectors)), ()
    try:
        delta = kinds.factors(layer, {p: t for p, t in parts.items() if p not in OF_BIAS})
    except InputError:
        values = None if patch is None or base is None else _spectrum_on_base(patch, base)
    else:
        values = lowrank.spectrum(delta)
    return (None, ()) if values is None else (float(values.double().norm()), tuple(values.tolist()))


def _spectrum_on_base(patch: Patch, base: Tensor) -> Tensor | None:
    """Singular values, falling, of a change that depends on the base's weight; None where it is none or too large."""
    one = (1.0, patch.adapter, 1.0, None, None)
    changed = comfy.lora.calculate_weight([one], base.clone(), patch.weight)
    if changed.shape != base.shape:
        return None
    change = (changed - base).flatten(1)
    if not float(change.double().norm()) < lowrank.TOO_LARGE:
        return None
    small = change @ change.t() if change.shape[0] <= change.shape[1] else change.t() @ change
    return torch.linalg.eigvalsh(small.double()).clamp(min=0).sqrt().flip(0)
