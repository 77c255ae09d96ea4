"""The file of a word, by its name in a list or as prompts say it."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ...training.errors import InputError
from ..bridge.files.listing import ENDING, not_listed
from .names import prompt_word

NONE = "none"  # the choice of no file


def file_of(name: str) -> tuple[str, Path]:
    """(name in lists, path) of a file in ComfyUI's embeddings folder.

    name: the file's, or what prompts say, `embedding:NAME`; the ending may be missing. Raises `InputError` for none.
    """
    if not name or name == NONE:
        raise InputError(
            "no embedding is chosen; choose a file in embedding_name, or wire an embedding or a name in"
            + not_listed("embeddings")
        )
    if not isinstance(name, str):
        raise InputError(f"the name on the wire is of the kind {type(name).__name__}; wire a word's name in as text")
    plain = name.strip().removeprefix(prompt_word(""))
    for candidate in (plain, plain + ENDING):
        path = folder_paths.get_full_path("embeddings", candidate)
        if path is not None:
            return candidate, Path(path)
    raise InputError(f"{name!r} is not in ComfyUI's embeddings folder; choose another one")
