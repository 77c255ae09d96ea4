"""Where training folders lie: under ComfyUI's input folder, and in its folders for data sets where it has them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import folder_paths

from ...training.errors import InputError
from ..bridge.files.writing import resolve_inside

# ComfyUI's kind of folder for data sets, which newer versions have. A name in it is marked as ComfyUI marks files of
# its other folders, "name [output]".
KIND = "datasets"
MARK = f" [{KIND}]"
MOST_LISTED = 1000  # folders for data sets
DEEPEST = 3  # of those that are listed


def input_folder() -> Path:
    """ComfyUI's input folder."""
    return Path(folder_paths.get_input_directory())


def folder_names() -> list[str]:
    """The names of all folders that may hold a set: those under input, then those for data sets with their mark."""
    names = (name for base in data_set_folders() for name in _below(base))
    return [*folder_paths.get_input_subfolders(), *(f"{name}{MARK}" for name in dict.fromkeys(names))]


def find_folder(name: str) -> Path:
    """The path of a training folder by its name, see `folder_names`; it need not be there.

    Raises `InputError` for a name that leads out of where such folders lie, and for one of a data set where this
    ComfyUI has no folder for them.
    """
    if not name.endswith(MARK):
        return resolve_inside(input_folder(), name)
    bases = data_set_folders()
    if not bases:
        raise InputError(
            f"{name!r} lies in the folder {KIND!r} of a newer ComfyUI, which this one does not have; put the pictures "
            "into a folder under input and choose that"
        )
    paths = [resolve_inside(base, name.removesuffix(MARK)) for base in bases]
    return next((path for path in paths if path.is_dir()), paths[0])


def data_set_folders() -> list[Path]:
    """ComfyUI's folders for data sets; none in a version without them."""
    if KIND not in folder_paths.folder_names_and_paths:
        return []
    return [Path(path) for path in folder_paths.get_folder_paths(KIND)]


def _below(base: Path) -> Iterator[str]:
    """The folders below one, as paths from it, at most `MOST_LISTED`. Links are not followed."""
    waiting, listed = [(base, 0)], 0
    while waiting:
        folder, depth = waiting.pop(0)
        try:
            with os.scandir(folder) as entries:
                found = sorted(
                    each.name
                    for each in entries
                    if not each.name.startswith(".") and each.is_dir(follow_symlinks=False)
                )
        except OSError:  # not there, or not to be read
            continue
        for name in found:
            if listed == MOST_LISTED:
                return
            listed += 1
            yield (folder / name).relative_to(base).as_posix()
            if depth + 1 < DEEPEST:
                waiting.append((folder / name, depth + 1))
