"""Latents and conditionings computed once and kept by content, so that a second queueing begins at once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

LARGEST = 256 * 2**20  # bytes of tensors; the longest unused go first


def digest(*parts: str | bytes) -> str:
    out = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        out.update(len(data).to_bytes(8, "little") + data)
    return out.hexdigest()


class ByContent:
    """`get(key, make)`: what was made for this key before, or made now. Values are tensors or nests of them."""

    def __init__(self, largest: int = LARGEST):
        self.largest, self.size = largest, 0
        self._known: OrderedDict[str, tuple[Any, int]] = OrderedDict()

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key][0]
        value = make()
        weight = _bytes(value)
        if weight <= self.largest:
            self._known[key] = value, weight
            self.size += weight
        while self.size > self.largest:
            _, (_, gone) = self._known.popitem(last=False)
            self.size -= gone
        return value


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.untyped_storage().nbytes()
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, (list, tuple)) else 0


latents, prompts = ByContent(), ByContent()
