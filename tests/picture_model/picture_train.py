"""Trains the picture model from random weights, the VAE first and then the U-Net; may be stopped and gone on with.

    python tests/picture_model/picture_train.py --comfyui PATH --out FOLDER [--vae-steps N] [--samples N]

The same command goes on from what FOLDER holds. The U-Net trains at half of SD1.5's width (`picture_model.NARROW`),
which takes a quarter of the arithmetic; `picture_model.widen` doubles it exactly. Noise prediction on SD1.5's schedule
with ComfyUI's own U-Net class: AdamW at a constant rate with a linear decay over the last fifth, an average of the
weights, bf16 autocast, captions dropped one time in ten for classifier-free guidance. All draws of a step depend on the
seed and the step alone, so that a stop changes nothing but the moment.

FOLDER receives `vae.pt` and `state.pt` (weights, average, optimizer, step), `log.csv` (samples, loss, samples/s, hours
left), a sheet of sixteen pictures `sheet-N.png` each `--sheet` samples, and `latents/`, the encoded drawings. SIGTERM
and SIGINT save and end. A larger `--samples` moves the decay; the steps before it stay the same. The latents belong to
the VAE: once `state.pt` exists, `--vae-steps` does nothing, and `vae.py --decoder` trains the decoder alone.
"""

from __future__ import annotations

import argparse
import copy
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import figures  # noqa: E402
import picture_model as pm  # noqa: E402
import vae  # noqa: E402

SEED = 3100
BATCH, DROPOUT = 16, 0.1
RATE, WARMUP, DECAY, EMA = 1e-3, 300, 0.2, 0.999
SHARD = 512  # drawings encoded together
SHARDS_FIRST, SHARDS_LAST, SHARD_STEPS = 4, 40, 100  # a shard more each SHARD_STEPS steps


def alpha_bar() -> torch.Tensor:
    """SD1.5's cumulated signal shares [1000], fp32 (scaled-linear betas, Rombach et al. 2022)."""
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - beta, 0).float()


def new_unet() -> torch.nn.Module:
    """ComfyUI's U-Net at the narrow width with torch's initialisation and zeroes at each block's end."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    unet = UNetModel(**pm.NARROW, device="cpu", dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    for name, module in unet.named_modules():
        for kind in (torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm):
            if isinstance(module, kind):
                kind.reset_parameters(module)
        if name == "out.2" or name.endswith(("out_layers.3", "proj_out")):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
    return unet.to(memory_format=torch.channels_last).train()


class Pool:
    """Encoded drawings in shards of SHARD on disk; each is drawn from its number alone and encoded once."""

    def __init__(self, folder: Path, narrow_vae: vae.Narrow) -> None:
        self.folder, self.vae = folder, narrow_vae
        self.shards: list[tuple[list[figures.Figure], torch.Tensor]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def grow(self, count: int) -> None:
        """Have the first `count` shards ready."""
        while len(self.shards) < count:
            self.shards.append(self._shard(len(self.shards)))

    @torch.no_grad()
    def _shard(self, number: int) -> tuple[list[figures.Figure], torch.Tensor]:
        rng = np.random.default_rng((SEED, 1, number))
        kinds = [figures.random_figure(rng) for _ in range(SHARD)]
        path = self.folder / f"{number:03}.pt"
        if path.exists():
            return kinds, torch.load(path, weights_only=True)
        latents = [self.vae.encode(pixels_of(kinds[i : i + 16])) for i in range(0, SHARD, 16)]
        out = torch.cat(latents).half()
        part = path.with_suffix(".part")
        torch.save(out, part)
        part.replace(path)
        return kinds, out

    def draw(self, rng: np.random.Generator, count: int) -> tuple[list[figures.Figure], torch.Tensor]:
        """`count` drawings of the shards that are ready: figures and latents [count, 4, 16, 16]."""
        places = [(int(rng.integers(len(self.shards))), int(rng.integers(SHARD))) for _ in range(count)]
        return [self.shards[s][0][i] for s, i in places], torch.stack([self.shards[s][1][i] for s, i in places]).float()


def pixels_of(kinds: list[figures.Figure]) -> torch.Tensor:
    """The drawings as [B, 3, 128, 128] in 0..1."""
    return torch.from_numpy(np.stack([np.asarray(figures.image(k)) for k in kinds])).permute(0, 3, 1, 2).float() / 255


class Training:
    """The state of a training: `step()` makes one step, `save()` and `Training(...)` in another process go on."""

    def __init__(self, out: Path, pool: Pool, encode, steps: int, bf16: bool = True) -> None:
        self.out, self.pool, self.encode, self.steps, self.bf16 = out, pool, encode, steps, bf16
        torch.manual_seed(SEED)
        self.unet = new_unet()
        self.average = copy.deepcopy(self.unet).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.unet.parameters(), lr=RATE, weight_decay=0.01, betas=(0.9, 0.99), fused=True
        )
        self.alpha_bar, self.done = alpha_bar(), 0
        if self.state.exists():
            saved = torch.load(self.state, weights_only=True)
            self.unet.load_state_dict(saved["unet"])
            self.average.load_state_dict(saved["average"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.done = saved["done"]

    @property
    def state(self) -> Path:
        """The file that the training goes on from."""
        return self.out / "state.pt"

    def rate(self) -> float:
        """The learning rate of the next step: warm-up, constant, and a linear decay over the last fifth."""
        left = (self.steps - self.done) / (DECAY * self.steps)
        return RATE * min((self.done + 1) / WARMUP, 1.0, max(left, 0.0))

    def step(self) -> float:
        """One step; returns the mean squared error of the noise."""
        rng = np.random.default_rng((SEED, 2, self.done))
        noise_source = torch.Generator().manual_seed(SEED * 10_000_000 + self.done)
        self.pool.grow(min(SHARDS_FIRST + self.done // SHARD_STEPS, SHARDS_LAST))
        kinds, x0 = self.pool.draw(rng, BATCH)
        texts = ["" if rng.random() < DROPOUT else figures.caption(rng, k) for k in kinds]
        # One timestep from each sixteenth of the schedule: every batch sees all noise levels.
        t = ((torch.arange(BATCH) + torch.rand(BATCH, generator=noise_source)) / BATCH * 1000).long().clamp(max=999)
        noise = torch.randn(x0.shape, generator=noise_source)
        a = self.alpha_bar[t].reshape(-1, 1, 1, 1)
        noisy = (a.sqrt() * x0 + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            predicted = self.unet(noisy, t, context=self.encode(texts))
        loss = torch.nn.functional.mse_loss(predicted.float(), noise)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.done += 1
        with torch.no_grad():
            keep = min(EMA, self.done / (self.done + 10))
            torch._foreach_lerp_(list(self.average.parameters()), list(self.unet.parameters()), 1 - keep)
        return loss.item()

    def save(self) -> None:
        """Write the state, through a temporary name."""
        part = self.state.with_suffix(".part")
        torch.save(
            {
                "unet": self.unet.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "done": self.done,
            },
            part,
        )
        part.replace(self.state)


@torch.no_grad()
def sample(unet, encode, texts: list[str], seed: int, steps: int = 20, guidance: float = 4.0, bf16: bool = True):
    """Latents [B, 4, 16, 16] by DDIM (Song et al. 2021, eta 0) with classifier-free guidance."""
    noise = torch.Generator().manual_seed(seed)
    x = torch.randn((len(texts), 4, 16, 16), generator=noise)
    bar = alpha_bar()
    times = torch.linspace(999, 0, steps + 1).long()
    context = torch.cat([encode(texts), encode([""] * len(texts))])
    for now, later in zip(times[:-1], times[1:], strict=True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            both = unet(torch.cat([x, x]), now.expand(2 * len(x)), context=context).float()
        eps = both[len(x) :] + guidance * (both[: len(x)] - both[len(x) :])
        a, b = bar[now], bar[later] if later > 0 else torch.tensor(1.0)
        x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        x = b.sqrt() * x0 + (1 - b).sqrt() * eps
    return x


SHEET = 16


def sheet(training: Training, narrow_vae: vae.Narrow, path: Path) -> None:
    """Sixteen samples of fixed prompts and seeds as one picture."""
    rng = np.random.default_rng(7)
    kinds = [figures.random_figure(rng, subject=figures.SUBJECTS[i]) for i in range(SHEET)]
    latents = sample(training.average, training.encode, [figures.say(k) for k in kinds], seed=7)
    with torch.no_grad():
        pictures = narrow_vae.decode(latents).clamp(0, 1)
    tiles = (pictures.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
    rows = [np.concatenate(list(tiles[i : i + 8]), 1) for i in (0, 8)]
    Image.fromarray(np.concatenate(rows)).save(path)
    path.with_suffix(".txt").write_text("\n".join(figures.say(k) for k in kinds) + "\n", "utf-8")


def run(training: Training, narrow_vae: vae.Narrow, each: int, keep_seconds: float = 300) -> None:
    """Steps until the end or a signal; logs, saves, and draws a sheet each `each` samples."""
    stop: list[int] = []
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda number, frame: stop.append(number))
    losses, since, saved = [], time.monotonic(), time.monotonic()
    while training.done < training.steps and not stop:
        losses.append(training.step())
        if training.done % 50 == 0:
            speed = len(losses) * BATCH / (time.monotonic() - since)
            hours = (training.steps - training.done) * BATCH / speed / 3600
            with (training.out / "log.csv").open("a", encoding="utf-8") as log:
                log.write(f"{training.done * BATCH},{np.mean(losses):.5f},{speed:.2f},{hours:.2f}\n")
            losses, since = [], time.monotonic()
        if time.monotonic() - saved > keep_seconds:
            training.save()
            saved = time.monotonic()
        if training.done * BATCH % each < BATCH:
            sheet(training, narrow_vae, training.out / f"sheet-{training.done * BATCH:07}.png")
            since = time.monotonic() if not losses else since
    training.save()


def prepare(comfyui: str) -> None:
    """Make ComfyUI importable, on the CPU and with torch's attention."""
    sys.path.insert(0, comfyui)
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args as comfy_args

    comfy_args.cpu = True
    comfy_args.use_pytorch_cross_attention = True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vae-steps", type=int, default=6_000)
    parser.add_argument("--samples", type=int, default=160_000)
    parser.add_argument("--sheet", type=int, default=4_000)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if not (args.out / "state.pt").exists():
        vae.train(args.out, args.vae_steps)
    prepare(args.comfyui)
    narrow_vae = vae.load(args.out / "vae.pt")
    training = Training(args.out, Pool(args.out / "latents", narrow_vae), pm.Text(), args.samples // BATCH)
    print(
        f"{sum(p.numel() for p in training.unet.parameters()) / 1e6:.1f} M parameters, {training.done} steps done",
        flush=True,
    )
    run(training, narrow_vae, args.sheet)


if __name__ == "__main__":
    main()
