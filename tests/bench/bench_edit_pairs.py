"""Whether a LoRA learns an edit from 12 pairs: "make it green" on pictures that were not in the set.

    python3 dev.py test -m bench tests/bench/bench_edit_pairs.py -s

The base is a small instruct-pix2pix model that copies what it is given (`tests/lib/edit_base.py`).
Judged by `judge.py`, which shares no code with the drawing: the colour is green, and shape and ground are those of the
source. Before: what the base's own copies show. About ten minutes, of which four train the base once.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import edit_base
import judge
import numpy as np
import pytest
import sprites
import torch
from bespoke.training.images import TrainingImage
from PIL import Image

pytestmark = pytest.mark.bench
INSTRUCTION = "make it green"
SEEDS = (1, 2, 3)
BASE = Path(__file__).resolve().parents[2] / ".dev" / f"edit-base-{edit_base.RECIPE}.safetensors"
SETTINGS = {
    "targets": "attention + feed-forward", "rank": 8, "alpha": 8.0, "conv_rank": 8, "steps": 100, "batch_size": 4,
    "learning_rate": 2e-3, "warmup_steps": 5, "timestep_sampling": "uniform",
    "score_pictures": "off", "resume": False,
}  # fmt: skip


def kinds(seed: int, count: int) -> list[sprites.Sprite]:
    """Sprites of every colour but green, shape and ground by turns."""
    draw = np.random.default_rng(seed)
    colours = [name for name in sprites.COLOURS if name != "green"]
    return [
        sprites.random_sprite(
            draw, colours[i % 6], sprites.SHAPES[i // 2 % 6], list(sprites.GROUNDS)[i % 2], anywhere=True
        )
        for i in range(count)
    ]


def pixels(kind: sprites.Sprite) -> torch.Tensor:
    return torch.from_numpy(np.asarray(sprites.image(kind)).copy())


def pairs(seed: int):
    from helpers import image_set

    return image_set(
        [
            TrainingImage(f"{i}.png", pixels(replace(kind, colour="green")), INSTRUCTION, control=pixels(kind))
            for i, kind in enumerate(kinds(seed, 12))
        ]
    )


def edited(run_node, model, clip, vae, held_out, seed: int) -> list[Image.Image]:
    """What the model makes of the held-out sources, by core's nodes."""
    images = torch.stack([pixels(kind) for kind in held_out]).float() / 255
    (text,) = run_node("CLIPTextEncode", clip=clip, text=INSTRUCTION)
    node = "InstructPixToPixConditioning"
    positive, negative, latent = run_node(node, positive=text, negative=text, vae=vae, pixels=images)
    given = dict(steps=12, cfg=1.0, sampler_name="euler", scheduler="normal", denoise=1.0, seed=seed)
    (made,) = run_node("KSampler", model=model, positive=positive, negative=negative, latent_image=latent, **given)
    (out,) = run_node("VAEDecode", samples=made, vae=vae)
    return [Image.fromarray((one.clamp(0, 1) * 255).round().to(torch.uint8).numpy()) for one in out]


def counts(pictures, held_out) -> tuple[int, int, int]:
    """(green, of the source's shape and ground, both) of the pictures."""
    found = [judge.judge(picture) for picture in pictures]
    green = [verdict.colour == "green" for verdict in found]
    kept = [
        (verdict.shape, verdict.ground) == (kind.shape, kind.ground)
        for verdict, kind in zip(found, held_out, strict=True)
    ]
    return sum(green), sum(kept), sum(a and b for a, b in zip(green, kept, strict=True))


def test_an_edit_is_learned_from_twelve_pairs(run_node, small, tmp_path):
    _, clip, vae = small
    model = edit_base.edit_model(edit_base.trained_state(BASE, clip))
    rows = []
    for seed in (int(os.environ["BESPOKE_BENCH_SEED"]),) if "BESPOKE_BENCH_SEED" in os.environ else SEEDS:
        held_out = kinds(100 + seed, 12)
        before = counts(edited(run_node, model, clip, vae, held_out, seed), held_out)
        given = dict(model=model, clip=clip, vae=vae, images=pairs(seed), seed=seed)
        trained, *_ = run_node("BespokeTrainLora", **given | SETTINGS)
        made = edited(run_node, trained, clip, vae, held_out, seed)
        after = counts(made, held_out)
        rows.append((seed, before, after))
        print(f"seed {seed}: (green, shape and ground kept, both) of 12 before {before}, after {after}", flush=True)
        shown = [sprites.image(kind) for kind in held_out]
        sheet = Image.new("RGB", (12 * 128, 256))
        for i, (source, result) in enumerate(zip(shown, made, strict=True)):
            sheet.paste(source, (i * 128, 0))
            sheet.paste(result, (i * 128, 128))
        sheet.save(BASE.with_name(f"edit-pairs-{seed}.png"))
    for _, before, after in rows:
        assert before[0] == 0
        assert after[0] >= 11
        assert after[1] >= before[1] - 3  # the base's own copies are grainy
