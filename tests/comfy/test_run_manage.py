"""What a user does with a run in the list: rename, remove, export; and the phases that its node shows."""

from __future__ import annotations

import asyncio
import csv
import inspect
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bespoke.nodes.bridge.runs import events, live, manage, routes
from bespoke.nodes.bridge.runs.index import RunIndex
from bespoke.nodes.bridge.runs.loss_file import LOSSES
from bespoke.nodes.bridge.runs.store import RunStore
from bespoke.nodes.bridge.runs.training_picture import PICTURE, keep_training_picture
from bespoke.nodes.bridge.web import RequestRefused
from bespoke.nodes.extension import BespokeExtension
from bespoke.training.errors import InputError
from bespoke.training.record import Run, RunState
from helpers import sprite_set
from PIL import Image
from run_records import make_run


@pytest.fixture
def run(comfyui, tmp_path, monkeypatch):
    """A finished run of 4 steps, in a folder of its own."""
    monkeypatch.setattr("folder_paths.get_user_directory", lambda: str(tmp_path))
    settings = {"steps": 4, "learning_rate": 0.01, "lr_schedule": "linear", "warmup_steps": 1}
    made = make_run("lora-0123456789ab", "lora", settings, "base", 3, state=RunState.FINISHED)
    made.losses, made.held_out = [0.5, math.nan, 0.25, 0.125], [(0, 0.9), (4, 0.7)]
    RunStore(made.id).save_record(made)
    return made


def body(**values) -> bytes:
    return json.dumps(values).encode()


def test_a_label_is_listed_searched_and_kept_by_a_later_save(run):
    """Oracle: the text that was sent."""
    assert manage.rename_run(run.id, body(label="  my  best\n")) == {"id": run.id, "label": "my best"}
    (listed,) = RunIndex().look().summaries("best MY")
    assert listed.label == "my best"
    assert RunStore(run.id).record().losses[3] == 0.125  # the losses stay
    assert json.loads(routes.record_for_page(run.id))["label"] == "my best"
    manage.rename_run(run.id, body(label=""))
    assert RunIndex().look().summaries("best MY") == []


def test_a_running_run_keeps_the_label_that_it_was_given_meanwhile(run):
    """The training saves its own record after the page has changed the one on disk."""
    store = RunStore(run.id)
    live.add_live(run)
    try:
        manage.rename_run(run.id, body(label="while it runs"))
        assert store.record().info.label == "while it runs"
        run.losses.append(0.1)
        store.save_record(run)
    finally:
        live.remove_live(run)
    assert store.record().info.label == "while it runs"
    assert len(store.record().losses) == 5


@pytest.mark.parametrize(
    ("sent", "words"),
    [(body(label="x" * 81), "label has 81 characters"), (body(label=3), "label is a number"), (b"[]", "a list")],
)
def test_a_label_that_is_none_is_refused(run, sent, words):
    with pytest.raises(InputError, match=words):
        manage.rename_run(run.id, sent)


def test_a_removed_run_is_moved_aside_whole(run, tmp_path):
    """Oracle: the bytes of the files before."""
    folder = RunStore(run.id).folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    moved = manage.remove_run(run.id)["moved"]
    assert not folder.exists()
    assert {path.name: path.read_bytes() for path in (tmp_path / moved).iterdir()} == before
    assert {LOSSES, "record.json"} <= set(before)
    assert RunIndex().look().runs == ()
    for _ in range(2):  # the same id again, twice within a second
        RunStore(run.id).save_record(run)
        manage.remove_run(run.id)
    assert len(list((tmp_path / "bespoke" / "removed").iterdir())) == 3
    with pytest.raises(RequestRefused) as refused:
        manage.remove_run(run.id)
    assert refused.value.status == 404


def test_a_run_that_is_trained_now_is_not_removed_and_one_that_was_killed_is(run):
    run.state = RunState.RUNNING
    RunStore(run.id).save_record(run)
    live.add_live(run)
    with pytest.raises(RequestRefused) as refused:
        manage.remove_run(run.id)
    assert refused.value.status == 409
    assert RunStore(run.id).folder.is_dir()
    live.remove_live(run)
    manage.remove_run(run.id)  # its record still says "running"
    assert not RunStore(run.id).folder.exists()


def test_the_curve_as_a_table(run):
    """Oracle: by hand. One warm-up step at 1 / 2 of 0.01, then linearly from 0.01 to 0 over 3 steps."""
    found = manage.curve_of_run(run.id)
    assert found["name"] == "lora-0123456789ab.csv"
    head, *rows = csv.reader(io.StringIO(found["csv"]))
    assert head == ["step", "loss", "validation_loss", "lr"]
    assert [row[:3] for row in rows] == [
        ["0", "", "0.9"],
        ["1", "0.5", ""],
        ["2", "", ""],
        ["3", "0.25", ""],
        ["4", "0.125", "0.7"],
    ]
    assert [float(row[3]) for row in rows[1:]] == pytest.approx([0.005, 0.01, 0.01 * 2 / 3, 0.01 / 3])


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": -1},
        {"learning_rate": "x"},
        {"lr_schedule": []},
        {"warmup_steps": 9},
        {"steps": 0},
        {"steps": None},
    ],
)
def test_a_curve_without_a_schedule_has_no_learning_rates(run, wrong):
    run.info = replace(run.info, settings={**run.info.settings, **wrong})
    RunStore(run.id).save_record(run)
    lines = manage.curve_of_run(run.id)["csv"].splitlines()
    assert [line.split(",")[3] for line in lines] == ["lr", "", "", "", "", ""]


def test_phases_of_a_training_in_order(small, run_node, monkeypatch):
    """Each phase comes before the event that ends it, and a reload finds the line before the first step."""
    seen: list[tuple[str, dict]] = []
    monkeypatch.setattr(events, "_send_event", lambda name, values: seen.append((name, values)))
    monkeypatch.setattr(events, "MOST_PER_SECOND", 1e9)
    model, clip, vae = small
    images = sprite_set(2, 12, side=64, colour="teal")
    result = run_node(
        "BespokeTrainLora", model=model, clip=clip, vae=vae, images=images, batch_size=2, precision="fp32", seed=977,
        steps=2, validation=1, sample_every=2, resume=False,
    )  # fmt: skip
    run: Run = result[3]
    names = [(name, values.get("phase")) for name, values in seen]
    order = [
        ("phase", "loading"),
        ("phase", "measuring"),
        ("start", None),
        ("phase", "validation"),
        ("validation", None),
        ("phase", "sample"),
        ("sample", None),
        ("step", None),
    ]
    assert [name for name in names if name[1] not in ("pictures", "captions")][: len(order)] == order
    assert names[-1] == ("end", None)
    (start,) = [values["text"] for name, values in seen if name == "start"]
    assert start
    assert RunStore(run.id).record().start_line == start
    with Image.open(manage.picture_of_run(run.id)) as picture:
        assert picture.size == (64, 64)


def test_an_encoding_tells_how_many_pictures_are_done_and_can_be_cancelled(small, monkeypatch):
    import comfy.model_management

    seen: list[dict] = []
    monkeypatch.setattr(events, "show_phase", lambda name, **values: seen.append({"phase": name} | values))
    monkeypatch.setattr(events, "MOST_PER_SECOND", 1e9)
    assert list(events.with_phase("pictures", ["a", "b"])) == ["a", "b"]
    assert seen == [{"phase": "pictures", "done": 0, "total": 2}, {"phase": "pictures", "done": 1, "total": 2}]
    comfy.model_management.interrupt_current_processing()
    monkeypatch.setattr(events, "MOST_PER_SECOND", 1e-9)
    items = events.with_phase("pictures", ["a", "b"])
    next(items)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        next(items)


def test_the_routes_tell_which_run_is_trained_now(run):
    """The list is sent again when a training ends, though its record still says "running": its server was killed."""
    run.state = RunState.RUNNING
    RunStore(run.id).save_record(run)
    stamp = routes.list_runs({})["stamp"]
    for is_live in (True, False):
        (live.add_live if is_live else live.remove_live)(run)
        assert json.loads(routes.record_for_page(run.id))["live"] is is_live
        answer = routes.list_runs({"stamp": stamp})
        assert answer["live"] == [run.id] * is_live
        stamp = answer["stamp"]
        assert routes.list_runs({"stamp": stamp}) == {"stamp": stamp, "unchanged": True}


def test_the_training_picture_is_made_smaller_and_kept_once(tmp_path):
    """By hand: 1536 x 1024 px become 768 x 512. A job's pictures have no pixels."""
    keep_training_picture(tmp_path, torch.empty(64, 64, 0))
    keep_training_picture(tmp_path, None)
    assert not (tmp_path / PICTURE).exists()
    keep_training_picture(tmp_path, torch.full((1024, 1536, 3), 200, dtype=torch.uint8))
    keep_training_picture(tmp_path, torch.zeros((8, 8, 3), dtype=torch.uint8))
    with Image.open(tmp_path / PICTURE) as picture:
        assert picture.size == (768, 512)
        assert picture.getpixel((0, 0)) == (200, 200, 200)


def test_what_a_node_shows_comes_again_with_a_cached_run(comfyui):
    """A node that returns `ui` is an output node or has an intermediate output.

    The page restores what the latter show, but for the schedules of the strength nodes: their dials show a schedule
    only where the page knows with which wiring it ran.
    """
    nodes = asyncio.run(BespokeExtension().get_node_list())
    shows = [node for node in nodes if "ui=" in inspect.getsource(node.execute)]
    schemas = [node.define_schema() for node in shows]
    between = {schema.node_id for schema in schemas if not schema.is_output_node}
    assert {schema.node_id for schema in schemas if schema.has_intermediate_output} == between
    scripts = Path(manage.__file__).parents[3] / "js"
    restored = re.search(r"RESTORED = new Set\((.*?)\);", (scripts / "index.js").read_text("utf-8"))[1]
    trainers = re.search(r"(?s)TRAINERS = \{(.*?)\}", (scripts / "run_values.js").read_text("utf-8"))[1]
    word_node = re.search(r'WORD_NODE = "(\w+)"', (scripts / "word_list.js").read_text("utf-8"))[1]
    dials = re.search(r"DIAL_NODES = new Set\((.*?)\);", (scripts / "strength_dial.js").read_text("utf-8"))[1]
    assert between == {word_node, *re.findall(r"Bespoke\w+", restored + trainers + dials)}
