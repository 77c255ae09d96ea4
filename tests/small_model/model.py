"""Writes a small checkpoint in SD1.5's layout: CLIP and VAE by rule, the U-Net expanded from a file of 5-bit weights.

* CLIP-L: full size and shape, weights from a seed. The layers' output projections are small, so that the token
  embeddings dominate the output, and two prompts that differ in one word differ mainly at that word's position.
* VAE: TAESD's layers, set by hand so that encoding is the mean of each 8x8 pixel cell and decoding repeats it. Latents
  are RGB in -1..1 and their mean as a fourth channel. All values are positive, so averages and copies pass the ReLUs.
* U-Net: SD1.5's class with two levels, attention at the lower one only: 36.7 M parameters, trained by `train.py`.

The module needs numpy and torch alone, and no ComfyUI.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

HERE = Path(__file__).parent
ASSET = HERE / "unet.safetensors"
RECIPE = 1  # increased when the written file changes; part of the cached file's name

LATENT_SCALE = 0.18215  # SD1.5's: ComfyUI multiplies by it before the U-Net
UNET_CONFIG = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1, 1],
    "transformer_depth": [0, 1],
    "transformer_depth_output": [0, 0, 1, 1],
    "transformer_depth_middle": 1,
    "channel_mult": [1, 1],
    "use_linear_in_transformer": False,
    "context_dim": 768,
    "num_heads": 8,
    "num_head_channels": -1,
    "use_spatial_transformer": True,
    "use_temporal_attention": False,
    "legacy": False,
    "adm_in_channels": None,
}

QUANT_BITS = 5
QUANT_GROUP = 128  # weights that share one scale


# --- CLIP ---------------------------------------------------------------------------------------------------------


def _normal(name: str, shape: tuple[int, ...], std: float) -> torch.Tensor:
    # numpy guarantees RandomState's stream, so the weights are the same in every version.
    stream = np.random.RandomState(zlib.crc32(name.encode()))
    return torch.from_numpy((stream.standard_normal(shape) * std).astype(np.float16))


def embedding(kind: str) -> torch.Tensor:
    """CLIP's embedding of the `token`s, [49408, 768], or of their `position`s, [77, 768], fp16."""
    rows, std = {"token": (49408, 0.02), "position": (77, 0.005)}[kind]
    return _normal(kind, (rows, 768), std)


def clip_state_dict() -> dict[str, torch.Tensor]:
    """CLIP-L text encoder in the layout of an SD1.5 checkpoint, fp16."""
    prefix = "cond_stage_model.transformer.text_model."
    width, inner = 768, 3072
    stds = {
        "self_attn.q_proj": ((width, width), 0.02),
        "self_attn.k_proj": ((width, width), 0.02),
        "self_attn.v_proj": ((width, width), 0.02),
        "self_attn.out_proj": ((width, width), 1e-4),
        "mlp.fc1": ((inner, width), 0.02),
        "mlp.fc2": ((width, inner), 8e-5),
    }
    sd = {
        "embeddings.token_embedding.weight": embedding("token"),
        "embeddings.position_embedding.weight": embedding("position"),
        "final_layer_norm.weight": torch.ones(width, dtype=torch.float16),
        "final_layer_norm.bias": torch.zeros(width, dtype=torch.float16),
    }
    for layer in range(12):
        at = f"encoder.layers.{layer}."
        for name, (shape, std) in stds.items():
            sd[f"{at}{name}.weight"] = _normal(at + name, shape, std)
            sd[f"{at}{name}.bias"] = torch.zeros(shape[0], dtype=torch.float16)
        for norm in ("layer_norm1", "layer_norm2"):
            sd[f"{at}{norm}.weight"] = torch.ones(width, dtype=torch.float16)
            sd[f"{at}{norm}.bias"] = torch.zeros(width, dtype=torch.float16)
    return {prefix + k: v for k, v in sd.items()}


# --- VAE ----------------------------------------------------------------------------------------------------------


def _conv(n_in: int, n_out: int, bias: bool = True) -> dict[str, torch.Tensor]:
    conv = {"weight": torch.zeros(n_out, n_in, 3, 3)}
    if bias:
        conv["bias"] = torch.zeros(n_out)
    return conv


def _centre_identity(n_in: int, n_out: int, channels: int, bias: bool) -> dict[str, torch.Tensor]:
    conv = _conv(n_in, n_out, bias)
    for c in range(channels):
        conv["weight"][c, c, 1, 1] = 1.0
    return conv


def _block() -> dict[str, torch.Tensor]:
    # ReLU(conv(x) + x) with the convs at zero: positive values pass.
    return {f"conv.{i}.{k}": v for i in (0, 2, 4) for k, v in _conv(64, 64).items()}


def vae_state_dict() -> dict[str, torch.Tensor]:
    """TAESD layers set to the mean of each 8x8 cell and its repetition; fp32, as ComfyUI keeps VAEs."""
    layers: dict[str, dict[str, torch.Tensor]] = {}

    def put(name: str, tensors: dict[str, torch.Tensor]) -> None:
        layers.update({f"{name}.{k}": v for k, v in tensors.items()})

    # Encoder: RGB in 0..1 -> three halvings, each the mean of 2x2 -> 2 x - 1 and the mean of the three.
    put("taesd_encoder.0", _centre_identity(3, 64, 3, bias=True))
    for halving in (2, 6, 10):
        conv = _conv(64, 64, bias=False)
        for c in range(3):
            conv["weight"][c, c, 1:, 1:] = 0.25  # stride 2, padding 1: taps 1 and 2 are the pixels 2i and 2i + 1
        put(f"taesd_encoder.{halving}", conv)
    for block in (1, 3, 4, 5, 7, 8, 9, 11, 12, 13):
        put(f"taesd_encoder.{block}", _block())
    last = _conv(64, 4)
    for c in range(3):
        last["weight"][c, c, 1, 1] = 2.0
        last["weight"][3, c, 1, 1] = 2.0 / 3.0
    last["bias"][:] = -1.0
    put("taesd_encoder.14", last)

    # Decoder: its input passes 3 tanh(z / 3), which takes 1 to .9645; the linear way back is exact at -1, 0 and 1.
    back = 0.5 / (3 * np.tanh(1 / 3))
    first = _conv(4, 64)
    for c in range(3):
        first["weight"][c, c, 1, 1] = back
    first["bias"][:3] = 0.5
    put("taesd_decoder.1", first)
    for block in (3, 4, 5, 8, 9, 10, 13, 14, 15, 18):
        put(f"taesd_decoder.{block}", _block())
    for conv in (7, 12, 17):
        put(f"taesd_decoder.{conv}", _centre_identity(64, 64, 3, bias=False))
    put("taesd_decoder.19", _centre_identity(64, 3, 3, bias=True))

    layers["vae_scale"] = torch.tensor(LATENT_SCALE)
    layers["vae_shift"] = torch.tensor(0.0)
    return {f"first_stage_model.{k}": v for k, v in layers.items()}


# --- U-Net: packing and expanding ------------------------------------------------------------------------------------


def pack(unet: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write the U-Net's weights: matrices and kernels at 5 bits in groups of 128, the rest in fp16."""
    out, shapes = quantised(unet, QUANT_BITS)
    save_file(out, path, metadata={**metadata, "shapes": json.dumps(shapes)})


def quantised(weights: dict[str, torch.Tensor], bits: int) -> tuple[dict[str, torch.Tensor], dict[str, list[int]]]:
    """(tensors to store, shapes of the quantised weights): matrices and kernels of 50,000 numbers and more at `bits`
    bits in groups of 128 as `NAME.levels` and `NAME.scale`, the rest in fp16."""
    out: dict[str, torch.Tensor] = {}
    shapes = {}
    top = 2 ** (bits - 1) - 1
    for name, weight in weights.items():
        weight = weight.detach().float().cpu()
        if weight.ndim < 2 or weight.numel() < 50_000:
            out[name] = weight.half()
            continue
        groups = weight.reshape(-1, QUANT_GROUP).numpy()
        scale = _best_scales(groups, top)
        levels = np.clip(np.rint(groups / scale[:, None]), -top, top).astype(np.int8) + top
        packed = np.unpackbits(levels.astype(np.uint8)[..., None], axis=-1)[..., -bits:]
        out[name + ".levels"] = torch.from_numpy(np.packbits(packed))
        out[name + ".scale"] = torch.from_numpy(scale.astype(np.float16))
        shapes[name] = list(weight.shape)
    return out, shapes


def _best_scales(groups: np.ndarray, top: int) -> np.ndarray:
    # Of a few clipping limits for each group, the one with the least squared error.
    largest = np.abs(groups).max(1) / top
    best, best_error = largest, np.full(len(groups), np.inf)
    for share in np.linspace(0.6, 1.0, 9):
        scale = np.maximum(largest * share, 1e-8).astype(np.float16).astype(np.float32)
        scale = np.maximum(scale, 6e-8)
        error = ((np.clip(np.rint(groups / scale[:, None]), -top, top) * scale[:, None] - groups) ** 2).sum(1)
        better = error < best_error
        best, best_error = np.where(better, scale, best), np.where(better, error, best_error)
    return best


def unpack(path: Path = ASSET) -> dict[str, torch.Tensor]:
    """The U-Net's weights from the asset, fp16."""
    with safe_open(path, "pt") as file:
        shapes = json.loads(file.metadata()["shapes"])
        return restored({name: file.get_tensor(name) for name in file.keys()}, shapes, QUANT_BITS)


def restored(stored: dict[str, torch.Tensor], shapes: dict[str, list[int]], bits: int) -> dict[str, torch.Tensor]:
    """The weights that `quantised` stored, fp16."""
    top = 2 ** (bits - 1) - 1
    out = {}
    for name, tensor in stored.items():
        if name.endswith(".scale"):
            continue
        if not name.endswith(".levels"):
            out[name] = tensor
            continue
        name = name.removesuffix(".levels")
        count = int(np.prod(shapes[name]))
        packed = np.unpackbits(tensor.numpy(), count=count * bits).reshape(-1, bits)
        levels = np.zeros(count, np.int16)
        for bit in range(bits):
            levels = levels * 2 + packed[:, bit]
        scale = stored[name + ".scale"].float()
        weight = torch.from_numpy((levels - top).astype(np.float32)).reshape(-1, QUANT_GROUP) * scale[:, None]
        out[name] = weight.reshape(shapes[name]).half()
    return out


def write_checkpoint(path: Path, unet: dict[str, torch.Tensor] | None = None) -> Path:
    """Write the whole checkpoint (CLIP, VAE, U-Net) to `path`, through a temporary name. About 320 MB."""
    sd = {f"model.diffusion_model.{k}": v for k, v in (unet if unet is not None else unpack()).items()}
    sd |= clip_state_dict() | vae_state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    save_file(
        {k: v.contiguous() for k, v in sd.items()}, temporary, metadata={"modelspec.title": "Bespoke small model"}
    )
    temporary.replace(path)
    return path


def edit_unet(unet: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """The U-Net in an instruct-pix2pix form: four further input channels, which begin at zero.

    It does not see the picture that it is given until it is trained, as Brooks et al. 2023 (arXiv 2211.09800, section
    3.2) begin.
    """
    state = dict(unpack() if unet is None else unet)
    first = state["input_blocks.0.0.weight"]
    return state | {"input_blocks.0.0.weight": torch.cat([first, torch.zeros_like(first)], 1)}


def with_edit_form(checkpoint: Path) -> Path:
    """The checkpoint's path, with the one of the edit form beside it."""
    path = edit_path(checkpoint)
    if not path.is_file():
        write_checkpoint(path, edit_unet())
    return checkpoint


def edit_path(checkpoint: Path) -> Path:
    """Where the edit form of a checkpoint lies."""
    return checkpoint.with_name(f"{checkpoint.stem}-edit{checkpoint.suffix}")


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description="Expand the small model into a checkpoint that ComfyUI loads.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--edit", action="store_true", help="its instruct-pix2pix form")
    args = parser.parse_args()
    print(write_checkpoint(args.out, edit_unet() if args.edit else None))


if __name__ == "__main__":
    main()
