"""A small random model of every class of picture and film model in ComfyUI that has no maker in `families`.

`made(name)` returns (model, clip, vae) of a name in `ROWS`; tests must not change them. The configurations are those of
`comfy.supported_models`, with small numbers; a host that lacks the class lacks the row. `host_films` has further rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import host_films
import stand_ins
import tiny
import torch
from host_row import Row
from stand_ins import Text

_FRAMES = {"channels": 16, "frames": True}


def _small_adapter(network: Any, dtype: torch.dtype) -> None:
    """Anima's adapter from its language model to T5's tokens, whose sizes are constants of the class."""
    import comfy.ldm.anima.model
    import comfy.ops

    network.llm_adapter = comfy.ldm.anima.model.LLMAdapter(
        source_dim=32, target_dim=32, model_dim=32, num_layers=1, num_heads=2,
        device="cpu", dtype=dtype, operations=comfy.ops.disable_weight_init,
    )  # fmt: skip


_COSMOS = dict(
    image_model="cosmos_predict2", max_img_h=240, max_img_w=240, max_frames=128, in_channels=16, out_channels=16,
    patch_spatial=2, patch_temporal=1, model_channels=96, concat_padding_mask=True, crossattn_emb_channels=32,
    pos_emb_cls="rope3d", pos_emb_learnable=True, pos_emb_interpolation="crop", min_fps=1, max_fps=30,
    use_adaln_lora=True, adaln_lora_dim=16, num_blocks=2, num_heads=4, extra_per_block_abs_pos_emb=False,
    rope_h_extrapolation_ratio=4.0, rope_w_extrapolation_ratio=4.0, rope_t_extrapolation_ratio=1.0,
    extra_h_extrapolation_ratio=1.0, extra_w_extrapolation_ratio=1.0, extra_t_extrapolation_ratio=1.0,
    rope_enable_fps_modulation=False,
)  # fmt: skip
_HUNYUAN = dict(
    image_model="hunyuan_video", in_channels=16, patch_size=[1, 2, 2], out_channels=16, vec_in_dim=32,
    axes_dim=[4, 14, 14], meanflow=False, context_in_dim=32, hidden_size=64, mlp_ratio=4.0, num_heads=2, depth=2,
    depth_single_blocks=2, theta=256, qkv_bias=True, byt5=False, guidance_embed=True, use_cond_type_embedding=False,
    vision_in_dim=None, meanflow_sum=False,
)  # fmt: skip
_KANDINSKY = dict(
    image_model="kandinsky5", model_dim=96, axes_dims=(8, 12, 12), time_dim=32, ff_dim=128, visual_embed_dim=132,
    num_text_blocks=1, num_visual_blocks=2, in_text_dim=32, in_text_dim2=24,
)  # fmt: skip
_LTX = dict(
    image_model="ltxv", num_layers=2, attention_head_dim=24, num_attention_heads=4, cross_attention_dim=96,
    caption_channels=32, in_channels=128,
)  # fmt: skip

ROWS = {
    "omnigen2": Row(
        "Omnigen2",
        dict(
            image_model="omnigen2", patch_size=2, in_channels=16, hidden_size=96, num_layers=2, num_refiner_layers=1,
            num_attention_heads=4, num_kv_heads=2, multiple_of=32, axes_dim_rope=(8, 8, 8), axes_lens=(300, 64, 64),
            text_feat_dim=32, timestep_scale=1000.0,
        ),
        Text(32, mask=True),
    ),
    # Its text encoder gives the states of several layers, one behind the other: text_encoders/krea2.py.
    "krea2": Row(
        "Krea2",
        dict(
            image_model="krea2", features=96, tdim=32, txtdim=32, heads=4, kvheads=2, multiplier=2, layers=2, patch=2,
            channels=16, txtlayers=3, txtheads=2, txtkvheads=2,
        ),
        Text(96),
        _FRAMES,
    ),
    "cosmos_predict2": Row("CosmosT2IPredict2", _COSMOS, Text(32), _FRAMES),
    "anima": Row(
        "Anima",
        _COSMOS | dict(image_model="anima"),
        Text(32, ids=("t5xxl_ids", "t5xxl_weights")),
        _FRAMES,
        small=_small_adapter,
    ),
    "ltxv": Row("LTXV", _LTX, Text(32, mask=True), {"channels": 128, "side": 32, "frames": True, "temporal": 8}),
    "ltxav": Row(
        "LTXAV",
        _LTX | dict(
            image_model="ltxav", audio_attention_head_dim=12, audio_num_attention_heads=4, audio_cross_attention_dim=48,
            connector_attention_head_dim=16, connector_num_attention_heads=2, connector_num_layers=1,
        ),
        Text(32, facts={"unprocessed_ltxav_embeds": True}),
        {"channels": 128, "side": 32, "frames": True, "temporal": 8},
    ),
    # LTX-2.3 has its text's projections in the text encoder, gates on its attentions and a modulated cross-attention.
    "ltxav23": Row(
        "LTXAV",
        _LTX | dict(
            image_model="ltxav", audio_attention_head_dim=12, audio_num_attention_heads=4, audio_cross_attention_dim=48,
            connector_attention_head_dim=24, connector_num_attention_heads=4, connector_num_layers=1,
            audio_connector_attention_head_dim=12, audio_connector_num_attention_heads=4,
            connector_apply_gated_attention=True, caption_proj_before_connector=True,
            caption_projection_first_linear=False, cross_attention_adaln=True, apply_gated_attention=True,
        ),
        Text(144, facts={"unprocessed_ltxav_embeds": True}),
        {"channels": 128, "side": 32, "frames": True, "temporal": 8},
    ),
    "hunyuan_video": Row("HunyuanVideo", _HUNYUAN, Text(32, pooled=32), _FRAMES),
    "hunyuan_video15": Row(
        "HunyuanVideo15",
        _HUNYUAN | dict(
            in_channels=65, patch_size=[1, 1, 1], out_channels=32, vec_in_dim=None, byt5=True, guidance_embed=False,
            use_cond_type_embedding=True, vision_in_dim=1152, meanflow_sum=True,
        ),
        Text(32),
        {"channels": 32, "side": 16, "frames": True},
    ),
    # Its second encoder reads the words in quotes: text_encoders/hunyuan_image.py.
    "hunyuan_image21": Row(
        "HunyuanImage21",
        _HUNYUAN | dict(
            in_channels=64, out_channels=64, patch_size=[1, 1], axes_dim=[16, 16], vec_in_dim=None, byt5=True,
            guidance_embed=False,
        ),
        Text(32, more={"conditioning_byt5small": lambda tokens: (1, tokens, 1472)}),
        {"channels": 64, "side": 32},
    ),
    "hidream": Row(
        "HiDream",
        dict(
            image_model="hidream", attention_head_dim=32, axes_dims_rope=[16, 8, 8], caption_channels=[32, 24],
            max_resolution=[128, 128], in_channels=16, llama_layers=[0, 1, 2, 2], num_attention_heads=2,
            num_routed_experts=4, num_activated_experts=2, num_layers=2, num_single_layers=2, out_channels=16,
            patch_size=2, text_emb_dim=16,
        ),
        Text(32, tokens=12, pooled=16, more={"conditioning_llama3": lambda tokens: (1, 3, tokens, 24)}),
    ),
    "hidream_o1": Row(
        "HiDreamO1",
        dict(
            image_model="hidream_o1",
            text_config_overrides=dict(
                hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=1, head_dim=32, rope_dims=[6, 5, 5],
            ),
            vision_config_overrides=dict(
                hidden_size=32, num_heads=2, intermediate_size=48, depth=1, num_position_embeddings=16,
            ),
        ),
        None,
        {"channels": 3, "side": 1},
    ),
    "ernie": Row(
        "ErnieImage",
        dict(
            image_model="ernie", hidden_size=96, num_attention_heads=4, num_layers=2, ffn_hidden_size=128,
            text_in_dim=32, rope_axes_dim=(8, 8, 8),
        ),
        Text(32),
        {"channels": 128, "side": 16},
    ),
    "kandinsky5": Row("Kandinsky5", _KANDINSKY, Text(32, pooled=24, mask=True), _FRAMES),
    "kandinsky5_image": Row(
        "Kandinsky5Image", _KANDINSKY | dict(visual_embed_dim=64), Text(32, pooled=24, mask=True)
    ),
    "auraflow": Row(
        "AuraFlow",
        dict(max_seq=64, cond_seq_dim=32, n_double_layers=2, n_layers=4, dim=64, n_heads=2, global_conddim=32),
        Text(32),
        {"channels": 4},
    ),
} | host_films.ROWS  # fmt: skip


def config_class(name: str) -> type | None:
    """The class of `comfy.supported_models`, or None where this host has none."""
    import comfy.supported_models

    return getattr(comfy.supported_models, ROWS[name].config, None)


def make(name: str, **changes: Any):
    """(model, clip, vae) of a row; `changes` of its configuration, such as another dtype."""
    row = ROWS[name]
    unet = {"dtype": torch.float32, **row.unet, **changes}
    config = config_class(name)(unet)
    # A class may set full-size numbers itself (`unet_extra_config`); a name that it takes away must stay away.
    config.unet_config.update({key: value for key, value in unet.items() if key in config.unet_config})
    base = config.get_model({}, "", device=torch.device("cpu"))
    row.small(base.diffusion_model, unet["dtype"])
    for buffer in base.diffusion_model.buffers():
        buffer.requires_grad_(False)  # PixArt's vector for an empty prompt is a parameter among the buffers
    text = stand_ins.clip(row.text) if row.text else stand_ins.own_clip(config.clip_target())
    return tiny._flow(base, 0), text, stand_ins.vae(**row.vae)


made: Callable[[str], Any] = functools.cache(make)
