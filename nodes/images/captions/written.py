"""The captions that are written down for a set's pictures: in files beside them, else in a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..quality import counted, listed
from .tables import Tables, read_tables
from .text_files import CaptionFiles, read_caption_files


@dataclass(frozen=True)
class Written:
    """The written captions. files, tables: where they come from. passed_over: tables that no picture needs."""

    files: CaptionFiles = field(default_factory=CaptionFiles)
    tables: Tables = field(default_factory=Tables)
    passed_over: tuple[Path, ...] = ()

    def has(self, picture: Path) -> bool:
        """Whether anything is written for a picture, be it empty."""
        return picture in self.files.used or picture in self.tables.texts

    def lines_of(self, picture: Path, every_line: bool = False) -> tuple[str, ...]:
        """The lines of a picture's caption file, else of its first row in a table, none where it has neither.

        every_line: each is a caption of its own; then the lines of all its rows. Raises `OSError` where the file cannot
        be read.
        """
        if picture in self.files.used:
            return self.files.lines_of(picture)
        return self.tables.lines_of(picture, every_line)

    def notes(self, pictures: Sequence[Path], every_line: bool, shown: Callable[[Path], str]) -> list[str]:
        """For the report: what the files and tables say of themselves, and captions that are joined or left out.

        shown: a path as notes have it.
        """
        notes = [*self.files.notes, *self.tables.notes]
        if every_line:
            return notes
        joined = [shown(path) for path in pictures if len(self.files.texts.get(path, ())) > 1]
        if joined:
            notes.append(
                f"Several lines, joined to one caption: {listed(joined)}. Where each line is a caption of its own, set "
                "captions to 'text files, one caption a line'."
            )
        rows = [path for path in pictures if not self.files.used.get(path) and len(self.tables.texts.get(path, ())) > 1]
        if rows:
            notes.append(
                f"NOT READ: further rows of {counted(len(rows), 'picture')} in a table: "
                f"{listed(list(map(shown, rows)))}. To take each row as a caption of its own, set captions to "
                "'text files, one caption a line'."
            )
        return notes


def read_written(
    pictures: Sequence[Path], captions: Sequence[Path], tables: Sequence[Path], shown: Callable[[Path], str]
) -> Written:
    """Read the captions of pictures. captions: the caption files. tables: see `read_tables`; shown too.

    Where every picture has a caption file, no table is read.
    """
    files = read_caption_files(pictures, captions, shown)
    if all(path in files.used for path in pictures):
        return Written(files, passed_over=tuple(tables))
    return Written(files, read_tables(tables, pictures, shown))
