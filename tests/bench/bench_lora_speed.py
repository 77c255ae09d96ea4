"""Seconds and memory of a LoRA training step compared with ComfyUI's trainer, diffusers with PEFT and the bare network.

    python3 dev.py test -m bench tests/bench/bench_lora_speed.py -s

All train the small model with the same pictures, batch, rank and precision (float32) and alternate in one process; the
medians of the rounds' ratios are printed. Core's TrainLoraNode (bypass mode) trains every layer that it finds, which
cannot be chosen. diffusers with PEFT trains the same projections of the same weights, with precomputed latents and
conditionings. "bare" is ComfyUI's U-Net, forward and backward to the first cross-attention, without adapter, loss or
optimiser. Processor time is compared (wall time is printed too), since other work on the machine hardly affects it.
Peak memory is the peak of torch's allocator minus its start.
"""

import statistics
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import peers

pytestmark = [pytest.mark.bench, pytest.mark.usefixtures("no_progress_bars")]


class Contest:
    """One batch size and picture size; each contender is a method from a number of steps to seconds for each step."""

    def __init__(self, small, run_node, checkpoint, batch: int, cells: int, precision: str = "fp32"):
        from helpers import sprite_set

        self.run_node, self.batch, self.models, self.precision = run_node, batch, small, precision
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
        self.peft_of = (peers.diffusers_unet(checkpoint), scaled, contexts, batch, 1e-4, 10_000)
        self.peft = peers.PeftLora(*self.peft_of, bf16=precision == "bf16")
        timesteps = torch.linspace(50, 950, batch).long()
        self._bare = peers.bare_step(model.model.diffusion_model, scaled[:batch], timesteps, contexts[:batch])

    def ours(self, steps: int) -> tuple[float, float]:
        model, clip, vae = self.models
        return peers.steps_of(
            lambda: self.run_node(
                "BespokeTrainLora",
                model=model,
                clip=clip,
                vae=vae,
                images=self.images,
                steps=steps + 1,
                batch_size=self.batch,
                rank=8,
                alpha=8.0,
                learning_rate=1e-4,
                seed=0,
                precision=self.precision,
                resume=False,
            )
        )

    def core(self, steps: int) -> tuple[float, float]:
        return peers.steps_of(
            lambda: self.run_node(
                "TrainLoraNode",
                model=[self.models[0]],
                latents=[{"samples": torch.cat(self.latents)}],
                positive=[self.positive],
                batch_size=[self.batch],
                grad_accumulation_steps=[1],
                steps=[steps + 1],
                learning_rate=[1e-4],
                rank=[8],
                optimizer=["AdamW"],
                loss_function=["MSE"],
                seed=[0],
                training_dtype=["fp32"],
                lora_dtype=["fp32"],
                quantized_backward=[False],
                algorithm=["LoRA"],
                gradient_checkpointing=[False],
                checkpoint_depth=[1],
                offloading=[False],
                existing_lora=["[None]"],
                bucket_mode=[False],
                bypass_mode=[True],
            )
        )

    def diffusers(self, steps: int) -> tuple[float, float]:
        return peers.seconds(self.peft.step, steps)

    def new_peft_run(self) -> None:
        run = peers.PeftLora(*self.peft_of)
        for _ in range(2):
            run.step()

    def bare(self, steps: int) -> tuple[float, float]:
        return peers.seconds(self._bare, steps)


def run_contest(contest: Contest, names: list[str], rounds: int, steps: int) -> dict[str, float]:
    """{other: the median of its processor seconds over this pack's}, printed; the order alternates."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ("ours", *names)}
    for name in times:  # warm-up: allocations, caches of latents and prompts
        getattr(contest, name)(1)
    for number in range(rounds):
        for name in sorted(times, reverse=bool(number % 2)):
            times[name].append(getattr(contest, name)(steps))

    def medians(kind: int) -> dict[str, float]:
        return {
            n: statistics.median(t[kind] / mine[kind] for mine, t in zip(times["ours"], times[n], strict=True))
            for n in names
        }

    ratios, wall = medians(0), medians(1)
    shown = ", ".join(f"{name} {statistics.median(t[0] for t in values):.3f}" for name, values in times.items())
    print(
        f"processor seconds a step: {shown}; compared with this pack: "
        f"{', '.join(f'{n} {r:.2f} x (wall {wall[n]:.2f} x)' for n, r in ratios.items())}"
    )
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
def test_in_bfloat16(small, run_node, small_checkpoint, batch):
    """Both with bfloat16 products, this pack's default where the processor has them."""
    if not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("this processor multiplies no bfloat16")
    contest = Contest(small, run_node, small_checkpoint, batch, 16, "bf16")
    print(f"\nbfloat16, batch {batch}, 16x16 latents:", end=" ")
    assert run_contest(contest, ["diffusers"], 9, 8 if batch == 1 else 4)["diffusers"] >= 1.0


@pytest.mark.parametrize(("batch", "least"), [(1, 1.0), (4, 1.25)])
def test_default_precisions(small, run_node, small_checkpoint, batch, least):
    """This pack's precision is `auto`, bfloat16 where the processor has bfloat16 products; diffusers' is float32."""
    if not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("this processor multiplies no bfloat16, so both compute in float32")
    contest = Contest(small, run_node, small_checkpoint, batch, 16, "auto")
    print(f"\neach as it comes, batch {batch}, 16x16 latents:", end=" ")
    assert run_contest(contest, ["diffusers"], 9, 8 if batch == 1 else 4)["diffusers"] >= least


@pytest.mark.parametrize("batch", [1, 4])
def test_peak_memory(small, run_node, small_checkpoint, batch):
    """A short run of each, with its set-up."""
    contest = Contest(small, run_node, small_checkpoint, batch, 16)
    contest.ours(1)
    ours = peers.peak_mb(lambda: contest.ours(1))
    core = peers.peak_mb(lambda: contest.core(1))
    diffusers = peers.peak_mb(contest.new_peft_run)
    print(
        f"\npeak memory at batch {batch}: this pack {ours:.0f} MB, core {core:.0f} MB, diffusers with PEFT "
        f"{diffusers:.0f} MB"
    )
    assert ours <= core
    assert ours <= diffusers
