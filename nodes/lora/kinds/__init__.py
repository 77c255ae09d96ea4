"""The kinds of adapter that LoRA files have, one row each. A new one is a file here and a row in both tuples."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from ....training.errors import InputError
from ....training.layer_names.parts import ALPHA, DORA_SCALE, LOKR_T2, NEW_SHAPE, RESCALE, SET_WEIGHT, WHOLE_BIAS
from ..lowrank import TOO_LARGE, Factors
from .dora import DORA
from .full import FULL
from .glora import GLORA
from .kind import AdapterKind, Parts, Shape
from .loha import LOHA
from .lokr import LOKR
from .lora import LORA
from .oft import BOFT, OFT

T = TypeVar("T")

KINDS: tuple[AdapterKind, ...] = (LORA, LOHA, LOKR, OFT, BOFT, GLORA, DORA, FULL)
# A layer is named after the first of these: DoRA has another kind's parts, and everything is `FULL` at last.
_BY_NAME = (DORA, OFT, BOFT, LOHA, LOKR, GLORA, LORA, FULL)
STRICT_PAIRS = tuple(  # see `AdapterKind.strict`
    pair for kind in KINDS if kind.strict for pair in kind.pairs
)
MATRICES = frozenset(part for kind in KINDS for part in kind.matrices)


def kind_of(parts: Parts) -> AdapterKind:
    """The kind of adapter that a layer's parts are."""
    return next(kind for kind in _BY_NAME if kind.found(parts))


def core_differs(parts: Parts) -> bool:
    """Whether ComfyUI's own nodes make another weight of these parts than the program that defines them.

    They take DoRA's norm of W instead of W + dW along the output axis, OFT's constraint without the number of outputs,
    no `rescale` of OFT's, cannot multiply LoKr with a Tucker core, and do not know PEFT's whole bias.
    """
    magnitude = parts.get(DORA_SCALE)
    if magnitude is not None and magnitude.shape[0] > 1:
        return True
    if kind_of(parts) in (OFT, BOFT):
        constrained = ALPHA in parts and float(parts[ALPHA]) > 0
        return constrained or (RESCALE in parts and kind_of(parts) is OFT)
    return LOKR_T2 in parts or WHOLE_BIAS in parts


def rank_of(parts: Parts) -> int | None:
    """The rank that alpha is divided by, where a layer has one."""
    return next((parts[part].shape[0] for kind in KINDS for part in kind.rank if part in parts), None)


def delta_shape(parts: Parts) -> Shape | None:
    """(out, in * kernel) of what a layer's parts make, by their shapes alone; None where any shape would do.

    The second is None where only the output's side is known (OFT).
    """
    shapes = (kind.shape(parts) for kind in KINDS if kind.found(parts))
    return next((shape for shape in shapes if shape is not None), None)


def factors(layer: str, parts: Parts) -> Factors:
    """A layer's delta in two factors, exactly. Raises `InputError` for a kind whose delta depends on the base's weight,
    such as DoRA and OFT, for parts that do not fit together, and for numbers too large to be a LoRA's.
    """
    kind = _known_without_base(layer, parts)
    assert kind.factors is not None
    made = _computed(kind.factors, layer, parts)
    # What overflows is infinite, and refused with the rest.
    largest = max(float(made.up.norm()), float(made.down.norm()))
    if not largest < TOO_LARGE:
        raise InputError(
            f"{layer} holds numbers up to {largest:.0e}, too large for a LoRA; it was broken when it was saved, "
            "choose another file"
        )
    return made


def norm(layer: str, parts: Parts) -> float:
    """The Frobenius norm of a layer's delta, in memory that the file's size bounds.

    Raises `InputError` as `factors` does, and for a delta that takes more than `norms.MAX_WORK`.
    """
    kind = _known_without_base(layer, parts)
    assert kind.norm is not None
    return _computed(kind.norm, layer, parts)


def _known_without_base(layer: str, parts: Parts) -> AdapterKind:
    """The layer's kind. Raises `InputError` where its delta depends on the base's weight."""
    kind = kind_of(parts)
    if kind.factors is None or not parts.keys().isdisjoint((NEW_SHAPE, SET_WEIGHT, WHOLE_BIAS)):
        what = kind.name if kind.factors is None else "a replacement of the weight or the bias"
        raise InputError(
            f"{layer} is {what}, which depends on the base's own weights and cannot be summed before they are known; "
            "inject that LoRA by a node of its own"
        )
    return kind


def _computed(function: Callable[[Parts], T], layer: str, parts: Parts) -> T:
    """A kind's function of the parts in float32 on the CPU. Raises `InputError` for parts that do not fit together."""
    try:
        return function({name: tensor.detach().to("cpu", torch.float32) for name, tensor in parts.items()})
    except (RuntimeError, KeyError, IndexError, ValueError) as error:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in parts.items())
        raise InputError(f"the parts of {layer} do not fit together ({shapes}); the file is damaged") from error
