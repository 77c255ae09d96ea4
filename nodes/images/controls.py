"""Second pictures of a training set in a folder: which files are the sources of which results.

NAME-control.png beside NAME.png, with any ending of a picture, or control/NAME.png below the same folder.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .layout import CONTROLS, Layout, Part
from .pairing.match import CONTROL, key_of, matched_names
from .quality import counted, listed
from .reading.pictures import ReadPicture
from .sizes import LEAST_KEPT, kept, size_of


@dataclass
class FolderControls:
    """The second pictures of a set. What `layout.pairs` says decides whether they are read.

    wrong: pictures without a second one and second pictures without a picture, each with its name; see `match`.
    """

    layout: Layout
    wrong: list[str] = field(default_factory=list)
    companions: list[Path] = field(default_factory=list)  # the files named as second pictures
    _of: dict[Path, Path] = field(default_factory=dict)  # {picture: its second picture}
    _by_order: list[str] = field(default_factory=list)
    _cropped: list[str] = field(default_factory=list)
    _enlarged: list[str] = field(default_factory=list)
    _same: list[str] = field(default_factory=list)  # pictures that are their own second one
    _named: list[str] = field(default_factory=list)  # files with such a name, where no pairs are asked for

    def __post_init__(self) -> None:
        names = {key_of(path.name) for path in self.layout.pictures if not _is_named_so(path)}
        named = [path for path in self.layout.pictures if _is_named_so(path)]
        if self.layout.pairs:
            self.companions = named
        else:
            self._named = [self.layout.shown(path) for path in named if key_of(path.name) in names]

    @property
    def pictures(self) -> list[Path]:
        """`Layout.pictures` without the second ones."""
        second = set(self.companions)
        return [path for path in self.layout.pictures if path not in second]

    @property
    def others(self) -> list[Path]:
        """`Layout.files` without the second pictures."""
        second = set(self.companions)
        return [path for path in self.layout.files if path not in second]

    def match(self, pictures: list[Path]) -> None:
        """Find the second picture of each of `pictures`; what has none goes into `wrong`."""
        if not self.layout.pairs:
            return
        of_part: dict[Path, list[Path]] = defaultdict(list)
        for path in pictures:
            of_part[path.parent].append(path)
        for part in self.layout.parts:
            self._match_part(part, of_part[part.folder])

    def _match_part(self, part: Part, pictures: list[Path]) -> None:
        shown = self.layout.shown
        own_files = [path for path in self.companions if path.parent == part.folder]
        seconds = [*own_files, *part.controls]
        found = matched_names([path.name for path in pictures], [path.name for path in seconds])
        if found.by_order:
            self._by_order.append(f"{part.place or part.folder.name} ({counted(len(pictures), 'pair')})")
        self._of.update((pictures[i], seconds[j]) for i, j in found.pairs.items())
        self.wrong += [
            f"{shown(pictures[i])} has no second picture ({pictures[i].stem}{CONTROL}.png beside it, or "
            f"{CONTROLS}/{pictures[i].name})"
            for i in found.lonely_results
        ]
        self.wrong += [f"{shown(seconds[j])} is the second picture of no picture" for j in found.lonely_sources]
        self.wrong += [
            f"{', '.join(shown(pictures[i]) for i in own)} and {', '.join(shown(seconds[j]) for j in theirs)} have one "
            "name, so that nothing tells which belongs to which"
            for own, theirs in found.ambiguous
        ]

    def of(self, picture: Path) -> Path | None:
        """The file of a picture's second picture, or None."""
        return self._of.get(picture)

    def note_shape(self, picture: Path, read: ReadPicture) -> None:
        """Note a second picture that was cropped or enlarged to the picture's size, or that is the same one."""
        if read.second is None:
            return
        (height, width), size = read.second.original, size_of(read.picture.pixels)
        name = self.layout.shown(self._of[picture])
        whole = read.picture.original
        if kept(height, width, *whole) < LEAST_KEPT:
            self._cropped.append(f"{name} ({width}x{height} px, its picture {whole[1]}x{whole[0]})")
        if height < size[0] or width < size[1]:
            self._enlarged.append(f"{name} ({width}x{height} px)")
        if torch.equal(read.second.pixels, read.picture.pixels):
            self._same.append(self.layout.shown(picture))

    def notes(self) -> list[str]:
        """What the report says of second pictures."""
        notes = []
        if self._named:
            notes.append(
                f"Named as second pictures and read as pictures of their own: {listed(self._named)}. To train an edit "
                "model on pairs of a source and a result, switch on pairs."
            )
        if self._by_order:
            notes.append(f"No names in common: matched by the order of names in {listed(self._by_order)}.")
        if self._cropped:
            notes.append(f"Second pictures of another shape, cropped at the middle: {listed(self._cropped)}.")
        if self._enlarged:
            notes.append(f"Second pictures enlarged to the size of their pictures: {listed(self._enlarged)}.")
        if self._same:
            notes.append(f"Nothing changes in {listed(self._same)}: both pictures are the same.")
        return notes


def _is_named_so(path: Path) -> bool:
    return path.stem.lower().endswith(CONTROL) and len(path.stem) > len(CONTROL)
