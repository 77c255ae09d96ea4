"""JSON that comes from anywhere: a file's metadata, a query, a record that somebody edited."""

from __future__ import annotations

import json
from typing import Any


def read_json(text: str) -> Any:
    """The value that the text says. Raises `ValueError` for all else, brackets nested without end included."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
