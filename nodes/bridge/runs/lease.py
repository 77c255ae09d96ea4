"""Which process trains a run: a file `<run id>.lease` beside the run's folder, held while the run is trained.

Two servers may share a user directory, also over a network. Locks of the system (flock, LockFile) are not used, since
on network drives they are missing, or hold for one machine only. What is needed is that creating a file fails where it
exists, which NFS 3 and later, SMB and all local file systems keep.

A lease says who holds it, and its holder counts its beat up every `BEAT_SECONDS`. It is abandoned
- where its process ran on this machine and has ended: at once;
- where it is of another machine: when its beat has stood still for `LAPSE_SECONDS` by this process's own clock. Neither
  times of files nor the clocks of two machines are compared.
A holder that was suspended for longer may have lost its lease; `Lease.check`, which comes before every save, raises
then. Between this check and the end of a save another process may still take over; it begins by reading what is saved,
and all its later saves replace whole files.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import secrets
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import comfy.model_management

from ....training.errors import InputError
from ..files.reading import read_text
from ..files.writing import sync

BEAT_SECONDS, LAPSE_SECONDS = 5.0, 30.0
_WIDTH = 12  # digits of the beat, which stands before the rest of the file, so that it is overwritten in place
_LARGEST = 10_000  # bytes
_LARGEST_PROCESS = 2**32 - 1  # Windows counts in 32 bits, Linux and macOS in fewer
_held: set[str] = set()  # the paths of the leases that this process holds or waits for
_changed = threading.Condition()


class LeaseLost(InputError):
    """Another process trains the run now; what it saves must not be overwritten."""


@dataclass(frozen=True)
class Owner:
    """Who holds a lease. machine: differs for every start of a system and every container. started: of the process, by
    the system's count. host: the machine's name for a person. token: of this lease alone."""

    machine: str
    process: int
    started: str
    host: str
    token: str

    @property
    def is_here(self) -> bool:
        """Whether the owner ran on this machine, since its last start."""
        return self.machine == machine()

    @property
    def is_alive(self) -> bool:
        """Whether the process exists. Only meaningful where `is_here`."""
        started = _started(self.process)
        return started == self.started if started is not None else _exists(self.process)

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


@lru_cache(maxsize=1)
def machine() -> str:
    """This machine between two starts; on Linux each container has its own, as processes are numbered in it anew."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{platform.node()} {uuid.getnode():x}"


def _started(process: int) -> str | None:
    """When a process started, as the system counts it, whatever its clock is set to; "" for one that has ended.

    None where that cannot be read.
    """
    if sys.platform == "linux":
        try:
            # The name, in brackets, may hold anything. The state follows it; Z and X are processes that have ended.
            fields = Path(f"/proc/{process}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
            return "" if fields[0] in "ZX" else fields[19]
        except (OSError, IndexError):
            return None
    import psutil  # comes with ComfyUI

    try:
        return str(int(psutil.Process(process).create_time()))
    except psutil.NoSuchProcess:
        return ""
    except psutil.Error:
        return None


def _exists(process: int) -> bool:
    if os.name == "nt":
        return True  # `os.kill` would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        pass
    return True


class Lease:
    """A lease that this process holds."""

    def __init__(self, path: Path, owner: Owner, on_finish: Callable[[], None]):
        """on_finish: called, in another thread, where another process asks to finish the run."""
        self.path, self.owner, self._on_finish = path, owner, on_finish
        self._beat, self._stop, self._lost = 0, threading.Event(), False
        self._thread = threading.Thread(target=self._keep, name=f"lease of {path.stem}", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise `LeaseLost` where another process holds the run now. Without an answer of the disk, nothing is logged:
        the write that follows meets the same disk."""
        with contextlib.suppress(OSError):
            found = _read(self.path)
            if found is None and not self._stop.is_set():  # removed by somebody
                _create(self.path, self.owner)
            self._lost = self._lost or (found is not None and found[1] is not None and found[1] != self.owner)
        if self._lost:
            raise LeaseLost(
                f"another ComfyUI server trains {self.path.stem} now, as this one did not answer for "
                f"{LAPSE_SECONDS:g} s; this training ends here, and the other one goes on from what was saved"
            )

    def release(self) -> None:
        self._stop.set()
        self._thread.join(BEAT_SECONDS)  # no longer: the drive may not answer
        for _ in range(5):  # on Windows a file that is being read cannot be removed
            try:
                found = _read(self.path)
                if found is not None and found[1] == self.owner:
                    self.path.unlink()
                return
            except OSError:
                time.sleep(0.05)

    def _keep(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError, LeaseLost):
                self.check()
                self._beat += 1
                with open(self.path, "r+b") as file:  # nothing is cut off, so this needs no room on the disk
                    file.write(f"{self._beat:0{_WIDTH}}".encode())
            with contextlib.suppress(OSError):
                _finish_file(self.path).unlink()
                self._on_finish()


@contextlib.contextmanager
def hold(path: Path, on_finish: Callable[[], None]) -> Iterator[Lease]:
    """Hold the lease of a run, `<run id>.lease`. on_finish: see `Lease`.

    Raises `InputError` where another process holds it, and `OSError` where it cannot be written.
    """
    process, host = os.getpid(), platform.node() or "a machine without a name"
    me = Owner(machine(), process, _started(process) or "", host, secrets.token_hex(8))
    with _changed:
        if str(path) in _held:
            raise _is_trained(path, me)
        _held.add(str(path))
    try:
        lease = _acquire(path, me, on_finish)
        try:
            yield lease
        finally:
            lease.release()
    finally:
        with _changed:
            _held.discard(str(path))
            _changed.notify_all()


def _acquire(path: Path, owner: Owner, on_finish: Callable[[], None]) -> Lease:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Where the disk took longer than the lapse to write the lease, another process may have put it aside meanwhile.
    while not (_create(path, owner) and _is_of(path, owner)):
        _wait_until_abandoned(path)
    with contextlib.suppress(OSError):
        _finish_file(path).unlink(missing_ok=True)  # of an earlier training
    return Lease(path, owner, on_finish)


def owner_of(path: Path) -> Owner | None:
    """Who trains the run now; None where nobody does, as far as this machine can tell."""
    try:
        found = _read(path)
    except OSError:
        return None
    owner = None if found is None else found[1]
    if owner is None or not owner.is_here:
        return owner
    alive = is_held_here(path) if owner.process == os.getpid() else owner.is_alive
    return owner if alive else None


def is_held_here(path: Path) -> bool:
    """Whether this process trains the run of this lease now."""
    return str(path) in _held


def holds_any() -> bool:
    """Whether this process trains a run now."""
    return bool(_held)


def wait_until_none(seconds: float) -> bool:
    """Wait until this process holds no lease; returns whether that is so."""
    with _changed:
        return _changed.wait_for(lambda: not _held, seconds)


def request_finish_elsewhere(path: Path) -> None:
    """Ask the other process that holds this lease to finish its run: it looks every `BEAT_SECONDS`."""
    _finish_file(path).touch()


def _finish_file(path: Path) -> Path:
    return path.with_suffix(".finish")


def _create(path: Path, owner: Owner) -> bool:
    """Write a new lease; False where there is one. Raises `OSError` where it cannot be written."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o644)
    except FileExistsError:
        return False
    with open(handle, "wb") as file:
        try:
            file.write(f"{0:0{_WIDTH}}\n{json.dumps(asdict(owner))}\n".encode())
            file.flush()
            sync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink()
            raise
    return True


def _is_of(path: Path, owner: Owner) -> bool:
    found = _read(path)
    return found is not None and found[1] == owner


def _read(path: Path) -> tuple[str, Owner | None] | None:
    """(the text, the owner or None where the text says none); None where there is no lease.

    What is no lease and lies at its place gives a text that does not depend on the path, since `_remove` compares the
    texts before and after it renames the file.
    """
    try:
        text = read_text(path, _LARGEST)
    except ValueError:
        return "no text of a lease, or no regular file", None
    except OSError as error:
        if path.is_symlink() or path.is_dir():  # a link that leads nowhere or in a circle, or a folder
            return "no file", None
        if isinstance(error, FileNotFoundError):
            return None
        raise
    return text, _owner(text)


def _owner(text: str) -> Owner | None:
    try:
        values: Any = json.loads(text[_WIDTH:])
        owner = Owner(**values)
    except (TypeError, ValueError, RecursionError):
        return None
    texts = (owner.machine, owner.started, owner.host, owner.token)
    if type(owner.process) is not int or not all(isinstance(each, str) for each in texts):
        return None
    return owner if 0 < owner.process <= _LARGEST_PROCESS else None  # 0 and below are groups of processes to the system


def _wait_until_abandoned(path: Path) -> None:
    """Return when the lease at `path` is gone; remove one that is abandoned. Raises `InputError` where it is held."""
    first, ends, logged = _read(path), time.monotonic() + LAPSE_SECONDS, False
    while (now := _read(path)) is not None:
        owner = now[1]
        if owner is not None and owner.is_here:
            if owner.is_alive and owner.process != os.getpid():
                raise _is_trained(path, owner)
            return _remove(path, now)  # also one of this process that could not be removed
        if first is not None and now != first:
            if owner is None:  # it was being written
                first, ends = now, time.monotonic() + LAPSE_SECONDS
            else:
                raise _is_trained(path, owner)
        if time.monotonic() > ends:
            logging.warning("Bespoke: %s goes on: %s, which trained it, has ended", path.stem, owner or "a process")
            return _remove(path, now)
        if not logged:
            seconds, logged = f"{LAPSE_SECONDS:g}", True
            logging.warning("Bespoke: waits up to %s s to see whether %s is trained elsewhere", seconds, path.stem)
        comfy.model_management.throw_exception_if_processing_interrupted()
        time.sleep(min(0.5, LAPSE_SECONDS / 20))


def _remove(path: Path, abandoned: tuple[str, Owner | None]) -> None:
    """Remove an abandoned lease, unless another process has just done so and holds a new one."""
    aside = path.with_name(f"{path.name}-{secrets.token_hex(4)}")
    try:
        os.rename(path, aside)  # of several processes that try, one succeeds
    except FileNotFoundError:
        return
    try:
        if _read(aside) != abandoned and not os.path.lexists(path):
            os.rename(aside, path)
    finally:
        if aside.is_dir() and not aside.is_symlink():
            with contextlib.suppress(OSError):  # one with files in it stays under its new name
                aside.rmdir()
        else:
            aside.unlink(missing_ok=True)


def _is_trained(path: Path, owner: Owner) -> InputError:
    return InputError(
        f"the run {path.stem} is being trained by another ComfyUI server ({owner}); wait until it has ended and queue "
        "again: the same request then gives its result at once, or goes on from where it was stopped"
    )
