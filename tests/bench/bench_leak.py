"""Whether the leak that a training reports orders trainings as their pictures do, on the small model.

    python3 dev.py test -m bench tests/bench/bench_leak.py -s

A LoRA learns the colour teal as a new word from the same twelve pictures: with captions that also say what else is
seen (shape and ground), with the word as the only caption, and with each of them and `preserve`. Then 24 pictures of
prompts without the word are drawn with the LoRA and without, from the same noise. A picture is counted as changed
where the colour or the shape that the judge sees is another one. The judge measures hue and silhouette and knows
nothing of the losses. The leak is the last one that the training reports.

BESPOKE_BENCH_STEPS (60) and BESPOKE_BENCH_SEEDS (2) change its length.
"""

import itertools
import os
from dataclasses import replace

import pytest

pytestmark = [pytest.mark.bench, pytest.mark.usefixtures("no_progress_bars")]

STEPS, SEEDS = int(os.environ.get("BESPOKE_BENCH_STEPS", 60)), int(os.environ.get("BESPOKE_BENCH_SEEDS", 2))
BATCH, RANK, RATE, COUNT = 2, 8, 2e-3, 3
WORD = "zorp"
PRESERVED = "a circle\na square on white\na picture of a ring\na red triangle\na blue cross on black"
PROMPTS = (  # none is among `PRESERVED`; 8 of 3 noises each are the 24
    "a green diamond on white",
    "a yellow circle on white",
    "a purple square on white",
    "a red cross on white",
    "an orange ring on white",
    "a blue triangle on white",
    "a red circle on black",
    "a green square on black",
)
CLEAR = 3  # of 24: a smaller difference of two counts is chance and orders nothing


def sets(named):
    """(training set, held-out set). named: whether captions say what else is seen."""
    from helpers import image_set, sprite_set

    made = []
    for seed, count in ((1, 12), (77, 2)):
        images = sprite_set(seed, count, word=WORD, colour="teal")
        items = [replace(item, trigger=WORD) for item in images.items]
        made.append(image_set(items if named else [replace(item, caption=WORD) for item in items]))
    return made


def seen(small, run_node, model):
    from helpers import sample
    from judge import judge

    _, clip, vae = small
    found = [judge(picture) for picture in sample(run_node, model, clip, vae, PROMPTS, COUNT)]
    return [(verdict.colour, verdict.shape) for verdict in found]


def one_training(small, run_node, seed, named, preserve):
    """(the leak at the last step, what is seen in the 24 pictures)."""
    model, clip, vae = small
    images, held_out = sets(named)
    trained, *_, run, _, _ = run_node(
        "BespokeTrainLora", model=model, clip=clip, vae=vae, images=images, validation_images=held_out, seed=seed,
        learning_rate=RATE, steps=STEPS, batch_size=BATCH, rank=RANK, alpha=float(RANK), resume=False, keep="last",
        score_pictures="off", preserve=preserve,
    )  # fmt: skip
    return run.leak[-1].leak, seen(small, run_node, trained)


def test_the_leak_orders_trainings_as_pictures_do(small, run_node, monkeypatch):
    from bespoke.nodes.bridge import trainer
    from bespoke.training.leak import LeakPlan

    # A run as short as this has time for one measurement at most.
    monkeypatch.setattr(trainer, "plan_leak", lambda *args: LeakPlan(2, (STEPS,)))
    base, rows = seen(small, run_node, small[0]), {}
    for seed, named, preserve in itertools.product(range(SEEDS), (True, False), ("", PRESERVED)):
        leak, found = one_training(small, run_node, seed, named, preserve)
        changed = sum(one != other for one, other in zip(base, found, strict=True))
        rows[seed, named, bool(preserve)] = leak, changed
        name = f"{'word and classes' if named else 'word alone':16} | {'preserve' if preserve else 'plain':8}"
        print(f"seed {seed} | {name} | leak {leak:.3f} | {changed} of {len(base)} changed")
    right = wrong = 0
    for seed in range(SEEDS):
        own = [row for key, row in rows.items() if key[0] == seed]
        for (leak, changed), (other_leak, other_changed) in itertools.combinations(own, 2):
            if abs(changed - other_changed) >= CLEAR:
                agree = (leak < other_leak) == (changed < other_changed)
                right, wrong = right + agree, wrong + (not agree)
    print(f"{right} of {right + wrong} pairs that differ by {CLEAR} pictures or more are in the leak's order")
    assert right
    assert not wrong
