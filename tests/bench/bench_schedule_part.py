"""A LoRA that was trained on a part of the schedule, used on that part and applied whole: held-out loss by timesteps.

    python3 dev.py test -m bench tests/bench/bench_schedule_part.py -s

The small model learns the colour teal from 12 pictures, on all timesteps, on 0 to 0.5 and on 0.5 to 1. Four other
pictures are scored at ten timesteps with fixed noises: the mean squared error of the predicted noise, over the cleaner
and the noisier half. "range" is Inject LoRA as it is, "whole" is with use_range off. BESPOKE_BENCH_STEPS (200).
"""

from __future__ import annotations

import os

import pytest
import torch

pytestmark = [pytest.mark.bench, pytest.mark.usefixtures("no_progress_bars")]

STEPS = int(os.environ.get("BESPOKE_BENCH_STEPS", 200))
TIMESTEPS = range(50, 1000, 100)
PARTS = {"all": (0.0, 1.0), "0 to 0.5": (0.0, 0.5), "0.5 to 1": (0.5, 1.0)}


def losses(model, latents, contexts) -> tuple[float, float]:
    """The mean loss over the timesteps below 500, and over the others."""
    import comfy.model_management

    sampling, halves = model.model.model_sampling, ([], [])
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
        for timestep in TIMESTEPS:
            sigma = sampling.sigmas[timestep].expand(len(latents))
            noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(timestep))
            noisy = latents + sigma.view(-1, 1, 1, 1) * noise
            options = {"sigmas": sigma}
            clean = model.model.apply_model(noisy, sigma, c_crossattn=contexts, transformer_options=options)
            predicted = (noisy - clean) / sigma.view(-1, 1, 1, 1)
            halves[timestep >= 500].append(float(((predicted - noise) ** 2).mean()))
    return tuple(sum(half) / len(half) for half in halves)


def test_a_part_used_on_its_part_and_applied_whole(small, run_node):
    from bespoke.nodes.bridge.dataset.conditioning import encode_prompt
    from bespoke.nodes.bridge.dataset.pictures import encode_pictures
    from bespoke.training.config import TrainConfig
    from helpers import sprite_set

    model, clip, vae = small
    pictures = sprite_set(77, 4, colour="teal")
    data = encode_pictures(vae, model.model, TrainConfig(1, 0.0, 1, 0), pictures).data
    scored = torch.cat(data.latents), torch.cat([encode_prompt(clip, item.caption)[0] for item in pictures.items])
    rows = {"no LoRA": losses(model, *scored)}
    for name, (low, high) in PARTS.items():
        _, lora, *_ = run_node(
            "BespokeTrainLora",
            model=model,
            clip=clip,
            vae=vae,
            images=sprite_set(1, 12, colour="teal"),
            steps=STEPS,
            batch_size=4,
            learning_rate=1e-3,
            rank=8,
            alpha=8.0,
            seed=0,
            resume=False,
            min_timestep=low,
            max_timestep=high,
        )
        for use in (True, False):
            given = {"model": model, "lora_name": "none", "strength_model": 1.0, "lora": lora, "use_range": use}
            rows[f"{name}, {'range' if use else 'whole'}"] = losses(run_node("BespokeInjectLora", **given)[0], *scored)
    print(f"\n{STEPS} steps; held-out loss at timesteps   50-450   550-950")
    for name, (clean, noisy) in rows.items():
        print(f"{name:36} {clean:8.5f}  {noisy:8.5f}")
    assert rows["0 to 0.5, range"][1] == rows["no LoRA"][1]
    assert rows["0.5 to 1, range"][0] == rows["no LoRA"][0]
