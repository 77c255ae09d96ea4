"""Masks of a training set: which files of a folder are masks, and pictures of which nothing would count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...training.errors import InputError
from ...training.images import TrainingImage
from .captions.text_files import match_captions
from .quality import listed

MASKS = ("none", "alpha", "*-mask.png")
IN_FILES = MASKS[2]
SUFFIXES = ("-mask", "-masklabel")  # the second is OneTrainer's
CONDITION = "-condlabel"  # OneTrainer's name of a conditioning image, which no training here takes


def without_companions(files: Sequence[Path], captions: Iterable[Path]) -> list[Path]:
    """The files that are pictures: those that are not named as the mask or conditioning image of another.

    A file with such a name is a picture if it has a caption file. captions: the folder's caption files.
    """
    named = [path for path in files if path.stem.lower().endswith((*SUFFIXES, CONDITION))]
    companions = set(named) - set(match_captions(named, captions))
    return [path for path in files if path not in companions]


@dataclass
class FolderMasks:
    """The masks of a set's pictures.

    masks: one of `MASKS`. files: the files of its folders. pictures: `without_companions` of them; with masks in files,
    those that are the mask of another are taken out. shown: a path as the notes have it. captioned: masks with a
    caption file, which is not used.
    """

    masks: str
    files: Sequence[Path]
    pictures: list[Path]
    shown: Callable[[Path], str]
    captioned: list[Path] = field(default_factory=list)
    _without: list[str] = field(default_factory=list)  # pictures without a mask
    _of: dict[Path, Path] = field(default_factory=dict)  # {picture: its mask file}
    _companions: list[Path] = field(default_factory=list)  # files that are no pictures by their names

    def __post_init__(self) -> None:
        pictures = set(self.pictures)
        self._companions = [path for path in self.files if path not in pictures]
        if self.masks != IN_FILES:
            return
        by_name = {path.with_name(path.name.lower()): path for path in self.files} | {path: path for path in self.files}
        for picture in self.pictures:
            names = [f"{picture.stem}{suffix}.png" for suffix in SUFFIXES]
            paths = [picture.with_name(each) for name in names for each in (name, name.lower())]
            found = [by_name[path] for path in paths if path in by_name]
            if found:
                self._of[picture] = found[0]
        used = set(self._of.values())
        self.captioned = [path for path in self.pictures if path in used]
        self.pictures = [path for path in self.pictures if path not in used]

    def of(self, picture: Path) -> Path | None:
        """The mask file of a picture, or None where it has none."""
        return self._of.get(picture)

    def note_missing(self, picture: Path) -> None:
        """Say in the report that a picture has no mask, where masks are asked for."""
        if self.masks != "none":
            self._without.append(self.shown(picture))

    def notes(self) -> list[str]:
        """What the report says: pictures without a mask, and files that are named as masks and not used."""
        notes = []
        if self._without:
            what = "No alpha" if self.masks == "alpha" else f"No {SUFFIXES[0]}.png"
            notes.append(f"{what}: {listed(self._without)}; the whole picture counts.")
        if self.captioned:
            names = listed(list(map(self.shown, self.captioned)))
            notes.append(f"Masks with a caption: {names}; used as masks, and the captions are not used.")
        return [*notes, *self._left_out()]

    def _left_out(self) -> list[str]:
        used = {path for picture, path in self._of.items() if picture in self.pictures}
        left = [path for path in self._companions if path not in used]
        conditions = [self.shown(path) for path in left if path.stem.lower().endswith(CONDITION)]
        masks = [self.shown(path) for path in left if not path.stem.lower().endswith(CONDITION)]
        train = "To train on one, give it a caption in a .txt of its name"
        notes = []
        if masks:
            mend = (
                "a mask is a .png beside a picture of its name"
                if self.masks == IN_FILES
                else f"with masks {IN_FILES} it is a mask, if it is a .png beside a picture of its name"
            )
            notes.append(f"Left out: {listed(masks)}; named as a mask. {train}; {mend}.")
        if conditions:
            notes.append(
                f"Left out: {listed(conditions)}; named as OneTrainer's conditioning image, which is not used. {train}."
            )
        return notes


def without_black_masks(items: Sequence[TrainingImage]) -> tuple[list[TrainingImage], list[str]]:
    """(the items of which something counts in the loss, a note that names the others).

    A picture whose mask is 0 everywhere has no gradient: its steps would teach nothing. Raises `InputError` where no
    picture is left.
    """
    black = [item.name for item in items if item.mask is not None and not bool(item.mask.any())]
    if not black:
        return list(items), []
    if len(black) == len(items):
        raise InputError(
            f"the masks of all pictures are black where they are trained on ({listed(black)}), so nothing would be "
            "learned; paint what counts white, or invert the masks"
        )
    kept = [item for item in items if item.mask is None or bool(item.mask.any())]
    return kept, [f"Left out: {listed(black)}; the mask is black everywhere, so nothing of it would be learned."]
