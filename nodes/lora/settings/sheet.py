"""What was read of a file: values of widgets, each checked, and sentences on what has no equivalent.

Metadata comes from strangers: values may be missing, of any type, out of range or huge. None of them raises an error;
what cannot be used is named in a sentence and left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from ....training.adapters import ADAPTERS
from ....training.config import CHOICES, PRECISIONS, RANGES, TrainConfig
from ....training.plain_json import read_json
from ...bridge.models import TARGETS
from ...bridge.models.second_picture import SOURCE_ENCODINGS
from ..training.request import LoraRequest

MOST_SHOWN = 80  # characters of a value in a sentence
MOST_NOTES = 100
MOST_TEXT = 2000  # characters of a widget's text
MOST_DIGITS = 40  # characters of a number; Python's own limit for whole numbers is 4300 digits
NOTHING = ("", "none", "null")  # how programs write that an option was not given, in small letters
_LISTS: dict[str, tuple[str, ...]] = CHOICES | {
    "precision": PRECISIONS,
    "adapter": tuple(ADAPTERS),
    "targets": TARGETS,
    "source_encoding": tuple(SOURCE_ENCODINGS),
}
_DEFAULTS: dict[str, Any] = {
    field.name: field.default
    for kind in (TrainConfig, LoraRequest)
    for field in fields(kind)
    if field.default is not MISSING and field.name != "patience"
}
_RANGES = RANGES | {"lokr_factor": (-1, 1024)}
WIDGETS = frozenset(_DEFAULTS) | {"steps", "learning_rate", "batch_size", "seed"}


class Sheet:
    """values: {widget: value} of the trainer. notes: sentences."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.notes: list[str] = []

    def note(self, sentence: str) -> None:
        """Add a sentence. Of more than `MOST_NOTES` the rest is left out, and the last one says so."""
        if len(self.notes) == MOST_NOTES:
            self.notes.append("More entries of the file have no equivalent; they are not listed.")
        if len(self.notes) < MOST_NOTES and sentence not in self.notes:
            self.notes.append(sentence)

    def put(self, widget: str, value: Any, source: str) -> bool:
        """Set a widget where the value is of its type and in its range, else say why not. Returns whether it was set.

        value: a JSON value, or a text as kohya writes it ("8", "True"). source: what the file calls it.
        """
        if widget in _LISTS:
            fitting = value if isinstance(value, str) and value in _LISTS[widget] else None
            wanted = f"takes {', '.join(_LISTS[widget])}"
        elif isinstance(_DEFAULTS.get(widget), bool):
            fitting, wanted = boolean(value), "is on or off"
        elif widget in _RANGES:
            fitting, wanted = _in_range(widget, value)
        else:
            fitting = value if isinstance(value, str) and len(value) <= MOST_TEXT else None
            wanted = f"takes a text of at most {MOST_TEXT:,} characters"
        if fitting is None:
            self.note(f"{source} is {shown(value)}; {widget} {wanted}, so it stays as it is.")
            return False
        self.values[widget] = fitting
        return True

    def default(self, widget: str) -> None:
        """Set a widget to its default."""
        self.values[widget] = _DEFAULTS[widget]


def _in_range(widget: str, value: Any) -> tuple[float | int | None, str]:
    low, high = _RANGES[widget]
    is_whole = isinstance(low, int) and isinstance(high, int)
    wanted = f"takes {'whole numbers' if is_whole else 'numbers'} from {low:g} to {high:g}"
    found = number(value)
    if found is None or not low <= found <= high or (is_whole and found != int(found)):
        return None, wanted
    return (int(found) if is_whole else float(found)), wanted


def number(value: Any) -> float | int | None:
    """A finite number, also from a text; None for anything else. Whole numbers stay exact (seeds have 64 bits)."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, str):
        if len(value) > MOST_DIGITS:
            return None
        try:
            value = int(value)
        except ValueError:
            try:
                value = float(value)
            except ValueError:
                return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # a whole number beyond the largest float
        return None


def boolean(value: Any) -> bool | None:
    """A boolean, also from a text or from 0 and 1; None for anything else."""
    if isinstance(value, bool):
        return value
    return {"true": True, "1": True, "false": False, "0": False}.get(str(value).strip().lower()[:MOST_DIGITS])


def given(values: Mapping[str, Any], key: str) -> Any:
    """An entry, None where it is missing or says that the option was not given ("None")."""
    value = values.get(key)
    return None if isinstance(value, str) and value.strip().lower() in NOTHING else value


def is_on(value: Any) -> bool:
    """Whether an option was used: it is there, and neither off nor 0."""
    return value is not None and value not in ([], {}) and boolean(value) is not False and number(value) != 0


def object_in(text: Any) -> dict[str, Any]:
    """The JSON object of a text; {} for anything else."""
    try:
        value = read_json(text) if isinstance(text, str) else text
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def shown(value: Any) -> str:
    """A value for a sentence: one line of at most `MOST_SHOWN` characters; of lists and objects the kind alone."""
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value):,} entries"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**MOST_DIGITS:
        return f"a whole number of more than {MOST_DIGITS} digits"
    text = value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
    text = " ".join(text[: 4 * MOST_SHOWN].split()).encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"
