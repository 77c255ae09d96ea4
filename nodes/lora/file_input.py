"""The `lora_name` widget: a file in ComfyUI's loras folder, or none where a LoRA is wired in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import folder_paths
from torch import Tensor

from ...training.errors import InputError
from ..bridge.files.listing import not_listed, safetensors_in
from .files import as_named_lora, read_lora
from .named_lora import NamedLora

NONE = "none"  # the choice of no file


def lora_choices() -> list[str]:
    """The options of the widget."""
    return [NONE, *safetensors_in("loras")]


def file_in_loras(name: str) -> Path:
    """The path of a file by its name in lists. Raises `InputError` where there is none."""
    path = folder_paths.get_full_path("loras", name)
    if path is None:
        raise InputError(f"{name!r} is not in ComfyUI's loras folder; choose another one")
    return Path(path)


def read_chosen(lora_name: str) -> NamedLora:
    """The file that is chosen in the widget. Raises `InputError` for none, and for a file that is no LoRA."""
    if not lora_name or lora_name == NONE:
        raise InputError("no LoRA is chosen; choose a file in lora_name or wire a lora in" + not_listed("loras"))
    return read_lora(file_in_loras(lora_name))


def wired_or_chosen(lora_name: str, lora: Mapping[str, Tensor] | None) -> NamedLora:
    """The LoRA on the wire, else the file that is chosen, in both cases under ComfyUI's key names."""
    return as_named_lora(lora) if lora is not None else read_chosen(lora_name)


def fingerprint(lora_name: str) -> str:
    """Changes with the file's size and time, so that a file replaced under the same name is read again."""
    path = folder_paths.get_full_path("loras", lora_name or "") if lora_name != NONE else None
    if path is None:
        return lora_name
    stat = Path(path).stat()
    return f"{lora_name}:{stat.st_size}:{stat.st_mtime_ns}"
