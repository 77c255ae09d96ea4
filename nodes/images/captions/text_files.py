"""The caption files of a folder: which belongs to which picture, and their texts."""

from __future__ import annotations

import errno
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...bridge.files.headers import open_regular
from ..quality import listed
from .encodings import NAMES, Decision, decide, mark_of

# In any case. Where a picture has several files, the first of these wins, and of one ending the one in small letters.
CAPTION_ENDINGS = {".txt": 0, ".caption": 1}
LONGEST_FILE = 1_000_000  # bytes
FIRST = ".first"  # before the ending of the caption of a film's first frame


@dataclass(frozen=True)
class CaptionFiles:
    """The caption files of a set.

    texts: {picture: the lines of its file that are not empty}; a picture without a file is not in it. used: {picture:
    its file}. unused: files of pictures that another file belongs to. errors: {file: why it cannot be read}. notes: for
    the report, which encodings were taken and what was lost, shared or alike.
    """

    texts: Mapping[Path, tuple[str, ...]] = field(default_factory=dict)
    used: Mapping[Path, Path] = field(default_factory=dict)
    unused: tuple[Path, ...] = ()
    errors: Mapping[Path, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def lines_of(self, picture: Path) -> tuple[str, ...]:
        """The lines for a picture, none without a file. Raises `OSError` where its file cannot be read."""
        error = self.errors.get(self.used.get(picture, picture))
        if error is not None:
            raise OSError(error)
        return self.texts.get(picture, ())


def _name(path: Path) -> str:
    return path.name


def read_caption_files(
    pictures: Iterable[Path], captions: Iterable[Path], shown: Callable[[Path], str] = _name
) -> CaptionFiles:
    """Match the caption files to pictures and decode them together, see `encodings.decide`.

    shown: a path as the notes have it. A file belongs to a picture of the same folder and the same name before the
    ending, also where the two spell it in different Unicode forms (NFC and NFD, as macOS and other systems write "e"
    with an accent).
    """
    captions = list(captions)
    used = match_captions(pictures, captions)
    contents, errors = {}, {}
    for path in sorted(set(used.values())):
        try:
            contents[path] = _read(path)
        except OSError as error:
            errors[path] = error.strerror or type(error).__name__
    decisions = dict(zip(contents, decide(list(contents.values())), strict=True))
    decoded = {path: decode(data, decisions[path]) for path, data in contents.items()}
    lost = [f"{shown(path)} ({count})" for path, (_, count) in decoded.items() if count]
    notes = [*_encoding_notes(decisions, shown), *_sharing_notes(used, shown)]
    if lost:
        notes.append(
            f"Characters that no encoding has, shown as \ufffd: {listed(lost)}. Save these files as UTF-8 again."
        )
    return CaptionFiles(
        {picture: decoded[path][0] for picture, path in used.items() if path in decoded},
        used,
        doubled_captions(captions, set(used.values())),
        errors,
        tuple(notes),
    )


def is_caption(path: Path) -> bool:
    """Whether a path is a caption file by its name, and is there."""
    return path.suffix.lower() in CAPTION_ENDINGS and not path.name.startswith(".") and path.is_file()


def match_captions(pictures: Iterable[Path], captions: Iterable[Path]) -> dict[Path, Path]:
    """{picture: its caption file}, of the same folder.

    The exact name wins, with ".txt" before ".TXT" before ".caption", then one in another Unicode form.
    """
    by_stem: dict[tuple[Path, str], list[Path]] = {}
    for path in sorted(captions, key=lambda path: path.name):
        by_stem.setdefault(_stem(path), []).append(path)
    found = {}
    for picture in pictures:
        named = by_stem.get(_stem(picture), [])
        if named:
            found[picture] = min(named, key=lambda path: (path.stem != picture.stem, *_rank(path)))
    return found


def first_caption_of(film: Path) -> Path:
    """A path that is named so that NAME.first.txt is its caption file: the caption of a film's first frame."""
    return film.with_name(f"{film.stem}{FIRST}{film.suffix or '.film'}")


def _stem(path: Path) -> tuple[Path, str]:
    """What a picture and its caption file have in common."""
    return path.parent, unicodedata.normalize("NFC", path.stem)


def _rank(path: Path) -> tuple[int, bool]:
    """Which of the caption files of a picture comes first, by their endings."""
    return CAPTION_ENDINGS[path.suffix.lower()], path.suffix != path.suffix.lower()


def doubled_captions(captions: Iterable[Path], used: set[Path]) -> tuple[Path, ...]:
    """The caption files that are not used, since their pictures have others: "a.TXT" beside "a.txt"."""
    stems = {_stem(path) for path in used}
    return tuple(path for path in captions if path not in used and _stem(path) in stems)


def look_alike(names: Iterable[str]) -> list[str]:
    """Notes on files whose names differ only in their Unicode form, so that they look the same."""
    by_name: dict[str, list[str]] = {}
    for each in names:
        by_name.setdefault(unicodedata.normalize("NFC", each), []).append(each)
    twice = [f"{name} ({len(names)} times)" for name, names in sorted(by_name.items()) if len(names) > 1]
    if not twice:
        return []
    return [f"Names that look the same and differ in their Unicode form (NFC, NFD): {listed(twice)}. Rename one."]


def decode(data: bytes, decision: Decision) -> tuple[tuple[str, ...], int]:
    """(the lines that are not empty, how many characters could not be read), see `lines_in`."""
    mark = mark_of(data)
    data = data[mark[1] :] if mark is not None else data
    try:
        text, lost = data.decode(decision.encoding), 0
    except UnicodeDecodeError:
        text = data.decode(decision.encoding, "replace")
        lost = text.count("\ufffd")
    return lines_in(text), lost


def lines_in(text: str) -> tuple[str, ...]:
    """The lines of a text that are not empty, each as `in_one_line`."""
    return tuple(filter(None, map(in_one_line, re.split(r"\r\n|\n|\r", text))))


def in_one_line(text: str) -> str:
    """The text with blanks for control characters and line breaks, and one blank for several.

    A byte order mark within it, as where files were put together, is left out.
    """
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text.replace("\ufeff", "")).split())


def _read(path: Path) -> bytes:
    """Raises `OSError` also for a file that is far too large for a caption."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > LONGEST_FILE:
                raise OSError(errno.EFBIG, f"has {size:,} bytes, and a caption at most {LONGEST_FILE:,}")
            return file.read(LONGEST_FILE)
    except ValueError as error:
        raise OSError(errno.EINVAL, "is no regular file") from error


def _encoding_notes(decisions: Mapping[Path, Decision], shown: Callable[[Path], str]) -> list[str]:
    """Which encodings the files have; a note only where one is not UTF-8."""
    counts = Counter(NAMES[decision.encoding] for decision in decisions.values())
    others = [shown(path) for path, decision in decisions.items() if decision.encoding != "utf-8"]
    if not others:
        return []
    kinds = ", ".join(f"{count} as {name}" for name, count in counts.most_common())
    notes = [f"Caption files: {kinds}. Not UTF-8: {listed(others)}. Check these captions on the preview."]
    guessed = [shown(path) for path, decision in decisions.items() if decision.guessed]
    if guessed:
        notes.append(
            f"The encoding of {listed(guessed)} is a guess, since the package charset-normalizer, which comes with "
            "ComfyUI, is not installed. Install it, or save the files as UTF-8."
        )
    return notes


def _sharing_notes(used: Mapping[Path, Path], shown: Callable[[Path], str]) -> list[str]:
    pictures_of: dict[Path, list[str]] = {}
    for picture, path in used.items():
        pictures_of.setdefault(path, []).append(shown(picture))
    shared = [f"{' and '.join(names)} ({shown(path)})" for path, names in pictures_of.items() if len(names) > 1]
    return [f"One caption file for several pictures: {listed(shared)}."] if shared else []
