"""LORA_STACK, other packs' list of LoRAs: (file name, strength of the model, strength of the text encoder) each.

Efficiency Nodes, Comfyroll, Easy-Use, LoRA Manager and many others make and take it. An entry that is switched off is
missing, None, or called "None". A name is one of ComfyUI's loras folder with either separator, at times without its
ending. The third item may be missing or None, which means the model alone.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ...training.errors import InputError
from ..bridge.files.listing import NO_FILE, find_file
from .files import read_lora
from .named_lora import NamedLora

LoraStack = io.Custom("LORA_STACK")
UNWIRED: list[Any] = []  # the default of the input: some stackers give None, or a list of none, where all is off
_OFF = {"", "none", NO_FILE.lower()}
_FORM = 'give a list of (file name, model strength, clip strength), such as ("style.safetensors", 0.8, 0.8)'


@dataclass(frozen=True)
class Entry:
    """A LoRA of a stack. path: its file."""

    name: str
    path: Path
    strength_model: float
    strength_clip: float

    def lora(self) -> NamedLora:
        """The file. Raises `InputError` for what is no LoRA."""
        return read_lora(self.path)


def stack_input(what: str) -> io.Input:
    """The optional input `lora_stack`."""
    return LoraStack.Input(
        "lora_stack",
        optional=True,
        tooltip=f"{what} A LORA_STACK of any pack: Efficiency, Comfyroll, Easy-Use, LoRA Manager, ...",
    )


def read_stack(stack: Any) -> list[Entry]:
    """The LoRAs of a stack that are switched on, in its order; none for None.

    Raises `InputError` for another form of list, for a file that is not in the loras folder, and for a strength that is
    no number.
    """
    if stack is None:
        return []
    if not isinstance(stack, Sequence) or isinstance(stack, str):
        raise InputError(f"lora_stack is of the kind {type(stack).__name__}; {_FORM}")
    entries = [_entry(item, number) for number, item in enumerate(stack, 1)]
    return [one for one in entries if one is not None]


def _entry(item: Any, number: int) -> Entry | None:
    if item is None:
        return None
    if not isinstance(item, Sequence) or isinstance(item, str) or not 1 < len(item) <= 3:
        raise InputError(f"item {number} of lora_stack is {_short(item)}; {_FORM}")
    name, strength, *rest = item
    if name is None or (isinstance(name, str) and name.strip().lower() in _OFF):
        return None
    if not isinstance(name, str | os.PathLike):
        raise InputError(f"item {number} of lora_stack has a {type(name).__name__} for a file name; {_FORM}")
    clip = rest[0] if rest and rest[0] is not None else 0.0
    strengths = [_number(value, number) for value in (strength, clip)]
    try:
        found, path = find_file("loras", _plain(str(name)))
    except InputError as error:
        raise InputError(f"item {number} of lora_stack: {error} in the node that makes the stack") from error
    return Entry(found, path, *strengths)


def _plain(name: str) -> str:
    """The name with the separators of this system, and without the loras folder's path before it."""
    import folder_paths

    name = name.replace("\\", "/")
    for folder in folder_paths.get_folder_paths("loras"):
        name = name.removeprefix(folder.replace("\\", "/").rstrip("/") + "/")
    return name


def _number(value: Any, number: int) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise InputError(f"item {number} of lora_stack has the strength {_short(value)}; {_FORM}")
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."
