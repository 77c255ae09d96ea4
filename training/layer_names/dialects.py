"""Finds the layer of a model that a name in a file stands for, in every program's dialect.

A dialect is a prefix (`PREFIXES`, also several of them one inside the other), a separator (dots, or underscores as in
kohya's files), and a naming of the layers (the model's own, or one of its `Aliases`). `places` makes one table of all
namings with underscores, and `readings` takes the prefixes off a name and writes it with underscores, so that every
combination of the three is read and none has to be listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .aliases import Alias, Aliases
from .blocks import fused_rows

# What stands before the name of a diffusion model's layer, by dots or underscores.
PREFIXES = (
    "diffusion_model",  # ComfyUI
    "model.diffusion_model",  # a checkpoint
    "lora_unet",  # kohya, musubi
    "lora_transformer",  # OneTrainer
    "oft_unet",  # kohya's OFT
    "lycoris",  # LyCORIS, SimpleTuner
    "unet",  # diffusers, U-Nets
    "transformer",  # diffusers, transformers
    "base_model.model",  # PEFT
)
# `transformer_blocks` by itself is a layer's name and no prefix. Files for Wan's Fun models have two underscores.
_PREFIX = re.compile(
    r"(?:(?:lora|oft)_(?:unet|transformer)|lycoris|(?:model[._])?diffusion_model"
    r"|base_model[._]model|unet|transformer(?!_blocks)|model(?=\.))[._]+"
)


@dataclass(frozen=True)
class Place:
    """The layer, or the part of a layer, that a name stands for.

    layer: the model's own name. rows: (first, number) of the rows that are meant, None for all. swapped: see `Alias`.
    part: the own name of the part, `layers.3.attention.to_q` of the layer `layers.3.attention.qkv`; else the layer's.
    """

    layer: str
    rows: tuple[int, int] | None = None
    swapped: bool = False
    part: str = ""


def readings(name: str) -> Iterator[str]:
    """The names that a file's name may stand for, with underscores and without a prefix, the longest first."""
    bare = name
    while True:
        yield from _spellings(bare)
        if not (found := _PREFIX.match(bare)):
            return
        bare = bare[found.end() :]


def flat_name(name: str) -> str:
    """A file's name for a layer without any prefix and with underscores: the same for all dialects of one naming."""
    while found := _PREFIX.match(name):
        name = name[found.end() :]
    return _flat(name)


def _spellings(bare: str) -> Iterator[str]:
    # diffusers' attention processors: `attn2.processor.to_out` for the layer `attn2.to_out.0`.
    flat = _flat(bare).replace("_processor_", "_")
    yield flat
    if flat.endswith("to_out"):
        yield flat + "_0"


def _flat(name: str) -> str:
    return name.replace(".", "_").strip("_")


def places(layers: Mapping[str, int], aliases: Aliases, unet_config: Mapping[str, Any]) -> dict[str, Place]:
    """{name as `readings` gives it: the place it stands for} in a model.

    layers: {own name: rows of its weight}, without prefix and `.weight`. unet_config: ComfyUI's, for the rows of fused
    layers. Own names come first: an alias never takes one away.
    """
    table = {_flat(own): Place(own, part=own) for own in layers}
    exact: dict[str, list[Alias]] = {}
    patterns: list[tuple[re.Pattern[str], Alias]] = []
    for alias in aliases:
        if "*" in alias.own:
            patterns.append((re.compile(re.escape(alias.own).replace(r"\*", r"(\d+)")), alias))
        else:
            exact.setdefault(alias.own, []).append(alias)
    for own, rows in layers.items():
        found = [(alias, ()) for alias in exact.get(own, ())]
        found += [(alias, match.groups()) for pattern, alias in patterns if (match := pattern.fullmatch(own))]
        for alias, numbers in found:
            for name, place in _aliased(alias, own, rows, unet_config):
                table.setdefault(_flat(_filled(name, numbers)), place)
    return table


def _filled(name: str, numbers: Sequence[str]) -> str:
    for number in numbers:
        name = name.replace("*", number, 1)
    return name


def _aliased(alias: Alias, own: str, rows: int, unet_config: Mapping[str, Any]) -> Iterator[tuple[str, Place]]:
    """(the other program's name, the place) of a layer, or of each part of it."""
    if isinstance(alias.theirs, str):
        yield alias.theirs, Place(own, swapped=alias.swapped, part=own)
        return
    sizes = _part_rows(len(alias.theirs), rows, unet_config)
    if sizes is None:  # such a layer has no parts that could be told apart
        return
    block, first = own.rpartition(".")[0], 0
    for name, size in zip(alias.theirs, sizes, strict=True):
        if name:
            yield name, Place(own, (first, size), part=f"{block}.{name.rpartition('.')[2]}")
        first += size


def _part_rows(parts: int, rows: int, unet_config: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The rows of query, key and value; in Flux's single-stream blocks of these, each or together, and the others."""
    if parts == 3:
        return fused_rows(rows, unet_config)
    width: int = unet_config.get("hidden_size") or 0
    if not 0 < 3 * width < rows:
        return None
    return (*((width,) * 3 if parts == 4 else (3 * width,)), rows - 3 * width)


# --- text encoders ---------------------------------------------------------------------------------------------------

_TEXT_ENCODER = re.compile(r"(?:lora_te(\d?)|text_encoder(?:_(\d)(?=[._]))?)[._]+(.+)")


def text_readings(name: str) -> Iterator[str]:
    """A text encoder's layer as its encoder's number and its name with underscores: `2_text_model_encoder_...`.

    Nothing for other names. A second reading is without the `model.` that language models have around their layers.
    """
    if found := _TEXT_ENCODER.fullmatch(name):
        layer = _flat(found[3])
        yield f"{found[1] or found[2] or 1}_{layer}"
        if layer.startswith("model_"):
            yield f"{found[1] or found[2] or 1}_{layer.removeprefix('model_')}"
