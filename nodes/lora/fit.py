"""Whether a LoRA is whole and fits a model, decided before anything is changed.

1. `check_parts`: a file's parts are complete and fit each other, by the table of kinds.
2. `check_shape`: a layer's delta has the shape of the model's weight, by the same table.
3. `check_adapter`: ComfyUI's own adapter changes a weight of that shape. Core takes some shapes for granted, and where
   one does not fit, it stops in the middle of a sampling or logs an error and leaves the layer out.
4. `check_same_shape`: two LoRAs' deltas of one layer can be summed.
5. `check_two_factors`: training can go on from it.
All raise `InputError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import comfy.lora
import torch
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from ...training.errors import InputError
from ...training.layer_names.parts import ALPHA, DORA_SCALE, NEW_SHAPE, adapts, layers_of
from .bases import base_of_file, base_of_model
from .kinds import KINDS, MATRICES, STRICT_PAIRS, delta_shape
from .kinds.dora import magnitude_fits
from .kinds.full import OF_BIAS, OF_WEIGHT
from .kinds.kind import Pair, Parts
from .lowrank import Factors
from .named_lora import NamedLora
from .patch import Patch

LARGER = 64  # times that a LoRA may make a layer larger; those that do so for a wider input double it


# --- a file by itself ------------------------------------------------------------------------------------------------


def check_parts(lora: Mapping[str, Tensor], name: str) -> None:
    """The parts of every layer are complete and fit each other. name: the file's, for the error."""
    layers = layers_of(lora)
    if not any(adapts(parts) for parts in layers.values()):
        raise InputError(
            f"{name} holds no part of a LoRA ({next(iter(lora), 'nothing at all')!r}); choose another file"
        )
    for layer, parts in layers.items():
        why = _missing(parts) or _odd_tensor(parts) or _unequal_pair(parts)
        if why:
            raise InputError(f"{name}: {layer} {why}; the file is damaged, fetch it again")


def _missing(parts: Parts) -> str:
    """What a layer lacks, in words; "" where it is complete."""
    for kind in KINDS:
        for part, needed in kind.needs.items():
            lacking = [other for other in needed if other not in parts]
            if part in parts and lacking:
                return f"has {part} and no {lacking[0]}"
    for kind in KINDS:
        if any(part in parts for alternatives in kind.either for part in alternatives):
            for alternatives in kind.either:
                if not set(alternatives) & set(parts):
                    return f"has no {alternatives[0]}"
    return ""


def _odd_tensor(parts: Parts) -> str:
    """The first part that can be no part of a LoRA by its shape or type, in words."""
    for part, tensor in parts.items():
        shape = tuple(tensor.shape)
        if part == ALPHA and tensor.numel() != 1:
            return f"has an alpha of shape {shape}"
        if part in MATRICES and tensor.ndim < 2:
            return f"has {part} of shape {shape}"
        if tensor.numel() == 0 or tensor.is_complex():
            return f"has {part} of shape {shape} and type {tensor.dtype}"
    return ""


def _unequal_pair(parts: Parts) -> str:
    """The first two factors that cannot be multiplied, in words."""
    pairs = [pair for kind in KINDS for pair in kind.pairs]
    tucker = any(pair.tucker in parts for pair in pairs)
    for pair in pairs:
        left, right = parts.get(pair.left), parts.get(pair.right)
        if left is None or right is None or (tucker and pair.tucker):
            continue
        if not _multiply(parts, pair):
            return f"has {pair.left} {tuple(left.shape)} and {pair.right} {tuple(right.shape)}, which do not fit"
    return ""


def _multiply(parts: Parts, pair: Pair) -> bool:
    inner = parts[pair.left].shape[1], parts[pair.right].shape[0]
    core = parts.get(pair.between) if pair.between else None
    return inner[0] == inner[1] if core is None else inner == tuple(core.shape[:2])


# --- a file and a model ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """The shapes of the weight and the bias that a layer changes.

    out, inner: [out, in * kernel] of the weight, or of the part of it that is changed. bias: of a layer without one,
    the shape that it would have.
    """

    weight: tuple[int, ...]
    bias: tuple[int, ...]
    out: int
    inner: int

    @classmethod
    def of(cls, key: Any, shapes: Mapping[str, tuple[int, ...]]) -> Target:
        """key: see `Patch.key`. shapes: {key: shape} of the model's weights."""
        name, part = (key, None) if isinstance(key, str) else key[:2]
        weight = shapes[name]
        out, inner = weight[0] if weight else 1, prod(weight[1:])
        if part is None:
            return cls(weight, shapes.get(name[: -len("weight")] + "bias", (out,)), out, inner)
        axis, _, length = part
        out = length if axis == 0 else out
        return cls(weight, (out,), out, inner)


def check_shape(layer: str, parts: Parts, target: Target, lora: NamedLora, base) -> None:
    """A layer's delta has the shape of the weight that it changes. lora, base: file and base model, for the error."""

    def misfit(theirs: tuple[int | None, ...], ours: tuple[int, ...]) -> InputError:
        own, made = base_of_model(base), base_of_file(lora)
        what = f"{made}, and this is {own}" if made and made != own else "another model"
        return InputError(
            f"{layer} is {ours} in the model and {theirs} in {lora.name}: it was made for {what}; "
            "wire in the base it was trained on"
        )

    for wanted, own_shape in ((target.weight, OF_WEIGHT), (target.bias, OF_BIAS)):
        for part in own_shape:
            if part in parts and tuple(parts[part].shape) != wanted:
                raise misfit(tuple(parts[part].shape), wanted)
    if NEW_SHAPE in parts:  # a LoRA that means to change the layer's shape
        return
    if not magnitude_fits(parts, target.out, target.weight):
        raise misfit(tuple(parts[DORA_SCALE].shape), target.weight)
    for pair in STRICT_PAIRS:
        if not _two_matrices(parts, pair):
            raise misfit((*parts[pair.left].shape, *parts[pair.right].shape), target.weight)
    made = delta_shape(parts)
    if made is not None and (made[0] != target.out or made[1] not in (None, target.inner)):
        raise misfit(made, (target.out, target.inner))


def _two_matrices(parts: Parts, pair: Pair) -> bool:
    """Whether a pair, where it is there, is two matrices that ComfyUI can multiply without a look."""
    if pair.left not in parts or pair.right not in parts:
        return True
    flat = parts[pair.left].ndim == parts[pair.right].ndim == 2
    return flat and (pair.tucker in parts or _multiply(parts, pair))


def check_adapter(patch: Patch, shape: tuple[int, ...], lora: NamedLora) -> None:
    """ComfyUI's adapter changes a weight of this shape; it is tried on one that holds no numbers."""
    if not fits(patch, shape):
        parts = ", ".join(
            f"{part} {tuple(tensor.shape)}" for part, tensor in layers_of(lora).get(patch.layer, {}).items() if part
        )
        raise InputError(
            f"{lora.name}: the parts of {patch.layer} ({parts}) cannot be put together for a layer of "
            f"{tuple(shape)}; one is missing or damaged, so fetch the file again"
        )


def fits(patch: Patch, shape: Sequence[int]) -> bool:
    """Whether the adapter's change has the shape of the weight, or the one that the weight is to have.

    What is no adapter of ComfyUI's and what is two plain factors is taken to fit: `check_shape` has compared those.
    """
    adapter = patch.adapter
    if not isinstance(adapter, WeightAdapterBase) or patch.two_factors:
        return True
    weight = torch.zeros(tuple(shape), device="meta")
    changes: list[Tensor] = []

    def note(change: Tensor) -> Tensor:  # core calls this on what it is about to add
        changes.append(change)
        return change

    try:
        out = comfy.lora.calculate_weight([(1.0, adapter, 1.0, patch.offset, note)], weight, patch.weight)
    except (RuntimeError, IndexError, TypeError, ValueError, AttributeError):
        return False
    wanted = tuple(shape if patch.new_shape is None else patch.new_shape)
    return bool(changes) and tuple(out.shape) == wanted and prod(wanted) <= LARGER * prod(shape)


# --- two files, and a file and a training ----------------------------------------------------------------------------


def check_same_shape(
    layer: str, one: tuple[NamedLora, Factors], other: tuple[NamedLora, Factors], verb: str = "compose"
) -> None:
    """Two LoRAs' deltas of one layer have one shape, so that they can be summed. verb: what they are to be used for."""
    (first, a), (second, b) = one, other
    if (a.shape, a.kernel) != (b.shape, b.kernel):
        bases = [base_of_file(lora) or "an unknown base" for lora in (first, second)]
        raise InputError(
            f"{layer} is {a.shape} in {first.name} ({bases[0]}) and {b.shape} in {second.name} "
            f"({bases[1]}); {verb} LoRAs of one base only"
        )


def check_two_factors(patch: Patch) -> None:
    """A training can go on from this layer: two factors, for a whole weight."""
    if not (patch.whole and patch.two_factors):
        raise InputError(
            "the LoRA to go on from is no plain one of two factors a layer; give one that was trained here"
        )
