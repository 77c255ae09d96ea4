"""Runs on disk, under ComfyUI's user directory: the record, its summary for lists, the state to go on from."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import folder_paths
from PIL import Image
from safetensors import SafetensorError, safe_open

from ....training.checkpoint import State, pack, unpack
from ....training.plain_json import read_json
from ....training.record import Run, Summary, summary_of
from ..files.reading import read_text
from ..files.writing import write_safetensors, write_text

RECORD, SUMMARY, SAMPLES = "record.json", "summary.json", "samples"
LARGEST_RECORD, LARGEST_SUMMARY = 100_000_000, 1_000_000  # bytes; the losses of a million steps are 20 MB
_SAMPLE = re.compile(r"\d{6,}\.png")
_ID = re.compile(r"[a-z-]+-[0-9a-f]{12}")
_finish: set[str] = set()
_lock = threading.Lock()
# Held while a record or a summary is read or written: threads of one process share the name of the temporary file, and
# Windows cannot replace a file that is open.
_files = threading.Lock()


def runs_folder() -> Path:
    return Path(folder_paths.get_user_directory()) / "bespoke" / "runs"


def request_finish(run_id: str) -> None:
    """Ask the run to stop after its present step and to hand its result on."""
    with _lock:
        _finish.add(run_id)


def take_finish(run_id: str) -> bool:
    """Whether a finish was asked for since the last time; the request is used up."""
    with _lock:
        asked = run_id in _finish
        _finish.discard(run_id)
        return asked


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


class RunStore:
    """One run's folder. Files are written whole or not at all."""

    def __init__(self, run_id: str, among: Path | None = None):
        """among: the folder of runs, ComfyUI's own where none is given."""
        if not _ID.fullmatch(run_id):
            raise ValueError(f"{run_id!r} is no run's id")
        self.folder = (runs_folder() if among is None else among) / run_id

    def record(self) -> Run | None:
        try:
            with _files:
                text = read_text(self.folder / RECORD, LARGEST_RECORD)
            return Run.from_json(text)
        except (OSError, ValueError):
            return None

    def summary(self) -> Summary:
        """What a list shows of the run: summary.json if it was made from the present record.json, else made from it.

        A summary that is missing, damaged or of an earlier record is written again if the folder allows it. Raises
        `OSError` when the record cannot be read, and `ValueError` when it is no record of this run.
        """
        record = os.path.join(self.folder, RECORD)  # much faster than a `Path` for thousands of runs
        with _files:
            state = FileState.of(record)
            try:
                return self._read_summary(state)
            except (OSError, ValueError):
                text = read_text(record, LARGEST_RECORD)
        summary = self._own(summary_of(Run.from_json(text)))
        with _files, contextlib.suppress(OSError):
            if FileState.of(record) == state:
                self._write_summary(summary, state)
        return summary

    def _read_summary(self, record: FileState) -> Summary:
        values = read_json(read_text(os.path.join(self.folder, SUMMARY), LARGEST_SUMMARY))
        if not isinstance(values, dict) or values.get("record") != [record.size, record.mtime_ns]:
            raise ValueError("no summary of this record")
        return self._own(Summary.from_values(values))

    def _write_summary(self, summary: Summary, record: FileState) -> None:
        values = {"record": [record.size, record.mtime_ns], **vars(summary)}
        write_text(self.folder / SUMMARY, json.dumps(values, allow_nan=False))

    def _own(self, summary: Summary) -> Summary:
        if summary.id != self.folder.name:
            raise ValueError("the record of another run")
        return summary

    def state(self) -> State | None:
        """The state to go on from, or None when there is none that can be read."""
        path = self.folder / "state.safetensors"
        try:
            with safe_open(path, "pt") as file:
                # Copies: on Windows a file that is mapped cannot be replaced by the next save.
                return unpack({key: file.get_tensor(key).clone() for key in file.keys()}, file.metadata() or {})  # noqa: SIM118
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            logging.warning("Bespoke: %s cannot be read (%s); the run begins anew", path.name, error)
            return None

    def save(self, state: State, run: Run) -> None:
        """The record first: killed between the two, it is ahead of the state, and what is too much can be cut off."""
        self.save_record(run)
        tensors, metadata = pack(state)
        write_safetensors(self.folder / "state.safetensors", tensors, metadata, overwrite=True)

    def save_record(self, run: Run) -> None:
        """Write the record, then its summary. After a kill between the two, `summary` reads the record."""
        text = run.to_json()
        with _files:
            write_text(self.folder / RECORD, text)
            with contextlib.suppress(OSError, ValueError):  # `summary` does without; a training must not end for it
                self._write_summary(summary_of(run), FileState.of(self.folder / RECORD))

    def save_sample(self, step: int, picture: Image.Image) -> str:
        """Write a sample image; gives its file name, which `sample_path` takes."""
        folder = self.folder / SAMPLES
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{step:06}.png"
        temporary = folder / f".{name}.part"
        picture.save(temporary, "PNG")
        temporary.replace(folder / name)
        return name

    def sample_path(self, name: str) -> Path | None:
        """The file of a sample, or None for a name that is none."""
        path = self.folder / SAMPLES / name
        return path if _SAMPLE.fullmatch(name) and path.is_file() else None

    def set_aside(self) -> None:
        """Keep what is there under another name: a shorter run begins anew, and nothing that was trained is lost."""
        if not self.folder.is_dir():
            return
        stamp = f"{self.folder.name}.{time.strftime('%Y%m%d-%H%M%S')}"
        names = (stamp, *(f"{stamp}-{number}" for number in range(2, 1000)))  # twice in one second
        self.folder.rename(next(path for path in map(self.folder.with_name, names) if not path.exists()))
