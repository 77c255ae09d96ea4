"""A sweep in words."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ....training.measure import format_duration
from ...bridge.models.clips import takes_clips
from .cells import Cells
from .losses import Score
from .plan import Plan


def report(plan: Plan, cells: Cells, scores: Mapping[tuple[str, float], Score]) -> str:
    """What was drawn, what was known from an earlier sweep, and the losses from the lowest. scores: by (column name,
    strength)."""
    columns, blocks = len(plan.columns) - 1, len(plan.blocks)
    lines = [
        f"{_count(columns, 'LoRA')}, {_count(blocks, 'prompt')}: {_count(cells.drawn, 'picture')} drawn"
        + (f" in {format_duration(cells.seconds)}" if cells.drawn else "")
        + (f", {cells.kept} kept from before" if cells.kept else "")
        + "."
    ]
    if takes_clips(cells.models.model.model):
        lines.append(
            "The model makes films, and each cell is one of a single frame: it shows how things look, not move."
        )
    if scores:
        lines += _scores(scores)
    if cells.reading.unread:
        lines.append(
            f"Nothing is kept for the next sweep, since this cannot be compared: {', '.join(cells.reading.unread)}."
        )
    for name, notes in cells.notes.items():
        lines += [f"{name}: {note}" for note in notes]
    return "\n".join([*lines, *plan.notes])


def _scores(scores: Mapping[tuple[str, float], Score]) -> list[str]:
    ordered = sorted(scores.items(), key=lambda item: item[1].loss)
    base = next(score.loss for (_, strength), score in scores.items() if strength == 0.0)
    (name, strength), (lowest, _) = ordered[0]
    first = (
        f"The lowest loss on images is {lowest:.4f}, of {name} at strength {strength:g}; without a LoRA it is "
        f"{base:.4f}."
        if lowest < base
        else f"No LoRA lowers the loss on images: without one it is {base:.4f}."
    )
    rows = [f"{loss:.4f} | {_leak(leak)} | {at:g} | {name}" for (name, at), (loss, leak) in ordered]
    return [
        first,
        "leak: how far the predictions at captions without the trigger words moved, as a multiple of those at the "
        "captions.",
        "loss | leak | strength | LoRA",
        *rows,
    ]


def _leak(leak: float) -> str:
    return f"{leak:.2f}" if math.isfinite(leak) else "-"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
