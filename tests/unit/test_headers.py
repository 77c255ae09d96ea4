"""Reading the header of a safetensors file, also of damaged files."""

import json
import os
import struct

import pytest
import torch
from bespoke.nodes.bridge.files.headers import (
    MAX_HEADER_BYTES,
    read_header,
    read_metadata,
    read_small_tensors,
)
from bespoke.nodes.bridge.files.reading import read_safetensors
from bespoke.training.errors import InputError
from safetensors import SafetensorError
from safetensors.torch import save_file


def write(path, text: bytes, length: int | None = None, data: bytes = b""):
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def test_shapes_and_metadata_of_a_saved_file(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"large": torch.ones(8, 4), "small": torch.arange(3.0), "scalar": torch.tensor(2.0)}, path, {"key": "1"})
    header = read_header(path)
    assert header["large"]["shape"] == [8, 4]
    assert read_metadata(path) == {"key": "1"}
    tensors, metadata = read_small_tensors(path, 4)
    assert metadata == {"key": "1"}
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "large": (8, 4),
        "small": (3,),
        "scalar": (),
    }
    assert tensors["large"].device.type == "meta"
    assert tensors["small"].tolist() == [0, 1, 2]
    assert tensors["scalar"].item() == 2


def test_metadata_that_is_missing_or_no_text_is_left_out(tmp_path):
    assert read_metadata(write(tmp_path / "none", b"{}")) == {}
    assert read_metadata(write(tmp_path / "list", b'{"__metadata__": [1]}')) == {}
    mixed = json.dumps({"__metadata__": {"a": "text", "b": 1, "c": {"d": "e"}}}).encode()
    assert read_metadata(write(tmp_path / "mixed", mixed)) == {"a": "text"}


@pytest.mark.parametrize(
    ("text", "length"),
    [
        (b"", 8),  # longer than the file
        (b"{}", MAX_HEADER_BYTES + 1),
        (b"{}", 2**63),
        (b"{]", None),
        (b"\xff\xfe", None),
        (b"[1, 2]", None),
        (b"[" * 200_000, None),
    ],
)
def test_a_damaged_header_is_a_value_error(tmp_path, text, length):
    path = write(tmp_path / "damaged.safetensors", text, length)
    with pytest.raises(ValueError):
        read_header(path)
    with pytest.raises(ValueError):
        read_metadata(path)
    with pytest.raises(ValueError):
        read_small_tensors(path, 4)


def test_a_header_above_the_limit_is_not_read(tmp_path):
    path = tmp_path / "hollow.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", MAX_HEADER_BYTES + 1))
        file.truncate(MAX_HEADER_BYTES + 100)  # a hole in the file, as large as the header claims
    with pytest.raises(ValueError, match="claims a header of 25,000,001 bytes"):
        read_header(path)


def test_a_missing_file_and_missing_data_are_errors(tmp_path):
    with pytest.raises(OSError):
        read_header(tmp_path / "none.safetensors")
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    path = write(tmp_path / "short.safetensors", header, data=b"\0" * 4)
    assert read_header(path)["a"]["shape"] == [2]
    with pytest.raises(SafetensorError):
        read_small_tensors(path, 4)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are of other systems")
def test_a_named_pipe_is_refused_and_does_not_keep_its_reader_waiting(tmp_path):
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match=r"pipe\.safetensors is no regular file"):
        read_header(pipe)
    with pytest.raises(InputError, match=r"pipe\.safetensors is no regular file"):
        read_safetensors(pipe, "LoRA")
    with pytest.raises((ValueError, OSError)):
        read_header(tmp_path)
