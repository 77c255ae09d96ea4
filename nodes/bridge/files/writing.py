"""Where files go: inside ComfyUI's folders, whole or not at all, and never over what is there."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import folder_paths
import torch
from safetensors.torch import save_file

from ....training.errors import InputError

NO_FOLDER = "(no folder yet)"
SCRAP = ".bespoke-"  # how the names of files begin that are being written
_NOT_IN_NAMES = re.compile(r'[\x00-\x1f<>:"|?*]')


def inside(folder: Path, name: str) -> Path:
    """`folder / name`, refused when it would lie anywhere else."""
    if name == NO_FOLDER:
        raise InputError("ComfyUI's input folder holds no folder yet; make one there and put pictures into it")
    if not name or name != name.strip() or _NOT_IN_NAMES.search(name):
        raise InputError(f"the name {name!r} cannot be a file's; use letters, digits, '-', '_' and '/' for a subfolder")
    base = folder.resolve()
    path = (base / name.replace("\\", "/")).resolve()
    if path == base or base not in path.parents:
        raise InputError(f"the name {name!r} leads out of {folder.name!r}; give a name without '..' or a leading '/'")
    return path


def models_folder(kind: str) -> Path:
    """ComfyUI's first folder for `kind` ("loras", "embeddings"), which is where a new file belongs."""
    folder = Path(folder_paths.get_folder_paths(kind)[0])
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str], overwrite: bool) -> None:
    """Write a file under a temporary name and rename it: a reader sees all of it or nothing.

    Raises `FileExistsError` when the path is taken and `overwrite` is off, also when it was taken meanwhile.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=SCRAP, suffix=".part")
    os.close(handle)
    try:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, temporary, metadata=metadata)
        os.chmod(temporary, 0o644)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # after a power cut too, the name must not stand for an empty file
        if overwrite:
            os.replace(temporary, path)
        else:
            _rename_new(Path(temporary), path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove what a killed process left half written here; an hour is longer than any file takes."""
    for scrap in folder.glob(f"{SCRAP}*.part"):
        with contextlib.suppress(OSError):  # another process may be sweeping too
            if time.time() - scrap.stat().st_mtime > 3600:
                scrap.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file, over what is there: a reader sees the old or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{os.getpid()}.part")
    try:
        temporary.write_text(text, "utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _rename_new(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)  # fails when the path is taken: no moment between looking and writing
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(path) from None
        os.rename(temporary, path)


def write_numbered(kind: str, prefix: str, write: Callable[[Path], None]) -> str:
    """Call `write` with the first free `prefix_00001.safetensors` under `kind`; gives the name as ComfyUI lists it."""
    return write_numbered_in(models_folder(kind), prefix, write)


def write_numbered_in(folder: Path, prefix: str, write: Callable[[Path], None]) -> str:
    """`write_numbered` in any folder; gives the name below it."""
    stem = inside(folder, prefix)
    number = 1
    while True:
        path = stem.with_name(f"{stem.name}_{number:05}.safetensors")
        if not path.exists():
            try:
                write(path)
            except FileExistsError:
                continue
            return path.relative_to(folder.resolve()).as_posix()
        number += 1
