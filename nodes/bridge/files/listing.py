"""The files of ComfyUI's model folders that are offered for choosing: those that are opened."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import folder_paths

from ....training.errors import InputError

ENDING = ".safetensors"
NO_FILE = "none"  # the choice of no file


def safetensors_in(folder: str) -> list[str]:
    """The names of the .safetensors files in one of ComfyUI's folders, such as "loras"."""
    return [name for name in folder_paths.get_filename_list(folder) if name.lower().endswith(ENDING)]


def not_listed(folder: str) -> str:
    """A remark for an error on the files of the folder that are never opened; "" where there are none."""
    count = sum(not name.lower().endswith(ENDING) for name in folder_paths.get_filename_list(folder))
    return (
        f" ({count} files there, .pt and the like, are not listed, since they can run code when they are opened; "
        f"convert them to {ENDING})"
        if count
        else ""
    )


def find_file(folder: str, name: str, prefix: str = "") -> tuple[str, Path]:
    """(name in lists, path) of a file in one of ComfyUI's folders, such as "loras".

    name: the ending may be missing. prefix: what may stand before it, as "embedding:" does in prompts.
    The folder itself is asked, not ComfyUI's list of it: a file that was saved a moment ago is found. Raises
    `InputError` where there is none, and for a name that is no text.
    """
    if not isinstance(name, str):
        raise InputError(f"the name on the wire is of the kind {type(name).__name__}; wire a file's name in as text")
    plain = name.strip().removeprefix(prefix)
    for candidate in (plain, plain + ENDING):
        path = folder_paths.get_full_path(folder, candidate)
        if path is not None:
            return candidate, Path(path)
    raise InputError(f"{name!r} is not in ComfyUI's {folder} folder; choose another one")


def stamp_of_choice(folder: str, chosen: str | None, is_wired: bool = False) -> str:
    """A text that changes when the file that a node reads does: its name, size and time.

    folder: one of ComfyUI's. chosen: the name in the node's list; None where it comes over a wire. is_wired: whether
    another name does. The file is not known then, and any change in the folder counts.
    """
    if is_wired or chosen is None:
        return stamp_of_folders(Path(path) for path in folder_paths.get_folder_paths(folder))
    path = folder_paths.get_full_path(folder, chosen) if chosen not in ("", NO_FILE) else None
    if path is None:
        return chosen
    stat = Path(path).stat()
    return f"{chosen}:{stat.st_size}:{stat.st_mtime_ns}"


def stamp_of_folders(folders: Iterable[Path]) -> str:
    """A hash of the names, sizes and times of all files in the folders and below them.

    For a file whose name comes over a wire, so that it is not known before the node runs: a change of any file there
    changes the stamp.
    """
    digest, seen = hashlib.sha256(), set()
    for folder in folders:
        for place, below, names in os.walk(folder, followlinks=True):
            if (real := os.path.realpath(place)) in seen:  # a link to a folder above it
                below.clear()
                continue
            seen.add(real)
            below.sort()
            for name in sorted(names):
                path = Path(place, name)
                try:
                    stat = path.stat()
                except OSError:  # a broken link, or removed meanwhile
                    continue
                digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
