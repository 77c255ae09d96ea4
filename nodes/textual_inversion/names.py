"""Names of embeddings that ComfyUI's prompt parser reads as a whole in `embedding:name`."""

from __future__ import annotations

import re

from ...training.errors import InputError
from ..bridge.files.names import check_length

_ALLOWED = re.compile(r"[\w./-]+")


def check_name(name: str) -> str:
    """The name. Raises `InputError` for one that the prompt parser would read differently or that is no file's name."""
    shown = f"the name {name!r}"
    if not name:
        raise InputError("the name is empty; give the new word a name such as my-cat")
    if any(c.isspace() for c in name):
        raise InputError(f"{shown} holds a space, and a prompt would read only its first part; use '-' or '_'")
    if not _ALLOWED.fullmatch(name):
        bad = sorted({c for c in name if not _ALLOWED.fullmatch(c)})
        raise InputError(
            f"{shown} holds {' and '.join(map(repr, bad))}, which prompts read as something else; use letters, digits, "
            "'-' and '_'"
        )
    if name.startswith(("/", ".")) or ".." in name or "//" in name:
        raise InputError(f"{shown} leads out of the embeddings folder; give a name without '..' or a leading '/'")
    if not name[-1].isalnum() and name[-1] != "_":
        raise InputError(
            f"{shown} ends in {name[-1]!r}, which a prompt reads as punctuation; end it in a letter or digit"
        )
    try:
        float(name)
    except ValueError:
        pass
    else:
        raise InputError(f"{shown} is a number, and a prompt would read it as a weight; add a letter")
    if name.lower().endswith((".safetensors", ".pt", ".bin")):
        raise InputError(f"{shown} has a file's ending; leave it off")
    check_length(name, ".safetensors")
    return name


def prompt_word(name: str) -> str:
    """The text that stands for the embedding in a prompt."""
    return f"embedding:{name}"
