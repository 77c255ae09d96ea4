"""A hash of a training folder, which tells ComfyUI whether to read it again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..bridge.files.headers import open_regular
from .captions.tables import LONGEST_TABLE
from .captions.text_files import CAPTION_ENDINGS, LONGEST_FILE
from .layout import Part, layout_of
from .listing import OTHER_FILES, TABLES, entries_of
from .reading.limits import MOST_MEMORY
from .reading.pictures import threads
from .reading.stamps import Kept, stamp_of

DIGESTS: Kept[bytes] = Kept(100_000)  # files, each counted as 1
PIECE = 1 << 20  # bytes


def hash_files(
    folder: Path,
    stopped: Callable[[], bool] = lambda: False,
    subfolders: bool = False,
    pairs: bool = False,
    kind: type[Part] = Part,
    frame_folders: bool = False,
) -> str | None:
    """A hash of the names of all files and of the bytes of pictures and captions, in all folders that are read.

    subfolders, pairs, kind: see `layout.layout_of`. frame_folders: the files of their subfolders too; those of folders
    of masks always count. stopped: is asked before each file; None is given where it says so. A file that has not
    changed since it was hashed, see `reading.stamps`, is not read again. Of files that are refused unread, since they
    are too large, the size counts.
    """
    reading, digest = DIGESTS.new_reading(), hashlib.sha256()
    parts = layout_of(folder, subfolders, pairs, kind).parts if folder.is_dir() else ()
    entries = [path for part in parts for path in (*part.entries, *(part.controls if pairs else ()))]
    known = {part.folder for part in parts}
    below = {each for part in parts for each in (*part.mask_folders, *(part.subfolders if frame_folders else ()))}
    entries += [path for each in below - known for path in entries_of(each)]
    paths = sorted(path for path in entries if path.is_file())
    stamps = {path: stamp_of(path) for path in paths if _counts(path)}
    contents = {path: DIGESTS.get(stamp, reading) if stamp else None for path, stamp in stamps.items()}
    new = [path for path, content in contents.items() if content is None]
    with ThreadPoolExecutor(threads(), "bespoke-hashes") as pool:
        hashed = pool.map(lambda path: None if stopped() else _hash_file(path), new)
        contents |= zip(new, hashed, strict=True)
    if stopped():
        return None
    for path in new:
        stamp, content = stamps[path], contents[path]
        if stamp and content and stamp == stamp_of(path):
            DIGESTS.put(stamp, content, 1, reading)
    for path in paths:
        name = path.relative_to(folder).as_posix()
        digest.update(name.encode("utf-8", "surrogatepass") + b"\0" + (contents.get(path) or b""))
    return digest.hexdigest()


def _counts(path: Path) -> bool:
    """Whether the content of a file counts, and not only its name."""
    name = path.name.lower()
    return name in TABLES or (not name.startswith(".") and path.suffix.lower() not in OTHER_FILES)


def _hash_file(path: Path) -> bytes:
    most = LONGEST_FILE if path.suffix.lower() in CAPTION_ENDINGS else MOST_MEMORY
    most = LONGEST_TABLE if path.name.lower() in TABLES else most
    try:
        size = path.stat().st_size
        if size > most:
            return f"{size} bytes".encode()
        digest = hashlib.sha256()
        with open_regular(path) as file:
            while piece := file.read(PIECE):  # in pieces: several files are read at once
                digest.update(piece)
    except (OSError, ValueError) as error:  # it cannot be read, or is no regular file any more
        return type(error).__name__.encode()
    return digest.digest()
