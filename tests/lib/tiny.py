"""Small models of ComfyUI's own classes, a hundredth of the usual size, with random weights."""

from __future__ import annotations

import math

import torch

WIDTH, CONTEXT = 32, 48
SD15 = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": WIDTH,
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "channel_mult": [1, 2, 2, 2],
    "use_linear_in_transformer": False,
    "context_dim": CONTEXT,
    "num_heads": 2,
    "num_head_channels": -1,
    "use_spatial_transformer": True,
    "use_temporal_attention": False,
    "legacy": False,
    "adm_in_channels": None,
}
# One level with three attention blocks, for tests of what happens around a model.
SMALLEST = {
    **SD15,
    "channel_mult": [1],
    "num_res_blocks": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
}
SDXL = {
    **SD15,
    "num_res_blocks": [2, 2, 2],
    "transformer_depth": [0, 0, 2, 2, 3, 3],
    "channel_mult": [1, 2, 2],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 3, 3, 3],
    "transformer_depth_middle": 3,
    "use_linear_in_transformer": True,
    "context_dim": 96,
}


def fill(module: torch.nn.Module, seed: int) -> None:
    """Weights of about unit gain from a seed; ComfyUI does not initialise its layers."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(False)
        if parameter.ndim < 2:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        else:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter[0].numel()))


def patcher(config: dict = SD15, seed: int = 0, sdxl: bool = False, flow: bool = False):
    """A ModelPatcher of SD1.5's or SDXL's model class over a small U-Net, in float32 on the CPU."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    known = (comfy.supported_models.SDXL if sdxl else comfy.supported_models.SD15)(dict(config))
    kind = comfy.model_base.ModelType.FLOW if flow else comfy.model_base.ModelType.EPS
    cpu = torch.device("cpu")
    base = comfy.model_base.BaseModel(known, model_type=kind, device=cpu)
    fill(base.diffusion_model, seed)
    return comfy.model_patcher.ModelPatcher(base.eval(), cpu, cpu)


def clip(two: bool = False, width: int = CONTEXT):
    """A CLIP of SD1.5 (one text encoder) or SDXL (two), small, with the usual tokenizer."""
    import comfy.sd
    import comfy.sd1_clip
    import comfy.sdxl_clip

    small = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "projection_dim": width,
    }

    class Target:
        params: dict = {}  # noqa: RUF012 (what ComfyUI's own targets are)
        clip = comfy.sdxl_clip.SDXLClipModel if two else comfy.sd1_clip.SD1ClipModel
        tokenizer = comfy.sdxl_clip.SDXLTokenizer if two else comfy.sd1_clip.SD1Tokenizer

    options = {"clip_l_model_config": small, "clip_g_model_config": small, "dtype": torch.float32}
    out = comfy.sd.CLIP(Target, model_options=options)
    fill(out.cond_stage_model, 1)
    return out


def sdxl():
    """(model, clip, vae) of SDXL's own model class, which takes the pooled vector and the picture's size."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    width, cpu = SDXL["context_dim"] // 2, torch.device("cpu")
    config = comfy.supported_models.SDXL(SDXL | {"adm_in_channels": width + 6 * 256, "num_classes": "sequential"})
    base = comfy.model_base.SDXL(config, device=cpu)
    fill(base.diffusion_model, 0)
    return comfy.model_patcher.ModelPatcher(base.eval(), cpu, cpu), clip(two=True, width=width), vae()


def predict(model, seed: int = 0, cells: int = 8, sigma: float = 2.0, context: int = CONTEXT) -> torch.Tensor:
    """A patched model's output for one noisy latent: ComfyUI loads it, merges and injects, and calls it once."""
    import comfy.model_management

    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
        return predict_loaded(model, seed, cells, sigma, context)


def predict_loaded(model, seed: int = 0, cells: int = 8, sigma: float = 2.0, context: int = CONTEXT) -> torch.Tensor:
    """As `predict`, with the model as it is now."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 4, cells, cells, generator=generator) * sigma
    text = torch.randn(1, 7, context, generator=generator)
    with torch.inference_mode():
        return model.model.apply_model(x, torch.tensor([sigma]), c_crossattn=text).clone()


def encode(text_encoder, text: str = "a red circle") -> torch.Tensor:
    """The conditioning of a prompt, as CLIPTextEncode computes it."""
    with torch.inference_mode():
        return text_encoder.encode_from_tokens(text_encoder.tokenize(text)).clone()


def linear_layers(model, pattern: str = "attn") -> dict[str, tuple[int, int]]:
    """{layer: (out, in)} of the U-Net's linear layers whose names contain `pattern`."""
    return {
        name: tuple(layer.weight.shape)
        for name, layer in model.model.diffusion_model.named_modules()
        if isinstance(layer, torch.nn.Linear) and pattern in name
    }


def random_lora(
    layers: dict[str, tuple[int, int]], rank: int = 4, alpha: float | None = 2.0, seed: int = 0, size: float = 0.3
) -> dict:
    """A LoRA with ComfyUI's names that changes every layer by about `size` times its norm."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, (rows, columns) in layers.items():
        up = torch.randn(rows, rank, generator=generator)
        down = torch.randn(rank, columns, generator=generator) * size / math.sqrt(rank * columns)
        out[f"diffusion_model.{name}.lora_up.weight"] = up
        out[f"diffusion_model.{name}.lora_down.weight"] = down
        if alpha is not None:
            out[f"diffusion_model.{name}.alpha"] = torch.tensor(alpha)
    return out


def vae(channels: int = 4):
    """A VAE of TAESD's classes with random weights: 8x8 pixels a latent, 16x16 for Flux 2's 128 channels."""
    import comfy.sd
    from comfy.taesd.taesd import TAESD

    made = TAESD(latent_channels=channels)
    fill(made, 3)
    return comfy.sd.VAE(sd=made.state_dict(), metadata={"tae_latent_channels": channels})


FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": CONTEXT,
    "context_in_dim": 64,
    "hidden_size": 64,
    "mlp_ratio": 4.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
    "dtype": torch.float32,
}
SD3 = {
    "in_channels": 16,
    "patch_size": 2,
    "depth": 2,
    "input_size": None,
    "adm_in_channels": 2 * CONTEXT,
    "pos_embed_max_size": 24,
    "num_patches": 576,
    "qk_norm": "rms",
    "dtype": torch.float32,
    "x_block_self_attn_layers": [0],
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}},
}


def flux(seed: int = 0, **changes):
    """(model, clip, vae) of Flux dev's own classes: two blocks of two streams and two of one, CLIP-L and a small T5."""
    import comfy.model_base
    import comfy.supported_models
    import comfy.text_encoders.flux as text

    base = comfy.model_base.Flux(comfy.supported_models.Flux(FLUX | changes), device=torch.device("cpu"))
    return _flow(base, seed), _text(text.FluxClipModel, text.FluxTokenizer, FLUX["context_in_dim"]), vae(16)


def sd3(seed: int = 0, **changes):
    """(model, clip, vae) of SD3's own classes, the first of its two blocks with SD3.5 medium's second attention,
    without T5."""
    import comfy.model_base
    import comfy.supported_models
    import comfy.text_encoders.sd3_clip as text

    base = comfy.model_base.SD3(comfy.supported_models.SD3(SD3 | changes), device=torch.device("cpu"))
    return _flow(base, seed), _text(text.sd3_clip(clip_l=True, clip_g=True, t5=False), text.SD3Tokenizer), vae(16)


def _flow(base, seed: int):
    import comfy.model_patcher

    fill(base.diffusion_model, seed)
    for name, parameter in base.diffusion_model.named_parameters():
        if name.endswith(("mod.lin.bias", "modulation.lin.bias", "adaLN_modulation.1.bias")):
            parameter.add_(0.5)  # opens the gates of the blocks
    for buffer in base.diffusion_model.buffers():
        # SD3's position embedding.
        buffer.copy_(0.1 * torch.randn(buffer.shape, generator=torch.Generator().manual_seed(seed)))
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(base.eval(), cpu, cpu)


def _text(model, tokens, t5_width: int = 64):
    import comfy.sd

    class Target:
        params: dict = {}  # noqa: RUF012 (what ComfyUI's own targets are)
        clip, tokenizer = model, tokens

    out = comfy.sd.CLIP(Target, model_options=text_options(t5_width))
    fill(out.cond_stage_model, 1)
    return out


def text_options(t5_width: int = 64) -> dict:
    """The sizes of a small CLIP-L, CLIP-G and T5."""
    small = {
        "hidden_size": CONTEXT,
        "intermediate_size": 2 * CONTEXT,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "projection_dim": CONTEXT,
    }
    t5 = {"d_ff": 64, "d_kv": 8, "d_model": t5_width, "num_heads": 2, "num_layers": 1}
    return {
        "clip_l_model_config": small,
        "clip_g_model_config": small,
        "t5xxl_model_config": t5,
        "dtype": torch.float32,
    }
