"""Precision and recall of what a run says about its pictures: bad pictures planted among 12 and 24 sprites.

    python3 dev.py test -m bench tests/bench/bench_picture_findings.py -s

A set of 12 has one picture of each planted kind, a set of 24 two: a wrong caption (that of a sprite of another shape),
a foreign picture (a gradient, stripes or patches with a sprite's caption), and noise. Recall is the share of the
planted pictures that are named at all, and of those named as they should be; precision is the share of the named
pictures that were planted. The same sets without planted pictures show the false alarms. BESPOKE_BENCH_SEEDS (5)
shortens it.

Measured on one thread of a CPU; the limits of `picture_findings` were chosen on these sets:

    12 teal sprites, 5 seeds: wrong caption 4/5, foreign 5/5, noise 5/5; precision 14/14; clean sets with an alarm 0/5
    24 teal sprites, 5 seeds: wrong caption 9/10, foreign 9/10, noise 10/10; precision 28/28; clean ones 0/5
    12 sprites of seven colours, 5 seeds: wrong caption 5/5 (4 as such), foreign 5/5, noise 5/5; 15/15; clean ones 0/5

The second table: one picture of twelve is drawn eight times as often as the others, and three are held out.
"""

import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

pytestmark = [pytest.mark.bench, pytest.mark.usefixtures("no_progress_bars")]

SEEDS = int(os.environ.get("BESPOKE_BENCH_SEEDS", 5))


def counted(small, colour):
    """{set size: counts of what was planted and named} over the seeds."""
    import planted
    from bespoke.training.picture_findings import find

    counts = {12: Counter(), 24: Counter()}
    for seed in range(SEEDS):
        good, bad = planted.all_pictures(seed, colour)
        every = [*good, *(item for own in bad for item in own)]
        # A start loss depends on no other picture, so each is scored once for all sets.
        renamed = [replace(item, source=str(number)) for number, item in enumerate(every)]
        rows = dict(zip(map(id, every), planted.start_rows(small, renamed), strict=True))
        for size, count in counts.items():
            whole = planted.planted(seed, size, good, bad)
            named = {id(each.row): each.kind.label for each in find([rows[id(item)] for item in whole.items])}
            for item, kind in zip(whole.items, whole.kinds, strict=True):
                count[kind, named.get(id(rows[id(item)]), "")] += 1
            clean = find([rows[id(item)] for item in good[:size]])
            count["clean sets"] += 1
            count["false alarms in clean sets"] += len(clean)
            count["clean sets with an alarm"] += bool(clean)
    return counts


@pytest.mark.parametrize("colour", ["teal", None])
def test_planted_pictures_are_named(small, colour):
    import planted
    from bespoke.training.picture_findings import CAPTION, HARD

    wanted = {planted.CAPTION: CAPTION.label, planted.FOREIGN: HARD.label, planted.NOISE: HARD.label}
    for size, count in counted(small, colour).items():
        print(f"\n{size} sprites, {colour or 'seven known colours'}, {SEEDS} seeds")
        named = sum(n for key, n in count.items() if isinstance(key, tuple) and key[1])
        right = named - sum(n for key, n in count.items() if isinstance(key, tuple) and key[0] == "clean" and key[1])
        for kind, label in wanted.items():
            whole = sum(n for key, n in count.items() if key[0] == kind)
            found = whole - count[kind, ""]
            print(f"  {kind:14} recall {found}/{whole}, as such {count[kind, label]}/{whole}")
        print(f"  precision {right}/{named}")
        print(f"  clean sets with an alarm {count['clean sets with an alarm']}/{count['clean sets']}")


def test_a_picture_that_is_drawn_too_often_is_named(small, run_node):
    import planted
    from bespoke.training.picture_findings import BY_HEART, find
    from helpers import image_set

    model, clip, vae = small
    print()
    for seed in range(SEEDS):
        good, _ = planted.all_pictures(seed, "teal")
        often = 1 + seed
        for weight in (8.0, 1.0):
            items = [replace(item, weight=weight) if i == often else item for i, item in enumerate(good[:12])]
            *_, run, _, _ = run_node(
                "BespokeTrainLora",
                model=model,
                clip=clip,
                vae=vae,
                images=image_set(items),
                validation_images=image_set(good[12:15]),
                steps=120,
                batch_size=2,
                learning_rate=2e-3,
                seed=seed,
                keep="last",
                precision="fp32",
                score_pictures="on",
                resume=False,
            )
            heart = [each.row.name for each in find(run.pictures) if each.kind is BY_HEART]
            print(f"seed {seed}, {items[often].name} with weight {weight:g}: {', '.join(heart) or 'none'}", flush=True)
