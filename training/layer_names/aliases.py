"""What other programs call the layers of each model family: pairs of the model's own name and the other one.

Names have no prefix and no ending `.weight`; `*` stands for a number. The sources are diffusers' conversions of
checkpoints (`loaders/single_file_utils.py` of version 0.42) and, for Z-Image, musubi-tuner's model, whose names are
diffusers'. `dialects` puts them together with the prefixes and separators of each program.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Alias(NamedTuple):
    """One layer's name in another program.

    own: the model's. theirs: the other name; several where the other program has the layer's rows as layers of their
    own, in the order of the rows, and "" for rows that no name stands for. swapped: whether the other program has the
    two halves of the rows in the other order.
    """

    own: str
    theirs: str | tuple[str, ...]
    swapped: bool = False


Aliases = Sequence[Alias]


def _block(own: str, theirs: str, layers: Sequence[tuple[str, str | tuple[str, ...]]]) -> tuple[Alias, ...]:
    """The aliases of a block's layers. own, theirs: the block's names. layers: names inside it."""

    def whole(name: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return f"{theirs}.{name}" if isinstance(name, str) else tuple(f"{theirs}.{part}" for part in name)

    return tuple(Alias(f"{own}.{inner}", whole(name)) for inner, name in layers)


def _top(*layers: tuple[str, str]) -> tuple[Alias, ...]:
    return tuple(Alias(own, theirs) for own, theirs in layers)


_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
_ADDED_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
_TWO_STREAMS = (
    ("img_attn.qkv", _QKV),
    ("txt_attn.qkv", _ADDED_QKV),
    ("img_attn.proj", "attn.to_out.0"),
    ("txt_attn.proj", "attn.to_add_out"),
    ("img_attn.norm.query_norm", "attn.norm_q"),
    ("img_attn.norm.key_norm", "attn.norm_k"),
    ("txt_attn.norm.query_norm", "attn.norm_added_q"),
    ("txt_attn.norm.key_norm", "attn.norm_added_k"),
)
_ONE_STREAM_NORMS = (("norm.query_norm", "attn.norm_q"), ("norm.key_norm", "attn.norm_k"))
_ENDS = (
    *_top(("img_in", "x_embedder"), ("txt_in", "context_embedder"), ("final_layer.linear", "proj_out")),
    Alias("final_layer.adaLN_modulation.1", "norm_out.linear", swapped=True),
)


def _embedders(names: Sequence[tuple[str, str]], layers: Sequence[tuple[str, str]]) -> tuple[Alias, ...]:
    return tuple(Alias(f"{own}.{a}", f"{theirs}.{b}") for own, theirs in names for a, b in layers)


_IN_OUT = (("in_layer", "linear_1"), ("out_layer", "linear_2"))
_MLP_02 = (("mlp.0", "linear_1"), ("mlp.2", "linear_2"))

_FLUX: Aliases = (
    *_block(
        "double_blocks.*",
        "transformer_blocks.*",
        (
            *_TWO_STREAMS,
            ("img_mod.lin", "norm1.linear"),
            ("txt_mod.lin", "norm1_context.linear"),
            ("img_mlp.0", "ff.net.0.proj"),
            ("img_mlp.2", "ff.net.2"),
            ("txt_mlp.0", "ff_context.net.0.proj"),
            ("txt_mlp.2", "ff_context.net.2"),
        ),
    ),
    *_block(
        "single_blocks.*",
        "single_transformer_blocks.*",
        (
            ("linear1", (*_QKV, "proj_mlp")),
            ("linear2", "proj_out"),
            ("modulation.lin", "norm.linear"),
            *_ONE_STREAM_NORMS,
        ),
    ),
    *_ENDS,
    *_embedders(
        (
            ("time_in", "time_text_embed.timestep_embedder"),
            ("vector_in", "time_text_embed.text_embedder"),
            ("guidance_in", "time_text_embed.guidance_embedder"),
        ),
        _IN_OUT,
    ),
)
# The three of the attention alone, as files of XLabs' and ByteDance's (USO) programs have them.
_LINEAR1_QKV = Alias("single_blocks.*.linear1", ("single_blocks.*.linear1_qkv", ""))
FLUX: Aliases = (*_FLUX, _LINEAR1_QKV)
CHROMA: Aliases = (
    *FLUX,
    *_embedders((("distilled_guidance_layer.layers.*", "distilled_guidance_layer.layers.*"),), _IN_OUT),
)
FLUX2: Aliases = (
    *_block(
        "double_blocks.*",
        "transformer_blocks.*",
        (
            *_TWO_STREAMS,
            ("img_mlp.0", "ff.linear_in"),
            ("img_mlp.2", "ff.linear_out"),
            ("txt_mlp.0", "ff_context.linear_in"),
            ("txt_mlp.2", "ff_context.linear_out"),
        ),
    ),
    *_block(
        "single_blocks.*",
        "single_transformer_blocks.*",
        (("linear1", "attn.to_qkv_mlp_proj"), ("linear2", "attn.to_out"), *_ONE_STREAM_NORMS),
    ),
    *_ENDS,
    *_top(
        ("double_stream_modulation_img.lin", "double_stream_modulation_img.linear"),
        ("double_stream_modulation_txt.lin", "double_stream_modulation_txt.linear"),
        ("single_stream_modulation.lin", "single_stream_modulation.linear"),
    ),
    _LINEAR1_QKV,
    *_embedders(
        (
            ("time_in", "time_guidance_embed.timestep_embedder"),
            ("guidance_in", "time_guidance_embed.guidance_embedder"),
        ),
        _IN_OUT,
    ),
)


def sd3(blocks: int) -> Aliases:
    """SD3's, with so many `joint_blocks`: the last one's modulation of the text has its halves in the other order."""
    inner = (
        ("x_block.attn.qkv", _QKV),
        ("x_block.attn2.qkv", ("attn2.to_q", "attn2.to_k", "attn2.to_v")),
        ("context_block.attn.qkv", _ADDED_QKV),
        ("x_block.attn.proj", "attn.to_out.0"),
        ("x_block.attn2.proj", "attn2.to_out.0"),
        ("context_block.attn.proj", "attn.to_add_out"),
        ("x_block.attn.ln_q", "attn.norm_q"),
        ("x_block.attn.ln_k", "attn.norm_k"),
        ("x_block.attn2.ln_q", "attn2.norm_q"),
        ("x_block.attn2.ln_k", "attn2.norm_k"),
        ("context_block.attn.ln_q", "attn.norm_added_q"),
        ("context_block.attn.ln_k", "attn.norm_added_k"),
        ("x_block.adaLN_modulation.1", "norm1.linear"),
        ("x_block.mlp.fc1", "ff.net.0.proj"),
        ("x_block.mlp.fc2", "ff.net.2"),
        ("context_block.mlp.fc1", "ff_context.net.0.proj"),
        ("context_block.mlp.fc2", "ff_context.net.2"),
    )
    modulations = tuple(
        Alias(
            f"joint_blocks.{i}.context_block.adaLN_modulation.1",
            f"transformer_blocks.{i}.norm1_context.linear",
            swapped=i == blocks - 1,
        )
        for i in range(blocks)
    )
    return (
        *_block("joint_blocks.*", "transformer_blocks.*", inner),
        *modulations,
        *_top(("x_embedder.proj", "pos_embed.proj"), ("pos_embed", "pos_embed.pos_embed")),
        *_ENDS[2:],
        *_embedders(
            (
                ("t_embedder", "time_text_embed.timestep_embedder"),
                ("y_embedder", "time_text_embed.text_embedder"),
            ),
            _MLP_02,
        ),
    )


_Z_IMAGE_BLOCK = (
    ("attention.qkv", ("attention.to_q", "attention.to_k", "attention.to_v")),
    ("attention.out", "attention.to_out.0"),
    ("attention.q_norm", "attention.norm_q"),
    ("attention.k_norm", "attention.norm_k"),
)
_LUMINA2_BLOCK = (
    ("attention.qkv", _QKV),
    ("attention.out", "attn.to_out.0"),
    ("attention.q_norm", "attn.norm_q"),
    ("attention.k_norm", "attn.norm_k"),
    ("feed_forward.w1", "feed_forward.linear_1"),
    ("feed_forward.w2", "feed_forward.linear_2"),
    ("feed_forward.w3", "feed_forward.linear_3"),
    ("attention_norm2", "norm2"),
    ("adaLN_modulation.1", "norm1.linear"),
)
# Both models are one class of ComfyUI's, and no name of one stands for another layer in the other.
LUMINA: Aliases = (
    *(
        alias
        for block in ("layers.*", "noise_refiner.*", "context_refiner.*")
        for alias in (
            *_block(block, block, _Z_IMAGE_BLOCK),
            *_block(block, block, _LUMINA2_BLOCK),
            Alias(f"{block}.attention_norm1", f"{block}.norm1" + ("" if block.startswith("context") else ".norm")),
        )
    ),
    *_top(
        ("final_layer.linear", "all_final_layer.2-1.linear"),
        ("final_layer.adaLN_modulation.1", "all_final_layer.2-1.adaLN_modulation.1"),
        ("x_embedder", "all_x_embedder.2-1"),
        ("final_layer.linear", "norm_out.linear_2"),
        ("final_layer.adaLN_modulation.1", "norm_out.linear_1"),
        ("cap_embedder.*", "time_caption_embed.caption_embedder.*"),
    ),
    *_embedders((("t_embedder", "time_caption_embed.timestep_embedder"),), _MLP_02),
)

_WAN_ATTENTION = (
    ("q", "to_q"),
    ("k", "to_k"),
    ("v", "to_v"),
    ("o", "to_out.0"),
    ("k_img", "add_k_proj"),
    ("v_img", "add_v_proj"),
    ("norm_k_img", "norm_added_k"),
    ("norm_q", "norm_q"),
    ("norm_k", "norm_k"),
)
WAN: Aliases = (
    *_block("blocks.*.self_attn", "blocks.*.attn1", _WAN_ATTENTION),
    *_block("blocks.*.cross_attn", "blocks.*.attn2", _WAN_ATTENTION),
    *_block(
        "blocks.*",
        "blocks.*",
        (
            ("ffn.0", "ffn.net.0.proj"),
            ("ffn.2", "ffn.net.2"),
            ("norm3", "norm2"),
            ("modulation", "scale_shift_table"),
        ),
    ),
    *_top(
        ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
        ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
        ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
        ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
        ("time_projection.1", "condition_embedder.time_proj"),
        ("head.modulation", "scale_shift_table"),
        ("head.head", "proj_out"),
        ("img_emb.proj.0", "condition_embedder.image_embedder.norm1"),
        ("img_emb.proj.1", "condition_embedder.image_embedder.ff.net.0.proj"),
        ("img_emb.proj.3", "condition_embedder.image_embedder.ff.net.2"),
        ("img_emb.proj.4", "condition_embedder.image_embedder.norm2"),
    ),
)
