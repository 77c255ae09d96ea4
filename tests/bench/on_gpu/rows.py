"""The rows that the blocks write, and the tables and the JSON that are made of them. Needs only Python itself."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# The columns of the tables in their order: key -> (heading, format).
COLUMNS = {
    "what": ("what", "{}"),
    "model": ("model", "{}"),
    "dtype": ("weights", "{}"),
    "px": ("px", "{}"),
    "batch": ("batch", "{}"),
    "checkpointing": ("checkpointing", "{}"),
    "compile": ("compiled", "{}"),
    "card_gb": ("card, GB", "{:g}"),
    "offloaded": ("offloaded", "{}"),
    "step_ms": ("step, ms", "{:.1f}"),
    "ratio": ("by ours", "{:.2f} x"),
    "peak_gb": ("peak, GB", "{:.2f}"),
    "forecast_gb": ("forecast, GB", "{:.2f}"),
    "off": ("forecast / peak", "{:.2f}"),
    "trained": ("trained", "{:,}"),
    "seconds": ("whole run, s", "{:.1f}"),
    "value": ("value", "{}"),
    "error": ("error", "{}"),
}
NOTHING = "–"
ERROR_LENGTH = 160


def append(file: Path, row: Mapping[str, Any]) -> None:
    """Write a row at the end of a file of JSON lines, so that it is on the disk when this returns."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def read(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines. A last line that a killed process left unfinished is left out."""
    rows = []
    for line in file.read_text("utf-8").splitlines() if file.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def cell(key: str, value: Any) -> str:
    """A value as the text of a cell."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    if isinstance(value, (int, float)):
        text = COLUMNS[key][1].format(value)
    if key == "error":
        text = " ".join(text.split())[:ERROR_LENGTH]
    return text.replace("|", "\\|").replace("\n", " ")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table in Markdown with the columns that any of the rows has; a number is shown as its column says."""
    keys = [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]
    lines = [
        "| " + " | ".join(COLUMNS[key][0] for key in keys) + " |",
        "|" + " --- |" * len(keys),
    ]
    lines += ["| " + " | ".join(cell(key, row.get(key)) for key in keys) + " |" for row in rows]
    return "\n".join(lines)


def report(title: str, blocks: Iterable[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> str:
    """A page of Markdown: for each block what became of it, its time, and its rows.

    blocks: with `name`, `about`, `state` ("done", "failed ...", "stopped at its limit of 40 s"), `seconds`.
    """
    parts = [f"# {title}"]
    for block in blocks:
        own = [row for row in rows if row["block"] == block["name"]]
        parts.append(f"## {block['name']}: {block['about']}\n\n{block['state']} after {block['seconds']:.0f} s.")
        parts.append(table(own) if own else "No row.")
    return "\n\n".join(parts) + "\n"
