"""A run's folder after a crash at any write, after damage, and in the form of version 0.1."""

import json
import math
import os
import shutil
import stat
from pathlib import Path

import pytest
import tiny
import torch
from bespoke.nodes.bridge.runs import durable, loss_file, store
from bespoke.nodes.bridge.runs.index import RunIndex
from bespoke.nodes.bridge.runs.loss_file import WIDTH, LossFile
from bespoke.nodes.bridge.runs.match import NodeRequest, find_run
from bespoke.nodes.bridge.runs.store import RunStore
from bespoke.training.checkpoint import State
from bespoke.training.record import RunState, summary_of
from helpers import sprite_set
from run_records import RUN_FOLDERS_0_1, changed, losses_of, make_run

ID = "lora-000000000001"


def loss_at(step: int) -> float:
    return math.nan if step == 3 else 1 / step


def run_after(steps: int):
    run = make_run(ID, "lora", {"steps": 100}, "base", 4, started=1000.0)
    held_out, samples = [(step, 1.0) for step in range(0, steps + 1, 2)], [(steps, f"{steps:06}.png")]
    return changed(
        run, losses=[loss_at(step) for step in range(1, steps + 1)], held_out=held_out, samples=samples, seconds=steps
    )


def state_after(steps: int) -> State:
    return State(steps, {"weight": torch.full((3,), float(steps))}, {})


def assert_record(found, steps: int) -> None:
    """Assert that a record equals `run_after(steps)`, where NaN equals NaN."""
    assert found.to_json() == run_after(steps).to_json()


class Killed(BaseException):
    """Raised in place of a kill."""


def kill_at(monkeypatch, number: int, moment: str) -> list[str]:
    """Raise `Killed` "before" or "after" the write of this number, or when half of it is written ("torn").

    Returns the list of the writes, which grows with each one.
    """
    made: list[str] = []

    def watched(module, name: str) -> None:
        original = getattr(module, name)

        def write(*args, **kwargs):
            made.append(name)
            if len(made) < number:
                return original(*args, **kwargs)
            if moment == "after":
                original(*args, **kwargs)
            elif moment == "torn" and name == "write_after":
                path, offset, data = args
                original(path, offset, data[: len(data) // 2 + 3])
            raise Killed

        monkeypatch.setattr(module, name, write)

    watched(loss_file, "write_after")
    for name in ("write_safetensors", "sync_folder", "replace_text", "write_text"):
        watched(store, name)
    return made


@pytest.mark.parametrize("moment", ["before", "torn", "after"])
@pytest.mark.parametrize("number", range(1, 7))
@pytest.mark.parametrize("old", [False, True], ids=["", "of 0.1"])
@pytest.mark.parametrize("fresh", [False, True], ids=["later save", "first save after a start"])
def test_after_a_kill_record_losses_and_state_are_of_one_save(runs, monkeypatch, number, moment, old, fresh):
    writer, run = RunStore(ID), run_after(4)
    if old:
        writer.folder.mkdir(parents=True)
        (writer.folder / "record.json").write_text(run.to_json())
        store.write_safetensors(writer.folder / "state.safetensors", *store.pack(state_after(4)), overwrite=True)
    else:
        writer.save(state_after(4), run)
    if fresh:
        writer = RunStore(ID)
    run.losses += [loss_at(step) for step in range(5, 8)]
    run = changed(run_after(7), losses=run.losses)
    with monkeypatch.context() as patch:
        made = kill_at(patch, number, moment)
        try:
            writer.save(state_after(7), run)
        except Killed:
            assert len(made) == number
        else:
            assert len(made) < number
    steps = 7 if "replace_text" in made[:-1] or (made[-1:] == ["replace_text"] and moment == "after") else 4
    reader = RunStore(ID)
    assert_record(reader.record(), steps)
    assert reader.state().step == steps
    assert torch.equal(reader.state().trained["weight"], state_after(steps).trained["weight"])
    assert reader.summary() == summary_of(run_after(steps))
    # The next session resumes from there, and its save is complete.
    again = run_after(0)
    again.restore_progress(reader.record(), steps)
    reader.save_record(again)
    assert len(losses_of(reader.folder)) == steps == RunStore(ID).state().step
    again.losses += [loss_at(step) for step in range(steps + 1, 10)]
    reader.save(state_after(9), changed(run_after(9), losses=again.losses))
    assert_record(RunStore(ID).record(), 9)
    assert sorted(path.name for path in reader.folder.glob("*.*")) == [
        "losses.jsonl",
        "record.json",
        "state-000009.safetensors",
        "summary.json",
    ]


def test_a_save_adds_lines_and_touches_no_earlier_one(runs):
    run, writer = run_after(5), RunStore(ID)
    writer.save(state_after(5), run)
    path = writer.folder / "losses.jsonl"
    text = path.read_text()
    assert text == "".join(f"{value:<{WIDTH - 1}}\n" for value in ("1.0", "0.5", "null", "0.25", "0.2"))
    with path.open("r+") as file:
        file.write("9.9")  # a marker: this line must not be read or written again
    run.losses.append(0.125)
    writer.save(state_after(6), run)
    assert path.read_text() == "9.9" + text[3:] + f"{'0.125':<{WIDTH - 1}}\n"
    assert "losses" not in json.loads((writer.folder / "record.json").read_text())


@pytest.mark.parametrize("loss", [-1.7976931348623157e308, 5e-324, -2.2250738585072014e-308, 0.1 + 0.2, 1e22, -0.0, 3])
def test_every_float_round_trips_in_one_line(tmp_path, loss):
    file = LossFile(tmp_path)
    file.write_from(0, [loss, 0.5])
    assert file.path.stat().st_size == 2 * WIDTH
    assert file.read(9) == [loss, 0.5]
    assert file.read(1) == [loss]


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (lambda text: text[: 2 * WIDTH], 2),
        (lambda text: text[: 2 * WIDTH + 7], 2),
        (lambda text: text.replace("0.5 ", "0.5x"), 1),
        (lambda text: text.replace("0.5 ", "true"), 1),
        (lambda text: text.replace("0.5 ", "0,5 "), 1),
        (lambda text: text.replace("0.5 ", "0.5"), 1),
        (lambda text: text.replace("0.5 ", '"a" '), 1),
        (lambda text: "", 0),
        (lambda text: "\n" * 500, 0),
        (lambda text: "[" * 500, 0),
    ],
)
def test_a_damaged_file_of_losses_leaves_the_others_at_their_steps(runs, caplog, damage, left):
    writer = RunStore(ID)
    writer.save(state_after(5), run_after(5))
    path = writer.folder / "losses.jsonl"
    assert damage(path.read_text()) != path.read_text()
    path.write_text(damage(path.read_text()))
    record = RunStore(ID).record()
    assert f"lacks the last {5 - left} losses" in caplog.text
    assert record.losses[:left] == run_after(5).losses[:left]
    assert [math.isnan(loss) for loss in record.losses[left:]] == [True] * (5 - left)
    again = run_after(0)
    again.restore_progress(record, 5)
    resumed = RunStore(ID)
    resumed.save_record(again)
    again.losses.append(0.75)
    resumed.save(state_after(6), again)
    assert losses_of(resumed.folder) == [*run_after(5).losses[:left], *[None] * (5 - left), 0.75]


def test_the_state_is_read_without_losses_or_record(runs):
    writer = RunStore(ID)
    for steps in (5, 9):
        writer.save(state_after(steps), run_after(steps))
    (writer.folder / "losses.jsonl").unlink()
    assert all(map(math.isnan, RunStore(ID).record().losses))
    writer.save(state_after(12), run_after(12))  # the file was deleted while the training ran
    assert_record(RunStore(ID).record(), 12)
    (writer.folder / "record.json").write_text("{")
    assert RunStore(ID).record() is None
    assert RunStore(ID).state().step == 12


def test_a_new_run_in_an_old_folder(runs):
    """As when its state cannot be read: earlier losses are not mixed with new ones."""
    RunStore(ID).save(state_after(5), run_after(5))
    writer, run = RunStore(ID), run_after(0)
    writer.save_record(run)
    assert losses_of(writer.folder) == []
    run.losses += [7.0, 8.0]
    writer.save(state_after(2), run)
    assert RunStore(ID).record().losses == losses_of(writer.folder) == [7.0, 8.0]
    assert RunStore(ID).state().step == 2
    other = run_after(4)
    RunStore(ID).save_record(other)  # by another process, with other losses
    assert_record(RunStore(ID).record(), 4)
    writer.save(state_after(2), run)
    assert RunStore(ID).record().losses == [7.0, 8.0]


def test_setting_aside_begins_another_folder(runs):
    writer, run = RunStore(ID), run_after(5)
    writer.save(state_after(5), run)
    writer.set_aside()
    assert (writer.record(), writer.state()) == (None, None)
    writer.save_record(run)
    assert writer.state() is None
    assert_record(RunStore(ID).record(), 5)
    (aside,) = runs.glob(f"{ID}.*")
    assert len(losses_of(aside)) == 5
    assert (aside / "state-000005.safetensors").is_file()


# --- Folders of version 0.1 ------------------------------------------------------------------------------------------


def old_run(runs: Path, which: str, run_id: str) -> dict:
    """Copy a folder of version 0.1 to this id; returns its record."""
    shutil.copytree(RUN_FOLDERS_0_1 / which, runs / run_id)
    record = json.loads((runs / run_id / "record.json").read_text()) | {"id": run_id}
    (runs / run_id / "record.json").write_text(json.dumps(record))
    return record


@pytest.mark.parametrize(("which", "technique"), [("lora", "lora"), ("word", "textual inversion")])
def test_a_run_of_0_1_is_listed_matched_read_and_converted(runs, which, technique):
    run_id = json.loads((RUN_FOLDERS_0_1 / which / "record.json").read_text())["id"]
    record = old_run(runs, which, run_id)
    steps = record["settings"]["steps"]
    (listed,) = RunIndex().look().summaries()
    assert (listed.id, listed.technique, listed.state, listed.steps_done) == (run_id, technique, "finished", steps)
    request = {"technique": technique, "workflow": "", "paths": ["1"], "request": record["settings"]}
    assert find_run([listed], NodeRequest.from_json(json.dumps(request).encode())) == (listed, True)
    reader = RunStore(run_id)
    run, state = reader.record(), reader.state()
    assert state.step == steps == len(run.losses)
    flat = json.loads(run.to_json())
    assert flat.pop("folds") == record.pop("rotations") == 0
    assert flat.pop("notes") == flat.pop("pictures") == []
    assert flat.pop("label") == flat.pop("start_line") == ""
    assert flat == record
    run.losses.append(0.5)
    state.step += 1
    reader.save(state, run)
    assert losses_of(reader.folder) == [*record["losses"], 0.5]
    assert [path.name for path in reader.folder.glob("state*")] == [f"state-{steps + 1:06}.safetensors"]
    again = RunStore(run_id)
    assert again.record() == run
    assert all(torch.equal(value, again.state().trained[name]) for name, value in state.trained.items())
    assert len(list(again.folder.glob("samples/*.png"))) == len(list((RUN_FOLDERS_0_1 / which).glob("samples/*.png")))


def test_a_training_of_0_1_is_resumed(runs, run_node):
    def train(steps: int, resume: bool):
        return run_node(
            "BespokeTrainLora",
            model=tiny.patcher(tiny.SMALLEST),
            clip=tiny.clip(),
            vae=tiny.vae(),
            images=sprite_set(2, 10, side=64, colour="teal"),
            targets="cross-attention",
            batch_size=1,
            rank=1,
            alpha=1.0,
            precision="fp32",
            validation=2,
            seed=77,
            steps=steps,
            lr_schedule="constant",
            keep="last",
            resume=resume,
        )

    run_id = train(1, resume=False)[3].id
    shutil.rmtree(runs / run_id)
    record = old_run(runs, "lora", run_id)
    run = train(15, resume=True)[3]
    assert run.id == run_id
    assert run.state == RunState.FINISHED
    assert run.losses[:12] == record["losses"]
    assert len(run.losses) == 15 == len(losses_of(runs / run_id))
    assert [step for step, _ in run.held_out] == [0, 10, 12, 15]
    assert run.samples == [tuple(sample) for sample in record["samples"]]
    assert run.seconds > record["seconds"]


def test_synced_writes(tmp_path):
    path = tmp_path / "new" / "record.json"
    durable.replace_text(path, "one")
    durable.replace_text(path, "two")
    assert path.read_text() == "two"
    assert [entry.name for entry in path.parent.iterdir()] == ["record.json"]
    durable.write_after(path, 2, b"elve")
    assert path.read_text() == "twelve"
    with pytest.raises(ValueError, match="record.json has 6 bytes instead of 7"):
        durable.write_after(path, 7, b"x")
    assert path.read_text() == "twelve"


def test_all_bytes_are_written_when_the_disk_is_asked_to_sync(tmp_path, monkeypatch):
    """`fsync` covers what the system was given, not what still lies in Python's buffer."""
    sizes, fsync = [], os.fsync

    def note(handle):
        if stat.S_ISREG(os.fstat(handle).st_mode):
            sizes.append(os.fstat(handle).st_size)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    durable.replace_text(tmp_path / "record.json", "twelve bytes")
    durable.write_after(tmp_path / "losses.jsonl", 0, b"six...")
    assert sizes == [12, 6]
