"""Records of runs for tests, and the folder with runs of version 0.1."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from bespoke.training.record import Run, RunInfo

RUN_FOLDERS_0_1 = Path(__file__).resolve().parents[1] / "samples_0_1" / "folders"
_INFO = {field.name for field in fields(RunInfo)}


def make_run(run_id: str, technique: str, settings: dict[str, Any], base: str, images: int, **more: Any) -> Run:
    """A record; `more` are further fields of its info and of its progress."""
    return changed(Run(RunInfo(run_id, technique, settings, base, images)), **more)


def changed(run: Run, **changes: Any) -> Run:
    """A copy with other values, of its info or of its progress."""
    info = {name: value for name, value in changes.items() if name in _INFO}
    progress = {name: value for name, value in changes.items() if name not in _INFO}
    return replace(run, info=replace(run.info, **info), **progress)


def losses_of(folder: Path) -> list[float | None]:
    """The losses in a run's folder, read from its files alone; None for one that is not finite."""
    count = json.loads((folder / "record.json").read_text())["steps_done"]
    lines = (folder / "losses.jsonl").read_text().splitlines() if count else []
    return [json.loads(line) for line in lines[:count]]


class Shown:
    """A display that remembers how the run ended."""

    node_id = None

    def __init__(self):
        self.ends = []

    def phase(self, name, **values): ...
    def start(self, text): ...
    def step(self, values): ...
    def validation(self, step, loss, best, leak=None, comparison=None): ...
    def sample(self, step, name): ...

    def end(self, state, files=()):
        self.ends.append(state)
