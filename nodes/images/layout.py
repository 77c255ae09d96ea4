"""Which folders of a training set are read, and what their names say: repeats and a concept.

A subfolder named `N_name` is kohya's (sd-scripts, `generate_dreambooth_subsets_config_by_subdirs`): its pictures are
drawn N times as often, and `name` is the caption of those that have none of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import ClassVar

from ...training.errors import InputError
from .captions.tables import folders_named
from .captions.text_files import CAPTION_ENDINGS, is_caption
from .listing import FILMS, OTHER_FILES, PICTURES, TABLES, entries_of
from .masks import without_companions

MOST_FOLDERS = 1000
DEEPEST = 16  # subfolders below one another
CONTROLS = "control"  # the folder of a set's second pictures
NEVER_READ = {"_controls"}  # ai-toolkit's control pictures, which it leaves out too (toolkit/data_loader.py)
MOST_REPEATS = 1000  # of one folder over those of another
_REPEATS = re.compile(r"([0-9]+)_(.*)", re.DOTALL)


@dataclass(frozen=True)
class Part:
    """A folder that is read, as it was listed.

    place: its path below the chosen folder with "/" between, "" for that folder itself. repeats: how often its pictures
    are drawn in proportion to those of other folders. concept: the caption of pictures without one, or "". name: what
    {folder} stands for: the concept, else the folder's own name.
    """

    WHAT: ClassVar[str] = "picture"
    ENDINGS: ClassVar[frozenset[str]] = frozenset(PICTURES)
    OTHERS: ClassVar[str] = "films, which Bespoke Clip Folder reads"  # what `others` are

    folder: Path
    entries: tuple[Path, ...]
    place: str = ""
    repeats: int = 1
    concept: str = ""
    name: str = ""

    @cached_property
    def files(self) -> list[Path]:
        """The folder's pictures and masks, in the order of names; no films."""
        return [path for path in self.media if path.suffix.lower() not in FILMS]

    @cached_property
    def films(self) -> list[Path]:
        """The folder's films and masks that are films, in the order of names."""
        return [path for path in self.media if path.suffix.lower() in FILMS]

    @cached_property
    def others(self) -> list[Path]:
        """The files that a set of another kind is made of; captions of their names are theirs."""
        return self.films

    @cached_property
    def media(self) -> list[Path]:
        """The folder's files that are no captions, caches or settings, in the order of names."""
        others = OTHER_FILES | set(CAPTION_ENDINGS)
        return [
            path
            for path in sorted(self.entries, key=lambda p: p.name.lower())
            if path.is_file() and not path.name.startswith(".") and path.suffix.lower() not in others
        ]

    @cached_property
    def captions(self) -> list[Path]:
        """The folder's caption files."""
        return [path for path in self.entries if is_caption(path)]

    @cached_property
    def pictures(self) -> list[Path]:
        """The files that should be pictures, in the order of names: no captions, masks, caches or settings.

        A file that is named as a mask is one, unless it has a caption file of its own; see `without_companions`.
        """
        return without_companions(self.files, self.captions)

    @cached_property
    def controls(self) -> list[Path]:
        """The files in its folder `CONTROLS`, in capitals too, in the order of names; none without such a folder."""
        found = sorted(path for path in self.entries if path.name.lower() == CONTROLS and path.is_dir())
        parts = [Part(path, tuple(entries_of(path, len(self.entries)))) for path in found]
        return sorted((path for part in parts for path in part.files), key=lambda path: path.name.lower())

    @cached_property
    def subfolders(self) -> list[Path]:
        """The folders in it, in the order of names; hidden ones, links and `NEVER_READ` are not among them."""
        found = [path for path in self.entries if path.is_dir() and not path.name.startswith(".")]
        found = [path for path in found if path.name not in NEVER_READ]
        return sorted((path for path in found if not path.is_symlink()), key=lambda path: path.name.lower())

    @property
    def mask_folders(self) -> list[Path]:
        """The folders in it that hold the frames of masks; none of a folder of pictures."""
        return []

    @cached_property
    def table(self) -> Path | None:
        """Its table of captions, the first of `TABLES` that it has, or None."""
        found = [path for path in sorted(self.entries) if path.name.lower() in TABLES and path.is_file()]
        return min(found, key=lambda path: TABLES.index(path.name.lower()), default=None)


@dataclass(frozen=True)
class Layout:
    """The folders of a set. parts: the chosen folder first, then its subfolders that are read, each before its own.

    with_subfolders: whether all of them were asked for. pairs: whether their folders `CONTROLS` hold second pictures.
    taken: folders that are no parts and are read as one film or mask.
    """

    parts: tuple[Part, ...]
    with_subfolders: bool = False
    pairs: bool = False
    taken: set[Path] = field(default_factory=set)
    _part_of: dict[Path, Part] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._part_of.update((part.folder, part) for part in self.parts)

    @property
    def folder(self) -> Path:
        """The folder that was chosen."""
        return self.parts[0].folder

    @property
    def pictures(self) -> list[Path]:
        """The files of all folders that should be pictures."""
        return [path for part in self.parts for path in part.pictures]

    @property
    def files(self) -> list[Path]:
        """The pictures and masks of all folders."""
        return [path for part in self.parts for path in part.files]

    @property
    def captions(self) -> list[Path]:
        """The caption files of all folders."""
        return [path for part in self.parts for path in part.captions]

    def part_of(self, path: Path) -> Part:
        """The folder that a file lies in."""
        return self._part_of[path.parent]

    def shown(self, path: Path) -> str:
        """A path as the user knows it, below the chosen folder: "1.png", "10_dog/1.png"."""
        return path.relative_to(self.folder).as_posix()

    def listed(self, paths: Iterable[Path]) -> list[str]:
        """The paths as `shown`."""
        return [self.shown(path) for path in paths]


def repeats_in(name: str) -> tuple[int, str] | None:
    """(N, name) of a folder that is named N_name, else None. N may be 0, which kohya leaves out."""
    found = _REPEATS.fullmatch(name)
    return (int(found[1][:9]), found[2].strip()) if found else None


def layout_of(folder: Path, subfolders: bool = False, pairs: bool = False, kind: type[Part] = Part) -> Layout:
    """The folders of the set in a folder.

    subfolders: read all below it. Without that, where the folder holds no picture of its own, those directly in it that
    are named N_name, and those that its table names; else the folder alone. Folders named 0_name and links to
    folders are never read. pairs: with that, a folder named `CONTROLS` holds second pictures and is no part. kind: of
    the parts; `clips.layout.FilmPart` has films where a part has pictures. Raises `InputError` for more than
    `MOST_ENTRIES` files or `MOST_FOLDERS` folders, and for repeats that are too far apart.
    """
    chosen = repeats_in(folder.name)
    own = kind(folder, tuple(entries_of(folder)), name=chosen[1] if chosen and chosen[1] else folder.name)
    found = _Found([own])
    if subfolders:
        _add_all(found, own, {CONTROLS} if pairs else set())
    elif not own.pictures:
        named = folders_named(own.table) if own.table else set()
        for path in own.subfolders:
            if repeats_in(path.name):
                found.add(path, own)
        _add_named(found, own, named)
    _check_repeats(found.parts)
    return Layout(tuple(found.parts), subfolders, pairs)


@dataclass
class _Found:
    """The folders that were found so far."""

    parts: list[Part]

    def add(self, folder: Path, above: Part) -> Part | None:
        """List a subfolder of `above`; None for one that is named 0_name."""
        if len(self.parts) == MOST_FOLDERS:
            raise InputError(
                f"the folder {self.parts[0].folder.name!r} holds more than {MOST_FOLDERS:,} subfolders; choose one "
                "that holds the pictures of one training"
            )
        named = repeats_in(folder.name)
        if named and named[0] < 1:
            return None
        repeats, concept = named or (above.repeats, above.concept)
        place = f"{above.place}/{folder.name}" if above.place else folder.name
        try:
            entries = entries_of(folder, sum(len(part.entries) for part in self.parts))
        except OSError as error:
            raise InputError(
                f"the subfolder {place!r} cannot be read ({error.strerror}); allow it or move it"
            ) from error
        self.parts.append(type(self.parts[0])(folder, tuple(entries), place, repeats, concept, concept or folder.name))
        return self.parts[-1]


def _add_all(found: _Found, above: Part, without: set[str]) -> None:
    """Add everything below a folder, each folder before those in it. without: names of folders that are not added."""
    waiting = [(path, above, 1) for path in reversed(above.subfolders)]
    while waiting:
        path, parent, depth = waiting.pop()
        part = None if path.name.lower() in without else found.add(path, parent)
        if part and depth < DEEPEST:
            waiting += [(below, part, depth + 1) for below in reversed(part.subfolders)]


def _add_named(found: _Found, own: Part, named: Iterable[PurePosixPath]) -> None:
    """Add the folders that a table names, and those between it and them. named: below the chosen folder."""
    parts = {part.folder: part for part in found.parts}
    for place in sorted(named):
        part = own
        for name in place.parts[:DEEPEST]:
            path = part.folder / name
            if path not in parts:
                if path not in part.subfolders:
                    break
                added = found.add(path, part)
                if added is None:
                    break
                parts[path] = added
            part = parts[path]


def _check_repeats(parts: list[Part]) -> None:
    """Raises `InputError` where the numbers of folders with pictures are too far apart for any order of draws."""
    full = [part for part in parts if part.pictures]
    if not full:
        return
    least, most = (find(full, key=lambda part: part.repeats) for find in (min, max))
    if most.repeats > MOST_REPEATS * least.repeats:
        raise InputError(
            f"the folder {most.place!r} asks for {most.repeats:,} repeats and {least.place or least.name!r} for "
            f"{least.repeats:,}; rename them so that the numbers differ by at most {MOST_REPEATS} times"
        )
