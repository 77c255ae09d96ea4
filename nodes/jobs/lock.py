"""One command at a time on a job folder: two would write over each other's state."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from ...training.errors import InputError

LOCK = "lock"


def hold(folder: Path) -> BinaryIO | None:
    """Hold the folder until what comes back is closed; the system lets go of it when the process ends, however it ends.

    None where the file system knows no locks. Raises `InputError` where another process holds it.
    """
    file = (folder / LOCK).open("a+b")
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        raise InputError(
            f"another command trains {folder} now; wait until it ends, or copy the folder under another name"
        ) from None
    except OSError:
        file.close()
        return None
    return file
