"""Random mutations of a safetensors file: damage, errors of old programs, attacks."""

from __future__ import annotations

import json
import math
import random
import struct

Header = dict[str, dict]
_TYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "C64", "F4", "X")
_PARTS = (
    "alpha",
    "lora_up.weight",
    "lora_down.weight",
    "lora_mid.weight",
    "dora_scale",
    "hada_w1_a",
    "hada_t1",
    "lokr_w1",
    "lokr_w2_b",
    "oft_blocks",
    "rescale",
    "diff",
    "diff_b",
    "w_norm",
    "a1.weight",
    "set_weight",
    "reshape_weight",
    "lora_A.default.weight",
    "x",
)


def split(data: bytes) -> tuple[Header, bytes]:
    """(header, data) of a file."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: Header, body: bytes, text: str | None = None) -> bytes:
    """The bytes of a file. text: the header's JSON, for JSON that `json.dumps` does not write."""
    raw = (json.dumps(header) if text is None else text).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw + body


def mutated(data: bytes, seed: int) -> bytes:
    """The file with one to three mutations, which depend on the seed alone."""
    draw = random.Random(seed)
    for _ in range(draw.choice((1, 1, 2, 3))):
        try:
            data = draw.choice(_ALL)(data, draw)
        except (ValueError, KeyError, IndexError, struct.error):  # the mutation before left no valid header
            break
    return data


def _flip(data: bytes, draw: random.Random, low: int, high: int) -> bytes:
    out = bytearray(data)
    for _ in range(draw.randint(1, 8)):
        out[draw.randrange(low, max(high, low + 1))] = draw.randrange(256)
    return bytes(out)


def _header_bytes(data, draw):
    return _flip(data, draw, 8, len(data) - len(split(data)[1]))


def _body_bytes(data, draw):
    return _flip(data, draw, len(data) - len(split(data)[1]), len(data))


def _length(data, draw):
    (length,) = struct.unpack("<Q", data[:8])
    new = draw.choice((0, 1, length - 1, length + 8, len(data), 2**31, 2**63, 2**64 - 1, draw.randrange(2 * length)))
    return struct.pack("<Q", new) + data[8:]


def _cut(data, draw):
    return data[: draw.randrange(len(data))]


def _grown(data, draw):
    at = draw.randrange(len(data))
    return data[:at] + draw.randbytes(draw.randint(1, 64)) + data[at:]


def _entry(data, draw):
    header, body = split(data)
    key = draw.choice([key for key in header if key != "__metadata__"])
    return header, body, key


def _dtype(data, draw):
    header, body, key = _entry(data, draw)
    header[key]["dtype"] = draw.choice(_TYPES)
    return join(header, body)


def _shape(data, draw):
    header, body, key = _entry(data, draw)
    shape = list(header[key]["shape"])
    draw.choice(
        (
            shape.reverse,
            lambda: shape.append(1),
            lambda: shape.insert(0, 1),
            shape.clear,
            lambda: shape.append(0),
            lambda: shape.append(2**40),
            lambda: shape.append(-1),
            lambda: shape.__setitem__(slice(None), [math.prod(shape)]),
        )
    )()
    header[key]["shape"] = shape
    return join(header, body)


def _offsets(data, draw):
    header, body, key = _entry(data, draw)
    other = _entry(data, draw)[2]
    start, stop = header[key]["data_offsets"]
    header[key]["data_offsets"] = draw.choice(
        (
            header[other]["data_offsets"],
            [stop, start],
            [start, stop + 4],
            [0, len(body)],
            [start - 4, stop - 4],
            [2**62, 2**63],
        )
    )
    return join(header, body)


def _renamed(data, draw):
    header, body, key = _entry(data, draw)
    layer, _, part = key.partition(".lora") if ".lora" in key else key.rpartition(".")
    other = _entry(data, draw)[2]
    name = draw.choice(
        (
            f"{layer}.{draw.choice(_PARTS)}",
            key.replace("attn2", "attn1"),
            key.replace("to_k", "to_out.0"),
            part or "x",
            other,
            "lora_te_text_model_encoder_layers_0_mlp_fc1." + draw.choice(_PARTS),
            key * 50,
            "\u0000" + key,
            "." + key,
            "",
        )
    )
    header[name] = header.pop(key)
    return join(header, body)


def _twice(data, draw):
    header, body, key = _entry(data, draw)
    entry = {**header[key], "shape": header[key]["shape"][::-1]}
    text = json.dumps(header)[:-1] + f", {json.dumps(key)}: {json.dumps(entry)}" + "}"
    return join(header, body, text)


def _dropped(data, draw):
    """Remove one tensor with its bytes, so that the file is valid."""
    header, body, key = _entry(data, draw)
    start, stop = header.pop(key)["data_offsets"]
    for entry in header.values():
        if "data_offsets" in entry and entry["data_offsets"][0] >= stop:
            entry["data_offsets"] = [at - (stop - start) for at in entry["data_offsets"]]
    return join(header, body[:start] + body[stop:])


def _meta(data, draw):
    header, body = split(data)
    header["__metadata__"] = draw.choice(
        (
            {"lora_adapter_metadata": "["},
            {"lora_adapter_metadata": '{"unet.lora_alpha": "x"}'},
            {"lora_adapter_metadata": '{"unet.lora_alpha": 1e400}'},
            {"ss_tag_frequency": '{"a": [1]}'},
            {"ss_tag_frequency": "[" * 2000},
            {"workflow": '{"nodes": {}}'},
            {"a": 1},
            [],
            "x",
            {"modelspec.architecture": "\u202e" * 500},
        )
    )
    return join(header, body)


def _numbers(data, draw):
    """Write NaN, infinity or an extreme float32."""
    header, body, key = _entry(data, draw)
    start, stop = header[key]["data_offsets"]
    value = draw.choice((float("nan"), float("inf"), 3e38, -3e38, 1e-45, 0.0, -1.0))
    at = draw.randrange(start, max(stop - 3, start + 1), 4)
    return join(header, body[:at] + struct.pack("<f", value) + body[at + 4 :])


_ALL = (
    _header_bytes,
    _body_bytes,
    _length,
    _cut,
    _grown,
    _dtype,
    _dtype,
    _shape,
    _shape,
    _offsets,
    _offsets,
    _renamed,
    _renamed,
    _renamed,
    _twice,
    _dropped,
    _dropped,
    _meta,
    _numbers,
    _numbers,
)
