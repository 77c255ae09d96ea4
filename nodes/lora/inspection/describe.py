"""A LoRA file in words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from torch import Tensor

from ....training.formats import trigger_words
from ..files import NamedLora, layers_of
from ..injection.scope import listed
from ..layer_names import block_order, common_name, file_block, kind_of
from ..lowrank import kind
from ..match import base_of_file

_SPELLINGS = (
    (r"lora_unet_(down|up|mid)_block", "kohya (diffusers' layer names)"),
    (r"lora_unet_|lora_te", "kohya (the checkpoint's layer names)"),
    (r"diffusion_model\.|text_encoders\.", "ComfyUI"),
    (r"transformer\.|text_encoder", "diffusers"),
    (r"lycoris_", "LyCORIS"),
)


def spelling(layers: Iterable[str]) -> str:
    """Which program's names the layers have, after this pack's own renaming of diffusers' U-Net names."""
    counts = Counter(
        next((name for pattern, name in _SPELLINGS if re.match(pattern, layer)), "names of its own") for layer in layers
    )
    return " and ".join(name for name, _ in counts.most_common(2))


def rank_of(parts: Mapping[str, Tensor]) -> int | None:
    """The rank that alpha is divided by, where a layer has one."""
    for part in (".lora_down.weight", ".hada_w1_b", ".lokr_w2_b", ".lokr_w1_b"):
        if part in parts:
            return parts[part].shape[0]
    return None


def describe(lora: NamedLora) -> str:
    """Format, base, rank, alpha, what it adapts and where, and its trigger words."""
    layers = {layer: parts for layer, parts in layers_of(lora).items() if set(parts) - {"", ".alpha"}}
    kinds = Counter(kind(parts) for parts in layers.values())
    ranks = sorted({rank for parts in layers.values() if (rank := rank_of(parts))})
    size = sum(tensor.numel() for tensor in lora.values())
    what = ", ".join(f"{count} {name}" for name, count in kinds.most_common())
    lines = [
        f"{lora.name}: {len(layers)} layers ({what}), rank {', '.join(map(str, ranks)) or 'none'}, {size:,} numbers."
    ]
    lines.append(
        f"Names: {spelling(layers)}. Base: {base_of_file(lora) or 'not said, and not to be told from the layers'}."
    )
    lines += _alpha(layers)
    names = [common_name(layer) for layer in layers]
    if unet := [(layer, name) for layer, name in zip(layers, names, strict=True) if not name.startswith("te")]:
        columns = Counter(kind_of(name) for _, name in unet)
        blocks = sorted({file_block(layer) for layer, _ in unet}, key=block_order)
        lines.append("Adapts " + ", ".join(f"{column} ({n})" for column, n in sorted(columns.items())) + ".")
        lines.append(f"In the blocks {listed(blocks)}.")
    if len(unet) < len(layers):
        lines.append(f"{len(layers) - len(unet)} layers are for the text encoder.")
    words = trigger_words(lora.meta)
    lines.append(f"Trigger words: {words}." if words else "The file names no trigger words.")
    if lora.meta.get("ss_sd_model_name"):
        lines.append(f"Trained on {lora.meta['ss_sd_model_name']}.")
    return "\n".join(lines)


def _alpha(layers: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    scaled = {layer: (rank, parts) for layer, parts in layers.items() if (rank := rank_of(parts))}
    values = Counter((float(parts[".alpha"]), rank) for rank, parts in scaled.values() if ".alpha" in parts)
    lines = []
    if values:
        (alpha, rank), _ = values.most_common(1)[0]
        more = f" in most layers, others in {len(values) - 1} ways" if len(values) > 1 else ""
        lines.append(f"alpha {alpha:g}{more}: it acts at alpha/rank = {alpha / rank:g} of its factors' product.")
    without = sum(".alpha" not in parts for _, parts in scaled.values())
    if without:
        some = "No alpha in the file" if without == len(scaled) else f"{without} layers have no alpha"
        lines.append(f"{some}: there it acts at strength 1, not at 1/rank.")
    return lines
