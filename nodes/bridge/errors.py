"""Errors that name the node, the value and the mend."""

from __future__ import annotations

import functools

from ...training.errors import InputError

__all__ = ["InputError", "name_node_in_errors"]


def name_node_in_errors(execute):
    """Put the node's display name before every `InputError` that leaves `execute`.

    The mathematics raises "what was given, and the mend" and does not know which node asked; the person reading the
    error has ten nodes on the canvas. Goes under `@classmethod`.
    """

    @functools.wraps(execute)
    def run(cls, *args, **kwargs):
        try:
            return execute(cls, *args, **kwargs)
        except InputError as error:
            # Not GET_SCHEMA, which wants to keep the schema on the class: ComfyUI runs a locked copy of it.
            raise InputError(f"{cls.define_schema().display_name}: {error}") from error

    return run
