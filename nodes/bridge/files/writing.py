"""Writing files: inside ComfyUI's folders, atomically, and never over an existing file unless told to."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import folder_paths
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ....training.errors import InputError
from .names import check_length

NO_FOLDER_OPTION = "(no folder yet)"  # the choice of no folder
TEMPORARY_PREFIX = ".bespoke-"  # of the names of files that are being written
LONGEST_PATH = 4000  # bytes of UTF-8
NUMBERED = "_{:05}.safetensors"  # the end of the files of `write_numbered`
# What fsync answers where a file system does not have it, for files or for folders.
NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}
BUSY_SECONDS = 1.0
STALE_SECONDS = 3600  # a temporary file of this age is left over: no file takes as long to write
_FORBIDDEN_CHARACTERS = re.compile(r'[\x00-\x1f<>:"|?*]')


def reason_of(error: Exception) -> str:
    """An error in words without a path: the system's reason of an `OSError`, else the error's first line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return (str(error).splitlines() or [type(error).__name__])[0]


def resolve_inside(folder: Path, name: str, ending: str = "") -> Path:
    """`folder / name`, resolved. Raises `InputError` where that is not below `folder` or no valid file name.

    ending: what will be put behind the name; it counts in the name's length.
    """
    if name == NO_FOLDER_OPTION:
        raise InputError(
            "no folder is chosen; put pictures into a folder in ComfyUI's input folder and choose it in 'folder' "
            "(press R to refresh the list), or drop the folder on the node"
        )
    if not name or name != name.strip() or _FORBIDDEN_CHARACTERS.search(name):
        raise InputError(f"the name {name!r} cannot be a file's; use letters, digits, '-', '_' and '/' for a subfolder")
    check_length(name, ending)
    base = folder.resolve()
    if len(f"{base}/{name}{ending}".encode()) > LONGEST_PATH:
        raise InputError(f"the name {name[:40]!r}... has {len(name):,} characters; give a shorter one")
    try:
        path = (base / name.replace("\\", "/")).resolve()
    except RuntimeError as error:  # of a loop of links, before Python 3.13
        raise InputError(f"the name {name!r} is a link that leads in a circle; choose another") from error
    if path == base or base not in path.parents:
        raise InputError(f"the name {name!r} leads out of {folder.name!r}; give a name without '..' or a leading '/'")
    for parent in path.parents[: path.parents.index(base)]:
        if os.path.exists(parent) and not os.path.isdir(parent):
            raise InputError(f"the name {name!r} needs a folder {parent.name!r}, which is a file; choose another name")
    return path


def models_folder(kind: str) -> Path:
    """ComfyUI's first folder for `kind` ("loras", "embeddings"), where new files are written; made if missing."""
    folder = Path(folder_paths.get_folder_paths(kind)[0])
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str], overwrite: bool) -> None:
    """Write a file under a temporary name and rename it, so that a reader sees the whole file or none.

    Raises `FileExistsError` when the path exists and `overwrite` is False, also when it appeared meanwhile, and
    `OSError` where it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY_PREFIX, suffix=".part")
    os.close(handle)
    try:
        _remove_stale_files(Path(temporary))
        try:
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, temporary, metadata=metadata)
        except SafetensorError as error:  # what the library makes of a full disk
            raise OSError(str(error)) from error
        with contextlib.suppress(OSError):  # SMB, FAT and some mounts have no modes; the file is as readable as others
            os.chmod(temporary, 0o644)
        with open(temporary, "rb+") as file:
            sync(file.fileno())  # the name must not refer to an empty file, even after a power cut
        if overwrite:
            replace(temporary, path)
        else:
            _rename_if_free(Path(temporary), path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _remove_stale_files(new: Path) -> None:
    """Remove the unfinished files of processes that were killed, also those of sample images of version 0.1.

    new: a file that was just written beside them. Its time is compared with theirs, since the clock of a network drive
    may be hours off this machine's.
    """
    with contextlib.suppress(OSError):
        now = new.stat().st_mtime
        for pattern in (f"{TEMPORARY_PREFIX}*.part", ".[0-9][0-9][0-9][0-9][0-9][0-9]*.png.part"):
            for temporary in new.parent.glob(pattern):
                with contextlib.suppress(OSError):  # another process may remove it at the same time
                    if now - temporary.stat().st_mtime > STALE_SECONDS:
                        temporary.unlink()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which replaces `path` at the end of the block; an exception removes it instead.

    A reader sees the whole old or the whole new file. What a killed process leaves behind is removed by a later write
    into the same folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name's hash, since the name itself may have the greatest length already.
    name = hashlib.sha256(path.name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    # Processes of two machines may have one number.
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{name}-{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        yield temporary
        _remove_stale_files(temporary)
        replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, synced: bool = False) -> None:
    """Write a text file atomically, over an existing one: a reader sees the whole old or the whole new text.

    synced: the text is on the disk before it replaces the old one. `runs.durable.replace_text` also syncs the folder.
    """
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        if synced:
            file.flush()
            sync(file.fileno())


def sync(handle: int) -> None:
    """Bring an open file or folder to the disk, where the file system can do that; some network drives cannot.

    Raises `OSError` where it can and fails, as on a full disk.
    """
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


def replace(source: str | Path, path: str | Path) -> None:
    """`os.replace`, tried for up to `BUSY_SECONDS` where another program has the file open.

    On Windows and SMB a virus scanner, an indexer or a reader keeps a new or an old file from being renamed for some
    milliseconds; that is a `PermissionError`. Raises it where it lasts.
    """
    _while_busy(lambda: os.replace(source, path))


def _while_busy(rename: Callable[[], None]) -> None:
    ends, pause = time.monotonic() + BUSY_SECONDS, 0.01
    while True:
        try:
            return rename()
        except PermissionError:
            if time.monotonic() + pause > ends:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 0.2)


def _rename_if_free(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)  # fails when the path exists: no race between a check and the writing
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        _rename_reserved(temporary, path)


def _rename_reserved(temporary: Path, path: Path) -> None:
    """Rename a file to a free name that no other process takes meanwhile, without hard links.

    The name is reserved by a file that only one process can create. One that a killed process leaves behind is removed
    as other temporary files are; until then the name counts as taken.
    """
    name = hashlib.sha256(path.name.casefold().encode("utf-8", "surrogateescape")).hexdigest()[:16]
    reserved = path.with_name(f"{TEMPORARY_PREFIX}{name}-name.part")
    os.close(os.open(reserved, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    try:
        if path.exists():
            raise FileExistsError(path)
        _while_busy(lambda: os.rename(temporary, path))
    finally:
        with contextlib.suppress(OSError):
            reserved.unlink()


def write_numbered(kind: str, prefix: str, write: Callable[[Path], None]) -> str:
    """Call `write` with the first free `prefix_00001.safetensors` under `kind`; gives the name that ComfyUI lists."""
    return write_numbered_in(models_folder(kind), prefix, write)


def write_numbered_in(folder: Path, prefix: str, write: Callable[[Path], None]) -> str:
    """`write_numbered` in any folder; gives the name relative to it."""
    stem = resolve_inside(folder, prefix, NUMBERED.format(1))
    number = 1
    while True:
        path = stem.with_name(stem.name + NUMBERED.format(number))
        if not path.exists():
            # The name was taken meanwhile, or is reserved by a process that may have been killed.
            with contextlib.suppress(FileExistsError):
                write(path)
                return path.relative_to(folder.resolve()).as_posix()
        number += 1
