"""Words that several reports use."""

from __future__ import annotations

from collections.abc import Sequence


def listed(names: Sequence[str], most: int = 24) -> str:
    """`a, b, c and 5 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
