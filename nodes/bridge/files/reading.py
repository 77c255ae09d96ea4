"""Reading files from any source: safetensors and plain text only, sizes checked first, never a pickle."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ....training.errors import InputError
from .headers import MAX_HEADER_BYTES, header_length, open_regular


def read_safetensors(path: Path, kind: str, max_bytes: int | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a file.

    kind: what the file should be, "LoRA" or "embedding", for the errors. max_bytes: the largest size that is read.
    Raises `InputError` for every other format, a damaged or empty file, and values that are not finite.
    """
    if path.suffix.lower() != ".safetensors":
        raise InputError(
            f"{path.name} is a {path.suffix or 'nameless'} file, which can run code when it is opened; only "
            f".safetensors files are read. Convert it, or fetch the {kind} as .safetensors"
        )
    try:
        size = path.stat().st_size
        if max_bytes is not None and size > max_bytes:
            raise InputError(f"{path.name} has {size:,} bytes, far more than any {kind}; choose another file")
        with open_regular(path) as file:
            length = header_length(file)
        if length > min(MAX_HEADER_BYTES, size):
            raise InputError(
                f"{path.name} says its header has {length:,} bytes, so it is damaged or no {kind}; fetch it again"
            )
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
            metadata = dict(file.metadata() or {})
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path.name} cannot be read ({error}); fetch it again") from error
    if not tensors:
        raise InputError(f"{path.name} holds no tensor, so it is no {kind}; choose another file")
    bad = [key for key, tensor in tensors.items() if tensor.is_floating_point() and not _all_finite(tensor)]
    if bad:
        raise InputError(
            f"{path.name} holds numbers that are not finite ({bad[0]}); it was broken when it was saved, choose "
            "another "
            "file or an earlier save"
        )
    return tensors, metadata


def read_text(path: str | Path, max_bytes: int) -> str:
    """The text of a UTF-8 file of at most `max_bytes`.

    Raises `OSError` when the file cannot be read, and `ValueError` when it is larger, not UTF-8 or not a regular file.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise ValueError(f"{path} has {size:,} bytes; at most {max_bytes:,} are read")
        return file.read().decode("utf-8")


def _all_finite(tensor: Tensor) -> bool:
    if tensor.element_size() == 1:
        tensor = tensor.float()  # torch has no `isfinite` for 8-bit floats; a LoRA has few of them
    # The sum is not finite if one value is not. It may also overflow by itself: then each value is checked.
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor).all())
