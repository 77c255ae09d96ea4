"""The node's name in front of what a person gave wrongly."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from ...training.errors import InputError

if TYPE_CHECKING:
    from comfy_api.latest import io

Node = TypeVar("Node", bound="io.ComfyNode")
P = ParamSpec("P")
Result = TypeVar("Result")


def name_node_in_errors(
    execute: Callable[Concatenate[type[Node], P], Result],
) -> Callable[Concatenate[type[Node], P], Result]:
    """Decorate a node's `execute` so that every `InputError` it raises begins with the node's display name.

    Functions below a node raise `InputError` with what was given and how to mend it; they do not know which node
    called them. Place it under `@classmethod`.
    """

    @functools.wraps(execute)
    def run(cls: type[Node], /, *args: P.args, **kwargs: P.kwargs) -> Result:
        try:
            return execute(cls, *args, **kwargs)
        except InputError as error:
            # Not GET_SCHEMA, which wants to keep the schema on the class: ComfyUI runs a locked copy of it.
            raise InputError(f"{cls.define_schema().display_name}: {error}") from error

    return run
