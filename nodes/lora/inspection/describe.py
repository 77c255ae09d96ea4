"""A LoRA file in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from ....training.layer_names.blocks import block_order, file_block, kind_of
from ....training.layer_names.parts import ALPHA, adapts, layers_of
from ....training.layer_names.spelling import common_name, is_text_encoder, program_names
from ....training.strength_range import in_words, strengths_in
from ....training.timestep_range import range_in
from ...bridge.models.names import unet_names
from .. import kinds
from ..bases import base_of_file
from ..bundle import describe_words, words_to_say
from ..kinds.kind import Parts
from ..named_lora import NamedLora
from ..wording import listed


def describe(lora: NamedLora) -> str:
    """Format, base, rank, alpha, what it adapts and where, and its trigger words."""
    layers = {layer: parts for layer, parts in layers_of(lora).items() if adapts(parts)}
    counts = Counter(kinds.kind_of(parts).name for parts in layers.values())
    ranks = sorted({rank for parts in layers.values() if (rank := kinds.rank_of(parts))})
    size = sum(tensor.numel() for tensor in lora.values())
    what = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    words = words_to_say([lora])
    lines = [
        f"{lora.name}: {len(layers)} layers ({what}), rank {', '.join(map(str, ranks)) or 'none'}, {size:,} numbers.",
        f"Names: {lora.programs or program_names(layers)}. "
        f"Base: {base_of_file(lora) or 'not said, and not to be told from the layers'}.",
        *_alpha(layers),
        *_core(layers),
        *_where([common_name(layer, unet_names()) for layer in layers]),
        f"Trigger words: {words}." if words else "The file names no trigger words.",
        *describe_words(lora),
    ]
    if lora.meta.get("ss_sd_model_name"):
        lines.append(f"Trained on {lora.meta['ss_sd_model_name']}.")
    part = range_in(lora.meta)
    if not part.is_whole:
        lines.append(f"Trained on a part of the schedule alone: timesteps {part} of 1 (0 is clean, 1 is noise).")
    useful = strengths_in(lora.meta)
    if useful:
        lines.append(f"A slider: strengths from {in_words(useful)} were found useful when it was trained.")
    return "\n".join(lines)


def _where(names: list[str]) -> list[str]:
    """The projections and blocks that are adapted, by the layers' common names."""
    lines = []
    own = [name for name in names if not is_text_encoder(name)]
    if own:
        columns = Counter(kind_of(name) for name in own)
        blocks = sorted({file_block(name) for name in own}, key=block_order)
        lines.append("Adapts " + ", ".join(f"{column} ({n})" for column, n in sorted(columns.items())) + ".")
        lines.append(f"In the blocks {listed(blocks)}.")
    if len(own) < len(names):
        lines.append(f"{len(names) - len(own)} layers are for the text encoder.")
    return lines


def _alpha(layers: Mapping[str, Parts]) -> list[str]:
    scaled = {layer: (rank, parts) for layer, parts in layers.items() if (rank := kinds.rank_of(parts))}
    values = Counter((float(parts[ALPHA]), rank) for rank, parts in scaled.values() if ALPHA in parts)
    lines = []
    if values:
        (alpha, rank), _ = values.most_common(1)[0]
        more = f" in most layers, others in {len(values) - 1} ways" if len(values) > 1 else ""
        lines.append(f"alpha {alpha:g}{more}: it acts at alpha/rank = {alpha / rank:g} of its factors' product.")
    without = sum(ALPHA not in parts for _, parts in scaled.values())
    if without:
        some = "No alpha in the file" if without == len(scaled) else f"{without} layers have no alpha"
        lines.append(f"{some}: there it acts at strength 1, not at 1/rank.")
    return lines


def _core(layers: Mapping[str, Parts]) -> list[str]:
    """What ComfyUI's own nodes compute otherwise."""
    counts = Counter(kinds.kind_of(parts).name for parts in layers.values() if kinds.core_differs(parts))
    if not counts:
        return []
    what = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    return [
        f"ComfyUI's own LoRA nodes make other weights of {what} layers than the program that wrote them; "
        "Bespoke Inject LoRA makes the same."
    ]
