"""A small model of every family: ComfyUI's own classes of model, text encoder and VAE, with random weights.

`made(name)` returns (model, clip, vae) of a name in `FAMILIES`, made once; tests must not change them.
`MAKERS[name](**config)` makes new ones with changes of the configuration.
"""

from __future__ import annotations

import functools
import io

import tiny
import torch

CPU = torch.device("cpu")
TEXT = 32  # width of the small language models
_LLAMA = {
    "hidden_size": TEXT,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}
_T5 = {"d_ff": 64, "d_kv": 8, "d_model": TEXT, "num_heads": 2, "num_layers": 2}
QWEN = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "num_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT,
    "axes_dims_rope": (8, 12, 12),
    "dtype": torch.float32,
}
Z_IMAGE = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 256,
    "cap_feat_dim": TEXT,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "qk_norm": True,
    "n_heads": 4,
    "n_kv_heads": 4,
    "axes_dims": [16, 24, 24],
    "rope_theta": 256.0,
    "multiple_of": 32,
    "ffn_dim_multiplier": 1.0,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
    "dtype": torch.float32,
}
# Two queries for each key as in Lumina 2, and without Z-Image's modulation.
LUMINA2 = {
    **Z_IMAGE,
    "dim": 96,
    "n_kv_heads": 2,
    "axes_dims": [8, 8, 8],
    "rope_theta": 10000.0,
    "z_image_modulation": False,
    "time_scale": 1.0,
    "pad_tokens_multiple": None,
}
WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 64,
    "out_dim": 16,
    "in_dim": 16,
    "num_heads": 2,
    "ffn_dim": 128,
    "num_layers": 2,
    "freq_dim": 32,
    "text_dim": TEXT,
    "dtype": torch.float32,
}
FLUX2 = {
    **tiny.FLUX,
    "image_model": "flux2",
    "in_channels": 128,
    "out_channels": 128,
    "patch_size": 1,
    "axes_dim": [8, 8, 8, 8],
    "mlp_ratio": 3.0,
    "theta": 2000,
    "vec_in_dim": None,
    "context_in_dim": 3 * TEXT,
    "qkv_bias": False,
    "txt_ids_dims": [3],
    "global_modulation": True,
    "mlp_silu_act": True,
    "ops_bias": False,
}
CHROMA = {
    **{k: v for k, v in tiny.FLUX.items() if k != "guidance_embed"},
    "image_model": "chroma",
    "in_channels": 64,
    "out_channels": 64,
    "context_in_dim": TEXT,
    "in_dim": 64,
    "out_dim": 64,
    "hidden_dim": 32,
    "n_layers": 2,
}
# ComfyUI detects SD2's v checkpoints by the standard deviation of this bias.
_V = {"output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.tensor([1.0, -1.0])}
_SIZES = 6 * 256  # SDXL's size, crop and target size: six numbers as 256 values each


def _base(config, state=None):
    """A ModelPatcher of the configuration's model, its weights from a seed."""
    return tiny._flow(config.get_model(state or {}, "", device=CPU), 0)


def _encoder(model, tokens, tokenizer_data=None, **configs):
    import comfy.sd

    class Target:
        params: dict = {}  # noqa: RUF012 (what ComfyUI's own targets are)
        clip, tokenizer = model, tokens

    options = {f"{name}_model_config": config for name, config in configs.items()} | {"dtype": torch.float32}
    out = comfy.sd.CLIP(Target, model_options=options, tokenizer_data=tokenizer_data or {})
    for part in list(out.cond_stage_model.modules()):
        if hasattr(part, "visual"):
            del part.visual  # half a billion weights that encode pictures in a prompt; no prompt here has one
    tiny.fill(out.cond_stage_model, 1)
    return out


def wan_vae():
    """Wan 2.1's VAE, which Qwen-Image has too, with an eighth of its width: latents [1, 16, frames, H/8, W/8]."""
    import comfy.sd
    from comfy.ldm.wan.vae import WanVAE

    small = WanVAE(
        dim=12,
        z_dim=16,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        attn_scales=[],
        temperal_downsample=[False, True, True],
    )
    tiny.fill(small, 3)
    return comfy.sd.VAE(sd=small.state_dict())


def sd15(**more):
    return tiny.patcher({**tiny.SD15, **more}), tiny.clip(), tiny.vae()


def sd2_v(**more):
    import comfy.supported_models
    import comfy.text_encoders.sd2_clip as text

    config = tiny.SMALLEST | {"use_linear_in_transformer": True, "model_channels": 64} | more  # heads are 64 wide
    h = {"hidden_size": tiny.CONTEXT, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2}
    return (
        _base(comfy.supported_models.SD20(config), _V),
        _encoder(text.SD2ClipModel, text.SD2Tokenizer, clip_h=h),
        tiny.vae(),
    )


def inpainting(**more):
    import comfy.supported_models

    return _base(comfy.supported_models.SD15(tiny.SMALLEST | {"in_channels": 9} | more)), tiny.clip(), tiny.vae()


def sdxl(**more):
    import comfy.supported_models

    half = tiny.SDXL["context_dim"] // 2
    config = tiny.SDXL | {"adm_in_channels": half + _SIZES, "num_classes": "sequential"} | more
    return _base(comfy.supported_models.SDXL(config)), tiny.clip(two=True, width=half), tiny.vae()


def sdxl_inpainting(**more):
    return sdxl(in_channels=9, **more)


def sdxl_refiner(**more):
    import comfy.sdxl_clip as text
    import comfy.supported_models

    config = (
        tiny.SDXL
        | {"context_dim": tiny.CONTEXT, "adm_in_channels": tiny.CONTEXT + 5 * 256, "num_classes": "sequential"}
        | more
    )
    g = {
        "hidden_size": tiny.CONTEXT,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "projection_dim": tiny.CONTEXT,
    }
    return (
        _base(comfy.supported_models.SDXLRefiner(config)),
        _encoder(text.SDXLRefinerClipModel, text.SDXLTokenizer, clip_g=g),
        tiny.vae(),
    )


def flux_fill(**more):
    """Flux dev for inpainting: 16 channels, 16 of the picture with a hole and 64 of its mask, in patches of 2x2."""
    import comfy.supported_models

    _, clip, vae = tiny.flux()
    return _base(comfy.supported_models.FluxInpaint(tiny.FLUX | {"in_channels": 96} | more)), clip, vae


def flux2(**more):
    import comfy.supported_models
    import comfy.text_encoders.flux as text

    small = {**_LLAMA, "num_hidden_layers": 28}  # its conditioning is the hidden state after the layers 9, 18 and 27
    clip = _encoder(text.klein_te(), text.KleinTokenizer, qwen3_4b=small)
    return _base(comfy.supported_models.Flux2(FLUX2 | more)), clip, tiny.vae(128)


def chroma(**more):
    import comfy.supported_models
    import comfy.text_encoders.pixart_t5 as text

    return (
        _base(comfy.supported_models.Chroma(CHROMA | more)),
        _encoder(text.pixart_te(), text.PixArtTokenizer, t5xxl=_T5),
        tiny.vae(16),
    )


def qwen_image(**more):
    import comfy.supported_models
    import comfy.text_encoders.qwen_image as text

    clip = _encoder(text.te(), text.QwenImageTokenizer, qwen25_7b=_LLAMA)
    return _base(comfy.supported_models.QwenImage(QWEN | more)), clip, wan_vae()


def z_image(**more):
    import comfy.supported_models
    import comfy.text_encoders.z_image as text

    return (
        _base(comfy.supported_models.ZImage(Z_IMAGE | more)),
        _encoder(text.te(), text.ZImageTokenizer, qwen3_4b=_LLAMA),
        tiny.vae(16),
    )


def lumina2(**more):
    """With Z-Image's text encoder, since ComfyUI does not ship Gemma's vocabulary."""
    import comfy.supported_models

    return _base(comfy.supported_models.Lumina2(LUMINA2 | more)), *made("z_image")[1:]


def wan(**more):
    import comfy.supported_models
    import comfy.text_encoders.wan as text

    words = {"spiece_model": _words()}
    clip = _encoder(text.te(), text.WanT5Tokenizer, words, umt5xxl=_T5 | {"vocab_size": 64})
    return _base(comfy.supported_models.WAN21_T2V(WAN | more)), clip, wan_vae()


def wan22(**more):
    """Wan 2.2's 5B, with 48 channels and its own input for masks; the VAE is taew2_2's."""
    import comfy.sd
    import comfy.supported_models
    from comfy.taesd.taehv import TAEHV

    small = TAEHV(latent_channels=48)
    tiny.fill(small, 3)
    base = _base(comfy.supported_models.WAN22_T2V(WAN | {"in_dim": 48, "out_dim": 48} | more))
    return base, made("wan")[1], comfy.sd.VAE(sd=small.state_dict())


def _words() -> torch.Tensor:
    """A vocabulary of 64 pieces, since ComfyUI does not ship UMT5's."""
    import sentencepiece

    out = io.BytesIO()
    lines = [
        f"a {colour} {shape} on {ground}"
        for colour in ("red", "blue", "teal")
        for shape in ("circle", "ring", "heart")
        for ground in ("white", "black")
    ]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=out,
        vocab_size=64,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return torch.frombuffer(bytearray(out.getvalue()), dtype=torch.uint8)


MAKERS = {
    "sd15": sd15,
    "sd2_v": sd2_v,
    "sdxl": sdxl,
    "sdxl_refiner": sdxl_refiner,
    "inpainting": inpainting,
    "sdxl_inpainting": sdxl_inpainting,
    "sd3": tiny.sd3,
    "flux": tiny.flux,
    "flux_fill": flux_fill,
    "flux2": flux2,
    "chroma": chroma,
    "qwen_image": qwen_image,
    "z_image": z_image,
    "lumina2": lumina2,
    "wan": wan,
    "wan22": wan22,
}
FAMILIES = tuple(MAKERS)
WITH_CLIP = ("sd15", "sd2_v", "sdxl", "sdxl_refiner", "inpainting", "sdxl_inpainting", "sd3", "flux", "flux_fill")


@functools.cache
def made(name: str):
    return MAKERS[name]()


def latent_shape(base, frames: int = 1) -> tuple[int, ...]:
    """[C, H, W] with 8x12 cells, or [C, frames, H, W] where the family's latents have frames; 64x96 pixels where the
    family has no VAE; PixArt's least size, 32x40."""
    form = base.latent_format
    height, width = (64, 96) if getattr(form, "spacial_downscale_ratio", 8) == 1 else (8, 12)
    if type(base).__name__ == "PixArt":
        height, width = 32, 40
    frame = (height, width) if form.latent_dimensions == 2 else (frames, height, width)
    return (form.latent_channels, *frame)
