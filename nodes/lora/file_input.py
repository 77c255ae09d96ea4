"""The `lora_name` widget: a file in ComfyUI's loras folder, or none where a LoRA is wired in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import folder_paths
from comfy_api.latest import io
from torch import Tensor

from ...training.errors import InputError
from ..bridge.files.listing import ENDING, not_listed, safetensors_in, stamp_of
from .files import as_named_lora, read_lora
from .named_lora import NamedLora

NONE = "none"  # the choice of no file


def lora_choices() -> list[str]:
    """The options of the widget."""
    return [NONE, *safetensors_in("loras")]


def name_input() -> io.Input:
    """The socket for a file's name as text. A list on the page takes no text, so it is an input of its own."""
    return io.String.Input(
        "name",
        optional=True,
        force_input=True,
        tooltip="A file's name as text, such as lora_name of Bespoke Save LoRA; it wins over the list.",
    )


def file_in_loras(name: str) -> Path:
    """The path of a file by its name in lists; the ending may be missing. Raises `InputError` where there is none.

    The folder itself is asked, not ComfyUI's list of it: a file that was saved a moment ago is found.
    """
    if not isinstance(name, str):
        raise InputError(f"the name on the wire is of the kind {type(name).__name__}; wire a file's name in as text")
    name = name.strip()
    for candidate in (name, name + ENDING):
        path = folder_paths.get_full_path("loras", candidate)
        if path is not None:
            return Path(path)
    raise InputError(f"{name!r} is not in ComfyUI's loras folder; choose another one")


def read_chosen(lora_name: str, name: str | None = None) -> NamedLora:
    """The file that is named on the wire, else the one chosen in the widget.

    Raises `InputError` for none, and for a file that is no LoRA.
    """
    chosen = lora_name if name is None else name
    if not chosen or chosen == NONE:
        raise InputError(
            "no LoRA is chosen; choose a file in lora_name, or wire a lora or a name in" + not_listed("loras")
        )
    return read_lora(file_in_loras(chosen))


def wired_or_chosen(lora_name: str, lora: Mapping[str, Tensor] | None, name: str | None = None) -> NamedLora:
    """The LoRA on the wire, else the file that is named or chosen, in all cases under ComfyUI's key names."""
    return as_named_lora(lora) if lora is not None else read_chosen(lora_name, name)


def fingerprint(lora_name: str | None, wired: bool = False) -> str:
    """Changes with the file's size and time, so that a file replaced under the same name is read again.

    lora_name: None where it comes over a wire. wired: whether another name does. The file is not known then, and any
    change of the folder counts.
    """
    if wired or lora_name is None:
        return stamp_of(Path(folder) for folder in folder_paths.get_folder_paths("loras"))
    path = folder_paths.get_full_path("loras", lora_name or "") if lora_name != NONE else None
    if path is None:
        return lora_name
    stat = Path(path).stat()
    return f"{lora_name}:{stat.st_size}:{stat.st_mtime_ns}"
