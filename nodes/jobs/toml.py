"""A job's settings as TOML: tables of one level, one value a line, each written as JSON writes it and TOML reads it."""

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
    """Tables of numbers, texts, booleans and lists of those; what is None is left out."""
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    for name, values in tables.items():
        lines += ["", f"[{name}]"]
        lines += [f"{key} = {_value(value)}" for key, value in values.items() if value is not None]
    return "\n".join(lines).lstrip("\n") + "\n"


def _value(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} cannot be written")
    # TOML knows JSON's escapes but no surrogate pairs, and wants DEL escaped, which JSON does not mind.
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")


def read_toml(text: str) -> Tables:
    """The tables of a file. Raises `ValueError` for what is no TOML.

    Python 3.10 has no reader of TOML: there a file must be as `write_toml` leaves it, comments on lines of their own.
    """
    tables = _read_lines(text) if tomllib is None else tomllib.loads(text)
    if not all(isinstance(table, dict) for table in tables.values()):
        raise ValueError("a value stands before the first table")
    return tables


def _read_lines(text: str) -> Tables:
    tables: Tables = {}
    table = None
    for number, line in enumerate(text.split("\n"), 1):  # other ends of lines may stand in a text
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
