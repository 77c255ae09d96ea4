"""The node's name in front of what a person gave wrongly, and of what the disk refuses."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable
from pathlib import Path
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
    called them. What the system says of a file becomes one too, without the path. Place it under `@classmethod`.
    """

    @functools.wraps(execute)
    def run(cls: type[Node], /, *args: P.args, **kwargs: P.kwargs) -> Result:
        try:
            return execute(cls, *args, **kwargs)
        except InputError as error:
            # Not GET_SCHEMA, which wants to keep the schema on the class: ComfyUI runs a locked copy of it.
            raise InputError(f"{_name_of(cls)}: {error}") from error
        except OSError as error:
            if error.errno is None:  # not of the system
                raise
            raise InputError(f"{_name_of(cls)}: {describe_disk_error(error)}") from error

    return run


def _name_of(cls: type[io.ComfyNode]) -> str:
    """The node's name without the words in brackets, by which the page's search finds it."""
    return cls.define_schema().display_name.split(" (")[0]


def describe_disk_error(error: OSError) -> str:
    """A system's error on a file in words, with the file's name without its folders, and what mends it."""
    name = Path(str(error.filename)).name if error.filename else ""
    about = f" of {name!r}" if name and not name.startswith(".") else ""  # unfinished files have names with a dot
    mend = next((mend for numbers, mend in MENDS if error.errno in numbers), "check that folder and disk")
    return f"reading or writing{about} failed ({(error.strerror or 'unknown').lower()}); {mend}, and queue again"


MENDS = (
    ({errno.ENOSPC, errno.EDQUOT}, "free space on that disk; one with very many small files is full with room left"),
    ({errno.EACCES, errno.EPERM, errno.EROFS}, "allow ComfyUI to write there, or close programs that use the file"),
    ({errno.ENAMETOOLONG}, "choose a shorter name"),
    (
        {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN},
        "check the disk or the connection to it",
    ),
)
