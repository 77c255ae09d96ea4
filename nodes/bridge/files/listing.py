"""The files of ComfyUI's model folders that are offered for choosing: those that are opened."""

from __future__ import annotations

import folder_paths

ENDING = ".safetensors"


def safetensors_in(folder: str) -> list[str]:
    """The names of the .safetensors files in one of ComfyUI's folders, such as "loras"."""
    return [name for name in folder_paths.get_filename_list(folder) if name.lower().endswith(ENDING)]


def not_listed(folder: str) -> str:
    """A remark for an error on the files of the folder that are never opened; "" where there are none."""
    count = sum(not name.lower().endswith(ENDING) for name in folder_paths.get_filename_list(folder))
    return (
        f" ({count} files there, .pt and the like, are not listed, since they can run code when they are opened; "
        f"convert them to {ENDING})"
        if count
        else ""
    )
