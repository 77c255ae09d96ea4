"""Whether a word and a LoRA are better learned in one run, on the small model.

    BESPOKE_BENCH_ROWS=rows.json python3 dev.py test -m bench tests/bench/bench_word_and_lora.py -s

The concept is a colour that the small model has never seen, teal, under a name that says nothing. Ways to learn it
from the same twelve pictures, all of BESPOKE_BENCH_STEPS (80) steps of two pictures:

- one run: Train Word and LoRA.
- two runs: Train Textual Inversion for half of the steps, then Train LoRA on captions that say the word.
- rare token: Train LoRA on captions that say a token without a meaning.
- one run, word until half: as the first, and the word rests in the second half.

Measured: the loss on two held-out pictures before the first step and at the last one, by the trainer's fixed grid; of
24 pictures at new prompts those whose colour is teal, and those whose colour and shape are right; and the leak, what
the result changes at 12 class prompts that do not say the name: how many of these are still right, and the root mean
square of the change of a picture (0 to 255) at equal noise.

BESPOKE_BENCH_SEEDS (3) seeds; BESPOKE_BENCH_WAYS (3) of the ways. BESPOKE_BENCH_ROWS names a file in which rows are
kept; a row in it is not computed again. BESPOKE_BENCH_SECONDS (170) ends a sitting; the table has the seeds of which
all rows are there. A row takes about a minute of one core.
"""

import json
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.bench, pytest.mark.usefixtures("no_progress_bars")]

STEPS, SEEDS = int(os.environ.get("BESPOKE_BENCH_STEPS", 80)), int(os.environ.get("BESPOKE_BENCH_SEEDS", 3))
SECONDS = float(os.environ.get("BESPOKE_BENCH_SECONDS", 170))
RATE, WORD_RATE, RANK = 1e-3, 2e-2, 8
CFG = 1.0  # more guidance overdoes a colour that 40 steps have taught
PROMPTS = [("circle", "white"), ("square", "black"), ("cross", "white"), ("ring", "black")]
CLASS = [
    ("red", "circle", "white"),
    ("green", "square", "black"),
    ("blue", "cross", "white"),
    ("yellow", "ring", "black"),
]
EACH, CLASS_EACH = 6, 3  # pictures for each prompt
COMMON = dict(
    batch_size=2, precision="fp32", keep="last", score_pictures="off", resume=False, loss_weighting="debiased"
)
LORA = dict(rank=RANK, alpha=float(RANK), learning_rate=RATE)


def sets(word):
    """(the pictures, the held-out ones), whose captions say `word` for the colour."""
    from helpers import image_set, sprite_set

    made = [sprite_set(seed, count, word=word, colour="teal") for seed, count in ((1, 12), (77, 2))]
    trigger = "" if "{" in word else word
    return [
        image_set([replace(item, trigger=trigger, caption_syntax="prompt") for item in each.items]) for each in made
    ]


def learn(run_node, small, how, seed):
    """(model, clip, what prompts say, the record of the last run)."""
    model, clip, vae = small
    wires = dict(model=model, clip=clip, vae=vae, seed=seed, **COMMON)

    def lora(word, text, steps):
        images, held_out = sets(word)
        return run_node(
            "BespokeTrainLora",
            **wires | dict(clip=text, images=images, validation_images=held_out),
            steps=steps,
            **LORA,
        )

    if how == "rare token":
        trained, _, _, run, *_ = lora("zorp", clip, STEPS)
        return trained, clip, "zorp", run
    if how == "two runs":
        images, _ = sets("{word}")
        knows, _, word, *_ = run_node(
            "BespokeTrainTextualInversion", **wires | dict(images=images), name="zorp", init_text="blue",
            template="captions", learning_rate=WORD_RATE, steps=STEPS // 2,
        )  # fmt: skip
        trained, _, _, run, *_ = lora(word, knows, STEPS - STEPS // 2)
        return trained, knows, word, run
    images, held_out = sets("{word}")
    trained, knows, _, _, word, _, run, _ = run_node(
        "BespokeTrainWordAndLora", **wires | dict(images=images, validation_images=held_out), name="zorp",
        init_text="blue", word_learning_rate=WORD_RATE, steps=STEPS, word_until=0.5 if "half" in how else 1.0, **LORA,
    )  # fmt: skip
    return trained, knows, word, run


WAYS = ("one run", "two runs", "rare token", "one run, word until half")[: int(os.environ.get("BESPOKE_BENCH_WAYS", 3))]


def drawn(run_node, model, clip, vae, prompts, each):
    from helpers import sample

    return sample(run_node, model, clip, vae, prompts, each, cfg=CFG, steps=6, seed=500)


def right(pictures, wanted, each, names=("colour", "shape")):
    """How many pictures show what their prompt names. wanted: (colour, shape) of each prompt. names: what counts."""
    from helpers import share

    groups = [pictures[i * each : (i + 1) * each] for i in range(len(wanted))]
    kinds = [{k: v for k, v in {"colour": colour, "shape": shape}.items() if k in names} for colour, shape in wanted]
    return sum(round(share(group, **kind) * each) for group, kind in zip(groups, kinds, strict=True))


_before = []  # the base's pictures at the class prompts, which are those of every row


def measure(run_node, small, how, seed):
    model, clip, vae = small
    begun = time.monotonic()
    trained, knows, word, run = learn(run_node, small, how, seed)
    took = time.monotonic() - begun
    new = drawn(run_node, trained, knows, vae, [f"a {word} {shape} on {ground}" for shape, ground in PROMPTS], EACH)
    others = [f"a {colour} {shape} on {ground}" for colour, shape, ground in CLASS]
    if not _before:
        _before.extend(drawn(run_node, model, clip, vae, others, CLASS_EACH))
    before, after = _before, drawn(run_node, trained, knows, vae, others, CLASS_EACH)
    change = [
        np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2) ** 0.5 for a, b in zip(before, after, strict=True)
    ]
    known, taught = [(colour, shape) for colour, shape, _ in CLASS], [("teal", shape) for shape, _ in PROMPTS]
    return {
        "validation": run.held_out[-1][1],
        "at the start": run.held_out[0][1],
        "teal": right(new, taught, EACH, ("colour",)),
        "right": right(new, taught, EACH),
        "class right": right(after, known, CLASS_EACH),
        "class right before": right(before, known, CLASS_EACH),
        "leak": float(np.mean(change)),
        "seconds": took,
    }


def table(rows):
    lines = [f"{STEPS} steps; mean of the seeds, and each seed"]
    seeds = [seed for seed in range(SEEDS) if all(f"{seed}/{STEPS}/{how}" in rows for how in WAYS)]
    for how in WAYS if seeds else ():
        own = [rows[f"{seed}/{STEPS}/{how}"] for seed in seeds]
        shown = ", ".join(
            f"{name} {statistics.mean(row[name] for row in own):.4g} ({' '.join(f'{row[name]:.4g}' for row in own)})"
            for name in own[0]
        )
        lines.append(f"{how}: {shown}")
    return lines


def test_table(small, run_node):
    path = Path(os.environ.get("BESPOKE_BENCH_ROWS", "bench_word_and_lora.json"))
    rows = json.loads(path.read_text()) if path.is_file() else {}
    begun = time.monotonic()
    for seed in range(SEEDS):
        for how in WAYS:
            key = f"{seed}/{STEPS}/{how}"
            if key in rows or time.monotonic() - begun > SECONDS:
                continue
            rows[key] = measure(run_node, small, how, seed)
            path.write_text(json.dumps(rows, indent=1))
            print(f"\n{key}: {rows[key]}", flush=True)
    print("\n" + "\n".join(table(rows)))
    assert rows
