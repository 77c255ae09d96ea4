"""The picture model's VAE: TAESD's layout at narrower widths, trained on the drawings of `figures.py`.

TAESD has 64 channels everywhere. Here the halves train with the widths `WIDTHS` and with `BLOCKS` blocks a resolution,
which takes a tenth of the arithmetic, and `state_dict_of` widens them to 64 with zeros: a zero channel passes every
ReLU as zero, and a block of zeros is the identity on positive values, so that the wide VAE computes the same function.

A first pass over drawings measures mean and deviation of the four latents, which are then 0 and 1; a penalty keeps
them there, since the noise that is added to the latents before decoding would make them grow. The noise is what makes
small errors of the U-Net leave edges where they are. (Batch normalisation of the latents instead, over crops, held the
training back: after 60 steps the loss was 0.297 where fixed numbers give 0.258, at a rate of 5e-4.) The numbers end in
the encoder's last layer.

    python vae.py --out FOLDER [--steps N] [--decoder]    goes on from FOLDER/vae.pt where that exists
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))

import figures
import pen

LATENT_SCALE = 0.18215  # SD1.5's: ComfyUI multiplies by it before the U-Net
FULL = 64  # TAESD's channels
WIDTHS = (16, 32, 64, 64)  # channels at 128, 64, 32 and 16 pixels a side
BLOCKS = (1, 2, 3, 3)
LAYOUT = (1, 3, 3, 3)  # TAESD's blocks
SEED = 31
BATCH = 8
CROP = 64  # pixels a side of what a step sees
POOL = 2048  # drawings that a step chooses from
RATE = 1e-3
NOISE = 0.15  # largest deviation of the noise on the latents, which have deviation 1


class Block(nn.Module):
    """TAESD's block: ReLU(three convolutions + x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        convs = [nn.Conv2d(width, width, 3, padding=1) for _ in range(3)]
        nn.init.zeros_(convs[2].weight)
        nn.init.zeros_(convs[2].bias)
        self.conv = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] to the same shape."""
        return F.relu(self.conv(x) + x)


class Narrow(nn.Module):
    """Encoder and decoder with the layers that TAESD's layout has, fewer and narrower; pictures in 0..1."""

    def __init__(self) -> None:
        super().__init__()
        w = WIDTHS
        down: list[nn.Module] = [nn.Conv2d(3, w[0], 3, padding=1)]
        up: list[nn.Module] = [nn.Conv2d(4, w[3], 3, padding=1), nn.ReLU()]
        for i in range(4):
            if i:
                down.append(nn.Conv2d(w[i - 1], w[i], 3, stride=2, padding=1, bias=False))
                up += [nn.Upsample(scale_factor=2), nn.Conv2d(w[4 - i], w[3 - i], 3, padding=1, bias=False)]
            down += [Block(w[i]) for _ in range(BLOCKS[i])]
            up += [Block(w[3 - i]) for _ in range(BLOCKS[3 - i])]
        self.encoder = nn.Sequential(*down, nn.Conv2d(w[3], 4, 3, padding=1))
        self.decoder = nn.Sequential(*up, nn.Conv2d(w[0], 3, 3, padding=1))
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("deviation", torch.ones(4))

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] in 0..1 to latents [B, 4, H / 8, W / 8] of mean 0 and deviation 1."""
        shape = (1, 4, 1, 1)
        return (self.encoder(pictures) - self.mean.reshape(shape)) / self.deviation.reshape(shape)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents of deviation 1 to pictures in 0..1, not clamped."""
        return self.decoder(torch.tanh(latents / 3) * 3)


def state_dict_of(narrow: Narrow) -> dict[str, torch.Tensor]:
    """The VAE in TAESD's layout as ComfyUI loads it from a checkpoint (`first_stage_model.` keys), fp32."""
    out: dict[str, torch.Tensor] = {}
    _layers(out, "taesd_encoder", _encoder_layers(narrow.encoder), {0: 3}, 4)
    _layers(out, "taesd_decoder", _decoder_layers(narrow.decoder), {1: 4}, 3)
    last = "taesd_encoder.14"
    out[f"{last}.weight"] = out[f"{last}.weight"] / narrow.deviation[:, None, None, None]
    out[f"{last}.bias"] = (out[f"{last}.bias"] - narrow.mean) / narrow.deviation
    out["vae_scale"], out["vae_shift"] = torch.tensor(LATENT_SCALE), torch.tensor(0.0)
    return {f"first_stage_model.{k}": v.detach().contiguous() for k, v in out.items()}


def _encoder_layers(narrow: nn.Sequential) -> list[tuple[int, nn.Module | None]]:
    """(TAESD's index, the narrow module or None where the block is the identity) in order."""
    modules, layers, index = iter(narrow), [], 0
    for level in range(4):
        layers.append((index, next(modules)))
        index += 1
        for n in range(LAYOUT[level]):
            layers.append((index, next(modules) if n < BLOCKS[level] else None))
            index += 1
    return [*layers, (index, next(modules))]


def _decoder_layers(narrow: nn.Sequential) -> list[tuple[int, nn.Module | None]]:
    modules = iter(m for m in narrow if not isinstance(m, nn.ReLU | nn.Upsample))
    layers, index = [(1, next(modules))], 3
    for level in (3, 2, 1, 0):
        if level < 3:
            layers.append((index + 1, next(modules)))
            index += 2
        for n in range(LAYOUT[level]):
            layers.append((index, next(modules) if n < BLOCKS[level] else None))
            index += 1
    return [*layers, (index, next(modules))]


def _layers(out: dict, prefix: str, layers, first: dict[int, int], last_channels: int) -> None:
    for n, (index, module) in enumerate(layers):
        n_out = last_channels if n == len(layers) - 1 else FULL
        if isinstance(module, nn.Conv2d):
            weight = torch.zeros(n_out, first.get(index, FULL), 3, 3)
            weight[: module.out_channels, : module.in_channels] = module.weight
            out[f"{prefix}.{index}.weight"] = weight
            if module.bias is not None:
                out[f"{prefix}.{index}.bias"] = F.pad(module.bias, (0, n_out - module.out_channels))
            continue
        for i in (0, 2, 4):
            weight, bias = torch.zeros(FULL, FULL, 3, 3), torch.zeros(FULL)
            if module is not None:
                conv = module.conv[i]
                weight[: conv.out_channels, : conv.in_channels] = conv.weight
                bias[: conv.out_channels] = conv.bias
            out[f"{prefix}.{index}.conv.{i}.weight"], out[f"{prefix}.{index}.conv.{i}.bias"] = weight, bias


@torch.no_grad()
def warm(narrow: Narrow, data: torch.Tensor) -> None:
    """Begin with a VAE that keeps the mean colour of each 8x8 cell in three latents, decorrelated and of deviation 1.

    The first three channels of every layer carry colour from end to end, as in the small model's VAE; the others and
    the fourth latent begin at random. Training then has to add the detail alone. `data`: pictures [N, 3, H, W] in 0..1.
    """
    cells = F.avg_pool2d(data, 8).permute(1, 0, 2, 3).reshape(3, -1)
    mean = cells.mean(1)
    values, vectors = torch.linalg.eigh(torch.cov(cells))
    down, up = (vectors / values.sqrt()).T, vectors * values.sqrt()  # [3, 3]: colour to latent, latent to colour
    convs = [m for m in narrow.encoder if isinstance(m, nn.Conv2d)]
    _carry(convs[0], 1.0, (1,))
    for conv in convs[1:4]:
        _carry(conv, 0.25, (1, 2))  # stride 2, padding 1: taps 1 and 2 are the pixels 2i and 2i + 1
    convs[4].weight[:3] *= 0.3
    convs[4].weight[:3, :3] = 0
    convs[4].weight[:3, :3, 1, 1] = down
    convs[4].bias[:3] = -down @ mean
    convs = [m for m in narrow.decoder if isinstance(m, nn.Conv2d)]
    convs[0].weight[:3] = 0
    convs[0].weight[:3, :3, 1, 1] = up
    convs[0].bias[:3] = mean
    for conv in convs[1:]:
        _carry(conv, 1.0, (1,))
    convs[-1].weight[:, 3:] *= 0.3
    latents = narrow.encode(data)
    narrow.mean.copy_(latents.mean((0, 2, 3)))
    narrow.deviation.copy_(latents.std((0, 2, 3)))


def _carry(conv: nn.Conv2d, tap: float, taps: tuple[int, ...]) -> None:
    # The first three channels go through, and nothing else enters them.
    conv.weight[:3] *= conv.out_channels == 3
    conv.weight[:3, :3] = 0
    for c in range(3):
        for y in taps:
            conv.weight[c, c, y, taps] = tap
    if conv.bias is not None:
        conv.bias[:3] = 0


def picture(number: int) -> torch.Tensor:
    """Drawing `number` for the VAE, [3, 128, 128] uint8: all subjects and styles, a third of them in any colour.

    A VAE draws what it is told, and must not stand in the way of concepts that the U-Net has not seen.
    """
    rng, words = np.random.default_rng((SEED, 1, number)), {}
    if rng.random() < 0.08:
        words["style"] = "line"
    if rng.random() < 1 / 17:
        words["subject"] = figures.UNSEEN_SUBJECTS[0]
    if rng.random() < 0.1:
        words["colour"] = "teal"
    drawn = torch.from_numpy(np.asarray(figures.image(figures.random_figure(rng, **words))).copy()).permute(2, 0, 1)
    return drawn[torch.from_numpy(rng.permutation(3))] if rng.random() < 0.3 else drawn


class Drawings(dict):
    """Drawings by number, each drawn when first asked for. Numbers below zero are held out of the training."""

    def __missing__(self, number: int) -> torch.Tensor:
        self[number] = picture(abs(number) + 10**9 * (number < 0))
        return self[number]

    def crops(self, rng: np.random.Generator, step: int) -> torch.Tensor:
        """The batch of a step: crops [BATCH, 3, CROP, CROP] in 0..1 at places on the grid of 8 pixels.

        The pool begins with 256 drawings; each 24 steps add 32, and the oldest leave it beyond POOL.
        """
        newest = 256 + 32 * (step // 24)
        oldest, out = max(0, newest - POOL), torch.empty(BATCH, 3, CROP, CROP)
        for i in range(BATCH):
            y, x = rng.integers((pen.SIZE - CROP) // 8 + 1, size=2) * 8
            out[i] = self[int(rng.integers(oldest, newest))][:, y : y + CROP, x : x + CROP].float() / 255
        for gone in [n for n in self if 0 <= n < oldest]:
            del self[gone]
        return out

    def held_out(self, count: int) -> torch.Tensor:
        """`count` drawings that no step sees, [count, 3, 128, 128] in 0..1."""
        return torch.stack([self[-1 - i] for i in range(count)]).float() / 255


def loss_of(narrow: Narrow, batch: torch.Tensor, decoder: bool = False) -> torch.Tensor:
    """L1 and L1 of the differences between neighbours, which holds edges, after noise on the latents.

    With `decoder` the encoder stays as it is.
    """
    with torch.set_grad_enabled(not decoder):
        latents = narrow.encode(batch)
    noisy = latents + torch.randn_like(latents) * torch.rand(len(batch), 1, 1, 1) * NOISE
    seen = narrow.decode(noisy).float()
    edges = sum(F.l1_loss(torch.diff(seen, dim=d), torch.diff(batch, dim=d)) for d in (2, 3))
    away = latents.float().mean((0, 2, 3)).square() + (latents.float().std((0, 2, 3)) - 1).square()
    return F.l1_loss(seen, batch) + edges + 2 * F.mse_loss(seen, batch) + 0.02 * away.sum()


@torch.no_grad()
def psnr(narrow: Narrow, batch: torch.Tensor) -> float:
    """Peak signal to noise in dB over pictures [B, 3, H, W] in 0..1, a mean over pictures."""
    training = narrow.training
    narrow.eval()
    error = ((narrow.decode(narrow.encode(batch)).clamp(0, 1) - batch) ** 2).flatten(1).mean(1)
    narrow.train(training)
    return float((-10 * error.log10()).mean())


def rate_at(step: int, steps: int) -> float:
    """The learning rate of a step: warm-up, constant, and a linear decay over the last third."""
    return RATE * min((step + 1) / 50, 1.0, 0.01 + 3 * (1 - step / steps))


def train(out: Path, steps: int, decoder: bool = False) -> Narrow:
    """Train until `steps` steps are done in all, going on from `out`/vae.pt, which each 50 steps write.

    With `decoder` the decoder alone learns, so that latents that were encoded before stay valid.
    """
    torch.manual_seed(SEED)
    narrow, drawings = Narrow().to(memory_format=torch.channels_last), Drawings()
    optimizer = torch.optim.AdamW(narrow.parameters(), lr=RATE, weight_decay=0.0, betas=(0.9, 0.99))
    held = drawings.held_out(8)
    state, begin = out / "vae.pt", 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        narrow.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        begin = saved["step"]
    else:
        warm(narrow, held)
    if decoder:
        narrow.encoder.requires_grad_(False)
    shown, since = [], time.monotonic()
    for step in range(begin, steps):
        torch.manual_seed(SEED * 1_000_000 + step)
        batch = drawings.crops(np.random.default_rng((SEED, 2, step)), step)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(narrow, batch.contiguous(memory_format=torch.channels_last), decoder)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(narrow.parameters(), 1.0)
        optimizer.step()
        shown.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == steps:
            _save(state, narrow, optimizer, step + 1)
            speed = len(shown) * BATCH / (time.monotonic() - since)
            told = f"loss {np.mean(shown):.4f}  {psnr(narrow, held):.2f} dB  {speed:.1f} crops/s"
            print(f"VAE step {step + 1}/{steps}  {told}", flush=True)
            shown, since = [], time.monotonic()
    return narrow.eval()


def _save(state: Path, narrow: Narrow, optimizer, step: int) -> None:
    part = state.with_suffix(".part")
    torch.save({"model": narrow.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, part)
    part.replace(state)


def load(path: Path) -> Narrow:
    """The trained halves from a state that `train` wrote."""
    narrow = Narrow()
    narrow.load_state_dict(torch.load(path, weights_only=True)["model"])
    return narrow.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the picture model's VAE, or go on with it.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--decoder", action="store_true", help="train the decoder alone; the latents stay")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train(args.out, args.steps, args.decoder)


if __name__ == "__main__":
    main()
