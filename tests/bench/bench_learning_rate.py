"""LoRA trainings at seven learning rates in twelve cells, scored on pictures of validation and on pictures never seen.

    BESPOKE_BENCH_ROWS=rows.json python3 dev.py test -m bench tests/bench/bench_learning_rate.py -s -k grid

A cell is a concept (teal, a colour; heart, a shape; smiley, one of OpenMoji's faces), a rank and a seed. Each trains
for `STEPS` steps of `BATCH` pictures in bf16 at each of `RATES` with the node's other defaults, on one thread. Of each
concept there are 12 pictures to train on, 4 for validation and 4 that neither of them has; no two of the 20 are equal.

`-k found` then runs Find Learning Rate for each cell whose grid is whole, with the grid's range and with the 4 pictures
of validation, and prints the found rate, its loss over the grid's lowest, and that of the trainer's default rate; its
rows are in a file beside the other, which ends in .found.json. `-k share` measures its share of the time of the
training, on the first cell.

BESPOKE_BENCH_ROWS (.dev/bench/learning_rate.json) is the file of rows. It is written after each training, and a row
that is there is not computed again, so that the grid can be made in several sittings. No training begins later than
BESPOKE_BENCH_SECONDS (150) after the start. Cells are finished one after the other. A training of 200 steps has 11
scorings of 8 pictures besides and takes about 40 s of one core: the whole grid about an hour of one core.

The file is one JSON object, {key: row}. The key is "CONCEPT | rank RANK | seed SEED | RATE" with the rate as %g. A row:

    concept, rank, seed, rate, steps, batch: what was trained.
    curve: [[step, loss]]: the validation curve, the mean over its 4 pictures at the 5 fixed noise levels. It begins
        with step 0, the base.
    unseen: [[step, loss]]: the same of the 4 pictures that neither training nor validation has, at the same steps.
    samples: [[step, [40 losses]]]: those two means are made of these: picture by picture, the 4 of validation first,
        each at t = 0.1, 0.3, 0.5, 0.7, 0.9. The same place has the same picture, t and noise in every row of a concept.
    losses: the training loss of each step.
    seconds: of the whole call of the node, with its scorings.
    error: "" or why the training broke off; the curves then end early.

Every row is scored at step 0 and the steps `SCORED`: every 25 steps, and twice in the first steps.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytestmark = [pytest.mark.bench, pytest.mark.usefixtures("no_progress_bars", "one_thread")]

ROWS = Path(
    os.environ.get("BESPOKE_BENCH_ROWS") or Path(__file__).resolve().parents[2] / ".dev/bench/learning_rate.json"
)
FOUND = ROWS.with_suffix(".found.json")  # the rows of the finder, which may run beside the grid
SECONDS = float(os.environ.get("BESPOKE_BENCH_SECONDS", 150))
STEPS, BATCH = 200, 1
RATES = tuple(float(f"{1e-4 * 10 ** (0.4 * i):.2g}") for i in range(7))  # 1e-4 (the default) to 0.025
CONCEPTS, RANKS, SEEDS = ("teal", "heart", "smiley"), (4, 16), (0, 1)
SCORED = (8, 16, 25, 50, 75, 100, 125, 150, 175, 200)  # steps, besides 0
TRAINED, VALIDATED, UNSEEN = 12, 4, 4  # pictures
LEVELS = 5  # noise levels of each

Cell = tuple[str, int, int]  # concept, rank, seed
CELLS: list[Cell] = [(concept, rank, seed) for seed in SEEDS for rank in RANKS for concept in CONCEPTS]


def pictures(concept: str) -> tuple[Any, Any]:
    """(12 pictures to train on, 8 to score: 4 of validation, then 4 that nothing else has); all differ."""
    from bespoke.training.images import TrainingImage
    from helpers import image_set, sprite_set

    if concept == "smiley":
        import smileys

        pairs = smileys.pictures(smileys.TRAINED[:TRAINED]) + smileys.pictures(smileys.HELD_OUT[: VALIDATED + UNSEEN])
        items = [TrainingImage(f"{i}", torch.from_numpy(np.array(p)), text) for i, (p, text) in enumerate(pairs)]
    else:
        kind = {"colour": "teal"} if concept == "teal" else {"shape": "heart"}
        different = {item.pixels.numpy().tobytes(): item for item in sprite_set(1, 300, **kind).items}
        items = list(different.values())[: TRAINED + VALIDATED + UNSEEN]
    assert len({item.pixels.numpy().tobytes() for item in items}) == TRAINED + VALIDATED + UNSEEN
    return image_set(items[:TRAINED]), image_set(items[TRAINED:])


@pytest.fixture
def scored_samples(monkeypatch):
    """[(step, losses of the samples)] of the trainings since it was emptied; the leak is not measured."""
    from bespoke.nodes.bridge import trainer
    from bespoke.training import validation
    from bespoke.training.loop import Training

    taken: list[tuple[int, list[float]]] = []
    of_one_scoring: list[float] = []

    def scorer(batches, loss, *rest):
        def kept(batch):
            losses = loss(batch)
            of_one_scoring.extend(losses.double().tolist())
            return losses

        return validation.validation_scorer(batches, kept, *rest)

    own = Training._validate

    def validate(self):
        of_one_scoring.clear()
        loss = own(self)
        taken.append((self.steps_done, list(of_one_scoring)))
        return loss

    monkeypatch.setattr(trainer, "validation_scorer", scorer)
    monkeypatch.setattr(trainer, "plan_leak", lambda *args: None)
    monkeypatch.setattr(Training, "_validate", validate)
    monkeypatch.setattr(Training, "_is_validation_step", lambda self: self.steps_done in SCORED)
    return taken


def train(small, run_node, samples, cell: Cell, rate: float) -> dict[str, Any]:
    """The row of one training; see the top of this file."""
    from bespoke.training.errors import InputError

    concept, rank, seed = cell
    model, clip, vae = small
    images, scored = pictures(concept)
    samples.clear()
    began, error, losses = time.monotonic(), "", []
    try:
        *_, run, _, _ = run_node(
            "BespokeTrainLora",
            model=model,
            clip=clip,
            vae=vae,
            images=images,
            validation_images=scored,
            seed=seed,
            steps=STEPS,
            batch_size=BATCH,
            rank=rank,
            alpha=float(rank),
            learning_rate=rate,
            precision="bf16",
            resume=False,
            score_pictures="off",
        )
        losses = [round(loss, 6) for loss in run.losses]
    except (InputError, RuntimeError, ArithmeticError) as failure:  # numbers that overflow
        error = str(failure)
    own = VALIDATED * LEVELS
    return {
        "concept": concept,
        "rank": rank,
        "seed": seed,
        "rate": rate,
        "steps": STEPS,
        "batch": BATCH,
        "curve": [[step, float(np.mean(each[:own]))] for step, each in samples],
        "unseen": [[step, float(np.mean(each[own:]))] for step, each in samples],
        "samples": [[step, [round(loss, 7) for loss in each]] for step, each in samples],
        "losses": losses,
        "seconds": time.monotonic() - began,
        "error": error,
    }


def key_of(cell: Cell, rate: float) -> str:
    concept, rank, seed = cell
    return f"{concept} | rank {rank} | seed {seed} | {rate:g}"


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    return json.loads(path.read_text()) if path.is_file() else {}


def write_rows(path: Path, rows: dict[str, dict[str, Any]]) -> None:
    """Replace the file at once, so that a reader never finds half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in rows.items()) + "\n}\n")
    part.replace(path)


def lowest(row: dict[str, Any]) -> float:
    """The loss of what the node keeps: the lowest of validation after the start; infinite where there is none."""
    return min((loss for step, loss in row["curve"] if step > 0 and np.isfinite(loss)), default=float("inf"))


def print_grid(rows: dict[str, dict[str, Any]]) -> None:
    """The lowest validation loss over the base's, by cell and rate, of the cells that are whole."""
    print(
        f"\nlowest validation loss / base\n{'':28}" + "".join(f"{rate:>9g}" for rate in RATES) + "   unseen, same step"
    )
    for cell in CELLS:
        keys = [key_of(cell, rate) for rate in RATES]
        if not all(key in rows for key in keys):
            continue
        found = [rows[key] for key in keys]
        shares = [lowest(row) / row["curve"][0][1] for row in found]
        best = found[int(np.argmin(shares))]
        step = min(best["curve"][1:], key=lambda point: point[1])[0]
        unseen = dict(best["unseen"])
        print(
            f"{cell[0]:8} rank {cell[1]:2}, seed {cell[2]}     " + "".join(f"{share:9.4f}" for share in shares),
            f"  {unseen[step] / unseen[0]:.4f} at {best['rate']:g}, step {step}",
            flush=True,
        )


def test_grid_of_rates(small, run_node, scored_samples):
    began, rows = time.monotonic(), read_rows(ROWS)
    for cell in CELLS:
        for rate in RATES:
            key = key_of(cell, rate)
            if key in rows:
                continue
            if time.monotonic() - began > SECONDS:
                print_grid(rows)
                pytest.skip(f"{len(rows)} of {len(CELLS) * len(RATES)} rows are done; run it again to go on")
            rows[key] = train(small, run_node, scored_samples, cell, rate)
            write_rows(ROWS, rows)
            row = rows[key]
            base = row["curve"][0][1] if row["curve"] else float("nan")
            print(
                f"{key}: {lowest(row) / base:.4f} of the base, {row['seconds']:.1f} s {row['error'][:60]}", flush=True
            )
    print_grid(rows)


DEFAULT = 1e-4  # the trainer's
TOLERANCE, WANTED = 1.05, 11  # the found rate's loss over the grid's lowest, in at least so many of the twelve cells


def settings_of(small, cell: Cell) -> dict[str, Any]:
    """The inputs that finder and trainer share."""
    concept, rank, seed = cell
    model, clip, vae = small
    images, scored = pictures(concept)
    validation = type(scored)(scored.items[:VALIDATED], "", f"{scored.fingerprint} validation")
    return dict(
        model=model,
        clip=clip,
        vae=vae,
        images=images,
        validation_images=validation,
        seed=seed,
        steps=STEPS,
        batch_size=BATCH,
        rank=rank,
        alpha=float(rank),
        precision="bf16",
    )


def find(run_node, inputs: dict[str, Any]) -> tuple[float, str]:
    rate, _, report = run_node(
        "BespokeFindLearningRate", **inputs, lowest=RATES[0], highest=RATES[-1], probes=len(RATES), resume=False
    )
    return rate, report


def exponent(report: str, grid: dict[float, float]) -> float:
    """By how much the lowest point of the grid lies below that of the probes, as a power of their share of the steps.

    The mean over the cells is `rate_search.HORIZON`.
    """
    from bespoke.training.rate_search import _to_lowest_point

    probes = {float(rate): float(loss) for rate, loss in re.findall(r"(?m)^([\d.e-]+) \| ([\d.]+) \|", report)}
    steps = int(re.search(r"the first (\d+) of", report)[1])
    best_probe = float(re.search(r"([\d.e-]+) has the lowest loss", report)[1])
    best = min(grid, key=lambda rate: grid[rate])
    logs = {rate: math.log(loss) for rate, loss in grid.items()}
    shift = math.log(best) + _to_lowest_point(best, logs) - math.log(best_probe) - _to_lowest_point(best_probe, probes)
    return shift / math.log(steps / STEPS)


def test_found_rates_against_the_grid(small, run_node):
    """Without a row of the finder the cell is searched now; the grid of rates has to be whole."""
    rows, searches = read_rows(ROWS), read_rows(FOUND)
    whole = [cell for cell in CELLS if all(key_of(cell, rate) in rows for rate in RATES)]
    within, exponents = {"found": 0, "default": 0}, list[float]()
    print(f"\n{'':26}{'found':>9}{'over best':>11}{'best':>9}{'default over best':>19}")
    for cell in whole:
        key = key_of(cell, 0.0).rpartition(" | ")[0]
        if key not in searches:
            rate, report = find(run_node, settings_of(small, cell))
            searches[key] = {"rate": rate, "report": report}
            write_rows(FOUND, searches)
        rate = searches[key]["rate"]
        losses = {each: lowest(rows[key_of(cell, each)]) for each in RATES}
        best = min(losses, key=lambda each: losses[each])
        over = {"found": losses[rate] / losses[best], "default": losses[DEFAULT] / losses[best]}
        for name, ratio in over.items():
            within[name] += ratio <= TOLERANCE
        exponents.append(exponent(searches[key]["report"], losses))
        print(f"{key:26}{rate:>9g}{over['found']:>11.3f}{best:>9g}{over['default']:>19.3f}", flush=True)
    print(f"within 5 % of the best: found {within['found']}, default {within['default']} of {len(whole)} cells")
    print(f"exponent of the length: {' '.join(f'{each:.2f}' for each in exponents)}, mean {np.mean(exponents):.3f}")
    if len(whole) < len(CELLS):
        pytest.skip(f"{len(whole)} of {len(CELLS)} grids are whole")
    assert within["found"] >= WANTED


def test_share_of_the_time(small, run_node):
    """Processor time of the search over that of the training that it serves, with the pictures encoded for both."""
    inputs = settings_of(small, CELLS[0])
    run_node("BespokeTrainLora", **inputs | {"steps": 1}, learning_rate=1e-3, resume=False, score_pictures="off")
    times = [time.process_time()]
    rate, report = find(run_node, inputs)
    times.append(time.process_time())
    run_node("BespokeTrainLora", **inputs, learning_rate=rate, resume=False, score_pictures="off")
    times.append(time.process_time())
    search, training = times[1] - times[0], times[2] - times[1]
    print(f"\n{report}\nsearch {search:.1f} s, training {training:.1f} s: {search / training:.3f}")
    assert search <= 0.2 * training
