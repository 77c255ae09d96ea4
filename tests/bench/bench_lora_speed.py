"""Seconds and memory of a LoRA training step: this pack beside ComfyUI's own trainer, diffusers with PEFT, and the bare network.

    python3 dev.py test -m bench tests/bench/bench_lora_speed.py -s

All train the small model at the same pictures, batch, rank and precision (float32), and take turns in one process; the
medians of the rounds' ratios are printed. Core's TrainLoraNode (bypass mode) trains every layer that it finds, which
cannot be chosen there. diffusers with PEFT trains the same projections of the same weights, with latents and
conditionings ready-made. "bare" is ComfyUI's U-Net forward and backward down to the first cross-attention, with no
adapter, loss or optimiser. Peak memory is what torch's allocator holds at most beyond what was there before.
"""

import statistics
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

pytestmark = pytest.mark.bench


@pytest.fixture(autouse=True)
def quiet(comfyui, monkeypatch):
    """No progress bars between the tables."""
    import comfy.utils

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_ENABLED", False)


class Contest:
    """One batch size and picture size; each contender as a function of a number of steps that gives seconds a step."""

    def __init__(self, small, run_node, checkpoint, batch: int, cells: int):
        import peers
        from helpers import sprite_set

        self.run_node, self.batch, self.models = run_node, batch, small
        model, clip, vae = small
        self.images = sprite_set(1, 4, colour="teal", side=8 * cells)
        self.latents, self.positive = [], []
        for item in self.images.items:
            (latent,) = run_node("VAEEncode", pixels=item.pixels[None].float() / 255, vae=vae)
            (cond,) = run_node("CLIPTextEncode", clip=clip, text=item.caption)
            self.latents.append(latent["samples"].clone())
            self.positive.append(cond[0])
        contexts = torch.cat([cond.clone() for cond, _ in self.positive])
        scaled = torch.cat(self.latents) * 0.18215
        self.peft = peers.PeftLora(peers.diffusers_unet(checkpoint), scaled, contexts, batch, 1e-4, 10_000)
        timesteps = torch.linspace(50, 950, batch).long()
        self._bare = peers.bare_step(model.model.diffusion_model, scaled[:batch], timesteps, contexts[:batch])

    def ours(self, steps: int) -> float:
        model, clip, vae = self.models
        _, _, _, run, *_ = self.run_node(
            "BespokeTrainLora", model=model, clip=clip, vae=vae, images=self.images, steps=steps, batch_size=self.batch,
            rank=8, alpha=8.0, learning_rate=1e-4, seed=0, precision="fp32", resume=False,
        )  # fmt: skip
        return run.seconds / steps

    def core(self, steps: int) -> float:
        # Core's own set-up is no part of a step: the difference of two lengths.
        return (self.core_run(2 * steps) - self.core_run(steps)) / steps

    def core_run(self, steps: int) -> float:
        began = time.perf_counter()
        self.run_node(
            "TrainLoraNode", model=self.models[0], latents=[{"samples": torch.cat(self.latents)}], positive=[self.positive],
            batch_size=[self.batch], grad_accumulation_steps=[1], steps=[steps], learning_rate=[1e-4], rank=[8],
            optimizer=["AdamW"], loss_function=["MSE"], seed=[0], training_dtype=["fp32"], lora_dtype=["fp32"],
            quantized_backward=[False], algorithm=["LoRA"], gradient_checkpointing=[False], checkpoint_depth=[1],
            offloading=[False], existing_lora=["[None]"], bucket_mode=[False], bypass_mode=[True],
        )  # fmt: skip
        return time.perf_counter() - began

    def diffusers(self, steps: int) -> float:
        import peers

        return peers.seconds(self.peft.step, steps)

    def bare(self, steps: int) -> float:
        import peers

        return peers.seconds(self._bare, steps)


def run_contest(contest: Contest, names: list[str], rounds: int, steps: int) -> dict[str, float]:
    """{other: the median of its seconds over this pack's}, printed; the order turns round from round to round."""
    times: dict[str, list[float]] = {name: [] for name in ("ours", *names)}
    for name in times:  # warm-up: allocations, caches of latents and prompts
        getattr(contest, name)(1)
    for number in range(rounds):
        for name in sorted(times, reverse=bool(number % 2)):
            times[name].append(getattr(contest, name)(steps))
    ratios = {name: statistics.median(b / a for a, b in zip(times["ours"], times[name], strict=True)) for name in names}
    shown = ", ".join(f"{name} {statistics.median(values):.3f}" for name, values in times.items())
    print(f"seconds a step: {shown}; beside this pack: {', '.join(f'{n} {r:.2f} x' for n, r in ratios.items())}")
    return ratios


@pytest.mark.parametrize(("batch", "core_least", "diffusers_least"), [(1, 1.7, 1.0), (4, 5.0, 1.25)])
def test_step_beside_core_and_diffusers(small, run_node, small_checkpoint, batch, core_least, diffusers_least):
    contest = Contest(small, run_node, small_checkpoint, batch, 16)
    print(f"\nbatch {batch}, 16x16 latents:", end=" ")
    ratios = run_contest(contest, ["diffusers", "bare"], 9, 8 if batch == 1 else 4)
    print("    the same with core:", end=" ")
    ratios |= run_contest(contest, ["core"], 3, 6 if batch == 1 else 2)
    assert ratios["core"] >= core_least
    assert ratios["diffusers"] >= diffusers_least
    if batch == 4:
        assert 1 / ratios["bare"] <= 1.15


@pytest.mark.parametrize(("batch", "cells"), [(4, 8), (1, 8), (1, 24), (4, 24)])
def test_other_sizes(small, run_node, small_checkpoint, batch, cells):
    """Printed; never slower than diffusers with PEFT."""
    contest = Contest(small, run_node, small_checkpoint, batch, cells)
    print(f"\nbatch {batch}, {cells}x{cells} latents:", end=" ")
    assert run_contest(contest, ["diffusers", "bare"], 5, 2 if cells > 16 else 6)["diffusers"] >= 1.0


@pytest.mark.parametrize("batch", [1, 4])
def test_peak_memory(small, run_node, small_checkpoint, batch):
    """A whole short run of each node, its set-up included, and one step of diffusers."""
    import peers

    contest = Contest(small, run_node, small_checkpoint, batch, 16)
    contest.ours(1)
    contest.peft.step()
    ours = peers.peak_mb(lambda: contest.ours(2))
    core = peers.peak_mb(lambda: contest.core_run(2))
    diffusers = peers.peak_mb(contest.peft.step)
    print(f"\npeak memory at batch {batch}: this pack {ours:.0f} MB, core {core:.0f} MB, diffusers with PEFT {diffusers:.0f} MB")
    assert ours <= core
    assert ours <= diffusers
