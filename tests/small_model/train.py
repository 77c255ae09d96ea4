"""Trains the small model's U-Net from random weights and packs it: about 70 minutes on two idle cores.

    python tests/small_model/train.py --comfyui PATH [--out unet.safetensors]

Noise prediction on SD1.5's schedule with ComfyUI's own U-Net class: AdamW with warm-up and cosine decay, an average of
the weights, bf16 autocast, captions dropped one time in ten for classifier-free guidance. There are two stages, the
second from the average of the first: shapes of any size anywhere, which teach colours and words, then shapes in the
middle, which teach crisp outlines. `--stage 2 --weights FILE` runs the second alone.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import model as small  # noqa: E402
import sprites  # noqa: E402

SEED = 20260
BATCH, DROPOUT = 16, 0.1
WORK = HERE.parent.parent / ".dev" / "small_model"


@dataclass(frozen=True)
class Stage:
    """Steps, highest learning rate, warm-up in steps, decay of the average, and whether shapes lie anywhere."""

    steps: int
    learning_rate: float
    warmup: int
    ema: float
    anywhere: bool


STAGES = (Stage(4000, 6e-4, 200, 0.998, anywhere=True), Stage(1300, 5e-4, 50, 0.995, anywhere=False))


def new_unet(device: torch.device):
    """ComfyUI's U-Net with torch's default initialisation and the usual zeroes at each block's end."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    unet = UNetModel(**small.UNET_CONFIG, device=device, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    for name, module in unet.named_modules():
        for kind in (torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm):
            if isinstance(module, kind):
                kind.reset_parameters(module)
        if name == "out.2" or name.endswith(("out_layers.3", "proj_out")):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
    return unet.to(device).train()


def latents_of(sprite: sprites.Sprite) -> np.ndarray:
    """What the VAE makes of the sprite, [4, 16, 16]: RGB in -1..1 and their mean, with a little colour jitter."""
    rgb = sprites.cells(sprite).astype(np.float32) / 127.5 - 1.0
    return np.concatenate([rgb, rgb.mean(-1, keepdims=True)], -1).transpose(2, 0, 1)


class Captions:
    """Text conditionings through ComfyUI's CLIP, each computed once."""

    def __init__(self, clip):
        self.clip, self.known = clip, {}

    def __call__(self, texts: list[str]) -> torch.Tensor:
        for text in texts:
            if text not in self.known:
                cond = self.clip.encode_from_tokens(self.clip.tokenize(text))
                self.known[text] = cond[0].to(torch.float16).cpu()
        return torch.stack([self.known[text] for text in texts])


def train_stage(number: int, stage: Stage, unet, captions: Captions, device: torch.device, work: Path):
    """Train one stage; returns the average of its weights. Its random draws depend on the stage alone."""
    torch.manual_seed(SEED + number)
    rng = np.random.default_rng(SEED + number)
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = torch.cumprod(1 - beta, 0).float().to(device)
    average = copy.deepcopy(unet).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        unet.parameters(), lr=stage.learning_rate, weight_decay=0.01, betas=(0.9, 0.99), fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda i: min((i + 1) / stage.warmup, 1.0) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * i / stage.steps))),
    )
    started, shown = time.monotonic(), []
    for step in range(stage.steps):
        kinds = [
            sprites.random_sprite(
                rng,
                list(sprites.COLOURS)[rng.integers(len(sprites.COLOURS))],
                sprites.SHAPES[rng.integers(len(sprites.SHAPES))],
                list(sprites.GROUNDS)[rng.integers(2)],
                stage.anywhere,
            )
            for _ in range(BATCH)
        ]
        texts = ["" if rng.random() < DROPOUT else sprites.caption(rng, s) for s in kinds]
        x0 = torch.from_numpy(np.stack([latents_of(s) for s in kinds])).to(device)
        context = captions(texts).float().to(device)
        # One timestep from each sixteenth of the schedule: every batch sees all noise levels.
        t = ((torch.arange(BATCH) + torch.rand(BATCH)) / BATCH * 1000).long().clamp(max=999).to(device)
        noise = torch.randn(x0.shape).to(device)
        a = alpha_bar[t].reshape(-1, 1, 1, 1)
        with torch.autocast(device.type, torch.bfloat16):
            predicted = unet(a.sqrt() * x0 + (1 - a).sqrt() * noise, t, context=context)
        loss = torch.nn.functional.mse_loss(predicted.float(), noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            keep = min(stage.ema, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(average.parameters()), list(unet.parameters()), 1 - keep)
        shown.append(loss.item())
        if (step + 1) % 100 == 0:
            seconds = time.monotonic() - started
            left = seconds / (step + 1) * (stage.steps - step - 1)
            print(
                (
                    f"stage {number} step {step + 1}/{stage.steps}  loss {np.mean(shown[-100:]):.4f}  {seconds:.0f} s, "
                    f"{left:.0f} s left"
                ),
                flush=True,
            )
        if (step + 1) % 250 == 0:
            save_file(average.state_dict(), work / f"stage{number}.safetensors")
    save_file(average.state_dict(), work / f"stage{number}.safetensors")
    return average


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", required=True)
    parser.add_argument("--out", type=Path, default=small.ASSET)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--stage", type=int, default=1, choices=(1, 2), help="the stage to begin with")
    parser.add_argument("--weights", type=Path, help="the average of the stage before")
    args = parser.parse_args()

    sys.path.insert(0, args.comfyui)
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args as comfy_args

    comfy_args.cpu = args.device == "cpu"
    import comfy.sd

    device = torch.device(args.device)
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    unet = new_unet(device)
    print(f"{sum(p.numel() for p in unet.parameters()) / 1e6:.1f} M parameters", flush=True)
    blank = small.write_checkpoint(args.work / "untrained.safetensors", unet.state_dict())
    _, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(blank), output_model=False)
    captions = Captions(clip)

    probe = sprites.random_sprite(np.random.default_rng(0), "orange", "cross", "white")
    pixels = torch.from_numpy(np.asarray(sprites.image(probe)).copy())[None].float() / 255
    seen = vae.encode(pixels)[0].cpu() * small.LATENT_SCALE
    assert (seen - torch.from_numpy(latents_of(probe))).abs().max() < 1e-3, "the drawn latents are not the VAE's"

    if args.weights:
        unet.load_state_dict(load_file(args.weights))
    started = time.process_time()
    for number, stage in list(enumerate(STAGES, 1))[args.stage - 1 :]:
        unet.load_state_dict(train_stage(number, stage, unet, captions, device, args.work).state_dict())
    seconds = time.process_time() - started
    metadata = {"seed": str(SEED), "stages": str(STAGES), "device": args.device, "torch": torch.__version__}
    small.pack(unet.state_dict(), args.out, metadata)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB after {seconds:.0f} processor seconds", flush=True)


if __name__ == "__main__":
    main()
