"""A sweep in words."""

from __future__ import annotations

from collections.abc import Mapping

from ....training.measure import format_duration
from .cells import Cells
from .plan import Plan


def report(plan: Plan, cells: Cells, losses: Mapping[tuple[str, float], float]) -> str:
    """What was drawn, what was known from an earlier sweep, and the losses from the lowest. losses: by (column name,
    strength)."""
    columns, blocks = len(plan.columns) - 1, len(plan.blocks)
    lines = [
        f"{_count(columns, 'LoRA')}, {_count(blocks, 'prompt')}: {_count(cells.drawn, 'picture')} drawn"
        + (f" in {format_duration(cells.seconds)}" if cells.drawn else "")
        + (f", {cells.kept} kept from before" if cells.kept else "")
        + "."
    ]
    if losses:
        lines += _losses(losses)
    if cells.reading.unread:
        lines.append(
            f"Nothing is kept for the next sweep, since this cannot be compared: {', '.join(cells.reading.unread)}."
        )
    for name, notes in cells.notes.items():
        lines += [f"{name}: {note}" for note in notes]
    return "\n".join([*lines, *plan.notes])


def _losses(losses: Mapping[tuple[str, float], float]) -> list[str]:
    ordered = sorted(losses.items(), key=lambda item: item[1])
    base = next(loss for (_, strength), loss in losses.items() if strength == 0.0)
    (name, strength), lowest = ordered[0]
    first = (
        f"The lowest loss on images is {lowest:.4f}, of {name} at strength {strength:g}; without a LoRA it is "
        f"{base:.4f}."
        if lowest < base
        else f"No LoRA lowers the loss on images: without one it is {base:.4f}."
    )
    return [first, "loss | strength | LoRA", *(f"{loss:.4f} | {at:g} | {name}" for (name, at), loss in ordered)]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
