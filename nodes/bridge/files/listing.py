"""The files of ComfyUI's model folders that are offered for choosing: those that are opened."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import folder_paths

ENDING = ".safetensors"


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


def stamp_of(folders: Iterable[Path]) -> str:
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
