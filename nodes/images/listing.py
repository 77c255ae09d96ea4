"""The entries of a folder, with a bound on their number, and the endings that tell what they are."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ...training.errors import InputError

MOST_ENTRIES = 100_000  # of all folders that are read for one set
TABLES = ("metadata.jsonl", "metadata.csv")  # of captions, as Hugging Face's data sets have them; the first wins
# Files that lie in training folders without being pictures: caches and settings of trainers and file managers, and what
# comes with a data set that was downloaded.
OTHER_FILES = {
    *(".npz", ".json", ".jsonl", ".toml", ".yaml", ".safetensors", ".db", ".ini"),
    *(".md", ".csv", ".parquet", ".yml", ".log", ".bak"),
}
PICTURES = {
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".tga", ".jp2"),
    *(".qoi", ".heic", ".heif", ".jxl"),
}
FILMS = {
    *(".mp4", ".webm", ".mov", ".mkv", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".wmv", ".flv"),
    *(".ogv", ".3gp", ".mxf"),
}

_OF_SEVERAL = re.compile(r"(.+)(#[0-9]+)", re.DOTALL)  # the name of one of several clips of a film: "walk.mp4#2"


def without_ending(name: str) -> str:
    """A name without the ending of a picture or film: "cat" of "cat.png", "walk#2" of "walk.mp4#2"."""
    found = _OF_SEVERAL.fullmatch(name)
    whole, number = (found[1], found[2]) if found else (name, "")
    for ending in PICTURES | FILMS:
        if whole.lower().endswith(ending) and len(whole) > len(ending):
            return whole[: -len(ending)] + number
    return name


def entries_of(folder: Path, before: int = 0) -> list[Path]:
    """Everything in a folder. before: entries that were found in other folders of the set.

    Raises `InputError` for more than `MOST_ENTRIES` together.
    """
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if before + len(found) >= MOST_ENTRIES:
                raise InputError(
                    f"the folder {folder.name!r} holds more than {MOST_ENTRIES:,} files; move those of one training "
                    "into a folder of their own"
                )
            found.append(folder / entry.name)
    return found
