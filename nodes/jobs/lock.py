"""An exclusive lock on a job folder: two commands that train in one folder would overwrite each other's state."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from ...training.errors import InputError

LOCK_FILE = "lock"


# dev.py has a lock of its own: it runs without this package and is not published with it.
def lock_folder(folder: Path) -> BinaryIO | None:
    """Lock the folder until the returned file is closed. The system also releases the lock when the process ends.

    Returns None where the file system does not support locks. Raises `InputError` where another process has the lock.
    """
    file = (folder / LOCK_FILE).open("a+b")
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
