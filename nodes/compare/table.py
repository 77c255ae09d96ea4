"""What each training run took, from its record and its files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import folder_paths

from ...training.record import Run
from ..bridge.runs.graph import files_of

HEADINGS = ("technique", "numbers trained", "file", "steps", "time", "held-out loss")


@dataclass(frozen=True)
class Row:
    """One run as texts. name: the run's id and what it was trained on."""

    name: str
    technique: str
    trained: str
    file: str
    steps: str
    time: str
    held_out: str

    @property
    def cells(self) -> tuple[str, ...]:
        return self.technique, self.trained, self.file, self.steps, self.time, self.held_out


def row(run: Run) -> Row:
    """The row of a run: what was done from its record, the size of its files from ComfyUI's folders."""
    return Row(
        f"{run.id} on {run.info.base or 'an unnamed base'}, {run.info.images} images",
        run.info.technique.replace("lora", "LoRA"),
        f"{run.info.trained:,}",
        _file(run),
        f"{len(run.losses)}",
        duration(run.seconds),
        _held_out(run),
    )


def _file(run: Run) -> str:
    sizes = []
    for kind, names in files_of(run.id).items():
        for name in names:
            path = folder_paths.get_full_path(kind, name)
            if path and os.path.isfile(path):
                sizes.append(os.path.getsize(path))
    if not sizes:
        return "not saved yet"
    # The same run saved twice (another format or number type) is two files of different size.
    return size(min(sizes)) if min(sizes) == max(sizes) else f"{size(min(sizes))} to {size(max(sizes))}"


def _held_out(run: Run) -> str:
    best = run.best
    if not run.held_out:
        return "not measured"
    if best is None:
        return "not a number at any step"
    first = run.held_out[0]
    if run.no_step_improved:
        return f"{best[1]:.4f} at the start, no step lower"
    if first[0] == 0 and best[0] > 0:
        return f"{first[1]:.4f} to {best[1]:.4f} ({best[1] / first[1] - 1:+.0%}) at step {best[0]}"
    return f"{best[1]:.4f} at step {best[0]}"


def size(count: int) -> str:
    """A number of bytes in decimal units, with three digits: 4.12 kB."""
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("kB", "MB"):
        value /= 1000
        if value < 1000:
            return f"{value:.3g} {unit}"
    return f"{value / 1000:.3g} GB"


def duration(seconds: float) -> str:
    """A time as "1.5 s", "31 s", "13 min" or "2 h 5 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{int(minutes) // 60} h {int(minutes) % 60} min"


def report(rows: Sequence[Row]) -> str:
    """The table in text, columns aligned for a fixed-width font."""
    lines = [HEADINGS, *(r.cells for r in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    return "\n".join("  ".join(word.ljust(w) for word, w in zip(line, widths, strict=True)).rstrip() for line in lines)
