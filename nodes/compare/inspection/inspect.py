"""A training set in the order of what a run found hard: a contact sheet, a curve, and a table in text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw
from torch import Tensor

from ....training.errors import InputError
from ....training.images import ImageSet, TrainingImage
from ....training.picture_findings import CAPTION, Finding, find, in_order
from ....training.picture_scores import PictureLosses, as_stored
from ....training.record import Run
from ...bridge.drawing.fonts import drawable
from ...bridge.drawing.image import paste_middle, scaled, tensor_of
from ...bridge.drawing.palette import EMPTY, FAINT, INK, NO_CAPTION, PAPER, WARNING
from ...bridge.drawing.text_layout import fit_lines, shorten_middle
from ...bridge.runs.report import describe_leak, describe_pictures

THUMB, GAP, LINE_HEIGHT, TEXT, FRAME = 192, 14, 17, 13, 4  # px
LINES = 5  # of text under a picture: its name, its losses, what was found, its caption
MOST, COLUMNS = 60, 6  # pictures on a sheet, and in a row
LONGEST_CAPTION = 200  # characters of a caption in the report
MOST_NAMED = 20  # pictures in the table of the report


@dataclass(frozen=True)
class Entry:
    """A scored picture. item: the picture itself, None where the set at hand lacks it. findings: why it is named."""

    row: PictureLosses
    item: TrainingImage | None
    findings: tuple[Finding, ...]

    @property
    def losses(self) -> str:
        """ "0.1234 -> 0.0567 (-54%)", with a question mark for what is not known."""
        start, end = (f"{loss:.4f}" if math.isfinite(loss) else "?" for loss in (self.row.start, self.row.end))
        change = f" ({_percent(math.expm1(self.row.change))})" if math.isfinite(self.row.change) else ""
        return f"{start} -> {end}{change}"


def _percent(change: float) -> str:
    """+12%, -3%, and 0% for what is less than half a percent."""
    return f"{change:+.0%}" if abs(change) >= 0.005 else "0%"


def entries_of(run: Run, images: ImageSet) -> list[Entry]:
    """The scored pictures of a run: those that something was found about, then the others, the hardest first.

    Raises `InputError` for a run without scores, and for a set that has none of its pictures.
    """
    if not run.pictures:
        raise InputError(
            f"the run {run.id} has no losses of single pictures: it was trained by an earlier version, or with "
            "score_pictures off, or auto found that scoring would take more than 5 % of the run; set score_pictures to "
            "on and queue the same request again, which scores the pictures without training anew"
        )
    items = {as_stored(item.picture): item for item in reversed(images.items)}
    found = find(run.pictures)
    entries = [
        Entry(row, items.get(row.picture), tuple(each for each in found if each.row is row))
        for row in in_order(run.pictures, found)
    ]
    if not any(entry.item for entry in entries):
        raise InputError(
            f"none of the {len(images.copies())} pictures is one of the {len(entries)} that the run {run.id} scored, "
            f"the first of which is {entries[0].row.path!r}; wire in the set that it was trained on"
        )
    return entries


def sheet(entries: Sequence[Entry]) -> Tensor:
    """The first `MOST` entries with name, losses, findings and caption under each: [1, H, W, 3] in 0..1."""
    shown = entries[:MOST]
    columns = min(COLUMNS, len(shown))
    rows, cell = -(-len(shown) // columns), THUMB + LINES * LINE_HEIGHT + 2 * GAP
    image = Image.new("RGB", (columns * (THUMB + GAP) + GAP, rows * cell + GAP), PAPER)
    pad = ImageDraw.Draw(image)
    for i, entry in enumerate(shown):
        _draw_entry(image, pad, entry, (GAP + i % columns * (THUMB + GAP), GAP + i // columns * cell))
    return tensor_of(image)


def _draw_entry(image: Image.Image, pad: ImageDraw.ImageDraw, entry: Entry, corner: tuple[int, int]) -> None:
    x, y = corner
    if entry.findings:
        pad.rectangle((x - FRAME, y - FRAME, x + THUMB + FRAME - 1, y + THUMB + FRAME - 1), WARNING)
    pad.rectangle((x, y, x + THUMB - 1, y + THUMB - 1), EMPTY)
    if entry.item is not None:
        paste_middle(image, scaled(Image.fromarray(entry.item.first_frame.numpy()), THUMB), (x, y), THUMB)
    y += THUMB + FRAME + 2
    found = ", ".join(finding.kind.label for finding in entry.findings)
    caption = "" if entry.item is None else entry.item.caption or "(no caption)"
    lines = [
        (entry.row.path + (" (held out)" if entry.row.held_out else ""), INK, 1),
        (entry.losses, INK, 1),
        *([(found, WARNING, 1)] if found else []),
        (caption, FAINT if entry.item and entry.item.caption else NO_CAPTION, 2 if found else 3),
    ]
    for text, colour, most in lines:
        text, font = drawable(text, TEXT)
        parts = [shorten_middle(text, font, THUMB)] if most == 1 else fit_lines(text, font, THUMB, most)
        for part in parts:
            pad.text((x, y), part, colour, font)
            y += LINE_HEIGHT


def report(run: Run, images: ImageSet, entries: Sequence[Entry]) -> str:
    """What was found, and a table of the hardest pictures."""
    lines = describe_pictures(run) + describe_leak(run)
    shown = entries[:MOST_NAMED]
    names = [entry.row.path + (" (held out)" if entry.row.held_out else "") for entry in shown]
    width = max(map(len, names))
    order = "those named above first, then the hardest" if entries[0].findings else "the hardest first"
    lines.append(f"Loss at the start -> at the end, on the same noise levels and noises; {order}.")
    for name, entry in zip(names, shown, strict=True):
        found = "; ".join(finding.kind.label for finding in entry.findings)
        lines.append(f"{name.ljust(width)}  {entry.losses}{'  ' + found if found else ''}")
    if len(entries) > MOST_NAMED:
        lines.append(f"{len(entries) - MOST_NAMED} more are not listed.")
    if len(entries) > MOST:
        lines.append(f"The sheet shows the first {MOST}.")
    return "\n".join(lines + _shared_captions(entries) + _differences(images, entries))


def _shared_captions(entries: Sequence[Entry]) -> list[str]:
    """For a picture whose caption may not fit: which other picture has the same one."""
    lines = []
    for entry in entries:
        if entry.item is None or not entry.item.caption or all(each.kind is not CAPTION for each in entry.findings):
            continue
        own = entry.item.caption
        same = [other.row.path for other in entries if other is not entry and other.item and other.item.caption == own]
        if same:
            lines.append(f"{entry.row.path!r} has the caption of {same[0]!r}: {_shortened(own)!r}.")
    return lines


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_CAPTION else text[:LONGEST_CAPTION] + "..."


def _differences(images: ImageSet, entries: Sequence[Entry]) -> list[str]:
    """Which pictures are in the run's record or in the set, but not in both."""
    scored = {entry.row.picture for entry in entries}
    unscored = [item.path for item in images.items if as_stored(item.picture) not in scored]
    unscored = list(dict.fromkeys(unscored))
    lines = []
    if unscored:
        lines.append(f"{len(unscored)} of the set were not scored, for example {unscored[0]!r}.")
    missing = [entry.row.path for entry in entries if entry.item is None]
    if missing:
        lines.append(
            f"{len(missing)} that were scored are not in the set, for example {missing[0]!r}; they are blank on the "
            "sheet."
        )
    return lines
