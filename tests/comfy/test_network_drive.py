"""A user folder on a network drive: every call to the disk of a run fails once or for ever, and drives that lack much.

No drive is needed: the functions of `os` that a run uses answer as such drives do.
"""

import errno
import os
import time
from pathlib import Path

import pytest
import torch
from bespoke.nodes.bridge.files import writing
from bespoke.nodes.bridge.runs import durable, monitor
from bespoke.nodes.bridge.runs.index import RunIndex
from bespoke.nodes.bridge.runs.store import RunStore
from bespoke.training.errors import InputError
from bespoke.training.record import RunState
from safetensors import safe_open
from small_run import ID, Faults, check_resumed, saved, train

STEPS = 4
CALLS = ("open", "replace", "rename", "link", "unlink", "mkdir", "fsync", "chmod", "scandir")
ERRORS = (errno.ENOTSUP, errno.EACCES, errno.ESTALE, errno.EIO)


class Drive:
    """Makes calls of `os` that name a path below `folder`, or a handle, fail with `error`: number `at` alone, or all
    from there on."""

    def __init__(self, folder, at=0, error=errno.EIO, forever=False):
        self.folder, self.at, self.error, self.forever, self.calls = str(folder), at, error, forever, 0

    def install(self, monkeypatch):
        for name in CALLS:
            monkeypatch.setattr(os, name, self.wrap(name, getattr(os, name)))
        return self

    def wrap(self, name, original):
        def call(path, *args, **kwargs):
            if name == "fsync" or str(path).startswith(self.folder):
                self.calls += 1
                if self.calls == self.at or (self.forever and self.calls > self.at > 0):
                    raise OSError(self.error, os.strerror(self.error), str(path))
            return original(path, *args, **kwargs)

        return call


@pytest.fixture(autouse=True)
def frequent_saves(monkeypatch):
    monkeypatch.setattr(monitor, "AUTOSAVE_SECONDS", -1.0)
    monkeypatch.setattr(writing, "BUSY_SECONDS", 0.0)


def run_on(folder, monkeypatch, **fault):
    """(drive, the sentence that ended the run or ""). A raw `OSError` ends the test."""
    with monkeypatch.context() as broken:
        drive = Drive(folder, **fault).install(broken)
        try:
            train(folder, Faults(), steps=STEPS)
        except InputError as error:
            return drive, str(error)
        return drive, ""


def check_files(folder):
    """Every file of the run that is there can be read as a whole."""
    for path in (folder / ID).rglob("*.safetensors"):
        if not path.name.startswith("."):
            with safe_open(path, "pt") as file:
                assert [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 (it is no dict)
    if (folder / ID / "record.json").exists():
        assert saved(folder)["state"] in ("running", "finished", "failed", "interrupted")


def fail_everywhere(tmp_path, monkeypatch, error, forever, every):
    """Fail each `every`-th call of a run; returns (calls, finished, ended with a sentence)."""
    quiet = pytest.MonkeyPatch()
    whole = *train(tmp_path / "whole", Faults(), steps=STEPS), {}
    drive, _ = run_on(tmp_path / "count", monkeypatch)
    finished = sentences = 0
    with quiet.context() as fast:
        fast.setattr(os, "fsync", lambda handle: None)
        for at in range(1, drive.calls + 1, every):
            folder = tmp_path / f"{at}"
            _, sentence = run_on(folder, monkeypatch, at=at, error=error, forever=forever)
            assert str(folder) not in sentence
            check_files(folder)
            check_resumed(folder, whole, steps=STEPS)
            finished, sentences = finished + (not sentence), sentences + bool(sentence)
    return drive.calls, finished, sentences


@pytest.mark.slow
@pytest.mark.parametrize("forever", [False, True])
@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_any_call_to_the_drive_may_fail(comfyui, tmp_path, monkeypatch, error, forever):
    calls, finished, sentences = fail_everywhere(tmp_path, monkeypatch, error, forever, every=1)
    print(
        f"\n{errno.errorcode[error]} {'from then on' if forever else 'once'} at each of {calls} calls: {finished} runs "
        f"finished, {sentences} ended with a sentence, all resumed to the same bits"
    )
    assert finished > sentences or forever


@pytest.mark.parametrize("error", [errno.EIO, errno.EACCES], ids=errno.errorcode.get)
def test_every_eleventh_call_to_the_drive_may_fail(comfyui, tmp_path, monkeypatch, error):
    calls, finished, sentences = fail_everywhere(tmp_path, monkeypatch, error, False, every=11)
    assert calls > 50
    assert finished > sentences


def refuse(number):
    def call(*_, **__):
        raise OSError(number, os.strerror(number))

    return call


class Poor:
    """A drive without sync, hard links and modes, whose files are busy at each first attempt, whose inodes are all
    equal and whose times have two seconds."""

    def __init__(self, monkeypatch, folder):
        self.folder, self.busy, self.refused = str(folder), set(), 0
        for name in ("fsync", "link", "chmod", "utime"):
            monkeypatch.setattr(os, name, refuse(errno.ENOTSUP))
        for name in ("replace", "rename"):
            monkeypatch.setattr(os, name, self.busy_once(getattr(os, name)))
        monkeypatch.setattr(os, "stat", self.coarse(os.stat))
        monkeypatch.setattr(os, "open", self.no_folders(os.open))

    def busy_once(self, original):
        def call(source, target, **kwargs):
            if os.path.exists(target) and str(source) not in self.busy:
                self.busy.add(str(source))
                self.refused += 1
                raise PermissionError(errno.EACCES, "Permission denied")
            time.sleep(0.001)
            return original(source, target, **kwargs)

        return call

    def coarse(self, original):
        def call(path, **kwargs):
            found = original(path, **kwargs)
            if not str(path).startswith(self.folder):
                return found
            values = list(found)
            values[1] = 7  # inode
            seconds = int(found.st_mtime) // 2 * 2
            more = {"st_mtime": float(seconds), "st_mtime_ns": seconds * 10**9}
            return os.stat_result(values, more)

        return call

    def no_folders(self, original):
        def call(path, *args, **kwargs):
            if str(path).startswith(self.folder) and os.path.isdir(path):
                raise PermissionError(errno.EACCES, "Permission denied")
            return original(path, *args, **kwargs)

        return call


def test_a_poor_drive_keeps_runs_and_the_list_is_up_to_date(comfyui, tmp_path, monkeypatch):
    whole = *train(tmp_path / "whole", Faults(), steps=STEPS), {}
    folder = tmp_path / "poor"
    index, seen = RunIndex(lambda: folder), []
    monkeypatch.setattr(writing, "BUSY_SECONDS", 1.0)
    with monkeypatch.context() as poor:
        drive = Poor(poor, folder)
        save = RunStore.save

        def save_and_look(store, state, run):
            save(store, state, run)
            seen.append((state.step, index.look().runs[0].summary.steps_done))

        poor.setattr(RunStore, "save", save_and_look)
        learned, run, shown = train(folder, Faults(), steps=STEPS)
        assert index.look().runs[0].summary.state == "finished"
        assert not writing.NO_SYNC.isdisjoint({errno.ENOTSUP})
    assert drive.refused > STEPS
    assert all(step == listed for step, listed in seen)
    assert len(seen) >= STEPS
    assert run.notes == []
    assert shown.ends == [RunState.FINISHED]
    assert all(torch.equal(learned[name], whole[0][name]) for name in learned)
    assert sorted(path.name for path in folder.iterdir()) == [ID]
    assert not list(folder.rglob("*.part"))


def test_numbered_files_without_hard_links_are_never_overwritten(comfyui, tmp_path, monkeypatch):
    """Eight writers at once save under one prefix, as two servers on one drive may."""
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr(os, "link", refuse(errno.EPERM))

    def save(number):
        def write(path):
            tensors = {"number": torch.full((1000,), float(number))}
            writing.write_safetensors(path, tensors, {}, overwrite=False)

        return writing.write_numbered_in(tmp_path, "lora", write)

    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(save, range(40)))
    assert len(set(names)) == 40
    for number, name in enumerate(names):
        with safe_open(tmp_path / name, "pt") as file:
            assert file.get_tensor("number")[0] == number
    assert len(list(tmp_path.iterdir())) == 40


def test_a_name_that_a_killed_writer_has_reserved_counts_as_taken(comfyui, tmp_path, monkeypatch):
    """Without hard links. The next number is taken; the next hour would else be spent on writing the file again."""
    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    tries = []

    def killed(*_, **__):
        raise KeyboardInterrupt

    def write(path):
        tries.append(path.name)
        assert len(tries) <= 3
        writing.write_safetensors(path, {"number": torch.zeros(2)}, {}, overwrite=False)

    with monkeypatch.context() as before:
        before.setattr(writing, "_while_busy", killed)
        before.setattr(Path, "unlink", lambda *_, **__: None)  # a killed process removes nothing
        with pytest.raises(KeyboardInterrupt):
            writing.write_numbered_in(tmp_path, "lora", write)
    assert list(tmp_path.glob("*-name.part"))
    assert writing.write_numbered_in(tmp_path, "lora", write) == "lora_00002.safetensors"
    assert tries == ["lora_00001.safetensors", "lora_00001.safetensors", "lora_00002.safetensors"]


@pytest.mark.parametrize("seconds", [0.3, 5.0])
def test_a_busy_file_is_tried_again_for_a_second(comfyui, tmp_path, monkeypatch, seconds):
    """As on Windows and SMB while a virus scanner reads a new file."""
    monkeypatch.setattr(writing, "BUSY_SECONDS", 1.0)
    original, ends = os.replace, time.monotonic() + seconds

    def replace(source, target):
        if time.monotonic() < ends:
            raise PermissionError(errno.EACCES, "Permission denied")
        original(source, target)

    monkeypatch.setattr(os, "replace", replace)
    path = tmp_path / "text"
    path.write_text("old")
    if seconds < 1:
        writing.write_text(path, "new")
        assert path.read_text() == "new"
    else:
        before = time.monotonic()
        with pytest.raises(PermissionError):
            writing.write_text(path, "new")
        assert time.monotonic() - before < 2
        assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_sync_that_fails_is_an_error(comfyui, tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", refuse(number))
    with pytest.raises(OSError, match=os.strerror(number)):
        durable.replace_text(tmp_path / "text", "new")


def test_names_differ_by_more_than_case(comfyui):
    """Drives of Windows and macOS take "A" and "a" as one name."""
    store = RunStore(ID, Path("runs"))
    names = [store.folder.name, store.lease_path.name, "record.json", "losses.jsonl", "summary.json", "graph.json"]
    assert all(name == name.lower() for name in names)


def test_a_clock_that_is_hours_off_removes_no_unfinished_file_of_another(comfyui, tmp_path, monkeypatch):
    """A clock that jumps ahead, or a drive whose clock is behind. A file that is older than the new one goes."""
    new, old = tmp_path / ".bespoke-new.part", tmp_path / ".bespoke-old.part"
    for path in (new, old):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 100_000)
    writing.write_text(tmp_path / "text", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [new.name, "text"]


@pytest.mark.parametrize("hours", [-48, 48])
def test_a_clock_that_jumps_changes_no_result(comfyui, tmp_path, monkeypatch, hours):
    """In the middle of the run, in either direction. Times of a run are sums of seconds that no clock can turn back."""
    whole = *train(tmp_path / "whole", Faults(), steps=STEPS), {}
    real, calls = time.time, [0]

    def jumping():
        calls[0] += 1
        return real() + (hours * 3600 if calls[0] > 2 else 0)

    monkeypatch.setattr(time, "time", jumping)
    learned, run, shown = train(tmp_path / "run", Faults(), steps=STEPS)
    assert all(torch.equal(learned[name], whole[0][name]) for name in learned)
    assert (run.losses, run.held_out, shown.ends) == (whole[1].losses, whole[1].held_out, [RunState.FINISHED])
    assert 0 <= run.seconds < 60


def test_runs_of_one_second_are_set_aside_under_different_names(comfyui, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda form: "20260101-120000")
    for _ in range(3):
        (tmp_path / ID).mkdir()
        RunStore(ID, tmp_path).set_aside()
    names = [f"{ID}.20260101-120000{end}" for end in ("", "-2", "-3")]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize(
    ("number", "mend"),
    [
        (errno.ENOSPC, "free space on that disk"),  # also of a full table of inodes
        (errno.ENAMETOOLONG, "choose a shorter name"),
        (errno.EROFS, "allow ComfyUI to write there"),
        (errno.ESTALE, "check the disk or the connection to it"),
    ],
)
def test_a_lora_that_cannot_be_saved_is_said_with_the_mend_and_no_path(run_node, monkeypatch, number, mend):
    def refuse(*_, dir, **__):
        raise OSError(number, os.strerror(number), f"{dir}/.bespoke-x.part")

    monkeypatch.setattr(writing.tempfile, "mkstemp", refuse)
    layer = "diffusion_model.input_blocks.1.1.proj_in"
    lora = {f"{layer}.lora_up.weight": torch.ones(4, 2), f"{layer}.lora_down.weight": torch.ones(2, 4)}
    with pytest.raises(InputError) as error:
        run_node("BespokeSaveLora", lora=lora, filename_prefix="refused", dtype="fp32")
    assert str(error.value).startswith("Bespoke Save LoRA: reading or writing failed (")
    assert mend in str(error.value)
    assert "/" not in str(error.value)
