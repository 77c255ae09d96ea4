"""What the probes of a search have found, on disk: a search that was interrupted goes on, a repeated one costs nothing.

A search has a file and a folder of its name in `learning-rates` among the runs. The file keeps the results of all
probes. The folder has the states of the present search's probes, in folders as runs have them, until it ends: that of
the chosen rate then becomes a run, with which its training goes on, and the others are removed. Those of a search that
was interrupted and never gone on with are removed by a later search: see `ProbeBook.remove_old_states`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from ....training.checkpoint import State
from ....training.errors import InputError
from ....training.plain_json import read_json
from ....training.record import Run, RunState
from ..files.reading import read_text
from ..files.writing import write_text
from ..runs.store import RunStore, runs_folder

FOLDER = "learning-rates"
LARGEST_FILE = 10_000_000  # bytes
KEPT_DAYS = 7  # the states of an interrupted search


@dataclass(frozen=True)
class Probe:
    """A short training at one rate.

    steps: how many it has, of `of` of the training; 0 at rate 0 is the untrained model. loss: on the fixed grid
    afterwards; infinite where it broke off.
    pictures: the loss of each scored picture, in the order of the set. losses: of each step. problem: why it broke off.
    stopping: of the untrained model the state of a `StopRule` that has its validation, where the training has such a
    rule.
    """

    rate: float
    steps: int
    of: int
    loss: float
    pictures: list[float] = field(default_factory=list[float])
    losses: list[float] = field(default_factory=list[float])
    seconds: float = 0.0
    problem: str = ""
    stopping: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def key(self) -> tuple[float, int, int]:
        return self.rate, self.steps, self.of


class ProbeBook:
    """The results and states of one search. search_id: that of its file; equal for searches of the same training."""

    def __init__(self, search_id: str) -> None:
        self._folder = runs_folder() / FOLDER / search_id
        self._file = self._folder.with_name(f"{search_id}.json")

    def known(self) -> list[Probe]:
        """All probes that were saved; none where the file is missing or is no such file."""
        try:
            return list(_probes(read_json(read_text(self._file, LARGEST_FILE))))
        except (OSError, ValueError):
            return []

    def add(self, probe: Probe) -> None:
        """Save a probe beside the known ones; it takes the place of one of the same rate and length."""
        others = [each for each in self.known() if each.key != probe.key]
        values = [_finite(asdict(each)) for each in [*others, probe]]
        write_text(self._file, json.dumps({"probes": values}, allow_nan=False))

    def forget(self) -> None:
        """Remove all results and states."""
        with contextlib.suppress(OSError):
            self._file.unlink()
        self.clear_states()

    def save_state(self, run: Run, state: State) -> None:
        """Keep what a probe has trained, as a run that can be gone on with."""
        RunStore(run.id, self._folder).save(state, run)

    def hand_over(self, run_id: str, steps: int) -> Run | None:
        """Make the state of a probe a run among the others; gives the run that is there now, None where there is none.

        A run that is there already stays, unless it is no more than an earlier probe: one of fewer steps, or of a
        training of another length, whose learning rates were others. steps: of the training.
        """
        kept, store = RunStore(run_id, self._folder), RunStore(run_id)
        probe, there = kept.record(), store.record()
        if probe is not None and is_as_long(probe, steps):
            if _is_only_a_probe(there) and not (is_as_long(there, steps) and len(there.losses) >= len(probe.losses)):
                with contextlib.suppress(InputError, OSError), store.owned():  # else another server trains it now
                    shutil.rmtree(store.folder)
            if not store.folder.exists():
                kept.folder.rename(store.folder)
        return store.record()

    def clear_states(self) -> None:
        """Remove the states that are left."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def remove_old_states(self) -> None:
        """Remove the states of other searches that were interrupted more than `KEPT_DAYS` days ago, and log it.

        Each is as large as that of a training. The results of their probes stay, so such a search still goes on where
        it was; the training at its rate begins anew where the state of that probe was removed.
        """
        oldest = time.time() - KEPT_DAYS * 86400
        for folder in _folders(self._folder.parent):
            with contextlib.suppress(OSError):  # another server writes or removes a file of it now
                newest = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
                if folder == self._folder or newest >= oldest:
                    continue
                shutil.rmtree(folder)
                logging.info(
                    "Bespoke: removed what the interrupted search %s for a learning rate had trained more than %d days "
                    "ago; its results stay",
                    folder.name,
                    KEPT_DAYS,
                )


def _folders(parent: Path) -> list[Path]:
    try:
        return [path for path in parent.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError:
        return []


def note_of(steps: int) -> str:
    """What the record of a training says whose first steps a probe has done."""
    return f"the first {steps} steps were done by Find Learning Rate"


def _is_only_a_probe(run: Run | None) -> TypeGuard[Run]:
    """Whether a run has the steps of a probe and no further one."""
    return run is not None and run.state is RunState.INTERRUPTED and note_of(len(run.losses)) in run.notes


def is_as_long(run: Run, steps: int) -> bool:
    """Whether a run is of a training of that many steps, so that its steps had the same learning rates."""
    return run.info.settings.get("steps") == steps


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return values | {"loss": values["loss"] if math.isfinite(values["loss"]) else None}


def _probes(values: Any) -> Iterator[Probe]:
    """Raises `ValueError` for what `ProbeBook.add` has not written."""
    try:
        for each in values["probes"]:
            loss = math.inf if each["loss"] is None else float(each["loss"])
            yield Probe(
                float(each["rate"]),
                int(each["steps"]),
                int(each["of"]),
                loss,
                [float(one) for one in each["pictures"]],
                [float(one) for one in each["losses"]],
                float(each["seconds"]),
                str(each["problem"]),
                dict(each["stopping"]),
            )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no probes: {error}") from error
