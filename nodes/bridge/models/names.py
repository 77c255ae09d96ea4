"""ComfyUI's tables of what LoRA files call the layers of a model; how names are spelled: `training/layer_names`."""

from __future__ import annotations

import re
from functools import cache

from torch import nn

from ....training.layer_names.dialects import Place, flat_name
from ....training.layer_names.spelling import COMFY_PREFIX, TRANSFORMER_PREFIX, kohya_name, unet_table
from .layers import is_linear


def linear_layers(base) -> dict[str, nn.Linear]:
    return {name: layer for name, layer in base.diffusion_model.named_modules() if is_linear(layer)}


def by_program(base, diffusers: dict) -> dict[str, dict]:
    """{layer: {"kohya": ..., "diffusers": ...}}.

    diffusers: {its name: ComfyUI's name, or (ComfyUI's name, (0, first row, rows))}. kohya writes the checkpoint's own
    names with underscores. diffusers has separate layers for q, k and v, so a fused layer is a list of (name, first
    row, rows) there.
    """
    layers = linear_layers(base)
    names: dict[str, dict] = {name: {"kohya": kohya_name(name)} for name in layers}
    parts: dict[str, list[tuple[str, int, int]]] = {}
    for theirs, ours in diffusers.items():
        if not theirs.endswith(".weight"):
            continue
        theirs = TRANSFORMER_PREFIX + theirs.removesuffix(".weight")
        if isinstance(ours, str):
            forms = names.get(ours.removesuffix(".weight"))
            if forms is not None:
                forms.setdefault("diffusers", theirs)
        elif len(ours) == 2:
            parts.setdefault(ours[0].removesuffix(".weight"), []).append((theirs, ours[1][1], ours[1][2]))
    for layer, pieces in parts.items():
        pieces = sorted(pieces, key=lambda piece: piece[1])
        # Only where the pieces cover the whole layer: ComfyUI's table has one width of the feed-forward.
        if layer in names and sum(rows for _, _, rows in pieces) == layers[layer].out_features:
            names[layer]["diffusers"] = pieces
    return names


def as_they_are(base, prefix: str) -> dict[str, dict]:
    """`by_program` of a model whose layers diffusers' files call as ComfyUI does, behind `prefix`."""
    return {name: {"kohya": kohya_name(name), "diffusers": prefix + name} for name in linear_layers(base)}


def by_core(base) -> dict[str, dict]:
    """`by_program` of a model whose names ComfyUI's table of LoRA keys gives, whatever its class.

    diffusers' names stand behind `transformer.` there. Where the table lacks them for a layer, classes of
    `_READ_BY_DIFFUSERS` have the checkpoint's own names behind `diffusion_model.`, and the others have no name in
    diffusers: its loader would leave out every key of the file.
    """
    import comfy.lora

    table = comfy.lora.model_lora_keys_unet(base, {})
    diffusers = {}
    for theirs, ours in table.items():
        if theirs.startswith(TRANSFORMER_PREFIX):
            layer, *rows = (ours,) if isinstance(ours, str) else ours
            layer = layer.removeprefix(COMFY_PREFIX)
            name = theirs.removeprefix(TRANSFORMER_PREFIX) + ".weight"
            diffusers[name] = (layer, *rows) if rows else layer
    names = by_program(base, diffusers)
    in_blocks = [forms for name, forms in names.items() if re.search(r"\.\d+\.", name)]
    if all("diffusers" in forms for forms in in_blocks):
        return names
    kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(base.diffusion_model).__mro__}
    if not _READ_BY_DIFFUSERS.isdisjoint(kinds):
        return as_they_are(base, COMFY_PREFIX)
    return {name: {"kohya": forms["kohya"]} for name, forms in names.items()}


# Networks whose own layer names diffusers' pipelines translate behind `diffusion_model.` (diffusers 0.42,
# `loaders/lora_pipeline.py`: LTXVideo, LTX2, Anima, Ideogram4, Wan).
_READ_BY_DIFFUSERS = frozenset(
    {
        "comfy.ldm.lightricks.model.LTXVModel",
        "comfy.ldm.anima.model.Anima",
        "comfy.ldm.ideogram4.model.Ideogram4Transformer2DModel",
        "comfy.ldm.wan.model.WanModel",
    }
)


def core_places(base) -> dict[str, Place]:
    """{name as `dialects.readings` gives it: its place} of all names in ComfyUI's table of LoRA keys, for a model that
    no record describes: so each of them is read behind any prefix and with either separator."""
    import comfy.lora

    found: dict[str, Place] = {}
    for theirs, ours in comfy.lora.model_lora_keys_unet(base, {}).items():
        key, *rows = (ours,) if isinstance(ours, str) else ours
        if any(callable(each) for each in rows):
            continue  # the factors are rearranged too (AuraFlow's last layer): read by ComfyUI's exact name only
        layer, offset = key.removeprefix(COMFY_PREFIX).removesuffix(".weight"), rows[0] if rows else None
        if offset is not None and offset[0] == 0:
            part = f"{layer.rpartition('.')[0]}.{theirs.rpartition('.')[2]}"
            place = Place(layer, (offset[1], offset[2]), part=part)
        else:
            place = Place(layer, part=layer)
        found.setdefault(flat_name(theirs), place)
    return found


@cache
def unet_names() -> dict[str, str]:
    """The table of `common_name` for every U-Net of two residual blocks a resolution (SD1.5, SD2, SDXL)."""
    import comfy.utils

    # Deeper and wider than any of them: names that a model lacks are never looked up.
    config = {
        "num_res_blocks": [2] * 4,
        "channel_mult": [1] * 4,
        "transformer_depth": [10] * 8,
        "transformer_depth_middle": 10,
        "transformer_depth_output": [10] * 12,
    }
    return unet_table(comfy.utils.unet_to_diffusers(config))
