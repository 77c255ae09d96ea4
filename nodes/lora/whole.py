"""Whether a model has a place for a LoRA as a whole: one that is applied in part is another LoRA."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from ...training.errors import InputError
from ...training.layer_names.parts import DIFF, DORA_SCALE, NEW_SHAPE, adapts, layers_of
from . import kinds
from .kinds.full import OF_BIAS, OF_WEIGHT
from .kinds.kind import Parts
from .named_lora import NamedLora
from .wording import listed

MOST = 0.05  # of the squared change, without a place


def check_whole(lora: NamedLora, unmatched: Collection[str], no_clip: Collection[str], why: str, mend: str) -> None:
    """Raise `InputError` where the layers without a place hold more than `MOST` of the LoRA's squared change.

    unmatched: layers of the file without a place. no_clip: layers that do not count. why: what is known of the file's
    base, and mend: what to do, for the error.
    """
    layers = {layer: parts for layer, parts in layers_of(lora).items() if layer not in no_clip and adapts(parts)}
    left = {layer: layers[layer] for layer in unmatched if layer in layers}
    if not left or _surely_small(left, layers):
        return
    share = share_of(lora, left, no_clip)
    if share > MOST:
        count = len(layers)
        raise InputError(
            f"{len(left)} of {count} layers of {lora.name} have no place here and hold {share:.0%} of its squared "
            f"change, such as {listed(list(left), 3)}. {why}{mend}"
        )


def _surely_small(some: Mapping[str, Parts], layers: Mapping[str, Parts]) -> bool:
    """Whether `some` of the layers hold at most `MOST` of the squared change, as far as that is plain from a part of
    the others: the norms of all layers of a large LoHa take a minute, and a usual file lacks a place for a few only.
    """
    sizes = [squared_change(layer, parts) for layer, parts in some.items()]
    size, others = math.fsum(one for one in sizes if one is not None), 0.0
    if None in sizes:  # such a layer counts as the mean of all others
        return False
    for layer, parts in layers.items():
        if size <= MOST * (size + others):
            return True
        others += 0.0 if layer in some else squared_change(layer, parts) or 0.0
    return size <= MOST * (size + others)


def share_of(lora: NamedLora, some: Collection[str], leave_out: Collection[str] = ()) -> float:
    """The share of `some` layers in the LoRA's squared change, the sum of the squared Frobenius norms of its deltas.

    leave_out: layers that do not count. A layer whose delta depends on the base's weights counts as the mean of the
    others, or 1 where there is none.
    """
    sizes = {
        layer: squared_change(layer, parts)
        for layer, parts in layers_of(lora).items()
        if layer not in leave_out and adapts(parts)
    }
    known = [size for size in sizes.values() if size is not None]
    mean = sum(known) / len(known) if known else 1.0
    filled = {layer: mean if size is None else size for layer, size in sizes.items()}
    whole = math.fsum(filled.values())
    return math.fsum(size for layer, size in filled.items() if layer in some) / whole if whole else 0.0


def squared_change(layer: str, parts: Parts) -> float | None:
    """The squared Frobenius norm of a layer's delta, its bias' included; None where it depends on the base's weights.

    DoRA counts by the delta before its scaling.
    """
    own = [part for part in (*OF_BIAS, *OF_WEIGHT) if part in parts and (part != DIFF or parts[part].ndim < 2)]
    size = sum(float(parts[part].detach().double().square().sum()) for part in own)
    rest = {part: tensor for part, tensor in parts.items() if part not in (*own, DORA_SCALE, NEW_SHAPE)}
    if not adapts(rest):
        return size
    try:
        return size + kinds.norm(layer, rest) ** 2
    except InputError:
        return None
