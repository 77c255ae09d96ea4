"""A small picture of a file in a training folder, made once as long as the file does not change."""

from __future__ import annotations

import contextlib
import hashlib
import io
from pathlib import Path

from PIL import Image

from ....training.errors import InputError
from ...bridge.files.names import check_length
from ...bridge.files.writing import resolve_inside
from ..captions.text_files import CAPTION_ENDINGS
from ..clips.frames import Film, Told
from ..listing import FILMS, OTHER_FILES
from ..places import find_folder
from ..reading.decode import read_thumbnail
from ..reading.pictures import MOST_AT_ONCE, Room
from ..reading.stamps import Kept, stamp_of

SIDE = 128  # px; the list shows them at 36 px, on a screen of up to three pixels a px
QUALITY = 80
MOST_KEPT = 2**25  # bytes of encoded thumbnails, about 5 kB each

KEPT: Kept[bytes] = Kept(MOST_KEPT)
_ROOM = Room(MOST_AT_ONCE)


def picture_path(folder: str, file: str) -> Path:
    """The path of a picture in a training folder. folder: see `places.find_folder`. file: its path below the folder.

    A link to a file is followed, as Image Folder does; one to a folder is not. Raises `InputError` for a name
    that leads out of the folder, and for files that are no pictures by their names.
    """
    inside = find_folder(folder)
    name = file.replace("\\", "/")
    parent, _, last = name.rpartition("/")
    place = resolve_inside(inside, parent) if parent else inside
    if place != inside / parent or last in ("", ".", "..") or "\0" in last or ":" in last:
        raise InputError(f"{file!r} is no picture in {folder!r}")
    check_length(last)
    path = place / last
    if last.startswith(".") or path.suffix.lower() in OTHER_FILES | set(CAPTION_ENDINGS) or not path.is_file():
        raise InputError(f"{file!r} is no picture in {folder!r}")
    return path


def thumbnail(path: Path) -> bytes:
    """The picture as a JPEG of at most `SIDE` px a side, from memory where the file has not changed.

    Raises `InputError` for what is no picture or is too large, see `reading.decode.read_picture`.
    """
    stamp = stamp_of(path)
    reading = KEPT.new_reading()
    found = KEPT.get(stamp, reading) if stamp else None
    if found is not None:
        return found
    out = io.BytesIO()
    _small(path).save(out, "JPEG", quality=QUALITY)
    data = out.getvalue()
    if stamp and stamp == stamp_of(path):  # it may have changed while it was read
        KEPT.put(stamp, data, len(data), reading)
    return data


def _small(path: Path) -> Image.Image:
    """A picture, or the first frame of a film, of at most `SIDE` px a side."""
    if path.suffix.lower() not in FILMS:
        return read_thumbnail(path, SIDE, _ROOM)
    with contextlib.closing(Film(path).frames(Told())) as frames:
        picture = Image.fromarray(next(frames).pixels()[0])
    picture.thumbnail((SIDE, SIDE))
    return picture


def tag_of(path: Path) -> str:
    """The ETag of a file, "" for one that was changed just now."""
    stamp = stamp_of(path)
    return f'"{hashlib.sha256(repr(stamp).encode("utf-8", "surrogatepass")).hexdigest()[:32]}"' if stamp else ""
