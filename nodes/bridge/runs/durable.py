"""Writes that are on the disk before they return, so that a killed process or a power cut leaves the old or the new."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ..files.writing import NO_SYNC, sync, write_text


def replace_text(path: Path, text: str) -> None:
    """Write a text file over what is there: after a crash at any moment the file has the whole old or new text.

    `files.writing.write_text` does not wait for the disk by default. Raises `OSError` when it cannot be written.
    """
    write_text(path, text, synced=True)
    sync_folder(path.parent)


def write_after(path: Path, offset: int, data: bytes) -> None:
    """Keep the first `offset` bytes of a file, cut off the rest and write `data` behind them.

    After a crash the first `offset` bytes are untouched, and any part of `data` may follow them. Raises `OSError` when
    it cannot be written, and `ValueError` when the file is shorter than `offset`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        if file.tell() < offset:
            raise ValueError(f"{path.name} has {file.tell():,} bytes instead of {offset:,}")
        file.truncate(offset)
        file.write(data)
        file.flush()
        sync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can do that for a folder.

    Windows cannot, nor can some network drives: they refuse to open a folder, or to sync it.
    """
    if os.name == "nt":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno in NO_SYNC | {errno.EACCES, errno.EPERM, errno.EISDIR}:
            return
        raise
    try:
        sync(handle)
    finally:
        os.close(handle)
