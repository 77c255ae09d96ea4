"""The file of a word, by its name in a list or as prompts say it."""

from __future__ import annotations

from pathlib import Path

from ...training.errors import InputError
from ..bridge.files.listing import NO_FILE, find_file, not_listed
from .names import prompt_word


def file_of(name: str) -> tuple[str, Path]:
    """(name in lists, path) of a file in ComfyUI's embeddings folder.

    name: the file's, or what prompts say, `embedding:NAME`; the ending may be missing. Raises `InputError` for none.
    """
    if name is None or name in ("", NO_FILE):
        raise InputError(
            "no embedding is chosen; choose a file in embedding_name, or wire an embedding or a name in"
            + not_listed("embeddings")
        )
    return find_file("embeddings", name, prompt_word(""))
