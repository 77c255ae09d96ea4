"""What lies in a folder of pictures and is not used, counted by reason for the report."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import Counter
from collections.abc import Container, Sequence
from pathlib import Path

from .captions.sources import WRITTEN
from .captions.text_files import look_alike
from .captions.written import Written
from .layout import CONTROLS, Layout, Part, repeats_in
from .listing import OTHER_FILES
from .quality import counted, listed

MOST_SEEN = 20_000  # entries of all subfolders together that are looked at


def left_out(layout: Layout, source: str, written: Written) -> list[str]:
    """Notes on everything in the folders of a set that is not used, one a reason.

    source: where captions come from, one of `captions.sources.CAPTIONS`. written: the captions as they were read.
    Masks are not among them.
    """
    entries = [path for part in layout.parts for path in sorted(part.entries, key=lambda path: path.name.lower())]
    hidden = [path for path in entries if path.name.startswith(".")]
    shown = [path for path in entries if not path.name.startswith(".")]
    files = [path for path in shown if path.is_file()]
    read = {part.folder for part in layout.parts} | layout.taken
    folders = [path for path in shown if path not in read and path.is_dir()]
    if layout.pairs:
        folders = [path for path in folders if path.name.lower() != CONTROLS]
    odd = [path for path in shown if not path.is_file() and not path.is_dir()]
    notes = [
        *_chosen_notes(layout),
        *_subfolder_notes(layout, folders),
        *_others_notes(layout),
        *_caption_notes(layout, source, written),
        *look_alike(layout.listed(files)),
    ]
    tables = {part.table for part in layout.parts}
    others = [path for path in files if path.suffix.lower() in OTHER_FILES and path not in tables]
    kinds = Counter(path.suffix.lower() for path in others)
    if kinds:
        first = layout.shown(others[0])
        notes.append(f"Passed over, as they are no {layout.parts[0].WHAT}s: {_counted(kinds)}, for example {first}.")
    if hidden:
        notes.append(f"Passed over, as their names begin with a dot: {listed(layout.listed(hidden))}.")
    if odd:
        notes.append(f"Passed over, as they are broken links or no files: {listed(layout.listed(odd))}.")
    return notes


def _chosen_notes(layout: Layout) -> list[str]:
    """A note where the chosen folder is one of kohya's, since its number and name count in the folder above alone."""
    own = layout.parts[0]
    if not own.pictures or not repeats_in(own.folder.name):
        return []
    return [
        f"The name {own.folder.name} is not read as repeats and a caption, as it is the folder that was chosen. To use "
        "it, choose the folder that it lies in."
    ]


def _others_notes(layout: Layout) -> list[str]:
    """A note on files that a set of another kind is made of: films beside pictures, pictures beside films."""
    others = layout.listed(path for part in layout.parts if part.folder not in layout.taken for path in part.others)
    return [f"Left out: {listed(others)}; {layout.parts[0].OTHERS}."] if others else []


def _subfolder_notes(layout: Layout, folders: Sequence[Path]) -> list[str]:
    """Notes on folders that are not read."""
    what = layout.parts[0].WHAT
    none = [path for path in folders if (repeats_in(path.name) or (1, ""))[0] < 1]
    counts, seen = {}, 0
    for path in folders:
        if path not in none:
            counts[layout.shown(path)], looked_at = _pictures_below(path, MOST_SEEN - seen, layout.parts[0].ENDINGS)
            seen += looked_at
    full = [f"{name} ({count})" for name, count in counts.items() if count]
    empty = [name for name, count in counts.items() if not count]
    more = " or more" if seen >= MOST_SEEN else ""
    notes = []
    if full:
        notes.append(
            f"NOT READ: {counted(sum(counts.values()), what)}{more} in subfolders: {listed(full)}. "
            f"{_why_not_read(layout)}"
        )
    if none:
        notes.append(f"Passed over, as their names ask for 0 repeats: {listed(layout.listed(none))}.")
    if empty and not more:
        notes.append(f"Passed over: subfolders without {what}s: {listed(empty)}.")
    return notes


def _why_not_read(layout: Layout) -> str:
    if layout.with_subfolders:
        return (
            "They are links, lie too deep or are ai-toolkit's control pictures (_controls). To read one, move the "
            "folder itself to where it is read."
        )
    read = [part.place for part in layout.parts[1:]]
    if read:
        return f"Only {listed(read)} and the folder itself are read; switch on subfolders, or choose the subfolder."
    what = layout.parts[0].WHAT
    return f"Only the folder itself is read; switch on subfolders, move the {what}s into it, or choose the subfolder."


def _pictures_below(folder: Path, most: int, endings: Container[str]) -> tuple[int, int]:
    """(how many files with these endings a folder holds, with all below it; how many entries were looked at).

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
                    pictures += os.path.splitext(entry.name)[1].lower() in endings
    return pictures, seen


def _caption_notes(layout: Layout, source: str, written: Written) -> list[str]:
    tables = [part.table for part in layout.parts if part.table]
    if source not in WRITTEN:
        notes = [
            f"Passed over: {counted(len(found), f'{ending} file')}, as captions is {source!r}."
            for ending, found in _by_ending(layout.captions).items()
        ]
        if tables:
            notes.append(f"Passed over: {listed(layout.listed(tables))}, as captions is {source!r}.")
        return notes
    notes = []
    if written.passed_over:
        names = listed(layout.listed(written.passed_over))
        notes.append(f"Passed over: {names}, as every picture has a caption file of its own.")
    both = [path for path in written.tables.texts if path in written.files.used]
    if both:
        notes.append(
            f"Passed over: the rows of {counted(len(both), 'picture')} in a table, as they have caption files: "
            f"{listed(layout.listed(both))}."
        )
    if written.files.unused:
        doubles = listed(layout.listed(written.files.unused))
        notes.append(f"NOT READ: {doubles}, as the same picture has another caption file.")
    return notes


def _by_ending(paths: Sequence[Path]) -> dict[str, list[Path]]:
    groups: dict[str, list[Path]] = {}
    for path in sorted(paths):
        groups.setdefault(path.suffix.lower(), []).append(path)
    return groups


def parts_note(parts: Sequence[Part], counts: Counter[str]) -> list[str]:
    """Which subfolders are read, and how often their pictures are drawn. counts: pictures of each by its place."""
    read = [
        f"{part.place} ({counted(counts[part.place], 'picture')}"
        + (f", {counted(part.repeats, 'repeat')})" if part.repeats != 1 else ")")
        for part in parts
        if part.place and counts[part.place]
    ]
    return [f"Read from subfolders: {listed(read)}."] if read else []


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {ending}" for ending, count in kinds.most_common())
