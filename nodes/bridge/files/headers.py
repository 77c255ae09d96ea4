"""The header of a safetensors file: names, shapes and metadata, without the tensors' data."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

MAX_HEADER_BYTES = 25_000_000  # far more than any real file's


def open_regular(path: str | Path) -> BinaryIO:
    """A file opened for reading. Raises `OSError` where that fails, and `ValueError` where it is no regular file.

    A named pipe, which would keep its reader waiting, a device and a folder are no regular files.
    """
    file = open(path, "rb", opener=_open_nonblocking)  # noqa: SIM115 (it is returned open)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError(f"{Path(path).name} is no regular file")
    return file


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # opening a named pipe would wait for a writer


def header_length(file: BinaryIO) -> int:
    """The length in bytes that a safetensors file claims for its header. Leaves the file at the header's start."""
    return int.from_bytes(file.read(8), "little")


def read_header(path: str | Path) -> dict[str, Any]:
    """The header's JSON: {tensor name: {"dtype", "shape", "data_offsets"}, "__metadata__": {...}}.

    Raises `OSError` when the file cannot be read, and `ValueError` when it has no valid header or one of more than
    `MAX_HEADER_BYTES`.
    """
    with open_regular(path) as file:
        length = header_length(file)
        if length > min(MAX_HEADER_BYTES, os.fstat(file.fileno()).st_size):
            raise ValueError(f"{path} claims a header of {length:,} bytes")
        try:
            header = json.loads(file.read(length))
        except RecursionError as error:
            raise ValueError(f"the header of {path} is nested too deeply") from error
    if not isinstance(header, dict):
        raise ValueError(f"the header of {path} is a {type(header).__name__} and not an object")
    return header


def read_metadata(path: str | Path) -> dict[str, str]:
    """A file's metadata, {} where it has none. Entries that are not strings are left out. Raises as `read_header`."""
    metadata = read_header(path).get("__metadata__")
    if not isinstance(metadata, dict):
        return {}
    return {key: value for key, value in metadata.items() if isinstance(value, str)}


def read_small_tensors(path: str | Path, max_values: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a file. Tensors of more than `max_values` values are on the `meta` device, without data.

    Raises `OSError`, `ValueError` or `SafetensorError` for a file that cannot be read.
    """
    header, tensors = read_header(path), {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - the file has keys() and cannot be iterated
            shape = torch.Size(header[name]["shape"])
            small = shape.numel() <= max_values
            tensors[name] = file.get_tensor(name) if small else torch.empty(shape, device="meta")
        metadata = file.metadata() or {}
    return tensors, metadata
