"""Writes and reads job.toml: tables of one level with one value a line, in a notation that is TOML and JSON alike."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

try:
    import tomllib
except ImportError:  # Python 3.10
    tomllib = None

Tables = dict[str, dict[str, Any]]


def write_toml(tables: Mapping[str, Mapping[str, Any]], comment: str = "") -> str:
    """The text of a file. Values are numbers, texts, booleans and lists of those; None is left out.

    Raises `ValueError` for a float that is not finite.
    """
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    for name, values in tables.items():
        lines += ["", f"[{name}]"]
        lines += [f"{key} = {_value(value)}" for key, value in values.items() if value is not None]
    return "\n".join(lines).lstrip("\n") + "\n"


def _value(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} cannot be written")
    # TOML has JSON's escapes without surrogate pairs, so other characters stay as they are; DEL must be escaped.
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")


def read_toml(text: str) -> Tables:
    """The tables of a file. Raises `ValueError` for a text that is not TOML or has values outside of a table.

    Python 3.10 has no TOML reader. There a file must have the form that `write_toml` gives it, with comments on lines
    of their own.
    """
    tables = _read_lines(text) if tomllib is None else tomllib.loads(text)
    if not all(isinstance(table, dict) for table in tables.values()):
        raise ValueError("a value stands before the first table")
    return tables


def _read_lines(text: str) -> Tables:
    tables: Tables = {}
    table = None
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines(): a value may contain other line separators
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        key, equals, value = line.partition("=")
        if line.startswith("[") and line.endswith("]"):
            table = tables.setdefault(line[1:-1].strip(), {})
        elif table is None or not equals:
            raise ValueError(f"line {number} is neither a table nor a value")
        else:
            try:
                table[key.strip()] = json.loads(value)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}: {error.msg}") from error
    return tables
