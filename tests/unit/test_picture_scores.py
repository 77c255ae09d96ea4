"""The losses of single pictures: how a record keeps them, what is scored, and what stands out."""

from __future__ import annotations

import json
import math

import pytest
import torch
from bespoke.training.config import TrainConfig
from bespoke.training.data import LatentSet
from bespoke.training.distributed import World
from bespoke.training.picture_scores import (
    LONGEST_NAME,
    MOST_PICTURES,
    PictureLosses,
    add_losses,
    joined,
    share_of_run,
    until,
)
from bespoke.training.record import Run, RunInfo
from bespoke.training.run_identity import defaults_of, run_id
from bespoke.training.validation import TIMESTEPS, grid_batch, shared_numbers, validation_batches

CPU = torch.device("cpu")


def run_of(*rows, **more):
    return Run(RunInfo("lora-000000000001", "lora", {}, "base", 4), pictures=list(rows), **more)


def test_a_record_keeps_the_losses_of_pictures():
    rows = []
    add_losses(rows, 0, {("cats", "1.png"): 0.123456789, ("dogs", "1.png"): math.nan}, False, {("cats", "1.png"): 0.5})
    add_losses(rows, 0, {("cats", "1.png"): 0.3}, True)
    add_losses(rows, 40, {("cats", "1.png"): 0.1}, False)
    add_losses(rows, 40, {("cats", "1.png"): 0.2}, False)  # of the same step: the later one counts
    again = Run.from_json(run_of(*rows).to_json()).pictures
    assert str(again) == str(rows)  # NaN is no equal of itself
    cat, dog, held_out = again
    assert (cat.source, cat.name, cat.held_out, cat.points) == ("cats", "1.png", False, [(0, 0.123457), (40, 0.2)])
    assert cat.caption_gain == 0.5
    assert cat.change == pytest.approx(math.log(0.2 / 0.123457))
    assert math.isnan(dog.start)
    assert math.isnan(dog.change)
    assert held_out.held_out
    assert held_out.path == "cats/1.png"


def test_a_record_of_an_earlier_version_has_no_pictures():
    values = json.loads(run_of(PictureLosses("", "a", False, [(0, 1.0)])).to_json())
    del values["pictures"]
    assert Run.from_values(values).pictures == []


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        "text",
        3,
        [3],
        [["a"]],
        [["a", 1, True, []]],
        [["a", "b", 0, []]],
        [["a", "b", True, 5]],
        [["a", "b", True, [[0]]]],
        [["a", "b", True, [["x", 1.0]]]],
        [["a", "b", True, [[math.inf, 1.0]]]],
        [["a", "b", True, [], "x"]],
    ],
)
def test_wrong_rows_are_refused(wrong):
    values = json.loads(run_of().to_json()) | {"pictures": wrong}
    with pytest.raises(ValueError):
        Run.from_values(values)


def test_the_record_of_ten_thousand_pictures_stays_small():
    """At most 3 MB for long names of ten thousand pictures, of which no more are kept."""
    rows = []
    for step in (0, 400):
        add_losses(rows, step, {("folder", "x" * 300 + f"{i:06}"): 0.123456 for i in range(MOST_PICTURES + 50)}, False)
    assert len(rows) == MOST_PICTURES
    assert all(len(row.name) == LONGEST_NAME for row in rows)
    assert len(run_of(*rows).to_json()) < 3_000_000


def test_an_earlier_sitting_is_cut_at_the_step_of_its_state():
    rows = [
        PictureLosses("", "a", False, [(0, 1.0), (40, 0.5)]),
        PictureLosses("", "b", True, [(0, 1.0), (10, 0.9), (20, 0.8)]),
        PictureLosses("", "c", True, [(20, 0.8)]),
    ]
    assert [row.points for row in until(rows, 10)] == [[(0, 1.0)], [(0, 1.0), (10, 0.9)]]
    resumed = run_of()
    resumed.restore_progress(run_of(*rows), 10)
    assert [row.name for row in resumed.pictures] == ["a", "b"]
    # A last training after cross-validation has the held-out losses of its folds, and not those of an earlier sitting.
    final = run_of(PictureLosses("", "d", True, [(0, 2.0)]))
    final.restore_progress(run_of(*rows), 50, held_out=False)
    assert [(row.name, row.held_out) for row in final.pictures] == [("a", False), ("d", True)]
    folds = [[rows[1]], [rows[2], rows[0]], [rows[1]._replace(points=[])]]
    assert joined(folds) == [rows[1], rows[2]]


def test_the_setting_is_no_part_of_a_runs_identity():
    """It changes nothing that is learned, so a run can be queued again to be scored."""
    settings = {"steps": 10, "rank": 4, "score_pictures": "auto"}
    ids = {
        run_id("lora", settings | {"score_pictures": value}, "images", "base", defaults_of(TrainConfig))
        for value in ("auto", "off", "on")
    }
    assert len(ids) == 1


def test_the_grid_of_a_trained_picture_is_that_of_a_held_out_one():
    data = LatentSet([torch.randn(1, 4, 2, 2) for _ in range(3)], [None, torch.ones(1, 1, 2, 2), None])
    (held_out,) = validation_batches(data, [1], CPU)
    trained = grid_batch(data, 1, 0, CPU)
    assert torch.equal(trained.noise, held_out.noise)
    assert torch.equal(trained.t, torch.tensor(TIMESTEPS))
    assert trained.caption_indices == [1] * 5
    some = grid_batch(data, 1, 0, CPU, captioned=False, positions=(1, 3))
    assert some.caption_indices == [-1] * 2
    assert torch.equal(some.noise, trained.noise[[1, 3]])
    assert torch.equal(some.t, trained.t[[1, 3]])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_processes_share_the_batches_and_all_go_on_alike(size):
    """Each of three processes computes its batches only; the sum of what they found is that of one."""
    parts, asked = [], []
    for rank in range(size):

        class Shared(World):
            def all_reduce_numbers(self, numbers):
                parts.append(list(numbers))
                return list(numbers)

        def goes_on(done):
            asked.append(done)
            return True

        shared_numbers(5, 2, lambda number: [number + 1.0, -number], Shared(rank, size), goes_on)
    assert [sum(numbers) for numbers in zip(*parts, strict=True)] == [1, 0, 2, -1, 3, -2, 4, -3, 5, -4]
    assert asked == [*range(0, 5, size)] * size


def test_scoring_ends_where_it_is_told_to():
    computed = []

    def compute(number):
        computed.append(number)
        return [0.0]

    assert shared_numbers(9, 1, compute, None, lambda done: done < 3) is None
    assert computed == [0, 1, 2]


def test_the_cost_of_scores():
    """12 pictures at 5 timesteps, twice, are 120 forward passes; 400 steps of 4 samples of 2.2 are 3520."""
    assert share_of_run(TrainConfig(400, 1e-4, 4, 0), 120) == pytest.approx(120 / 3520)
    checkpointed = TrainConfig(400, 1e-4, 2, 0, gradient_accumulation=2, gradient_checkpointing=True)
    assert share_of_run(checkpointed, 120) == pytest.approx(120 / (400 * 4 * 3.2))
