"""Which files and folders of a set are films, and what belongs to each of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from ..layout import Layout, Part
from ..listing import FILMS, PICTURES, entries_of
from ..masks import CONDITION, SUFFIXES, without_companions
from .animations import ANIMATIONS, Animation, FrameFolder, is_animated
from .frames import Film, Source

MASKS_IN_FILES = "*-mask"  # the choice of masks beside films
FRAME_FOLDER_RATE = 24.0  # frames a second of a folder of frames, where the node says nothing


class FilmPart(Part):
    """A folder whose films are the items of a set."""

    WHAT: ClassVar[str] = "film"
    ENDINGS: ClassVar[frozenset[str]] = frozenset(FILMS)
    OTHERS: ClassVar[str] = "pictures, which Bespoke Image Folder reads; Bespoke Combine Image Sets puts both together"

    @cached_property
    def animations(self) -> list[Path]:
        """The animated pictures, which are films."""
        return [path for path in self.media if path.suffix.lower() in ANIMATIONS and is_animated(path)]

    @cached_property
    def files(self) -> list[Path]:
        """The folder's films and animations, with those that are masks."""
        own = {*self.films, *self.animations}
        return [path for path in self.media if path in own]

    @cached_property
    def others(self) -> list[Path]:
        """The pictures that are neither animations nor named as masks."""
        own = set(self.files)
        pictures = [path for path in self.media if path not in own]
        return without_companions(pictures, self.captions)

    @cached_property
    def frame_folders(self) -> list[Path]:
        """The folders in it with a picture in them; those that are named as masks are not among them."""
        found = [path for path in self.subfolders if not path.name.lower().endswith((*SUFFIXES, CONDITION))]
        return [path for path in found if pictures_in(path)]

    @property
    def mask_folders(self) -> list[Path]:
        """See `Part.mask_folders`."""
        return [path for path in self.entries if path.name.lower().endswith(SUFFIXES) and path.is_dir()]

    @cached_property
    def _named_as_masks(self) -> dict[str, list[Path]]:
        """{a name in lower case that ends as that of a mask: what has it, with or without an ending}; no films of the
        set, which have a caption of their own."""
        found: dict[str, list[Path]] = defaultdict(list)
        for path in set(self.entries) - set(self.pictures):
            for name in {path.name.lower(), path.stem.lower()}:
                if name.endswith(SUFFIXES):
                    found[name].append(path)
        return found

    def mask_of(self, film: Path) -> Path | None:
        """The mask of a film: NAME-mask beside it, a film, a picture for all frames or a folder of frames; or None.

        A film with such a name and a caption file of its own is a film of the set, and no mask.
        """
        name = film.name if film.is_dir() else film.stem
        wanted = [f"{name}{suffix}".lower() for suffix in SUFFIXES]
        for path in sorted({path for each in wanted for path in self._named_as_masks.get(each, ())}):
            if path.is_dir() and path.name.lower() in wanted:
                return path
            is_named = path.suffix.lower() in FILMS | PICTURES and path.stem.lower() in wanted
            if is_named and path.is_file():
                return path
        return None


@dataclass(frozen=True)
class Entry:
    """A film of a set. path: the file or folder. key: the path that its captions are found by. name: as it is shown."""

    path: Path
    key: Path
    name: str
    part: FilmPart
    mask: Path | None = None


def unused_masks(layout: Layout, entries: Iterable[Entry]) -> list[Path]:
    """What is named as a mask or conditioning image, so is no film, and is no mask of `entries` either."""
    used = {entry.mask for entry in entries}
    found = list[Path]()
    for part in layout.parts:
        assert isinstance(part, FilmPart)
        if part.folder in layout.taken:
            continue
        items = {*part.pictures, *part.others}
        own = [path for path in part.media if path.suffix.lower() in FILMS | PICTURES and path not in items]
        found += own
        found += [path for path in part.mask_folders if path in layout.taken]
    return [path for path in found if path not in used]


def pictures_in(folder: Path) -> tuple[Path, ...]:
    """The picture files of a folder, without hidden ones."""
    found = [path for path in entries_of(folder) if path.suffix.lower() in PICTURES and not path.name.startswith(".")]
    return tuple(sorted(path for path in found if path.is_file()))


def entries_in(layout: Layout, frame_folders: bool) -> list[Entry]:
    """The films of a set, in the order of names; with `frame_folders` folders of frames follow those of a folder."""
    found = []
    for part in layout.parts:
        assert isinstance(part, FilmPart)
        found += [Entry(path, path, layout.shown(path), part, part.mask_of(path)) for path in part.pictures]
        for path in part.frame_folders if frame_folders else ():
            key = path if "." not in path.name else path.with_name(f"{path.name}.frames")
            found.append(Entry(path, key, layout.shown(path), part, part.mask_of(path)))
    return found


def source_of(path: Path, rate: float) -> Source:
    """What gives the frames of a film, an animation or a folder. rate: frames a second of a folder, 0 for unknown."""
    if path.is_dir():
        return FrameFolder(path, pictures_in(path), rate or FRAME_FOLDER_RATE)
    return Animation(path) if path.suffix.lower() in PICTURES else Film(path)


def files_of(path: Path) -> tuple[Path, ...]:
    """The files that a source reads."""
    return pictures_in(path) if path.is_dir() else (path,)
