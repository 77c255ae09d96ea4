"""A very small instruct-pix2pix model, trained here to copy the picture that it is given.

SD1.5's instruct-pix2pix class with one level of 64 channels, from random weights. It predicts v (Salimans & Ho 2022,
arXiv 2202.00512), which at the noisy levels is the picture itself, so that a copy is soon learned. It knows one
instruction, "keep it", and none that changes a picture: what a LoRA of pairs teaches it is new to it.
"""

from __future__ import annotations

import time
from pathlib import Path

import model as small
import numpy as np
import sprites
import torch
from safetensors.torch import load_file, save_file

RECIPE = 4  # increased when the trained weights change; part of the file's name
STEPS, EVERY, WARMUP, BATCH, RATE = 200, 50, 20, 8, 2e-3
INSTRUCTION = "keep it"
CONFIG = small.UNET_CONFIG | {
    "in_channels": 8,
    "model_channels": 64,
    "num_heads": 4,
    "channel_mult": [1],
    "num_res_blocks": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
}


def edit_model(state: dict[str, torch.Tensor] | None = None):
    """A MODEL of SD1.5's instruct-pix2pix class with these weights, or with random ones from a seed."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.SD15_instructpix2pix(CONFIG | {"dtype": torch.float32})
    kind = comfy.model_base.ModelType.V_PREDICTION
    base = comfy.model_base.SD15_instructpix2pix(config, model_type=kind, device=torch.device("cpu"))
    unet = base.diffusion_model
    if state is None:
        _initialise(unet)
    else:
        unet.load_state_dict(state)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(base.eval().requires_grad_(False), cpu, cpu)


def _initialise(unet) -> None:
    torch.manual_seed(0)
    with torch.inference_mode(False):
        for name, module in unet.named_modules():
            for kind in (torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm):
                if isinstance(module, kind):
                    kind.reset_parameters(module)
            if name == "out.2" or name.endswith(("out_layers.3", "proj_out")):
                torch.nn.init.zeros_(module.weight)
                torch.nn.init.zeros_(module.bias)


def trained_state(path: Path, clip, steps: int = STEPS) -> dict[str, torch.Tensor]:
    """The weights of the model, from the file, or trained and saved there.

    A training that was stopped goes on from the last `EVERY` steps that were saved, with a new optimiser.
    """
    if path.is_file():
        return load_file(path)
    begun = path.with_suffix(".begun")
    state = load_file(begun) if begun.is_file() else {}
    done = int(state.pop("done", torch.tensor(0)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode(False), torch.enable_grad():
        unet = edit_model(state or None).model.diffusion_model.train().requires_grad_(True)
        optimizer = torch.optim.AdamW(unet.parameters(), lr=RATE, weight_decay=0.0)
        for first in range(done, steps, EVERY):
            warm = WARMUP if first == done else 0
            state = _trained(unet, optimizer, clip, range(first, min(first + EVERY, steps)), steps, warm)
            save_file(state | {"done": torch.tensor(first + EVERY)}, begun)
    begun.unlink()
    save_file(state, path)
    return state


def _latents(kind: sprites.Sprite) -> np.ndarray:
    rgb = sprites.cells(kind).astype(np.float32) / 127.5 - 1.0
    return np.concatenate([rgb, rgb.mean(-1, keepdims=True)], -1).transpose(2, 0, 1)


def _trained(unet, optimizer, clip, part: range, steps: int, warm: int) -> dict[str, torch.Tensor]:
    """The weights after the steps `part` of `steps`. warm: steps over which the rate rises."""
    torch.manual_seed(part.start)
    draw = np.random.default_rng(part.start)
    context = clip.encode_from_tokens(clip.tokenize(INSTRUCTION)).clone().float()
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = torch.cumprod(1 - beta, 0).float()
    vocabulary = list(sprites.COLOURS), sprites.SHAPES, list(sprites.GROUNDS)
    begun = time.monotonic()
    for step in part:
        for group in optimizer.param_groups:
            rise = (step - part.start + 1) / warm if warm else 1.0
            group["lr"] = RATE * min(1.0, rise, 1.5 * (steps - step) / steps)
        kinds = [
            sprites.random_sprite(draw, *(str(draw.choice(list(words))) for words in vocabulary), anywhere=True)
            for _ in range(BATCH)
        ]
        clean = torch.from_numpy(np.stack([_latents(kind) for kind in kinds]))
        t = ((torch.arange(BATCH) + torch.rand(BATCH)) / BATCH * 1000).long().clamp(max=999)
        noise, a = torch.randn(clean.shape), alpha_bar[t].reshape(-1, 1, 1, 1)
        noisy = a.sqrt() * clean + (1 - a).sqrt() * noise
        out = unet(torch.cat([noisy, clean / small.LATENT_SCALE], 1), t, context=context.expand(BATCH, -1, -1))
        loss = torch.nn.functional.mse_loss(out, a.sqrt() * noise - (1 - a).sqrt() * clean)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 49:
            print(f"step {step + 1}: {loss.item():.4f}, {time.monotonic() - begun:.0f} s", flush=True)
    return {name: tensor.detach().clone() for name, tensor in unet.state_dict().items()}
