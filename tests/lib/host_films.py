"""Further classes of picture and film models, small: rows of `host_models`, which makes them.

Every number is a small one; the names of the settings are those that core reads from a file (`model_detection`).
"""

from __future__ import annotations

import families
import tiny
from host_row import Row
from stand_ins import Text

WIDTH = 32  # of a token of the stand-in text encoders
_SIZES = 6 * 256  # SDXL's size, crop and target size: six numbers as 256 values each
_SDXL = {**tiny.SDXL, "adm_in_channels": 48 + _SIZES, "num_classes": "sequential"}
_PIXART = dict(input_size=16, hidden_size=48, depth=2, num_heads=4, caption_channels=WIDTH, pe_interpolation=1)
_HYDIT = dict(
    hidden_size=64, depth=4, num_heads=4, text_states_dim=WIDTH, text_states_dim_t5=WIDTH, text_len=16, text_len_t5=16
)
_FILMS = {"channels": 16, "frames": True}
_PIXELS = {"channels": 3, "side": 1}

ROWS = {
    "ssd1b": Row(
        "SSD1B",
        {
            **_SDXL, "transformer_depth": [0, 0, 2, 2, 4, 4], "transformer_depth_middle": -1,
            "transformer_depth_output": [0, 0, 0, 1, 1, 2, 10, 4, 4],
        },
        Text(96, pooled=48),
        {"channels": 4},
    ),
    "vega": Row(
        "Segmind_Vega",
        {
            **_SDXL, "transformer_depth": [0, 0, 1, 1, 2, 2], "transformer_depth_middle": -1,
            "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
        },
        Text(96, pooled=48),
        {"channels": 4},
    ),
    "koala_700m": Row(
        "KOALA_700M",
        {
            **_SDXL, "num_res_blocks": [1, 1, 1], "transformer_depth": [0, 2, 5], "transformer_depth_middle": -2,
            "transformer_depth_output": [0, 0, 2, 2, 5, 5],
        },
        Text(96, pooled=48),
        {"channels": 4},
    ),
    "koala_1b": Row(
        "KOALA_1B",
        {
            **_SDXL, "num_res_blocks": [1, 1, 1], "transformer_depth": [0, 2, 6], "transformer_depth_middle": 6,
            "transformer_depth_output": [0, 0, 2, 2, 6, 6],
        },
        Text(96, pooled=48),
        {"channels": 4},
    ),
    "cascade_c": Row(
        "Stable_Cascade_C",
        dict(
            stable_cascade_stage="c", c_cond=64, c_hidden=[64, 64], nhead=[4, 4], blocks=[[1, 2], [2, 1]],
            c_clip_text=WIDTH, c_clip_text_pooled=WIDTH,
        ),
        Text(WIDTH, pooled=WIDTH),
        {"channels": 16, "side": 32},
    ),
    "pixart_alpha": Row(
        "PixArtAlpha", dict(_PIXART, image_model="pixart_alpha", micro_condition=True), Text(WIDTH), {"channels": 4}
    ),
    "pixart_sigma": Row(
        "PixArtSigma", dict(_PIXART, image_model="pixart_sigma", micro_condition=False), Text(WIDTH), {"channels": 4}
    ),
    "hunyuan_dit": Row(
        "HunyuanDiT",
        dict(_HYDIT, image_model="hydit"),
        Text(
            WIDTH, tokens=16, mask=True,
            more={
                "conditioning_mt5xl": lambda tokens: (1, tokens, WIDTH),
                "attention_mask_mt5xl": lambda tokens: (1, tokens),
            },
        ),
        {"channels": 4},
    ),
    "hunyuan_dit1": Row(
        "HunyuanDiT1",
        dict(_HYDIT, image_model="hydit1", size_cond=True, use_style_cond=True),
        Text(
            WIDTH, tokens=16, mask=True,
            more={
                "conditioning_mt5xl": lambda tokens: (1, tokens, WIDTH),
                "attention_mask_mt5xl": lambda tokens: (1, tokens),
            },
        ),
        {"channels": 4},
    ),
    "flux_schnell": Row("FluxSchnell", {**tiny.FLUX, "guidance_embed": False}, Text(64, pooled=tiny.CONTEXT)),
    "longcat_image": Row(
        "LongCatImage",
        {**tiny.FLUX, "guidance_embed": False, "vec_in_dim": None, "txt_ids_dims": [1, 2]},
        Text(64),
    ),
    "chroma_radiance": Row(
        "ChromaRadiance",
        {
            **families.CHROMA, "image_model": "chroma_radiance", "in_channels": 3, "out_channels": 3, "patch_size": 8,
            "nerf_hidden_size": 8, "nerf_mlp_ratio": 2, "nerf_depth": 2, "nerf_max_freqs": 4, "nerf_tile_size": 512,
            "nerf_final_head_type": "conv", "nerf_embedder_dtype": None, "use_x0": False,
            "use_sequential_txt_ids": False,
        },
        Text(families.TEXT),
        _PIXELS,
    ),
    "lens": Row(
        "Lens",
        dict(
            image_model="lens", in_channels=128, out_channels=32, num_layers=2, attention_head_dim=16,
            num_attention_heads=4, enc_hidden_dim=16, axes_dims_rope=(4, 6, 6), selected_layer_index=(0, 1),
        ),
        Text(WIDTH, mask=True),
        {"channels": 128, "side": 16},
    ),
    "mochi": Row(
        "GenmoMochi",
        dict(
            image_model="mochi_preview", depth=2, patch_size=2, num_heads=4, hidden_size_x=64, hidden_size_y=32,
            mlp_ratio_x=192.0, mlp_ratio_y=4.0, learn_sigma=False, in_channels=12, qk_norm=True, qkv_bias=False,
            out_bias=True, attn_drop=0.0, patch_embed_bias=True, posenc_preserve_area=True, timestep_mlp_bias=True,
            attend_to_padding=False, timestep_scale=1000.0, use_t5=True, t5_feat_dim=WIDTH, t5_token_length=16,
            rope_theta=10000.0,
        ),
        Text(WIDTH, tokens=16, mask=True),
        {"channels": 12, "frames": True, "temporal": 6},
    ),
    "cosmos": Row(
        "CosmosT2V",
        dict(
            image_model="cosmos", max_img_h=64, max_img_w=64, max_frames=16, in_channels=16, out_channels=16,
            patch_spatial=2, patch_temporal=1, model_channels=64, block_config="FA-CA-MLP", concat_padding_mask=True,
            pos_emb_cls="rope3d", pos_emb_learnable=False, pos_emb_interpolation="crop", block_x_format="THWBD",
            affline_emb_norm=True, use_adaln_lora=True, adaln_lora_dim=16, num_blocks=2, num_heads=2,
            extra_per_block_abs_pos_emb=True, extra_per_block_abs_pos_emb_type="learnable",
            crossattn_emb_channels=WIDTH,
        ),
        Text(WIDTH, mask=True),
        _FILMS | {"temporal": 8},
    ),
    "z_image_pixels": Row(
        "ZImagePixelSpace",
        {
            **families.Z_IMAGE, "image_model": "zimage_pixel", "patch_size": 4, "in_channels": 3,
            "decoder_in_channels": 48, "decoder_hidden_size": 64, "decoder_num_res_blocks": 2, "decoder_max_freqs": 4,
        },
        Text(families.TEXT, mask=True),
        _PIXELS,
    ),
    "newbie": Row(
        "Lumina2",
        {**families.LUMINA2, "clip_text_dim": WIDTH},
        Text(families.TEXT, pooled=WIDTH, mask=True),
    ),
    "pixeldit": Row(
        "PixelDiTT2I",
        dict(
            image_model="pixeldit_t2i", hidden_size=64, num_groups=4, pixel_hidden_size=8, pixel_attn_hidden_size=32,
            pixel_num_groups=2, patch_depth=2, pixel_depth=2, patch_size=4, txt_embed_dim=WIDTH, txt_max_length=32,
        ),
        Text(WIDTH, mask=True),
        _PIXELS,
    ),
    "wan_causal": Row("WAN21_CausalAR_T2V", {**families.WAN, "causal_ar": True}, Text(families.TEXT), _FILMS),
    "wan_i2v": Row(
        "WAN21_I2V",
        {**families.WAN, "model_type": "i2v", "in_dim": 36},
        Text(families.TEXT),
        _FILMS,
        reason="it continues a picture that it is given",
    ),
    "wan_fun_control": Row(
        "WAN21_FunControl2V",
        {**families.WAN, "model_type": "i2v", "in_dim": 48},
        Text(families.TEXT),
        _FILMS,
        reason="it continues a picture that it is given",
    ),
    "boogu": Row(
        "Boogu",
        dict(
            image_model="boogu", hidden_size=96, num_layers=2, num_double_stream_layers=2, num_refiner_layers=1,
            num_attention_heads=4, num_kv_heads=2, multiple_of=32, axes_dim_rope=(8, 8, 8), axes_lens=(300, 64, 64),
            instruction_feat_dim=WIDTH,
        ),
        Text(WIDTH, mask=True),
    ),
    "ideogram4": Row(
        "Ideogram4",
        dict(
            image_model="ideogram4", in_channels=128, num_layers=2, num_attention_heads=2, attention_head_dim=32,
            intermediate_size=128, adaln_dim=16, llm_features_dim=WIDTH, mrope_section=(6, 5, 5),
        ),
        Text(WIDTH, mask=True),
        {"channels": 128, "side": 16},
    ),
    "mage_flow": Row(
        "MageFlow",
        dict(
            image_model="mage_flow", in_channels=128, num_layers=2, attention_head_dim=32, num_attention_heads=2,
            joint_attention_dim=WIDTH, axes_dims_rope=(8, 12, 12),
        ),
        Text(WIDTH, mask=True),
        {"channels": 128, "side": 16},
    ),
    "joyimage": Row(
        "JoyImage",
        dict(
            image_model="joyimage", in_channels=16, hidden_size=64, patch_size=[1, 2, 2], num_layers=2,
            num_attention_heads=2, text_dim=WIDTH, rope_dim_list=[8, 12, 12],
        ),
        Text(WIDTH),
        _FILMS,
    ),
    "cogvideox": Row(
        "CogVideoX_T2V",
        dict(
            image_model="cogvideox", num_attention_heads=2, attention_head_dim=32, time_embed_dim=32, num_layers=2,
            in_channels=16, patch_size=2, text_embed_dim=WIDTH, use_learned_positional_embeddings=False,
            use_rotary_positional_embeddings=True,
        ),
        Text(WIDTH),
        _FILMS,
    ),
}  # fmt: skip
