"""Faults in every phase of a run: the same request afterwards ends as an unbroken run, bit for bit.

The trained thing is one small parameter, so that every write, scoring, sample and loss of a run can be made to fail.
"""

import errno
import json
import math
import os

import pytest
import torch
from bespoke.nodes.bridge.runs import monitor
from bespoke.nodes.bridge.runs.store import RunStore
from bespoke.training.errors import InputError
from bespoke.training.record import RunState
from safetensors import safe_open
from safetensors.torch import save_file
from small_run import ID, Faults, check_resumed, saved, train


@pytest.fixture(scope="module")
def whole(comfyui, tmp_path_factory):
    """(learned, record, display, number of calls by place) of an unbroken run."""
    faults = Faults()
    return *train(tmp_path_factory.mktemp("whole"), faults), faults.calls


@pytest.fixture(autouse=True)
def frequent_saves(monkeypatch):
    """The state is saved after each step, and nothing waits for the disk."""
    monkeypatch.setattr(monitor, "AUTOSAVE_SECONDS", -1.0)
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def errors():
    import comfy.model_management

    return {
        "any error": ZeroDivisionError("a fault"),
        "full memory": torch.OutOfMemoryError("a fault"),
        "an interrupt": comfy.model_management.InterruptProcessingException(),
        "a full disk": OSError(errno.ENOSPC, "No space left on device"),
        "Ctrl-C": KeyboardInterrupt(),
    }


@pytest.mark.parametrize("error", ["any error", "full memory", "an interrupt", "a full disk", "Ctrl-C"])
@pytest.mark.parametrize("place", ["loss", "score", "sample", "file"])
def test_a_fault_in_any_phase_is_made_up_for(comfyui, tmp_path, whole, place, error):
    calls = whole[-1]
    broken = 0
    for at in range(1, calls[place] + 1):
        folder, fault = tmp_path / str(at), errors()[error]
        raised = None
        try:
            train(folder, Faults(place, at, fault))
        except BaseException as caught:
            raised = caught
        if raised is not None:
            broken += 1
            assert fault in (raised, raised.__cause__)
            assert saved(folder)["state"] in ("interrupted", "failed")
        check_resumed(folder, whole)
    assert calls[place] >= 2
    # A file that cannot be written for want of room does not end the training.
    assert broken == (0 if (place, error) == ("file", "a full disk") else calls[place])


class Disk:
    """Syncs to a disk that fail: call number `at` alone, or all from there on."""

    def __init__(self, at=0, forever=False):
        self.at, self.forever, self.calls = at, forever, 0

    def __call__(self, handle):
        self.calls += 1
        if self.calls == self.at or (self.forever and self.calls > self.at > 0):
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("forever", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_disk_that_fails_at_any_write_loses_nothing(comfyui, tmp_path, whole, monkeypatch, forever):
    """The training goes on without it, the result is handed on, and the record says what is missing."""
    learned = whole[0]
    count = Disk()
    monkeypatch.setattr(os, "fsync", count)
    train(tmp_path / "count", Faults())
    outcomes = {"refused": 0, "noted": 0}
    for at in range(1, count.calls + 1):
        folder = tmp_path / f"{at}"
        monkeypatch.setattr(os, "fsync", Disk(at, forever))
        try:
            result, run, shown = train(folder, Faults())
        except InputError as error:  # nothing is trained where nothing can be saved
            outcomes["refused"] += "bespoke/runs of ComfyUI's user directory (no space left on device)" in str(error)
        else:
            outcomes["noted"] += 1
            assert any("no space left on device" in note for note in run.notes)
            assert all(torch.equal(result[key], learned[key]) for key in learned)
            assert shown.ends[0] in (RunState.FINISHED, RunState.FAILED)
        monkeypatch.setattr(os, "fsync", lambda handle: None)
        check_resumed(folder, whole)
    assert outcomes["refused"] <= 3
    assert outcomes["noted"] > 20


def damaged(change):
    """A damage that changes the state's tensors and numbers."""

    def damage(path):
        with safe_open(path, "pt") as file:
            tensors, meta = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
        values = json.loads(meta["bespoke.state"])
        change(tensors, values)
        save_file(tensors, path, {"bespoke.state": json.dumps(values)})

    return damage


def put(name, tensor):
    return damaged(lambda tensors, values: tensors.update({name: tensor}))


def number(**numbers):
    return damaged(lambda tensors, values: values.update(numbers))


DAMAGES = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "empty": lambda path: path.write_bytes(b""),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "no numbers": lambda path: save_file({"trained/a": torch.zeros(1, 4)}, path),
    "a list for numbers": lambda path: save_file({"trained/a": torch.zeros(1, 4)}, path, {"bespoke.state": "[1]"}),
    "a part of a later version": put("something/a", torch.zeros(1)),
    "another shape": put("trained/a", torch.zeros(2, 4)),
    "a missing tensor": damaged(lambda tensors, values: tensors.pop("trained/a")),
    "NaN": put("trained/a", torch.full((1, 4), math.nan)),
    "infinity in the best": put("best/a", torch.full((1, 4), math.inf)),
    "another shape of the optimiser": put("optimizer/0/exp_avg", torch.zeros(3)),
    "NaN in the optimiser": put("optimizer/0/exp_avg", torch.full((1, 4), math.nan)),
    "another parameter": put("optimizer/7/exp_avg", torch.zeros(1, 4)),
    "no optimiser": damaged(lambda t, v: [t.pop(key) for key in list(t) if key.startswith("optimizer")]),
    "an average that is off": put("average/0", torch.zeros(1, 4)),
    "a negative step": number(step=-4),
    "step 0": number(step=0),
    "half a step": number(step=3.5),
    "a step of 400 digits": number(step=10**400),
    "a best after the end": number(best_step=100),
    "a loss that is none": number(best_loss="low"),
    "no number for the loss": number(best_loss=math.nan),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_state_that_cannot_be_used_is_set_aside_with_a_sentence(comfyui, tmp_path, whole, damage):
    import comfy.model_management

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(tmp_path, Faults("loss", 13, errors()["an interrupt"]))
    (state,) = (tmp_path / ID).glob("state-*.safetensors")
    DAMAGES[damage](state)
    again, run, shown = train(tmp_path, Faults())
    assert all(torch.equal(again[key], whole[0][key]) for key in again)
    assert (run.losses, run.held_out, shown.ends) == (whole[1].losses, whole[1].held_out, [RunState.FINISHED])
    (aside,) = tmp_path.glob(f"{ID}.*")
    assert (aside / state.name).exists()
    (note,) = run.notes
    assert note.startswith("the state of an earlier training could not be used, since ")
    assert aside.name in note
    assert str(tmp_path) not in note
    assert saved(tmp_path)["notes"] == [note]
    assert RunStore(ID, tmp_path).record().notes == [note]


@pytest.mark.parametrize("damage", ["missing", "empty", "cut off"])
def test_a_run_without_its_record_goes_on_with_its_losses(comfyui, tmp_path, whole, damage):
    import comfy.model_management

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(tmp_path, Faults("loss", 9, errors()["an interrupt"]))
    record = tmp_path / ID / "record.json"
    steps = saved(tmp_path)["steps_done"]
    if damage == "missing":
        record.unlink()
    else:
        record.write_text(record.read_text()[:100] if damage == "cut off" else "")
    again, run, _ = train(tmp_path, Faults())
    assert steps == 7  # the first call of the loss measures a step
    assert run.losses == whole[1].losses
    assert all(torch.equal(again[key], whole[0][key]) for key in again)
    assert run.held_out == whole[1].held_out
    assert run.notes[0].startswith("the record of the earlier training could not be read")
