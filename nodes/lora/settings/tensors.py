"""What a file's tensors say of its training: the kind of adapter, ranks, convolutions, the text encoder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from ....training.layer_names.parts import (
    ALPHA,
    DORA_SCALE,
    DOWN,
    HADA_W1_B,
    LOKR_W1,
    LOKR_W1_A,
    LOKR_W1_B,
    LOKR_W2_B,
    PEFT_MAGNITUDE,
    split_key,
)
from ....training.layer_names.spelling import KOHYA_PREFIX, common_name, is_text_encoder
from .sheet import Sheet

_RANKED = (DOWN, HADA_W1_B, LOKR_W2_B, LOKR_W1_B)


def read(shapes: Mapping[str, Sequence[int]], alphas: Collection[float], sheet: Sheet) -> None:
    """Set what the metadata has left open.

    shapes: by the tensors' names. alphas: the values of the file's alphas where they could be read; a file without
    alphas acts at strength 1, as with alpha equal to rank.
    """
    parts = {key: split_key(key) for key in shapes}
    kinds = {part for _, part in parts.values()}
    _put_adapter(kinds, sheet)
    ranks: Counter[int] = Counter()
    kernels: Counter[int] = Counter()
    for key, (_, part) in parts.items():
        shape = shapes[key]
        if part in _RANKED and len(shape) >= 2:
            (kernels if len(shape) > 2 and max(shape[2:]) > 1 else ranks)[shape[0]] += 1
    _put_rank("rank", ranks, sheet)
    if kernels:
        _put_rank("conv_rank", kernels, sheet)
    elif ranks and "conv_rank" not in sheet.values:
        sheet.default("conv_rank")
        _note_projections(parts.values(), sheet)
    if ranks:
        sheet.values["train_text_encoder"] = any(
            is_text_encoder(common_name(layer, {})) for layer, part in parts.values() if part
        )
    rank = sheet.values.get("rank")
    if "alpha" not in sheet.values and rank is not None:
        _put_alpha(ALPHA in kinds, rank, alphas, sheet)


def _note_projections(layers: Iterable[tuple[str, str]], sheet: Sheet) -> None:
    """kohya adapts the first and last layer of each of a U-Net's transformers; `targets` here has them not."""
    if any(part == DOWN and re.fullmatch(KOHYA_PREFIX + r".*_proj_(in|out)", layer) for layer, part in layers):
        sheet.note(
            "The file also has the first and last layer of each transformer (proj_in, proj_out); here they are adapted "
            "with conv_rank above 0."
        )


def _put_adapter(kinds: Collection[str], sheet: Sheet) -> None:
    if "adapter" in sheet.values:
        return
    if {LOKR_W1, LOKR_W1_A} & {*kinds}:
        sheet.put("adapter", "LoKr", "the kind of its tensors")
    elif HADA_W1_B in kinds:
        sheet.put("adapter", "LoHa", "the kind of its tensors")
    elif DOWN in kinds:
        is_dora = DORA_SCALE in kinds or PEFT_MAGNITUDE in kinds
        sheet.put("adapter", "DoRA" if is_dora else "LoRA", "the kind of its tensors")
    elif kinds:
        sheet.note("The tensors are of no kind that adapter lists (LoRA, DoRA, LoKr, LoHa).")


def _put_rank(widget: str, ranks: Counter[int], sheet: Sheet) -> None:
    if not ranks:
        return
    [(most, _), *_] = ranks.most_common(1)
    if widget not in sheet.values:
        sheet.put(widget, most, "the rank of most layers")
    if len(ranks) > 1:
        others = ", ".join(f"{rank:,} in {count:,}" for rank, count in ranks.most_common(6)[1:])
        sheet.note(
            f"Of {ranks.total():,} layers most have rank {most:,}, others {others}; custom_targets can give each its "
            "own."
        )


def _put_alpha(has_alpha: bool, rank: int, alphas: Collection[float], sheet: Sheet) -> None:
    if not has_alpha:
        sheet.put("alpha", float(rank), "the strength of its layers")
    elif alphas:
        [(most, _), *_] = Counter(alphas).most_common(1)
        sheet.put("alpha", most, "the alpha of most layers")
    else:
        sheet.note("alpha is in the file's tensors alone: copy it to the loras folder and choose it there to read it.")
