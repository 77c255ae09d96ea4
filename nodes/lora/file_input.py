"""The `lora_name` widget: a file in ComfyUI's loras folder, or none where a LoRA is wired in."""

from __future__ import annotations

from collections.abc import Mapping

from comfy_api.latest import io
from torch import Tensor

from ...training.errors import InputError
from ..bridge.files.listing import NO_FILE, find_file, not_listed, safetensors_in
from .files import as_named_lora, read_lora
from .named_lora import NamedLora


def lora_choices() -> list[str]:
    """The options of the widget."""
    return [NO_FILE, *safetensors_in("loras")]


def name_input() -> io.Input:
    """The socket for a file's name as text. A list on the page takes no text, so it is an input of its own."""
    return io.String.Input(
        "name",
        optional=True,
        force_input=True,
        tooltip="A file's name as text, such as lora_name of Bespoke Save LoRA; it wins over the list.",
    )


def is_chosen(lora_name: str | None, name: str | None = None) -> bool:
    """Whether a file is named on the wire or chosen in the widget."""
    return (lora_name if name is None else name) not in (None, "", NO_FILE)


def read_chosen(lora_name: str, name: str | None = None) -> NamedLora:
    """The file that is named on the wire, else the one chosen in the widget.

    Raises `InputError` for none, and for a file that is no LoRA.
    """
    chosen = lora_name if name is None else name
    if not is_chosen(lora_name, name):
        raise InputError(
            "no LoRA is chosen; choose a file in lora_name, or wire a lora or a name in" + not_listed("loras")
        )
    return read_lora(find_file("loras", chosen)[1])


def wired_or_chosen(lora_name: str, lora: Mapping[str, Tensor] | None, name: str | None = None) -> NamedLora:
    """The LoRA on the wire, else the file that is named or chosen, in all cases under ComfyUI's key names."""
    return as_named_lora(lora) if lora is not None else read_chosen(lora_name, name)
