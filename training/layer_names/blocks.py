"""Where a layer lies: its block, the attention projection it is, and its row and column in an overview.

Names here are a model's own dotted names, as `spelling.common_name` gives them.

Blocks of the U-Nets of SD1.5, SD2 and SDXL have two names: `down.N`, `mid`, `up.N` are diffusers' (one a resolution;
`down.0` is the finest, `up.0` the coarsest), `in.N`, `out.N` the checkpoint's own (`input_blocks.N`,
`output_blocks.N`). Other models' blocks are called as their module list is: `double_blocks.3`, `layers.7`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .spelling import COMFY_PREFIX, text_encoder_of

PROJECTIONS = ("query", "key", "value", "out")
_LAST = {
    "query": ("to_q", "q_proj", "q", "wq", "add_q_proj"),
    "key": ("to_k", "k_proj", "k", "wk", "add_k_proj"),
    "value": ("to_v", "v_proj", "v", "wv", "add_v_proj"),
    "out": ("to_out", "out_proj", "o", "wo", "to_add_out", "proj", "out"),
}
_FUSED = ("qkv", "linear1_qkv", "attn_qkv", "img_attn_qkv", "txt_attn_qkv")
_ORDER = {"time": 0, "conv_in": 1, "in": 2, "down": 2, "mid": 3, "up": 4, "out": 4, "conv_out": 5}
# U-Nets of SD1.5, SD2 and SDXL have two residual blocks a resolution.
_RES_BLOCKS = (2, 2, 2, 2)
# (group, column) of an overview, from left to right; the columns are the answers of `kind_of`.
COLUMNS = (
    *((f"{kind}-attention", f"{kind} {name}") for kind in ("self", "cross") for name in PROJECTIONS),
    ("attention", "fused qkv"),
    ("others", "feed-forward"),
    ("others", "conv"),
    ("others", "other"),
)


# --- projections -----------------------------------------------------------------------------------------------------


def projection_of(layer: str) -> str | None:
    """Which attention projection a layer is: "query", "key", "value", "out", "fused" (all of q, k, v), or none.

    layer: dotted, with or without a trailing ".weight": `....attn2.to_out.0`, `....self_attn.q_proj.weight`.
    """
    words = [w for w in layer.removesuffix(".weight").split(".") if not w.isdigit()]
    last = words[-1] if words else ""
    if last in _FUSED:
        return "fused"
    for name, spellings in _LAST.items():
        # Short names are projections only inside an attention.
        inside = re.search(r"attn|attention$", ".".join(words[:-1]).lower())
        if last in spellings and (len(last) > 4 or last.startswith("to_") or inside):
            return name
    return None


def fused_rows(rows: int, unet_config: Mapping[str, Any] | None = None) -> tuple[int, int, int] | None:
    """How many of a fused layer's `rows` make query, key and value; None where they cannot be told apart.

    A third each, but where several queries share a key: Lumina 2 has three to one. unet_config: ComfyUI's.
    """
    queries: int = (unet_config or {}).get("n_heads") or 1
    keys: int = (unet_config or {}).get("n_kv_heads") or queries
    size, rest = divmod(rows, queries + 2 * keys)
    return None if rest else (size * queries, size * keys, size * keys)


def kind_of(layer: str) -> str:
    """The layer's column in an overview: "self query" ... "cross out", "fused qkv", "feed-forward", "conv", "other"."""
    projection = projection_of(layer)
    if projection == "fused":
        return "fused qkv"
    if projection:
        cross = re.search(r"attn2\.|cross_attn\.|\.add_[qkv]_proj|to_add_out", layer)
        return f"{'cross' if cross else 'self'} {projection}"
    if re.search(r"\.(ff|mlp|feed_forward|img_mlp|txt_mlp|ffn)\.|\.(fc1|fc2|w1|w2|w3)\b", layer):
        return "feed-forward"
    if re.search(r"(in_layers|out_layers|skip_connection|\.op|\.conv|resnets)", layer):
        return "conv"
    return "other"


# --- blocks ----------------------------------------------------------------------------------------------------------


def block_names(layer: str, unet_config: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """The names of the block that a layer lies in, the commonest first.

    layer: with or without `diffusion_model.`. unet_config: ComfyUI's, where it is a U-Net; without it two residual
    blocks a resolution are taken, as in SD1.5, SD2 and SDXL.
    """
    layer = layer.removeprefix(COMFY_PREFIX)
    if found := re.match(r"(input|output)_blocks\.(\d+)\.", layer):
        side, index = found[1], int(found[2])
        level = _level(side, index, (unet_config or {}).get("num_res_blocks") or _RES_BLOCKS)
        if side == "input":
            return ("conv_in", "in.0") if index == 0 else (f"down.{level}", f"in.{index}")
        return (f"up.{level}", f"out.{index}")
    if layer.startswith("middle_block."):
        return ("mid",)
    if layer.startswith(("time_embed.", "label_emb.")):
        return ("time",)
    if layer.startswith("out."):
        return ("conv_out",)
    if found := re.match(r"(?:[a-z_]+\.)*?([a-z][a-z0-9_]*)\.(\d+)\.", layer):
        return (f"{found[1]}.{found[2]}",)
    return (layer.split(".")[0],)


def _level(side: str, index: int, res_blocks: Sequence[int]) -> int:
    # Each resolution: its residual blocks and, on the way down, one more that halves; on the way up, one more block.
    counts = [n + 1 for n in res_blocks]
    if side == "input":
        index -= 1
    else:
        counts.reverse()
    for level, count in enumerate(counts):
        if index < count:
            return level
        index -= count
    return len(counts) - 1


def block_order(name: str) -> tuple[int, str, int]:
    """Sorts block names from the model's input to its output."""
    word, _, number = name.rpartition(".")
    if not number.isdigit():
        word, number = name, "0"
    return (_ORDER.get(word, 2), "" if word in _ORDER else word, int(number))


def file_block(name: str) -> str:
    """The block of a layer, as far as its common name tells it without the model."""
    if (encoder := text_encoder_of(name)) is not None:
        return f"text {encoder}".strip()
    if found := re.match(re.escape(COMFY_PREFIX) + r"(down|up)_blocks\.(\d+)\.", name):
        return f"{found[1]}.{found[2]}"
    return block_names(name)[0]


def place(name: str, blocks: Mapping[str, str] | None = None) -> tuple[str, str]:
    """(row, column) of a layer in an overview, by its common name: the smallest block that has a name, and `kind_of`.

    The U-Nets' blocks have both names, `in.4 (down.1)`; a text encoder is one row. blocks: {the checkpoint's name of a
    block: diffusers'} of a model that is known.
    """
    if text_encoder_of(name) is not None:
        return file_block(name), kind_of(name)
    coarse, *fine = block_names(name)
    return (f"{fine[0]} ({(blocks or {}).get(fine[0], coarse)})" if fine else file_block(name)), kind_of(name)


def row_order(row: str) -> tuple[bool, tuple[int, str, int], str]:
    """Sorts the rows of an overview from the model's input to its output, the text encoders last."""
    return (row.startswith("text"), block_order(row.split(" (")[0]), row)
