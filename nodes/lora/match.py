"""Finds the weights of a model that a LoRA's layers belong to, and checks that they fit. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import comfy.lora
import torch
from torch import Tensor

from ...training.errors import InputError
from ...training.layer_names.parts import (
    ALPHA,
    DORA_SCALE,
    DOWN,
    TRAINED_PARTS,
    UP,
    WHOLE_BIAS,
    adapts,
    layers_of,
    split_key,
    trained_kind,
)
from ...training.layer_names.spelling import TEXT_PREFIX, common_name, is_text_encoder
from ..bridge.models.names import unet_names
from ..bridge.wire.compiled import restore_names
from .base_adapters import TargetAdapter, as_defined
from .bases import base_of_file, base_of_model
from .files import as_named_lora
from .fit import Target, check_adapter, check_shape, check_two_factors
from .keys import Keys, keys_of
from .kinds.full import OF_BIAS
from .named_lora import NamedLora
from .patch import Patch
from .whole import check_whole
from .wording import listed


@dataclass
class Matched:
    """A LoRA's layers by where they belong.

    model, clip: the patches of the diffusion model and of the text encoder. unmatched: layers of the file that belong
    to no weight. no_clip: layers of a text encoder where no CLIP is given.
    """

    model: list[Patch] = field(default_factory=list)
    clip: list[Patch] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    no_clip: list[str] = field(default_factory=list)


@dataclass
class _Side:
    """The base model or the text encoder, while the weights that a LoRA's layers belong to are found in it."""

    keys: Keys
    patches: list[Patch]
    parts: dict[str, str] = field(default_factory=dict)  # {the file's layer: the part of a weight that it is}
    # [{weight's key: the file's layer}]. A file may have a layer in two spellings: both count, the second in another
    # round.
    rounds: list[dict[Any, str]] = field(default_factory=list)

    def add(self, key: Any, part: str, layer: str) -> None:
        """Note that the file's layer belongs to the weight `key`, in the first round that has no layer for it."""
        self.parts[layer] = part
        for taken in self.rounds:
            if key not in taken:
                taken[key] = layer
                return
        self.rounds.append({key: layer})


def match(model, clip, lora: NamedLora) -> Matched:
    """The patches of a LoRA for `model` (and for `clip`, which may be None).

    Raises `InputError` when no layer belongs to a weight of them, or one does not fit its weight.
    """
    restore_names(model)
    found = Matched()
    sides = [_Side(keys_of(model.model, is_clip=False), found.model)]
    if clip is not None:
        sides.append(_Side(keys_of(clip.cond_stage_model, is_clip=True), found.clip))
    for layer, parts in layers_of(lora).items():
        if not adapts(parts):
            found.unmatched.append(layer)
            continue
        places = ((side, side.keys.find(layer)) for side in sides)
        side, place = next((pair for pair in places if pair[1] is not None), (None, None))
        if side is None or place is None:
            text = is_text_encoder(common_name(layer, unet_names()))
            (found.no_clip if text and clip is None else found.unmatched).append(layer)
            continue
        check_shape(layer, parts, Target.of(place[0], side.keys.shapes), lora, model.model)
        side.add(*place, layer)
    for side in sides:
        _load(side, lora)
    if not found.model and not found.clip:
        raise InputError(_wrong_base(model, lora, found))
    return found


def _load(side: _Side, lora: NamedLora) -> None:
    """Let ComfyUI load the layers of `side.rounds`, and add them to `side.patches`.

    Changes of biases are not left to ComfyUI, which drops those of a part of a weight and of a layer without a bias.
    """
    weights = {key: tensor for key, tensor in lora.items() if split_key(key)[1] not in OF_BIAS}
    parts = layers_of(lora)
    for layers in side.rounds:
        to_load = {layer: key for key, layer in layers.items()}
        for key, adapter in comfy.lora.load_lora(weights, to_load, log_missing=False).items():
            layer = layers[key]
            patch = Patch(key, as_defined(adapter), layer, side.parts.get(layer, ""))
            check_adapter(patch, side.keys.shapes[patch.weight], lora)
            side.patches.append(patch)
        for layer, key in to_load.items():
            biases = {part: parts[layer][part] for part in OF_BIAS if part in parts[layer]}
            side.patches += [
                Patch(
                    bias_of(key, layer, lora.name),
                    TargetAdapter(set(), (bias,)) if part == WHOLE_BIAS else ("diff", (bias,)),
                    layer,
                    side.parts.get(layer, ""),
                )
                for part, bias in biases.items()
            ]


def bias_of(key: Any, layer: str, file: str) -> Any:
    """The key of the bias that belongs to the weight `key`, see `Patch.key`; of a part of a weight, the same part.

    The layer need not have one. Raises `InputError` for a parameter that is no weight of a layer.
    """
    name, *rest = (key,) if isinstance(key, str) else key
    if not name.endswith(".weight"):
        raise InputError(
            f"{file} changes the bias of {layer}, which is a parameter without one; remove that part from the file"
        )
    name = name.removesuffix("weight") + "bias"
    if rest and rest[0] is not None and rest[0][0] != 0:  # a part along the inputs: its bias is the whole one
        rest = []
    return (name, *rest) if rest else name


def starting_parts(lora: Mapping[str, Tensor], model, clip, kind: str = "LoRA") -> dict[str, Tensor]:
    """The parts of a LoRA that a training goes on from, under ComfyUI's layer names, whatever program wrote it.

    kind: the adapter that is trained, a key of `TRAINED_PARTS`. DoRA goes on from a LoRA too. Raises `InputError` for
    other kinds of adapter, for a LoRA of another model, and where one layer has two names.
    """
    named, out = as_named_lora(lora), {}
    found = match(model, clip, named)
    check_found(found, named, model, "start from another LoRA: a training would go on from a part of it")
    of_file = layers_of(named)
    for prefix, patches in (("", found.model), (TEXT_PREFIX, found.clip)):
        for patch in patches:
            layer = prefix + patch.weight.removesuffix(".weight")
            parts = _parts_to_go_on_from(patch, of_file[patch.layer], kind)
            if any(layer + part in out for part in parts):
                raise InputError(
                    f"the LoRA to go on from has {layer} under two names, which cannot be trained as one; "
                    "give one that was trained here"
                )
            out |= {layer + part: tensor for part, tensor in parts.items()}
    return out


def _parts_to_go_on_from(patch: Patch, parts: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """{part: tensor} of one layer, for an adapter of this kind. parts: those of the file."""
    if kind == "LoRA" or (kind == "DoRA" and DORA_SCALE not in parts):
        check_two_factors(patch)
        up, down, alpha, _ = patch.factors
        return {UP: up, DOWN: down, ALPHA: torch.tensor(float(down.shape[0] if alpha is None else alpha))}
    others = {*parts} - {*TRAINED_PARTS[kind]}
    if not patch.whole or others or trained_kind(patch.layer + part for part in parts) != kind:
        raise InputError(
            f"adapter is {kind}, and the LoRA to go on from is no {kind} as it is trained here at {patch.layer}; set "
            "adapter to the kind it was trained as, or give another"
        )
    return dict(parts)


def check_found(found: Matched, lora: NamedLora, model, mend: str) -> None:
    """Raise `InputError` where the layers without a place hold too much of the LoRA, see `check_whole`.

    mend: what else to do than to wire in the right base, for the error.
    """
    made, ours = base_of_file(lora), base_of_model(model.model)
    why = f"The file was made for {made} and this model is {ours}; " if made and made != ours else f"This is {ours}; "
    check_whole(lora, found.unmatched, found.no_clip, why, f"wire in the base it was trained on, or {mend}")


def _wrong_base(model, lora: NamedLora, found: Matched) -> str:
    ours, theirs = base_of_model(model.model), base_of_file(lora)
    if found.no_clip and not found.unmatched:
        return f"{lora.name} adapts the text encoder only, and no clip is wired in; wire in the checkpoint's CLIP"
    some = next(iter(found.unmatched or found.no_clip or lora))
    made = f"made for {theirs}" if theirs and theirs != ours else "made for another kind of model"
    return (
        f"no layer of this model ({ours}) has a name like {some!r}: {lora.name} was {made}; "
        "wire in the base it was trained on"
    )


def describe_unmatched(found: Matched, lora: NamedLora, model) -> list[str]:
    """What found no place, by name, and why."""
    lines = []
    if found.no_clip:
        lines.append(
            f"{len(found.no_clip)} layers are for the text encoder; no clip is wired in, so they are left out."
        )
    if found.unmatched:
        lines.append(f"{len(found.unmatched)} layers of the file matched nothing here: {listed(found.unmatched, 8)}.")
        made, ours = base_of_file(lora), base_of_model(model.model)
        if made and made != ours:
            lines.append(f"The file was made for {made} and this model is {ours}: most likely it does not belong here.")
    return lines
