"""Seconds a training step: this pack beside core's TrainLoraNode (bypass mode), on the small model, in one run.

    python3 dev.py test -m bench tests/bench/bench_lora_speed.py -s

The two alternate; medians of the ratios are printed. Same model, images, steps, rank, precision and targets where core
lets them be chosen (core trains every layer it finds; that is part of what is measured, and said).
"""

import statistics
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

pytestmark = pytest.mark.bench
ROUNDS, STEPS = 3, 10


@pytest.mark.parametrize("batch", [1, 4])
def test_step_beside_core(small, run_node, batch):
    from helpers import sprite_set

    model, clip, vae = small
    images = sprite_set(1, 4, colour="teal")
    latents = []
    positive = []
    for item in images.items:
        (latent,) = run_node("VAEEncode", pixels=item.pixels[None].float() / 255, vae=vae)
        latents.append(latent["samples"])
        (cond,) = run_node("CLIPTextEncode", clip=clip, text=item.caption)
        positive.append(cond[0])

    def ours(steps):
        began = time.perf_counter()
        _, _, _, run, *_ = run_node(
            "BespokeTrainLora", model=model, clip=clip, vae=vae, images=images, steps=steps, batch_size=batch, rank=8,
            alpha=8.0, seed=0, precision="fp32", resume=False,
        )  # fmt: skip
        return run.seconds, time.perf_counter() - began

    def core(steps):
        began = time.perf_counter()
        run_node(
            "TrainLoraNode", model=model, latents=[{"samples": torch.cat(latents)}], positive=[positive], batch_size=[batch],
            grad_accumulation_steps=[1], steps=[steps], learning_rate=[1e-4], rank=[8], optimizer=["AdamW"],
            loss_function=["MSE"], seed=[0], training_dtype=["fp32"], lora_dtype=["fp32"], quantized_backward=[False],
            algorithm=["LoRA"], gradient_checkpointing=[False], checkpoint_depth=[1], offloading=[False],
            existing_lora=["[None]"], bucket_mode=[False], bypass_mode=[True],
        )  # fmt: skip
        return time.perf_counter() - began

    ratios, mine, theirs = [], [], []
    for _ in range(ROUNDS):
        a = ours(STEPS)[0] / STEPS
        # Core's own set-up is no part of a step: the difference of two lengths.
        b = (core(2 * STEPS) - core(STEPS)) / STEPS
        ratios.append(b / a)
        mine.append(a)
        theirs.append(b)
    print(
        f"\nbatch {batch}: this pack {statistics.median(mine):.3f} s a step, core {statistics.median(theirs):.3f} s, "
        f"ratio {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f}, {ROUNDS} rounds)"
    )
