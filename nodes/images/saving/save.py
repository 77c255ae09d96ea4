"""Writing a training set into a folder, as `folder.read_folder` reads it: its pictures, captions and masks."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ....training.errors import InputError
from ....training.images import MIRRORED, ImageSet, TrainingImage
from ...bridge.files.headers import open_regular
from ...bridge.files.names import is_reserved
from ...bridge.files.writing import TEMPORARY_PREFIX, reason_of, replace, replacing, resolve_inside, sync, write_text
from ...bridge.runs.durable import sync_folder
from ..captions.text_files import CAPTION_ENDINGS, LONGEST_FILE, in_one_line
from ..clips.frames import Film, Told
from ..clips.write import ENDING, write_clip
from ..listing import OTHER_FILES, entries_of
from ..masks import CONDITION, SUFFIXES
from ..pairing.match import CONTROL
from ..places import MARK
from ..quality import listed
from ..reading.decode import read_mask, read_picture
from ..reading.pictures import Progress
from ..sizes import size_of
from .stems import stems_of

COMPRESSION = 4  # zlib's, as ComfyUI saves pictures
MOST_FOLDERS = 1000  # of one name that are tried
UNFINISHED = f"{TEMPORARY_PREFIX}set-"  # the beginning of the name of a folder that is being written
STALE_SECONDS = 86_400  # a folder of that age was left behind by a process that was killed


@dataclass(frozen=True)
class SavedPicture:
    """What is written of a picture. stem: of its files' names. text: of its caption file, "" for none.

    mask: [H, W] uint8, of a clip [F, H, W], or None.
    """

    stem: str
    item: TrainingImage
    text: str
    mask: torch.Tensor | None

    @property
    def picture_file(self) -> str:
        """The name of the picture's file, or of the clip's film."""
        return f"{self.stem}{self._ending}"

    @property
    def caption_file(self) -> str:
        """The name of the caption's file."""
        return f"{self.stem}.txt"

    @property
    def mask_file(self) -> str:
        """The name of the mask's file."""
        return f"{self.stem}{SUFFIXES[0]}{self._ending}"

    @property
    def control_file(self) -> str:
        """The name of the second picture's file."""
        return f"{self.stem}{CONTROL}.png"

    @property
    def control(self) -> torch.Tensor | None:
        """The second picture; that of a clip is not written, since no node reads it."""
        return None if self.item.is_clip else self.item.control

    @property
    def _ending(self) -> str:
        return ENDING if self.item.is_clip else ".png"

    @property
    def files(self) -> list[str]:
        """The names of all its files."""
        return [
            self.picture_file,
            *([self.caption_file] if self.text else []),
            *([self.mask_file] if self.mask is not None else []),
            *([self.control_file] if self.control is not None else []),
        ]


@dataclass(frozen=True)
class SavedSet:
    """Where a set is. folder: relative to the base folder, with "/". was_there: whether nothing had to be written."""

    folder: str
    pictures: tuple[SavedPicture, ...]
    was_there: bool


def save_set(images: ImageSet, base: Path, name: str, progress: Progress) -> SavedSet:
    """Write a set into the folder `name` under `base`, whole or not at all, over no file.

    Each picture is written once, as an 8-bit PNG of the pixels that are trained on, without metadata, its captions one
    a line and its mask next to it; see `stems_of` for the names. Where the folder, or "name_2" and so on, holds this
    set already, nothing is written. A folder that holds other pictures is left alone, and the next number is taken.
    What a killed process has written of the same set is taken over.

    Raises `InputError` for a name that is no folder's under `base`, for a folder that holds these pictures with other
    captions or masks, since what was edited there would be passed over, and where the disk refuses.
    """
    pictures = pictures_of(images)
    longest = "/" + max((file for picture in pictures for file in picture.files), key=lambda file: len(file.encode()))
    try:
        while True:
            edited: list[tuple[str, list[str]]] = []
            for candidate in _numbered(name):
                folder = resolve_inside(base, candidate, longest)
                if _is_free(folder):
                    break
                other = differences(folder, pictures, progress)
                if other == []:
                    return SavedSet(_relative(folder, base), pictures, True)
                if other:
                    edited.append((candidate, other))
            else:
                raise InputError(f"there are {MOST_FOLDERS} folders named {name!r}; give another name")
            if edited:
                where, files = edited[0]
                raise InputError(
                    f"the folder {where!r} holds these pictures already, with other captions or masks "
                    f"({listed(files)}); nothing was written. To train on what is in the folder, choose it in Bespoke "
                    "Image Folder and bypass this node; to save this set as it is, give another folder name"
                )
            if _write_folder(folder, pictures, progress):
                return SavedSet(_relative(folder, base), pictures, False)
    except OSError as error:
        raise InputError(
            f"the set cannot be written to the folder {name!r} ({reason_of(error)}); make room on the disk, or "
            "choose a folder that can be written to"
        ) from error


def pictures_of(images: ImageSet) -> tuple[SavedPicture, ...]:
    """What is written of a set: each picture once, at its largest size, not mirrored, with the captions of all copies.

    Raises `InputError` for a caption that is longer than a caption file may be.
    """
    chosen = list(map(_one_of, copies_of(images)))
    saved = []
    for stem, item in zip(stems_of(chosen), chosen, strict=True):
        lines = [line for line in (in_one_line(text).lstrip("\ufeff ") for text in item.captions) if line]
        text = "".join(f"{line}\n" for line in lines)
        if len(text.encode()) > LONGEST_FILE:
            raise InputError(
                f"the captions of {item.name} have {len(text):,} characters; a caption file has at most "
                f"{LONGEST_FILE:,} bytes"
            )
        mask = None if item.mask is None else (item.mask.float().clamp(0, 1) * 255).round().to(torch.uint8)
        saved.append(SavedPicture(stem, item, text, mask))
    return tuple(saved)


def copies_of(images: ImageSet) -> list[list[TrainingImage]]:
    """The items of which one is written: copies of a picture; clips of one name that show other frames are apart."""
    found = list[list[TrainingImage]]()
    for copies in images.copies():
        groups: dict[tuple[float, int, float], list[TrainingImage]] = {}
        for item in (images.items[i] for i in copies):
            groups.setdefault((item.start, item.frames, item.fps), []).append(item)
        found += groups.values()
    return found


def _one_of(copies: Sequence[TrainingImage]) -> TrainingImage:
    """The copy of a picture that is written. Its own captions come first, then those that only other copies have."""
    plain = [item for item in copies if not item.name.endswith(MIRRORED)] or copies
    largest = max(plain, key=lambda item: item.size[0] * item.size[1])
    others = (caption for item in copies for caption in item.captions if caption not in largest.captions)
    return changed(largest, more_captions=(*largest.more_captions, *dict.fromkeys(others)))


def _numbered(name: str) -> Iterator[str]:
    """The name, then "name_2" and so on. Raises `InputError` for one that Windows does not take."""
    if name.endswith(MARK):
        raise InputError(
            f"the name {name!r} ends with{MARK}, which marks folders for data sets in Image Folder; the set is written "
            "under input: leave the mark out"
        )
    odd = [part for part in name.replace("\\", "/").split("/") if is_reserved(part) or part.rstrip(" .") != part]
    if odd and not set(odd) & {".", ".."}:  # `resolve_inside` refuses those
        raise InputError(f"the name {name!r} holds {odd[0]!r}, which Windows does not take; choose another")
    yield name
    for number in range(2, MOST_FOLDERS + 1):
        yield f"{name}_{number}"


def _is_free(folder: Path) -> bool:
    """Whether nothing is there, or an empty folder."""
    if not os.path.lexists(folder):
        return True
    return folder.is_dir() and not any(folder.iterdir())


def _relative(folder: Path, base: Path) -> str:
    return folder.relative_to(base.resolve()).as_posix()


# --- comparing --------------------------------------------------------------------------------------------------------


def differences(folder: Path, pictures: Sequence[SavedPicture], progress: Progress) -> list[str] | None:
    """The names of files besides the pictures' own that are not those of the set; [] where a folder holds it as it is.

    None where it is no folder, or holds other pictures: other names, sizes or pixels. What Image Folder does not read,
    such as caches and hidden files, does not count.
    """
    if not folder.is_dir():
        return None
    there = {
        unicodedata.normalize("NFC", path.name): path
        for path in entries_of(folder)
        if not path.name.startswith(".") and path.suffix.lower() not in OTHER_FILES and path.is_file()
    }
    seconds = {picture.control_file for picture in pictures if picture.control is not None}
    companions = {name for name, path in there.items() if _is_companion(path) or name in seconds}
    if set(there) - companions != {picture.picture_file for picture in pictures}:
        return None
    for i, picture in enumerate(pictures):
        progress(i, len(pictures))
        if not _has_pixels(there[picture.picture_file], picture.item.pixels):
            return None
    wanted = {file for picture in pictures for file in picture.files[1:]}
    other = companions ^ wanted
    for picture in pictures:
        path = there.get(picture.caption_file)
        if path is not None and picture.text and _lines_of(path) != picture.text.splitlines():
            other.add(picture.caption_file)
        path = there.get(picture.mask_file)
        if path is not None and picture.mask is not None and not _same_mask(path, picture):
            other.add(picture.mask_file)
        path, control = there.get(picture.control_file), picture.control
        if path is not None and control is not None and not _has_pixels(path, control):
            other.add(picture.control_file)
    return sorted(other)


def _is_companion(path: Path) -> bool:
    """Whether a file is named as a caption or a mask."""
    return path.suffix.lower() in CAPTION_ENDINGS or path.stem.lower().endswith((*SUFFIXES, CONDITION))


def _has_pixels(path: Path, pixels: torch.Tensor) -> bool:
    if pixels.ndim == 4:
        return _has_frames(path, pixels)

    def target(height: int, width: int) -> tuple[int, int]:
        if (height, width) != size_of(pixels):
            raise InputError("has another size")
        return height, width

    try:
        return torch.equal(read_picture(path, target).pixels, pixels)
    except InputError:
        return False


def _has_frames(path: Path, pixels: torch.Tensor) -> bool:
    """Whether a film has these frames [F, H, W, 3] and no others."""
    count = 0
    try:
        for frame in Film(path).frames(Told()):
            if count == len(pixels) or not np.array_equal(frame.pixels()[0], pixels[count].numpy()):
                return False
            count += 1
    except InputError:
        return False
    return count == len(pixels)


def _same_mask(path: Path, picture: SavedPicture) -> bool:
    if picture.item.is_clip and picture.mask is not None:
        return _has_frames(path, picture.mask[..., None].expand(-1, -1, -1, 3))
    size = size_of(picture.item.pixels)
    try:
        read = (read_mask(path, size, size) * 255).round().to(torch.uint8)
    except InputError:
        return False
    return picture.mask is not None and torch.equal(read, picture.mask)


def _lines_of(path: Path) -> list[str]:
    """The captions in a file, one a line, as they are read."""
    try:
        with open_regular(path) as file:
            data = file.read(LONGEST_FILE + 1)
    except ValueError:  # no regular file
        return []
    text = data.decode("utf-8-sig", "replace")
    return [line for line in map(in_one_line, text.splitlines()) if line]


# --- writing ----------------------------------------------------------------------------------------------------------


def _write_folder(folder: Path, pictures: Sequence[SavedPicture], progress: Progress) -> bool:
    """Write a folder under another name and rename it; False where another process has taken the name meanwhile.

    The other name is made from the set, so that a second try finds what a killed process has written. An exception
    removes what was written. Raises `OSError`.
    """
    new_parents = [parent for parent in folder.parents if not parent.exists()]  # the deepest first
    unfinished = folder.parent / f"{UNFINISHED}{_digest(folder.name, pictures)}.part"
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        _remove_stale(unfinished)
        _write_files(unfinished, pictures, progress)
        with contextlib.suppress(OSError):
            folder.rmdir()  # an empty folder, which Windows would not replace
        try:
            replace(unfinished, folder)
        except OSError:
            if _is_free(folder):
                raise
            shutil.rmtree(unfinished, ignore_errors=True)
            return False
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        for parent in new_parents:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise
    return True


def _digest(name: str, pictures: Sequence[SavedPicture]) -> str:
    digest = hashlib.sha256(name.encode())
    for picture in pictures:
        digest.update(repr((picture.files, picture.text, tuple(picture.item.pixels.shape))).encode())
        digest.update(picture.item.pixels.contiguous().numpy().data)
        if picture.mask is not None:
            digest.update(picture.mask.contiguous().numpy().data)
        if picture.control is not None:
            digest.update(picture.control.contiguous().numpy().data)
    return digest.hexdigest()[:16]


def _write_files(folder: Path, pictures: Sequence[SavedPicture], progress: Progress) -> None:
    """Write every file that is not there yet, each of them whole, and remove what else a killed process has left."""
    wanted = {file for picture in pictures for file in picture.files}
    for path in entries_of(folder):
        if path.name not in wanted:
            path.unlink()
    for i, picture in enumerate(pictures):
        progress(i, len(pictures))
        path = folder / picture.picture_file
        if not (path.exists() and _has_pixels(path, picture.item.pixels)):
            _write(path, picture.item.pixels, picture.item)
        if picture.control is not None:
            _write_png(folder / picture.control_file, picture.control)
        if picture.text:
            write_text(folder / picture.caption_file, picture.text, synced=True)
        if picture.mask is not None:
            _write(folder / picture.mask_file, picture.mask, picture.item)
    progress(len(pictures), len(pictures))
    sync_folder(folder)


def _write(path: Path, pixels: torch.Tensor, item: TrainingImage) -> None:
    """The pixels or the mask of an item as a PNG, of a clip as a film."""
    if item.is_clip:
        write_clip(path, pixels, item.fps)
    else:
        _write_png(path, pixels)


def _write_png(path: Path, pixels: torch.Tensor) -> None:
    """pixels: [H, W, 3] or [H, W] uint8."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        Image.fromarray(np.ascontiguousarray(pixels.numpy())).save(file, "PNG", compress_level=COMPRESSION)
        file.flush()
        sync(file.fileno())


def _remove_stale(new: Path) -> None:
    """Remove unfinished folders that killed processes left next to `new` more than a day ago."""
    os.utime(new)
    now = new.stat().st_mtime or time.time()
    for path in new.parent.glob(f"{UNFINISHED}*.part"):
        with contextlib.suppress(OSError):
            if path != new and path.is_dir() and not path.is_symlink() and now - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
