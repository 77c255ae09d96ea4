"""Runs on disk, under ComfyUI's user directory: the record for the page, the state to go on from."""

from __future__ import annotations

import logging
import re
import threading
import time
from pathlib import Path

import folder_paths
from PIL import Image
from safetensors import SafetensorError, safe_open

from ....training.checkpoint import State, pack, unpack
from ....training.record import Run
from ..storage import write_safetensors, write_text

SAMPLES = "samples"
_SAMPLE = re.compile(r"\d{6,}\.png")
_ID = re.compile(r"[a-z-]+-[0-9a-f]{12}")
_finish: set[str] = set()
_lock = threading.Lock()


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


def list_runs() -> list[Run]:
    """Every record that can be read, newest first."""
    found = []
    for path in runs_folder().glob("*/record.json"):
        run = RunStore(path.parent.name).record() if _ID.fullmatch(path.parent.name) else None
        if run is not None:
            found.append(run)
    return sorted(found, key=lambda run: run.started, reverse=True)


class RunStore:
    """One run's folder. Files are written whole or not at all."""

    def __init__(self, run_id: str, among: Path | None = None):
        """among: the folder of runs, ComfyUI's own where none is given."""
        if not _ID.fullmatch(run_id):
            raise ValueError(f"{run_id!r} is no run's id")
        self.folder = (runs_folder() if among is None else among) / run_id

    def record(self) -> Run | None:
        try:
            return Run.from_json((self.folder / "record.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None

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
        write_text(self.folder / "record.json", run.to_json())

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
