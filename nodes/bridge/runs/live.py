"""The runs that are trained now, here or by another server. A record that says "running" may be that of a process that
was killed."""

from __future__ import annotations

import threading

from ....training.record import Run
from .lease import owner_of
from .store import RunStore, runs_folder

_runs: dict[str, Run] = {}
_lock = threading.Lock()  # the training adds and removes, the routes read


def add_live(run: Run) -> None:
    """The run is trained from now on."""
    with _lock:
        _runs[run.id] = run


def remove_live(run: Run) -> None:
    """The run is not trained any more."""
    with _lock:
        _runs.pop(run.id, None)


def live_run(run_id: str) -> Run | None:
    """The run with this id that this process trains now, or None."""
    with _lock:
        return _runs.get(run_id)


def is_trained(run_id: str) -> bool:
    """Whether this process or another server trains the run now. Raises `ValueError` for what is no run's id."""
    return live_run(run_id) is not None or owner_of(RunStore(run_id).lease_path) is not None


def trained_ids() -> list[str]:
    """The ids of the runs that are trained now."""
    with _lock:
        here = set(_runs)
    leases = runs_folder().glob("*.lease")
    return sorted(here | {path.stem for path in leases if owner_of(path) is not None})
