"""Where a layer lies: its block, the projection it is, and the name it has in a file.

Blocks of the U-Nets of SD1.5, SD2 and SDXL have two names: `down.N`, `mid`, `up.N` are diffusers' (one a resolution;
`down.0` is the finest, `up.0` the coarsest), `in.N`, `out.N` the checkpoint's own (`input_blocks.N`,
`output_blocks.N`). Other models' blocks are called as their module list is: `double_blocks.3`, `layers.7`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

PREFIX = "diffusion_model."
PROJECTIONS = ("query", "key", "value", "out")
_LAST = {
    "query": ("to_q", "q_proj", "q", "wq", "add_q_proj"),
    "key": ("to_k", "k_proj", "k", "wk", "add_k_proj"),
    "value": ("to_v", "v_proj", "v", "wv", "add_v_proj"),
    "out": ("to_out", "out_proj", "o", "wo", "to_add_out", "proj", "out"),
}
_FUSED = ("qkv", "linear1_qkv", "attn_qkv", "img_attn_qkv", "txt_attn_qkv")


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


def fused_rows(rows: int, unet_config: Mapping | None = None) -> tuple[int, int, int] | None:
    """How many of a fused layer's `rows` make query, key and value; None where they cannot be told apart.

    A third each, but where several queries share a key: Lumina 2 has three to one. unet_config: ComfyUI's.
    """
    queries = (unet_config or {}).get("n_heads") or 1
    keys = (unet_config or {}).get("n_kv_heads") or queries
    size, rest = divmod(rows, queries + 2 * keys)
    return None if rest else (size * queries, size * keys, size * keys)


def kind_of(layer: str) -> str:
    """The layer's column in an overview: "self query" ... "cross out", "fused", "feed-forward", "conv" or "other"."""
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


def block_names(layer: str, unet_config: Mapping | None = None) -> tuple[str, ...]:
    """The names of the block that a layer lies in, the commonest first.

    layer: a model's dotted key, with or without `diffusion_model.`. unet_config: ComfyUI's, where it is a U-Net;
    without
    it two residual blocks a resolution are taken, as in SD1.5, SD2 and SDXL.
    """
    layer = layer.removeprefix(PREFIX)
    if found := re.match(r"(input|output)_blocks\.(\d+)\.", layer):
        side, index = found[1], int(found[2])
        level = _level(side, index, (unet_config or {}).get("num_res_blocks") or [2, 2, 2, 2])
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


def _level(side: str, index: int, res_blocks: list[int]) -> int:
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


def block_order(name: str) -> tuple:
    """Sorts block names from the model's input to its output."""
    word, _, number = name.rpartition(".")
    if not number.isdigit():
        word, number = name, "0"
    rank = {"time": 0, "conv_in": 1, "in": 2, "down": 2, "mid": 3, "up": 4, "out": 4, "conv_out": 5}
    return (rank.get(word, 2), "" if word in rank else word, int(number))


@cache
def _unet_names() -> dict[str, str]:
    """kohya's layer name -> the model's, for every U-Net of two residual blocks a resolution (SD1.5, SD2, SDXL)."""
    import comfy.utils

    # Deeper and wider than any of them: names that a model lacks are never asked for.
    config = {
        "num_res_blocks": [2] * 4,
        "channel_mult": [1] * 4,
        "transformer_depth": [10] * 8,
        "transformer_depth_middle": 10,
        "transformer_depth_output": [10] * 12,
    }
    names = {}
    for theirs, ours in comfy.utils.unet_to_diffusers(config).items():
        if theirs.endswith(".weight"):
            layer = PREFIX + ours.removesuffix(".weight")
            for name in (theirs.removesuffix(".weight"), ours.removesuffix(".weight")):
                names[name.replace(".", "_")] = layer
    return names


def common_name(layer: str, known_unet: bool = True) -> str:
    """One name for a file's layer in whatever program's spelling, for putting the same layers of two files together.

    The U-Nets' layers get the model's own name, `diffusion_model.input_blocks.4.1....attn2.to_k`; the text encoders'
    `te.`, `te2.` and the rest. What is not known comes back as it is, with dots around numbers. known_unet: whether the
    U-Net is one of SD1.5, SD2 and SDXL; else diffusers' block numbers say nothing about the checkpoint's.
    """
    if found := re.match(r"lora_te(\d?)_|text_encoder(?:_(\d))?\.|text_encoders\.clip_([lgh])\.transformer\.", layer):
        number = found[1] or found[2] or {"g": "2"}.get(found[3] or "", "")
        name = re.sub(
            r"(layers)_(\d+)_", r"\1.\2.", layer[found.end() :].replace("text_model_encoder_", "text_model.encoder.")
        )
        return f"te{'' if number == '1' else number}." + re.sub(r"\b(self_attn|mlp)_", r"\1.", name)
    name = re.sub(r"^(lora_unet_|lycoris_|lora_transformer_)", "", layer)
    if name == layer:
        return re.sub(r"^transformer\.", PREFIX, layer)
    if known_unet and name in _unet_names():
        return _unet_names()[name]
    return PREFIX + re.sub(r"_(\d+)_", r".\1.", name)


def file_block(layer: str) -> str:
    """The block of a file's layer, as far as the name tells it without the model."""
    name = common_name(layer)
    if found := re.match(r"te(\d?)\.", name):
        return f"text {found[1]}".strip()
    if found := re.match(r"diffusion_model\.(down|up)_blocks\.(\d+)\.", name):
        return f"{found[1]}.{found[2]}"
    return block_names(name)[0]


def place(layer: str) -> tuple[str, str]:
    """(row, column) of a file's layer in an overview: the smallest block that has a name, and `kind_of`.

    The U-Nets' blocks have both names, `in.4 (down.1)`; a text encoder is one row.
    """
    name = common_name(layer)
    if found := re.match(r"te(\d?)\.", name):
        return f"text {found[1]}".strip(), kind_of(name)
    coarse, *fine = block_names(name)
    return (f"{fine[0]} ({coarse})" if fine else file_block(layer)), kind_of(name)


def row_order(row: str) -> tuple:
    """Sorts the rows of an overview from the model's input to its output, the text encoders last."""
    return (row.startswith("text"), block_order(row.split(" (")[0]), row)


COLUMNS = (
    *((f"{kind}-attention", f"{kind} {name}") for kind in ("self", "cross") for name in PROJECTIONS),
    ("attention", "fused qkv"),
    ("others", "feed-forward"),
    ("others", "conv"),
    ("others", "other"),
)
