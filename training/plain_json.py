"""JSON from untrusted sources: the metadata of a file, a query, an edited record."""

from __future__ import annotations

import json
from typing import Any


def read_json(text: str) -> Any:
    """The value of a JSON text. Raises `ValueError` for invalid and for too deeply nested JSON."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
