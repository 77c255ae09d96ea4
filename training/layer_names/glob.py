"""Patterns with `*` for any text, matched in linear time.

Expressions of `re` would try every way to share the text out among the stars: 40 of them take a minute for one name.
"""

from __future__ import annotations

from ..errors import InputError

MAX_PATTERN = 10_000  # characters of a text of patterns


def glob_matches(pattern: str, text: str) -> bool:
    """Whether the whole text fits the pattern, in which `*` stands for any text, also none, and all else for itself.

    Each piece between two stars is looked for from where the one before ended, the first place counts: a later one
    would leave less text to the others.
    """
    first, *rest = pattern.split("*")
    if not rest:
        return text == pattern
    *middle, last = rest
    if len(text) < len(first) + len(last) or not (text.startswith(first) and text.endswith(last)):
        return False
    position, end = len(first), len(text) - len(last)
    for piece in middle:
        found = text.find(piece, position, end)
        if found < 0:
            return False
        position = found + len(piece)
    return True


def check_pattern(name: str, text: str) -> None:
    """Raise `InputError` for a text of patterns longer than `MAX_PATTERN`. name: the input's."""
    if len(text) > MAX_PATTERN:
        raise InputError(
            f"{name} has {len(text):,} characters; write at most {MAX_PATTERN:,}, with * for parts of names"
        )
