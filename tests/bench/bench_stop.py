"""Whether a training that stops by its held-out losses keeps what is good on pictures that nobody looked at.

    BESPOKE_STOP_ROWS=rows.json python3 dev.py test -m bench tests/bench/bench_stop.py -s

The rows are those of bench_learning_rate.py, of each cell the one at the rate that Find Learning Rate has found for it
(the file beside it that ends in .found.json); without that file all of them. They are trainings that were run to their
last step, {name: {"steps", "samples": [[step, [losses]]], "unseen": [[step, loss]]}}. The first `VALIDATED` losses of a
step are of the held-out samples; the unseen loss is that of pictures that neither training nor validation saw. For each
rule the table has the step at which it ends, the step that is kept (the lowest held-out loss up to there), the loss on
the unseen pictures at that step over their lowest of all steps, and the share of the steps that is saved.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from bespoke.training.adapters import AdapterConfig, AdapterSet, LoraAdapter
from bespoke.training.config import TrainConfig
from bespoke.training.loop import Training
from bespoke.training.stopping import ALL_STEPS, STOPS, StopRule
from torch import nn

pytestmark = pytest.mark.bench

VALIDATED = 20  # samples: 4 pictures at 5 noise levels
GOAL = 1.03  # the unseen loss of the kept step over the lowest one
ROWS = os.environ.get("BESPOKE_STOP_ROWS", "")


def outcome(row, stop):
    """(last step, kept step, unseen loss of that one over the lowest, share of the steps saved)."""
    rule, seen = StopRule(stop), {}
    for step, losses in ((step, losses[:VALIDATED]) for step, losses in row["samples"]):
        rule.take(losses)
        rule.add(step)
        seen[step] = sum(losses) / len(losses)
        if rule.is_over:
            break
    last = max(seen)
    kept = min(seen, key=seen.get) or last  # the start is no result: the last step is kept then
    unseen = dict(map(tuple, row["unseen"]))
    return last, kept, unseen[kept] / min(loss for step, loss in unseen.items() if step), 1 - last / row["steps"]


def show(rows):
    """Print the table; each rule has to keep a step that is within `GOAL`."""
    missed = []
    print(f"\n{'training':44}" + "".join(f"{stop:>34}" for stop in STOPS))
    for name, row in rows.items():
        made = [outcome(row, stop) for stop in STOPS]
        shown = (f"{last:10} keeps {kept:4} {ratio:6.3f} {saved:5.0%}" for last, kept, ratio, saved in made)
        print(f"{name:44}" + "".join(shown))
        missed += [(name, stop) for stop, (_, _, ratio, _) in zip(STOPS, made, strict=True) if ratio > GOAL]
    for stop in STOPS:
        made = [outcome(row, stop) for row in rows.values()]
        within, saved = sum(ratio <= GOAL for _, _, ratio, _ in made), sum(each[3] for each in made) / len(made)
        worst = max(each[2] for each in made)
        print(
            f"{stop}: {within} of {len(made)} within {GOAL - 1:.0%}, worst {worst:.3f}, {saved:.0%} of the steps saved"
        )
    assert not [each for each in missed if each[1] != ALL_STEPS]


@pytest.mark.skipif(not ROWS, reason="BESPOKE_STOP_ROWS names no rows")
def test_table():
    rows, found = json.loads(Path(ROWS).read_text()), Path(ROWS).with_suffix(".found.json")
    if found.is_file():
        rates = {f"{cell} | {row['rate']:g}" for cell, row in json.loads(found.read_text()).items()}
        rows = {name: row for name, row in rows.items() if name in rates}
    show({name: row for name, row in rows.items() if row.get("samples")})


def regression(seed, rate, steps=300, count=8, width=12, out=6):
    """A row: a LoRA of rank 4 learns a change of rank 1 of a linear layer from 8 noisy samples, by the real loop."""
    draw = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    layer = nn.Linear(width, out).requires_grad_(False)
    change = torch.randn(out, 1, generator=draw) @ torch.randn(1, width, generator=draw) * 0.6

    def samples(number):
        x = torch.randn(number, width, generator=draw)
        return x, x @ (layer.weight + change).T + layer.bias + torch.randn(number, out, generator=draw)

    trained, held_out, unseen = samples(count), samples(VALIDATED), samples(400)
    lora = AdapterSet(LoraAdapter, {"a.to_q": layer}, AdapterConfig(4, 4.0, seed), torch.device("cpu"))
    row = {"steps": steps, "samples": [], "unseen": []}

    def loss(micro):
        chosen = torch.randint(count, (2,), generator=torch.Generator().manual_seed(seed * 100_000 + micro))
        return (layer(trained[0][chosen]) - trained[1][chosen]).square().mean()

    def score():
        losses = (layer(held_out[0]) - held_out[1]).square().mean(1).tolist()
        row["samples"].append([run.steps_done, losses])
        row["unseen"].append([run.steps_done, float((layer(unseen[0]) - unseen[1]).square().mean())])
        return sum(losses) / len(losses)

    run = Training(lora, loss, TrainConfig(steps=steps, learning_rate=rate, batch_size=1, seed=seed), score)
    with lora.attached():
        run.initial_validation_loss()
        assert len(list(run)) == steps
    return row


def test_regression():
    """Small trainings with a validation at each twentieth, most of which over-fit."""
    show({f"rate {rate:g} | seed {seed}": regression(seed, rate) for rate in (1e-3, 3e-3) for seed in range(2, 6)})
