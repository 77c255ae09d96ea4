"""The list of runs: their summaries kept in memory, searched and cut into pages."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path

from ....training.record import RunState, Summary
from .store import FileState, RunStore, records_in, runs_folder

PAGE = 100  # runs in one answer


@dataclass(frozen=True)
class Listed:
    """A run in the list. record: the state of the record.json that the summary was made from."""

    record: FileState
    summary: Summary

    @cached_property
    def digest(self) -> bytes:
        """Equal for equal summaries, in every process."""
        return hashlib.blake2b(json.dumps(vars(self.summary)).encode(), digest_size=8).digest()

    @cached_property
    def words(self) -> str:
        """What a search looks in, one text a line."""
        run = self.summary
        texts = [
            run.label,
            run.technique,
            run.base,
            run.trigger,
            run.state,
            *run.settings,
            *map(_shown, run.settings.values()),
        ]
        return "\n".join(texts).casefold()


@dataclass(frozen=True)
class Listing:
    """All runs at one moment, newest first, and of equal time by id.

    stamp: differs when any summary does. unread: the ids of the folders whose record cannot be read.
    """

    runs: tuple[Listed, ...]
    stamp: str
    unread: tuple[str, ...] = ()

    def summaries(self, search: str = "") -> list[Summary]:
        """Those in which every word of `search` occurs, whatever its case."""
        words = search.casefold().split()
        return [run.summary for run in self.runs if not words or all(word in run.words for word in words)]


class RunIndex:
    """The runs of a folder. A look costs a stat for each run; only summaries of records that changed are read."""

    def __init__(self, folder: Callable[[], Path] = runs_folder):
        self._folder = folder
        self._lock = threading.Lock()
        # By the folder of runs and the run's id; only the record's state where it is no record of a run.
        self._known: dict[tuple[str, str], Listed | FileState] = {}
        self._listing = _listing([], [])

    def look(self) -> Listing:
        """The runs as they are on disk now. Safe from any thread."""
        with self._lock:
            folder, known = self._folder(), {}
            for run_id, record in records_in(folder):
                key = (str(folder), run_id)
                found = self._known.get(key)
                if found is None or not _is_present(found, record):
                    found = _read(RunStore(run_id, folder), record)
                if found is not None:
                    known[key] = found
            if known != self._known:
                self._known = known
                runs = [run for run in known.values() if isinstance(run, Listed)]
                self._listing = _listing(runs, [key[1] for key, run in known.items() if not isinstance(run, Listed)])
            return self._listing


def _is_present(found: Listed | FileState, record: FileState) -> bool:
    """Whether what is known of a run was read from this record. A running one is read again each time: on network
    drives all files may have one inode, and times of two seconds, so that a later record of it may look the same."""
    if not isinstance(found, Listed):
        return found == record
    return found.record == record and found.summary.state is not RunState.RUNNING


def _read(store: RunStore, record: FileState) -> Listed | FileState | None:
    """The run, the record's state alone where it is no record of this run, None where it cannot be read now."""
    try:
        return Listed(record, store.summary())
    except ValueError:
        return record
    except OSError:
        return None


def _listing(runs: list[Listed], unread: list[str]) -> Listing:
    runs.sort(key=lambda run: (-run.summary.started, run.summary.id))
    unread.sort()
    content = b"".join([*(run.digest for run in runs), *(name.encode() for name in unread)])
    return Listing(tuple(runs), hashlib.blake2b(content, digest_size=8).hexdigest(), tuple(unread))


def _shown(value: str | float | bool) -> str:
    """A setting's value as people write it: a small number in both ways, 5e-05 and 0.00005."""
    text = str(value)
    return f"{text} {Decimal(text):f}" if isinstance(value, float) and "e" in text else text
