"""The entries of a folder, with a bound on their number."""

from __future__ import annotations

import os
from pathlib import Path

from ...training.errors import InputError

MOST_ENTRIES = 100_000  # of one folder


def entries_of(folder: Path) -> list[Path]:
    """Everything in a folder. Raises `InputError` for more than `MOST_ENTRIES`."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if len(found) == MOST_ENTRIES:
                raise InputError(
                    f"the folder {folder.name!r} holds more than {MOST_ENTRIES:,} files; move those of one training "
                    "into a folder of their own"
                )
            found.append(folder / entry.name)
    return found


def files_of(folder: Path) -> list[Path]:
    """The regular files in a folder, in the order of their names; links to files are among them."""
    return sorted(path for path in entries_of(folder) if path.is_file())
