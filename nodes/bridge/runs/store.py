"""Runs on disk, under ComfyUI's user directory: the record, its summary for lists, the state to go on from."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import folder_paths
from safetensors import SafetensorError, safe_open

from ....training.checkpoint import State, UnusableState, pack, unpack
from ....training.plain_json import read_json
from ....training.record import Run, RunState, Summary, summary_of
from ..drawing.animated import AnimatedPicture, SamplePicture
from ..files.reading import read_text
from ..files.writing import reason_of, replacing, write_safetensors, write_text
from .durable import replace_text, sync_folder
from .lease import Lease, LeaseLost, hold
from .loss_file import LOSSES, LossFile, same_start
from .record_file import RECORD, STATE_NAME, SavedRecord, state_name

SUMMARY, SAMPLES = "summary.json", "samples"
# Bytes. Version 0.1 kept the losses in the record: 20 MB for a million of them.
LARGEST_RECORD, LARGEST_SUMMARY = 100_000_000, 1_000_000
_SAMPLE = re.compile(r"\d{6,}(_\d{2,})?\.(png|webp)")
_ID = re.compile(r"[a-z-]+-[0-9a-f]{12}")
# The ids of runs that the user has asked to finish: written by the route, read by the training, in different threads.
_finish_requests: set[str] = set()
_finish_lock = threading.Lock()
# Held while a record or a summary is read or written: threads of one process share the name of the temporary file, and
# Windows cannot replace a file that is open.
_files_lock = threading.Lock()


def runs_folder() -> Path:
    return Path(folder_paths.get_user_directory()) / "bespoke" / "runs"


def folder_of_run(run: Run) -> Path | None:
    """The folder of a run on ComfyUI's page, which need not be there; None where the run has no such id."""
    return runs_folder() / run.id if _ID.fullmatch(run.id) else None


def request_finish(run_id: str) -> None:
    """Ask the run to stop after its present step, save its state and return its result."""
    with _finish_lock:
        _finish_requests.add(run_id)


def consume_finish_request(run_id: str) -> bool:
    """Whether the run was asked to finish since the last call; the request is removed."""
    with _finish_lock:
        requested = run_id in _finish_requests
        _finish_requests.discard(run_id)
        return requested


@dataclass(frozen=True)
class FileState:
    """Tells whether a file has changed without reading it. The inode changes with every `write_text`, the time need
    not."""

    size: int  # bytes
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: str | Path) -> FileState:
        """Raises `OSError` when there is no such file."""
        found = os.stat(path)
        return cls(found.st_size, found.st_mtime_ns, found.st_ino)


def records_in(folder: Path) -> Iterator[tuple[str, FileState]]:
    """(run's id, state of its record.json) for each run in the folder. Runs that were set aside are left out."""
    try:
        with os.scandir(folder) as entries:
            paths = {entry.name: entry.path for entry in entries if _ID.fullmatch(entry.name)}
    except OSError:
        return
    for run_id, path in paths.items():
        try:
            state = FileState.of(os.path.join(path, RECORD))
        except OSError:
            continue
        yield run_id, state


@dataclass(frozen=True)
class _LastSave:
    """What this store saved last.

    losses: the list itself, not a copy. count: its length at that time. state_file: the name of the state. record:
    identifies the record.json that was written.
    """

    losses: list[float]
    count: int
    state_file: str
    record: FileState


class RunStore:
    """One run's folder. A save is complete, or after a crash it is as if it had not begun: see `record_file`."""

    def __init__(self, run_id: str, among: Path | None = None):
        """among: the folder of runs, ComfyUI's own where none is given."""
        if not _ID.fullmatch(run_id):
            raise ValueError(f"{run_id!r} is no run's id")
        self.folder = (runs_folder() if among is None else among) / run_id
        self._last: _LastSave | None = None
        self._lease: Lease | None = None

    @property
    def lease_path(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.lease")

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """A context in which no other process trains this run. In it, what saves raises `LeaseLost` where one does so
        all the same, as this process did not answer for long.

        Raises `InputError` where another process trains the run now, and `OSError` where nothing can be written.
        """
        with hold(self.lease_path, lambda: request_finish(self.folder.name)) as self._lease:
            try:
                yield
            finally:
                self._lease = None

    def _check_owned(self) -> None:
        if self._lease is not None:
            self._lease.check()

    def record(self) -> Run | None:
        """The run as it was saved last, with its losses; None where there is none that can be read.

        A loss that cannot be read is NaN, so that the others keep their steps.
        """
        with _files_lock:
            saved = self._read_record()
            if saved is None:
                return None
            run, losses = saved.run, saved.losses(LossFile(self.folder))
        missing = saved.steps_done - len(losses)
        if missing:
            logging.warning("Bespoke: %s of %s lacks the last %d losses", LOSSES, self.folder.name, missing)
        run.losses = losses + [math.nan] * missing
        return run

    def losses(self, count: int) -> list[float]:
        """The first `count` losses, or as many as can be read, without the record."""
        with _files_lock:
            return LossFile(self.folder).read(count)

    def _read_record(self) -> SavedRecord | None:
        try:
            return SavedRecord.from_json(read_text(self.folder / RECORD, LARGEST_RECORD))
        except (OSError, ValueError):
            return None

    def summary(self) -> Summary:
        """What a list shows of the run: summary.json if it was made from the present record.json, else made from it.

        A summary that is missing, damaged or of an earlier record is written again if the folder allows it. Raises
        `OSError` when the record cannot be read, and `ValueError` when it is no record of this run.
        """
        record = os.path.join(self.folder, RECORD)  # much faster than a `Path` for thousands of runs
        with _files_lock:
            state = FileState.of(record)
            try:
                return self._read_summary(state)
            except (OSError, ValueError):
                text = read_text(record, LARGEST_RECORD)
        saved = SavedRecord.from_json(text)
        summary = self._check_id(summary_of(saved.run, saved.steps_done))
        with _files_lock, contextlib.suppress(OSError):
            if FileState.of(record) == state:
                self._write_summary(summary, state)
        return summary

    def _read_summary(self, record: FileState) -> Summary:
        values = read_json(read_text(os.path.join(self.folder, SUMMARY), LARGEST_SUMMARY))
        if not isinstance(values, dict) or values.get("record") != [record.size, record.mtime_ns]:
            raise ValueError("no summary of this record")
        return self._check_id(Summary.from_values(values))

    def _write_summary(self, summary: Summary, record: FileState) -> None:
        values = {"record": [record.size, record.mtime_ns], **vars(summary)}
        write_text(self.folder / SUMMARY, json.dumps(values, allow_nan=False))

    def _check_id(self, summary: Summary) -> Summary:
        if summary.id != self.folder.name:
            raise ValueError("the record of another run")
        return summary

    def state(self) -> State | None:
        """The state that belongs to the record, or None where none was saved.

        Raises `UnusableState` for one that cannot be read.
        """
        name = self._state_file()
        if not name:
            return None
        path = self.folder / name
        try:
            with safe_open(path, "pt") as file:
                # Copies: on Windows a file that is mapped cannot be removed after the next save.
                return unpack({key: file.get_tensor(key).clone() for key in file.keys()}, file.metadata() or {})  # noqa: SIM118
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            raise UnusableState(f"{path.name} cannot be read: {reason_of(error)}") from error

    def _state_file(self) -> str:
        """The name of the state in the record; where no record can be read, that of the state of the most steps."""
        last = self._last_save()
        if last is not None:
            return last.state_file
        with _files_lock:
            saved = self._read_record()
        if saved is not None:
            return saved.state_file
        return max((path.name for path in self._states()), key=lambda name: (len(name), name), default="")

    def _states(self) -> list[Path]:
        return [path for path in self.folder.glob("state*.safetensors") if STATE_NAME.fullmatch(path.name)]

    def save(self, state: State, run: Run) -> None:
        """Save the run and the state to go on from, as one: losses first, then the state, then the record.

        The record completes the save. Killed before it, the run goes on from the save before. The time that this takes
        does not depend on the number of losses, as long as `run.losses` stays the same list and only grows.
        """
        self._check_owned()
        tensors, metadata = pack(state)
        name = state_name(state.step)
        with _files_lock:
            self._write_losses(run)
        write_safetensors(self.folder / name, tensors, metadata, overwrite=True)
        sync_folder(self.folder)
        self._write_record(run, name)
        for path in self._states():
            if path.name != name:
                with contextlib.suppress(OSError):  # one that is open elsewhere goes with the next save
                    path.unlink()

    def save_record(self, run: Run) -> None:
        """Save the run without a state; the state that was saved before stays the one to go on from."""
        self._check_owned()
        name = self._state_file()
        with _files_lock:
            self._write_losses(run)
        self._write_record(run, name)

    def save_end(self, state: RunState) -> None:
        """Change the state in the record only: the run goes on from the save before. Where another process trains the
        run now, the record is its own and stays."""
        try:
            self._check_owned()
        except LeaseLost:
            return
        with _files_lock:
            saved = self._read_record()
            if saved is not None:
                saved.run.state = state
                replace_text(self.folder / RECORD, saved.to_json())

    def set_label(self, label: str) -> None:
        """Change the label in the record. Safe while the run is trained: state and losses stay those of the record."""
        with _files_lock:
            saved = self._read_record()
            if saved is not None and not saved.losses_inside:
                saved.run.info = replace(saved.run.info, label=label)
                replace_text(self.folder / RECORD, saved.to_json())
                return
        run = self.record()  # of version 0.1, with the losses inside
        if run is not None:
            run.info = replace(run.info, label=label)
            self.save_record(run)

    def _write_losses(self, run: Run) -> None:
        """Write `run.losses` to losses.jsonl; the caller holds `_files_lock`.

        Lines that are there already are kept. Where other losses must replace lines that the record on disk counts,
        the record's count is lowered first.
        """
        file, last = LossFile(self.folder), self._last_save()
        if last is not None and last.losses is run.losses and last.count <= len(run.losses) and file.has(last.count):
            kept = last.count
        else:
            saved = self._read_record()
            lines = [] if saved is None or saved.losses_inside else file.read(saved.steps_done)
            kept = same_start(lines, run.losses)
            if saved is not None and not saved.losses_inside and kept < min(saved.steps_done, len(run.losses)):
                # Other losses take the place of counted ones, so the record must not count these any more.
                replace_text(self.folder / RECORD, replace(saved, steps_done=kept).to_json())
        if len(run.losses) > kept:
            file.write_from(kept, run.losses[kept:])

    def _last_save(self) -> _LastSave | None:
        """The last save of this store if the record on disk is still the one that it wrote."""
        try:
            found = FileState.of(self.folder / RECORD)
        except OSError:
            return None
        return self._last if self._last is not None and self._last.record == found else None

    def _write_record(self, run: Run, state_file: str) -> None:
        """Write the record, then its summary. After a kill between the two, `summary` reads the record."""
        text = SavedRecord(run, len(run.losses), state_file).to_json()
        with _files_lock:
            replace_text(self.folder / RECORD, text)
            record = FileState.of(self.folder / RECORD)
            with contextlib.suppress(OSError, ValueError):  # `summary` does without; a training must not end for it
                self._write_summary(summary_of(run), record)
        self._last = _LastSave(run.losses, len(run.losses), state_file, record)

    def save_sample(self, step: int, picture: SamplePicture, number: int = 0) -> str:
        """Write a sample image of prompt `number`, from 0. Returns its file name, which `sample_path` takes.

        000040.png is that of the first prompt at step 40, and 000040_02.png that of the second; a film is .webp.
        """
        self._check_owned()
        stem = f"{step:06}" if number == 0 else f"{step:06}_{number + 1:02}"
        name = f"{stem}.{'webp' if isinstance(picture, AnimatedPicture) else 'png'}"
        with replacing(self.folder / SAMPLES / name) as temporary:
            if isinstance(picture, AnimatedPicture):
                picture.save(temporary)
            else:
                picture.save(temporary, "PNG")
        return name

    def sample_path(self, name: str) -> Path | None:
        """The file of a sample, or None for a name that is none."""
        path = self.folder / SAMPLES / name
        return path if _SAMPLE.fullmatch(name) and path.is_file() else None

    def set_aside(self) -> str:
        """Rename the run's folder, so that the run starts anew and nothing that was trained is lost; the new name, or
        "" where there is no folder."""
        self._check_owned()
        self._last = None
        if not self.folder.is_dir():
            return ""
        return self.move_to(self.folder.parent).name

    def move_to(self, folder: Path) -> Path:
        """Rename the run's folder to its name and the present time, in `folder`; the new path.

        Raises `OSError` where that cannot be done.
        """
        stamp = f"{self.folder.name}.{time.strftime('%Y%m%d-%H%M%S')}"
        names = (stamp, *(f"{stamp}-{number}" for number in range(2, 1000)))  # twice in one second
        moved = next(path for path in (folder / name for name in names) if not path.exists())
        self.folder.rename(moved)
        return moved
