"""Captions in a table: metadata.jsonl or metadata.csv, as Hugging Face's imagefolder has them.

A line is a JSON object, or a row of comma-separated values below their names: `file_name` is a picture's path from the
table's folder, `text` its caption (huggingface/datasets, docs/source/image_dataset.mdx, "Image captioning").
"""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ....training.plain_json import read_json
from ...bridge.files.headers import open_regular
from ..quality import counted, listed
from .text_files import lines_in

LONGEST_TABLE = 50_000_000  # bytes
FILE, TEXT = "file_name", "text"  # the columns that are read


@dataclass(frozen=True)
class Row:
    """A row of a table. line: its number in the file, from 1. file: the picture's path from the table's folder.

    text: the caption, "" where the row has none. columns: the names of all its values.
    """

    line: int
    file: PurePosixPath
    text: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Tables:
    """What the tables of a set say.

    texts: {picture: for each of its rows the lines of the caption}. wrong: what has to be mended. notes: for the
    report.
    """

    texts: Mapping[Path, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    wrong: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def lines_of(self, picture: Path, every_row: bool) -> tuple[str, ...]:
        """The lines for a picture, none where no row names it. every_row: of all its rows, else of the first."""
        rows = self.texts.get(picture, ())
        return tuple(line for row in (rows if every_row else rows[:1]) for line in row)


def read_tables(tables: Iterable[Path], pictures: Sequence[Path], shown: Callable[[Path], str]) -> Tables:
    """The captions of pictures. tables: those of a folder before those of its subfolders; the nearest one counts.

    shown: a path as notes and errors have it. Nothing is opened by what a row says: it only names one of `pictures`.
    """
    texts: dict[Path, tuple[tuple[str, ...], ...]] = {}
    wrong: list[str] = []
    notes: list[str] = []
    exact = set(pictures)
    composed = {unicodedata.normalize("NFC", str(path)): path for path in pictures}
    for table in tables:
        rows, faults = rows_of(table)
        wrong += [f"{shown(table)} {fault}" for fault in faults]
        found: dict[Path, list[Row]] = {}
        lost: list[Row] = []
        for row in rows:
            path = table.parent / row.file
            path = path if path in exact else composed.get(unicodedata.normalize("NFC", str(path)), path)
            if path in exact:
                found.setdefault(path, []).append(row)
            else:
                lost.append(row)
        twice = sorted(shown(path) for path in found if path in texts)
        if twice:
            notes.append(f"Captions in more than one {table.name}: {listed(twice)}; the one in {shown(table)} counts.")
        texts |= {path: tuple(lines_in(row.text) for row in each) for path, each in found.items()}
        missing, elsewhere = _missing(table, lost)
        wrong += [f"{shown(table)} {fault}" for fault in missing]
        notes += [f"NOT READ: {shown(table)} {note}" for note in elsewhere + _without_text(rows)]
    return Tables(texts, tuple(wrong), tuple(notes))


def folders_named(table: Path) -> set[PurePosixPath]:
    """The folders of the pictures that a table names, as paths from its own folder."""
    rows, _ = rows_of(table)
    return {row.file.parent for row in rows if len(row.file.parts) > 1}


def rows_of(table: Path) -> tuple[list[Row], list[str]]:
    """(the rows of a table, what is wrong with the others). A file that cannot be read at all has no rows."""
    try:
        with open_regular(table) as file:
            size = os.fstat(file.fileno()).st_size
            if size > LONGEST_TABLE:
                return [], [f"has {size:,} bytes; give it at most {LONGEST_TABLE:,}"]
            text = file.read(LONGEST_TABLE).decode("utf-8-sig")
    except UnicodeDecodeError:
        return [], ["is not UTF-8; save it as UTF-8"]
    except (OSError, ValueError) as error:
        return [], [f"cannot be read ({getattr(error, 'strerror', None) or 'it is no regular file'})"]
    rows, faults = [], []
    is_csv = table.suffix.lower() == ".csv"
    for number, values in _csv_lines(text) if is_csv else _json_lines(text):
        row = _row(number, values)
        if isinstance(row, Row):
            rows.append(row)
        else:
            faults.append(f"line {number} {row}")
    if not faults:
        return rows, []
    right = f"1.png,caption below {FILE},{TEXT}" if is_csv else f'{{"{FILE}": "1.png", "{TEXT}": "..."}}'
    return rows, [f"has lines that cannot be used, give each as {right}: {listed(faults)}"]


def _json_lines(text: str) -> Iterator[tuple[int, Any]]:
    """(number of the line, its JSON value or the error) of each line that is not empty."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, read_json(line)
            except ValueError as error:
                yield number, error


def _csv_lines(text: str) -> Iterator[tuple[int, Any]]:
    """(number of the line at which a row ends, its values by name or the error)."""
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for values in reader:
            yield reader.line_num, {name: value for name, value in values.items() if name is not None}
    except csv.Error as error:
        yield reader.line_num, ValueError(str(error))


def _row(number: int, values: Any) -> Row | str:
    """The row of a line's values, or what is wrong with it. values: as read, or the error of reading them."""
    if isinstance(values, ValueError):
        return f"cannot be read ({str(values)[:60]})"
    if not isinstance(values, dict):
        return "is no object"
    name, text = values.get(FILE), values.get(TEXT)
    if not isinstance(name, str) or not name.strip():
        return f"has no {FILE}"
    if text is not None and not isinstance(text, str):
        return f"has a {TEXT} that is no text"
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1]) or "\0" in name:
        return f"has the {FILE} {name[:60]!a}, which leads out of the folder"
    return Row(number, path, text or "", tuple(map(str, values)))


def _missing(table: Path, lost: Sequence[Row]) -> tuple[list[str], list[str]]:
    """(faults of rows whose file is not there, notes on those whose file is there and not read)."""
    there = [os.path.isfile(table.parent / row.file) for row in lost]
    gone = [f"{row.file} (line {row.line})" for row, is_there in zip(lost, there, strict=True) if not is_there]
    unread = [str(row.file) for row, is_there in zip(lost, there, strict=True) if is_there]
    faults = []
    if gone:
        faults.append(f"names pictures that are not there: {listed(gone)}; {FILE} is the path from the table's folder")
    notes = []
    if unread:
        notes = [
            f"has captions of {counted(len(unread), 'file')} that {'is' if len(unread) == 1 else 'are'} not in the "
            f"set: {listed(unread)}. For pictures in subfolders switch on subfolders."
        ]
    return faults, notes


def _without_text(rows: Sequence[Row]) -> list[str]:
    """A note where no row has a caption, with the columns that there are."""
    columns = Counter(name for row in rows for name in row.columns)
    if not rows or columns[TEXT]:
        return []
    others = [name for name in columns if name != FILE]
    return [f"has no column {TEXT}; call the one with the captions so. Its others are {listed(others) or 'none'}."]
