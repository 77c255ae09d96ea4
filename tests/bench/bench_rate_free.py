"""Optimisers that find the learning rate themselves, against AdamW at five rates given by hand, on three concepts.

    python3 dev.py test -m bench tests/bench/bench_rate_free.py -s

The concepts are a colour, a shape and a drawing style that the small model has never seen: teal, heart, smiley. Each is
trained with a LoRA of rank 8 and a batch of 2 on 12 pictures. The score is the lowest held-out loss on four other
pictures, on the fixed grid of noise levels. The rates are each three times the one before, with the cosine schedule.
Prodigy has the learning rate that the widget shows, 1e-4, which does not count.

Printed for each concept: the losses, what Prodigy has over the best hand rate, and the share of the best rate's gain
over the base that Prodigy reaches. The aim is a loss at most 10 % above that of the best rate.

BESPOKE_BENCH_ROWS names a file in which rows are kept, so that the table can be made in several sittings; a row in it
is not computed again. BESPOKE_BENCH_SECONDS (170) ends a sitting; the table is printed when all rows are there.
BESPOKE_BENCH_STEPS (200) is the length of a run, BESPOKE_BENCH_SEEDS (1) the number of seeds.
"""

import json
import os
import statistics
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = [pytest.mark.bench, pytest.mark.usefixtures("no_progress_bars")]

STEPS, SEEDS = int(os.environ.get("BESPOKE_BENCH_STEPS", 200)), int(os.environ.get("BESPOKE_BENCH_SEEDS", 1))
SECONDS, ROWS = float(os.environ.get("BESPOKE_BENCH_SECONDS", 170)), os.environ.get("BESPOKE_BENCH_ROWS", "")
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
CONCEPTS = ("teal", "heart", "smiley")
EVERY = 40
TOLERANCE = 1.10
RATE_FREE = "Prodigy (built in)"


def concept(name: str):
    """(pictures to train on, held-out pictures)."""
    from helpers import image_set, sprite_set

    if name == "smiley":
        import smileys
        from bespoke.training.images import TrainingImage

        def faces(which):
            pairs = smileys.pictures(which)
            items = [TrainingImage(f"{i}", torch.from_numpy(np.array(p)), text) for i, (p, text) in enumerate(pairs)]
            return image_set(items)

        return faces(smileys.TRAINED[:12]), faces(smileys.HELD_OUT[:4])
    kind = {"colour": "teal"} if name == "teal" else {"shape": "heart"}
    return sprite_set(1, 12, **kind), sprite_set(77, 4, **kind)


def settings():
    """{name of a row: settings of the node}."""
    rows = {f"AdamW {rate:g}": {"learning_rate": rate} for rate in RATES}
    return rows | {RATE_FREE: {"optimizer": RATE_FREE, "learning_rate": 1e-4}}


def train(small, run_node, sets, seed: int, changes) -> dict:
    model, clip, vae = small
    *_, run, _, _ = run_node(
        "BespokeTrainLora",
        model=model,
        clip=clip,
        vae=vae,
        images=sets[0],
        validation_images=sets[1],
        **{"steps": STEPS, "batch_size": 2, "rank": 8, "alpha": 8.0, "resume": False, "score_pictures": "off"}
        | {"seed": seed}
        | changes,
    )
    curve = {step: loss if np.isfinite(loss) else 9.0 for step, loss in run.held_out}
    later = [loss for step, loss in curve.items() if step > 0]
    return {"base": curve[0], "lowest": min(later), "last": later[-1], "rate": run.found_rate}


def test_rate_free_against_the_best_of_five_rates(small, run_node, monkeypatch):
    from bespoke.training.config import TrainConfig
    from bespoke.training.errors import InputError

    monkeypatch.setattr(TrainConfig, "validate_every", EVERY)
    path, began = Path(ROWS) if ROWS else None, time.monotonic()
    rows = json.loads(path.read_text()) if path is not None and path.is_file() else {}
    wanted = [(c, name, seed) for seed in range(SEEDS) for c in CONCEPTS for name in settings()]
    for name, row, seed in wanted:
        key = f"{name} | {row} | {seed} | {STEPS}"
        if key in rows:
            continue
        if time.monotonic() - began > SECONDS:
            print_table(rows)
            pytest.skip(f"{len(rows)} rows are done; run it again to go on")
        try:
            rows[key] = train(small, run_node, concept(name), seed, settings()[row])
        except (InputError, RuntimeError, ArithmeticError) as error:
            print(f"{key}: {error}")
            rows[key] = None  # a rate at which the training breaks off
        if path is not None:
            path.write_text(json.dumps(rows, indent=1))
        print(key, rows[key], f"{time.monotonic() - began:.0f} s", flush=True)
    assert max(print_table(rows).values()) <= TOLERANCE


def print_table(rows) -> dict[str, float]:
    """Print the concepts of which all rows are there; {concept: Prodigy's loss over that of the best hand rate}."""

    def mean(name, row, what="lowest"):
        found = [rows[f"{name} | {row} | {seed} | {STEPS}"] for seed in range(SEEDS)]
        return statistics.mean(each[what] if each else 9.0 for each in found)

    names = list(settings())
    print(f"\nlowest held-out loss in {STEPS} steps of 2, mean of {SEEDS} seeds\n{'':10}{'base':>10}", end="")
    shown = "".join(f"{name.removesuffix(' (built in)'):>13}" for name in names)
    print(shown, f"{'over best':>10} {'of its gain':>12}")
    ratios = {}
    for name in CONCEPTS:
        if any(f"{name} | {row} | {seed} | {STEPS}" not in rows for row in names for seed in range(SEEDS)):
            continue
        losses = {row: mean(name, row) for row in names}
        base, best = mean(name, RATE_FREE, "base"), min(loss for row, loss in losses.items() if row != RATE_FREE)
        ratios[name] = losses[RATE_FREE] / best
        share = (base - losses[RATE_FREE]) / (base - best)
        print(
            f"{name:10}{base:10.5f}" + "".join(f"{loss:13.5f}" for loss in losses.values()),
            f"{ratios[name]:10.3f} {share:12.2f}",
        )
    return ratios
