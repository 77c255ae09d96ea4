"""The report of sets that were combined, and the contact sheet that tells them apart."""

from __future__ import annotations

from collections import Counter

import torch

from ....training.captions import as_prompt
from ....training.images import passes
from ..quality import counted, listed
from ..sheet import kinds_in, kinds_of, sheet_of_sets
from .combine import Combined, Part

HEADINGS = ("set", "pictures", "weight", "share of draws", "for each picture", "sizes", "trigger")
SIZES = 4  # that a row names


def describe_sets(combined: Combined) -> str:
    """The report: a table with a row for each set (aligned for a fixed-width font), and notes."""
    images, parts = combined.images, combined.parts
    distinct, copies = len(images.copies()), len(images.items)
    more = f", {copies} with mirrored, repeated and smaller ones" if copies > distinct else ""
    rows = [HEADINGS, *(_row(combined, part) for part in parts)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    lines = [f"{kinds_of(images)} in {counted(len(parts), 'set')}{more}."]
    lines += ["  ".join(word.ljust(w) for word, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    if images.triggers:
        lines.append(f"In prompts write {images.trigger_prompt}.")
    if any(item.mask is not None for item in images.items):
        lines.append("Masks: only what they let through counts in the loss.")
    lines.append(
        f"100 steps of batch_size 4 are about {passes(distinct, 100, 4):.0f} passes over each picture on average."
    )
    return "\n".join([*lines, *images.notes])


def preview(combined: Combined) -> torch.Tensor:
    """A contact sheet, each set under a heading: every picture once, in its largest size. [1, H, W, 3] in 0..1."""
    sections = []
    for part in combined.parts:
        shown = [max((part.items[i] for i in own), key=lambda item: item.pixels.numel()) for own in part.pictures]
        heading = f"{part.title}: {kinds_in(shown)}, {combined.share(part):.1%} of the draws"
        trigger = _triggers(part)
        sections.append((f"{heading}, {trigger}" if trigger else heading, shown))
    return sheet_of_sets(sections)


def _row(combined: Combined, part: Part) -> tuple[str, ...]:
    share, count = combined.share(part), len(part.pictures)
    sizes = Counter((item.size, item.frames if item.is_clip else 0) for item in part.items)
    largest = sorted(sizes, key=lambda each: (-each[0][0] * each[0][1], each))
    shown = [f"{width}x{height}" + (f"x{frames}" if frames else "") for (height, width), frames in largest]
    return (
        part.title,
        str(count),
        f"{part.weight:g}",
        f"{share:.1%}",
        f"{share / count:.2%}",
        listed(shown, SIZES),
        _triggers(part) or "none",
    )


def _triggers(part: Part) -> str:
    """The trigger words of a set as they are written in prompts."""
    words = {item.trigger: as_prompt(item.trigger, item.caption_syntax) for item in part.items if item.trigger}
    return listed(list(words.values()), SIZES)
