"""Whether `preserve` lowers the leak at an equal held-out loss, on the small model.

    python3 dev.py test -m bench tests/bench/bench_preserve.py -s

A LoRA learns the colour teal from twelve pictures as a new word, with prompts of `preserve` and without. After each
validation the leak is measured at three groups of prompts, with the meter of the trainer: the class prompts that
`preserve` names, class prompts that it does not name, and the captions without the new word. The table has the leak at
the last step, and at equal held-out loss: each curve where it first comes down to the level that every variant of the
seed reaches, between two validations by interpolation.

BESPOKE_BENCH_STEPS (40) and BESPOKE_BENCH_SEEDS (3) change its length. Each training is a test of its own, which keeps
its numbers in pytest's cache, so that they can run one by one (`-k`); `test_table` prints the seeds that are complete.
"""

import os
import statistics
from dataclasses import replace

import pytest

pytestmark = [pytest.mark.bench, pytest.mark.usefixtures("no_progress_bars")]

STEPS, SEEDS = int(os.environ.get("BESPOKE_BENCH_STEPS", 40)), int(os.environ.get("BESPOKE_BENCH_SEEDS", 3))
EVERY, BATCH, RANK, RATE = 10, 2, 8, 2e-3
WORD = "zorp"
NAMED = ["a circle", "a square on white", "a picture of a ring", "a red triangle", "a blue cross on black"]
OTHERS = ["a green diamond", "a yellow circle on white", "a purple square", "a photo of a cross", "an orange ring"]
VARIANTS = {"off": ("", 1.0), "weight 1": ("\n".join(NAMED), 1.0), "weight 4": ("\n".join(NAMED), 4.0)}
GROUPS = ("named", "not named", "without the word")


def sets():
    from helpers import image_set, sprite_set

    made = [sprite_set(seed, count, word=WORD, colour="teal") for seed, count in ((1, 12), (77, 2))]
    return [image_set([replace(item, trigger=WORD) for item in images.items]) for images in made]


class Meters:
    """The trainer's meter at each group of prompts. measured: takes [step, leak] of each."""

    def __init__(self, meter, without, measured):
        self.steps, self.measured, levels = meter.steps, measured, len(meter.batches[0].t)
        named, others = (
            [prompts_of_rows(prompts, levels, number) for number in range(len(meter.batches))]
            for prompts in (NAMED, OTHERS)
        )
        self.first = replace(meter, others=named)
        # In the place of the captions, whose change is known already, a third group.
        self.second = replace(meter, others=others, captions=[[prompt] * levels for prompt in without])

    def measure(self, step):
        from bespoke.training.leak import LeakPoint

        first, second = self.first.measure(step), self.second.measure(step)
        for group, change in zip(GROUPS, (first.other, second.other, second.own), strict=True):
            self.measured[group].append([step, LeakPoint(step, change, first.own).leak])
        return first


def prompts_of_rows(prompts, levels, number):
    from bespoke.training.leak import spread

    return spread(prompts, levels, number * levels)


def curves_of(small, run_node, monkeypatch, seed, variant):
    """{"held out": [[step, loss]], each of `GROUPS`: [[step, leak]], "seconds": of a step}."""
    from bespoke.nodes.bridge import trainer
    from bespoke.nodes.lora.training import preserve, technique
    from bespoke.training.config import TrainConfig
    from bespoke.training.leak import LeakPlan

    images, held_out = sets()
    without = {preserve.untriggered_prompt(item) for item in held_out.items}
    measured = {group: [] for group in GROUPS}
    own, needed = preserve.BaseComparison.leak_meter, technique.needed_prompts

    def leak_meter(self, indices, *rest):
        untriggered = [preserve.untriggered_prompt(self._pictures.items[index]) for index in indices]
        return Meters(own(self, indices, *rest), untriggered, measured)

    monkeypatch.setattr(TrainConfig, "validate_every", EVERY)
    monkeypatch.setattr(preserve.BaseComparison, "leak_meter", leak_meter)
    monkeypatch.setattr(trainer, "plan_leak", lambda *args: LeakPlan(1, tuple(range(EVERY, STEPS + 1, EVERY))))
    monkeypatch.setattr(technique, "needed_prompts", lambda *args: needed(*args) | without | {*NAMED, *OTHERS})
    model, clip, vae = small
    text, weight = VARIANTS[variant]
    *_, run, _, _ = run_node(
        "BespokeTrainLora", model=model, clip=clip, vae=vae, images=images, validation_images=held_out, seed=seed,
        learning_rate=RATE, steps=STEPS, batch_size=BATCH, rank=RANK, alpha=float(RANK), resume=False, keep="last",
        score_pictures="off", preserve=text, preserve_weight=weight,
    )  # fmt: skip
    return {"held out": [list(point) for point in run.held_out], **measured, "seconds": run.seconds / STEPS}


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("seed", range(SEEDS))
def test_one_training(small, run_node, monkeypatch, request, seed, variant):
    found = curves_of(small, run_node, monkeypatch, seed, variant)
    request.config.cache.set(f"bench_preserve/{STEPS}/{seed}/{variant}", found)
    print(f"\nseed {seed}, {variant}: {found}")
    assert all(len(found[group]) == STEPS // EVERY for group in GROUPS)


def at_level(found, group, level):
    """(the leak, the step) where the held-out loss first comes down to `level`, by interpolation."""
    losses, leaks = dict(map(tuple, found["held out"])), dict(map(tuple, found[group]))
    leaks = {0: leaks[EVERY], **leaks}  # there is no leak before the first step
    steps = sorted(leaks)
    for before, after in zip(steps, steps[1:], strict=False):
        if losses[after] <= level < losses[before]:
            part = (losses[before] - level) / (losses[before] - losses[after])
            return leaks[before] + part * (leaks[after] - leaks[before]), before + part * (after - before)
    raise AssertionError(f"{level} is not reached")


def table(by_seed):
    """The lines of the table. by_seed: for each seed {variant: what `curves_of` gives}."""
    mean, lines = statistics.mean, [f"{STEPS} steps of {BATCH}, {len(by_seed)} seeds; leak at {', '.join(GROUPS)}"]
    variants = [variant for variant in VARIANTS if all(variant in known for known in by_seed)]
    levels = [max(min(loss for _, loss in known[v]["held out"]) for v in variants) for known in by_seed]
    for variant in variants:
        runs = [known[variant] for known in by_seed]
        equal = [[at_level(run, group, level) for group in GROUPS] for run, level in zip(runs, levels, strict=True)]
        numbers = {
            "at equal held-out loss": [mean(row[i][0] for row in equal) for i in range(len(GROUPS))],
            "at the end": [mean(run[group][-1][1] for run in runs) for group in GROUPS],
        }
        shown = " | ".join(f"{name} {' '.join(f'{leak:.3f}' for leak in leaks)}" for name, leaks in numbers.items())
        single = "; ".join(f"{row[0][0]:.3f} {row[1][0]:.3f} {row[2][0]:.3f} step {row[0][1]:.0f}" for row in equal)
        lines.append(
            f"{variant:>9}: {shown} | held-out loss {mean(run['held out'][0][1] for run in runs):.5f} to "
            f"{mean(min(loss for _, loss in run['held out']) for run in runs):.5f} | "
            f"{mean(run['seconds'] for run in runs):.2f} s a step | of each seed: {single}"
        )
    return lines


def test_table(request):
    known = [
        {variant: request.config.cache.get(f"bench_preserve/{STEPS}/{seed}/{variant}", None) for variant in VARIANTS}
        for seed in range(SEEDS)
    ]
    complete = [found for found in known if all(found.values())]
    assert complete, "run test_one_training first"
    print("\n" + "\n".join(table(complete)))
