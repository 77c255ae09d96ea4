"""Opening files that come from anywhere: safetensors and plain text only, sizes checked first, no pickle ever."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ....training.errors import InputError

LARGEST_HEADER = 25_000_000  # bytes; a real file's is far below


def read_safetensors(path: Path, what: str, largest: int | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a file. what: "LoRA", "embedding", for the error. largest: bytes it may have at most.

    Raises `InputError` for every other format, a damaged file, an empty one, and numbers that are not finite.
    """
    if path.suffix.lower() != ".safetensors":
        raise InputError(
            f"{path.name} is a {path.suffix or 'nameless'} file, which can run code when it is opened; only "
            ".safetensors "
            f"files are read. Convert it, or fetch the {what} as .safetensors"
        )
    try:
        size = path.stat().st_size
        if largest is not None and size > largest:
            raise InputError(f"{path.name} has {size:,} bytes, far more than any {what}; choose another file")
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > min(LARGEST_HEADER, size):
            raise InputError(f"{path.name} says its header has {header:,} bytes, so it is damaged or no {what}")
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
            meta = dict(file.metadata() or {})
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path.name} cannot be read ({error}); fetch it again") from error
    if not tensors:
        raise InputError(f"{path.name} holds no tensor, so it is no {what}")
    bad = [key for key, tensor in tensors.items() if tensor.is_floating_point() and not _finite(tensor)]
    if bad:
        raise InputError(f"{path.name} holds numbers that are not finite ({bad[0]}); it was broken when it was saved")
    return tensors, meta


def read_text(path: str | Path, largest: int) -> str:
    """The text of a UTF-8 file. largest: bytes it may have at most.

    Raises `OSError` when the file cannot be read, and `ValueError` when it is larger, no UTF-8 or no regular file.
    """
    with open(path, "rb", opener=_open_without_waiting) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{path} is no regular file")
        if found.st_size > largest:
            raise ValueError(f"{path} has {found.st_size:,} bytes; at most {largest:,} are read")
        return file.read().decode("utf-8")


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a named pipe would wait for a writer


def _finite(tensor: Tensor) -> bool:
    if tensor.element_size() == 1:
        tensor = tensor.float()  # torch looks into no 8-bit number, and those of a LoRA are few
    # One number that is not finite makes the sum so. The sum may overflow by itself: then each number is looked at.
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor).all())
