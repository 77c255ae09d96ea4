"""The difference of two models as a LoRA, one weight at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
from torch import Tensor

from ....training.errors import InputError
from ....training.formats import KOHYA_VERSIONS
from ....training.layer_names.parts import DIFF, DIFF_BIAS
from ....training.layer_names.spelling import COMFY_PREFIX, TEXT_PREFIX
from ...bridge.identity import base_name
from ...bridge.models import architecture
from ...bridge.wire.effective import Weight, check_weights_alone, difference, weights_of
from ...bridge.wire.weights import never_used
from ..keys import names_in_files
from ..kinds.lora import parts_of
from ..named_lora import NamedLora
from ..overview_names import OverviewNames, overview_names
from .decompose import Nearest, nearest, squared_norm
from .request import Chosen, Request

WEIGHT, BIAS = ".weight", ".bias"


@dataclass(frozen=True)
class Layer:
    """One weight that changed and is in the LoRA.

    name: its common name. row, column: its place in the heatmap. rank: of the LoRA there. squares: the squared singular
    values of the change that are known, falling, float64. change, lost, base: the squared Frobenius norms of the
    change, of what the LoRA leaves out of it, and of the base's weight.
    """

    name: str
    row: str
    column: str
    rank: int
    squares: Tensor
    change: float
    lost: float
    base: float

    @property
    def error(self) -> float:
        """The relative error of the LoRA's change there."""
        return math.sqrt(max(self.lost, 0.0) / self.change)


@dataclass(frozen=True)
class Rest:
    """One weight that changed and is not in the LoRA's factors. change: its squared Frobenius norm.

    kind: "norm or bias", "parameter" (of no layer), or "not chosen" (by targets or conv_rank). written: whether it is
    in the LoRA as a whole difference.
    """

    name: str
    kind: str
    change: float
    written: bool


@dataclass
class Extraction:
    """A LoRA, and what it was made of.

    unchanged: the number of weights that are equal in both models. one_sided: names of weights that one of the models
    has alone. mixed: the types of two weights of one name that differ, in words.
    """

    lora: NamedLora
    layers: list[Layer] = field(default_factory=list)
    rest: list[Rest] = field(default_factory=list)
    unchanged: int = 0
    one_sided: list[str] = field(default_factory=list)
    mixed: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Pair:
    """A tuned model and its base, or their text encoders. wires: the inputs' names, for errors. prefix: before the
    names of the weights in a LoRA. chosen: the size for each weight. names: of the overview."""

    tuned: Any
    base: Any
    wires: tuple[str, str]
    prefix: str
    chosen: Chosen
    names: OverviewNames


def extract(model, base, request: Request, clips: tuple[Any, Any] | None = None) -> Extraction:
    """The LoRA that changes `base` into `model`: ModelPatchers. clips: (tuned, base) text encoders.

    Raises `InputError` where the two are no tuned model and its base, where one computes with more than its weights,
    and where nothing changed that can be in the LoRA.
    """
    names = overview_names(base=base.model)
    pairs = [_Pair(model, base, ("model", "base"), "", request.chosen(base), names)]
    if clips is not None:
        tuned, own = (each.patcher for each in clips)
        pairs.append(_Pair(tuned, own, ("clip", "base_clip"), TEXT_PREFIX, request.everything(), names))
    for pair in pairs:
        for patcher, wire in zip((pair.tuned, pair.base), pair.wires, strict=True):
            check_weights_alone(patcher, wire)
        _check_classes(pair)
    of_files = names_in_files(base.model, None if clips is None else clips[1].cond_stage_model)
    out = Extraction(NamedLora({}, _title(model, base), _meta(model, base), layer_names=of_files))
    weights = [(pair, tuned, own) for pair in pairs for tuned, own in _both(pair, out)]
    bar, done = comfy.utils.ProgressBar(max(1, sum(tuned.stored.numel() for _, tuned, _ in weights))), 0
    for pair, tuned, own in weights:
        comfy.model_management.throw_exception_if_processing_interrupted()
        _add(out, pair, tuned, own, request.norms_and_biases)
        done += tuned.stored.numel()
        bar.update_absolute(done)
    _check_something(out, request)
    return out


def _check_classes(pair: _Pair) -> None:
    kinds = [
        (type(each.model).__name__, type(getattr(each.model, "diffusion_model", each.model)).__name__)
        for each in (pair.tuned, pair.base)
    ]
    if kinds[0] != kinds[1]:
        (tuned, _), (own, _) = kinds
        names = [base_name(each) for each in (pair.tuned, pair.base)]
        raise InputError(
            f"{pair.wires[0]} is a {tuned} ({names[0]}) and {pair.wires[1]} a {own} ({names[1]}), and a LoRA changes "
            f"one kind into itself; wire the model that {names[0]} was made from into {pair.wires[1]}"
        )


def _both(pair: _Pair, out: Extraction) -> Iterator[tuple[Weight, Weight]]:
    """The weights of the tuned model with those of the base; what only one of them has is noted."""
    prefix = "" if pair.prefix else COMFY_PREFIX
    unused = never_used(pair.base)
    base = {weight.name: weight for weight in weights_of(pair.base, prefix) if weight.name not in unused}
    for weight in weights_of(pair.tuned, prefix):
        if weight.name in unused:
            continue
        own = base.pop(weight.name, None)
        if own is None:
            out.one_sided.append(pair.prefix + weight.name)
        else:
            yield weight, own
    out.one_sided += [pair.prefix + name for name in base]


def _add(out: Extraction, pair: _Pair, tuned: Weight, base: Weight, whole: bool) -> None:
    """Add one weight's change to the LoRA or to the rest. whole: whether norms and biases are written."""
    if tuned.is_same_as(base):
        out.unchanged += 1
        return
    change = difference(tuned, base)
    size = squared_norm(change)
    if not math.isfinite(size):
        raise InputError(
            f"the difference in {tuned.name} is no number (one of the files holds NaN or infinity there); fetch the "
            "file again, or load it in another precision"
        )
    if size == 0.0:
        out.unchanged += 1
        return
    if tuned.stored.dtype != base.stored.dtype:
        out.mixed.add(" and ".join(str(each.stored.dtype).removeprefix("torch.") for each in (tuned, base)))
    name = pair.prefix + tuned.name
    if not (change.ndim > 1 and name.endswith(WEIGHT)):
        if whole:
            out.lora[_whole_key(name)] = change
        kind = "norm or bias" if name.endswith((WEIGHT, BIAS)) else "parameter"
        out.rest.append(Rest(name, kind, size, whole))
        return
    wanted = pair.chosen(tuned.name.removeprefix(COMFY_PREFIX).removesuffix(WEIGHT), tuple(change.shape))
    if wanted is None:
        out.rest.append(Rest(name, "not chosen", size, False))
        return
    layer = name.removesuffix(WEIGHT)
    kernel = tuple(change.shape[2:])
    found = _on_device(lambda matrix: nearest(matrix, wanted, kernel), change.flatten(1))
    out.lora.update(parts_of(layer, found.factors))
    common = pair.names.common(layer)
    own = sum(squared_norm(part) for part in base.parts())
    rank = found.factors.rank
    out.layers.append(Layer(common, *pair.names.place(common), rank, found.squares, found.total, found.lost, own))


def _whole_key(name: str) -> str:
    if name.endswith(BIAS):
        return name.removesuffix(BIAS) + DIFF_BIAS
    return name.removesuffix(WEIGHT) + DIFF


def _on_device(decompose: Callable[[Tensor], Nearest], matrix: Tensor) -> Nearest:
    """`decompose(matrix)` on ComfyUI's device where that is a CUDA card with room for it, else on the CPU."""
    device = comfy.model_management.get_torch_device()
    if device.type != "cuda":
        return decompose(matrix)
    try:
        comfy.model_management.free_memory(4 * matrix.numel() * matrix.element_size(), device)
        found = decompose(matrix.to(device))
    except comfy.model_management.OOM_EXCEPTION:
        return decompose(matrix)
    factors = replace(found.factors, up=found.factors.up.cpu(), down=found.factors.down.cpu())
    return replace(found, factors=factors)


def _check_something(out: Extraction, request: Request) -> None:
    if out.lora:
        return
    if not out.rest:
        raise InputError(
            f"none of the {out.unchanged} weights differs between model and base, so there is nothing to extract; wire "
            "the tuned model into model, and the one that it was made from into base"
        )
    if any(each.kind == "not chosen" for each in out.rest):
        raise InputError(
            f"targets ({request.targets}) and conv_rank ({request.conv_rank}) leave out every weight that changed, "
            f"such as {_some(out.rest)}; choose other targets, or conv_rank -1"
        )
    raise InputError(
        f"only norms and biases differ between model and base ({_some(out.rest)}), which are no matrices; switch "
        "norms_and_biases on to write them as whole differences"
    )


def _some(rest: Sequence[Rest]) -> str:
    return max(rest, key=lambda each: each.change).name


def _title(model, base) -> str:
    names = [Path(base_name(each)).stem for each in (model, base)]
    return f"{names[0]} minus {names[1]}"


def _meta(model, base) -> dict[str, str]:
    """What the LoRA's metadata says of its base."""
    kind = architecture(base.model)
    meta = {"ss_sd_model_name": base_name(base), "bespoke.extracted_from": base_name(model)}
    if kind:
        meta["modelspec.architecture"] = f"{kind}/lora"
    if kind in KOHYA_VERSIONS:
        meta["ss_base_model_version"] = KOHYA_VERSIONS[kind]
    return meta
