"""What lies in a folder of pictures and is not used, counted by reason for the report."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import Counter
from pathlib import Path

from .captions.text_files import CaptionFiles, is_caption, look_alike
from .listing import entries_of
from .quality import counted, listed

CAPTION_FILES = {".txt", ".caption"}
# Files that lie in training folders without being pictures: caches and settings of trainers and file managers.
OTHER_FILES = {".npz", ".json", ".jsonl", ".toml", ".yaml", ".safetensors", ".db", ".ini"}
TABLE = "metadata.jsonl"  # of captions, as Hugging Face's data sets have it
PICTURES = {
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".tga", ".jp2"),
    *(".qoi", ".heic", ".heif", ".jxl"),
}
MOST_SEEN = 20_000  # entries of all subfolders together that are looked at


def left_out(folder: Path, source: str, captions: CaptionFiles) -> list[str]:
    """Notes on everything in the folder that is not used, one a reason.

    source: where captions come from, one of `captions.sources.CAPTIONS`. captions: the caption files as they were read.
    Masks are not among them.
    """
    entries = sorted(entries_of(folder), key=lambda path: path.name.lower())
    hidden = [path for path in entries if path.name.startswith(".")]
    shown = [path for path in entries if not path.name.startswith(".")]
    files = [path for path in shown if path.is_file()]
    folders = [path for path in shown if path.is_dir()]
    odd = [path.name for path in shown if not path.is_file() and not path.is_dir()]
    notes = [*_subfolder_notes(folders), *_caption_notes(files, source, captions), *look_alike(files)]
    others = [path for path in files if path.suffix.lower() in OTHER_FILES and path.name.lower() != TABLE]
    kinds = Counter(path.suffix.lower() for path in others)
    if kinds:
        notes.append(f"Passed over, as they are no pictures: {_counted(kinds)}.")
    if hidden:
        notes.append(f"Passed over, as their names begin with a dot: {listed([path.name for path in hidden])}.")
    if odd:
        notes.append(f"Passed over, as they are broken links or no files: {listed(odd)}.")
    return notes


def _subfolder_notes(folders: list[Path]) -> list[str]:
    if not folders:
        return []
    counts, seen = {}, 0
    for path in folders:
        counts[path.name], looked_at = _pictures_below(path, MOST_SEEN - seen)
        seen += looked_at
    full = [f"{name} ({count})" for name, count in counts.items() if count]
    empty = [name for name, count in counts.items() if not count]
    more = " or more" if seen >= MOST_SEEN else ""
    notes = []
    if full:
        notes.append(
            f"NOT READ: {counted(sum(counts.values()), 'picture')}{more} in subfolders: {listed(full)}. Only the "
            "folder itself is read; move the pictures into it, or choose the subfolder."
        )
    if empty and not more:
        notes.append(f"Passed over: subfolders without pictures: {listed(empty)}.")
    return notes


def _pictures_below(folder: Path, most: int) -> tuple[int, int]:
    """(how many pictures a folder holds by their endings, with all below it; how many entries were looked at).

    most: entries that are looked at. Links to folders are not followed, so a loop of them has an end.
    """
    seen = pictures = 0
    folders = [str(folder)]
    while folders and seen < most:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in itertools.islice(entries, most - seen):
                seen += 1
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif not entry.name.startswith("."):
                    pictures += os.path.splitext(entry.name)[1].lower() in PICTURES
    return pictures, seen


def _caption_notes(files: list[Path], source: str, captions: CaptionFiles) -> list[str]:
    notes = []
    others = [path.name for path in files if path.suffix.lower() == ".caption"]
    if others:
        notes.append(
            f"NOT READ: {counted(len(others), '.caption file')}: {listed(others)}. Captions are read from .txt files: "
            "give them that ending."
        )
    tables = [path.name for path in files if path.name.lower() == TABLE]
    if tables:
        notes.append(
            f"NOT READ: captions in {listed(tables)}. Captions are read from a .txt file of each picture's name."
        )
    texts = [path.name for path in files if is_caption(path)]
    if texts and source != "text files":
        notes.append(f"Passed over: {counted(len(texts), '.txt file')}, as captions is {source!r}.")
    if captions.unused:
        doubles = listed([path.name for path in captions.unused])
        notes.append(f"NOT READ: {doubles}, as the same picture has another caption file.")
    return notes


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {ending}" for ending, count in kinds.most_common())
