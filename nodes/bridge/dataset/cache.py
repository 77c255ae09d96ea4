"""A memory cache of latents and conditioning, by content, so that a workflow queued again starts at once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from ..wire.reading import Reading

MAX_BYTES = 256 * 2**20  # of tensors in one cache


def digest(*parts: str | bytes) -> str:
    """A hash of the parts and their boundaries, as 32 hexadecimal digits."""
    out = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        out.update(len(data).to_bytes(8, "little") + data)
    return out.hexdigest()


def key_of(reading: Reading, *parts: str | bytes) -> str | None:
    """The key of what a model makes of the parts; None where the model cannot be compared, so that nothing is kept."""
    return None if reading.unread else digest(reading.text, *parts)


class ContentCache:
    """The least recently used values are dropped first. Values are tensors or nested dicts, lists and tuples of them.

    max_bytes: of the tensors' memory. A single larger value is not kept.
    """

    def __init__(self, max_bytes: int = MAX_BYTES):
        self.max_bytes, self.size = max_bytes, 0
        self._entries: OrderedDict[str, tuple[Any, int]] = OrderedDict()  # key -> (value, bytes)

    def get(self, key: str | None, make: Callable[[], Any]) -> Any:
        """The value of `key`, made now where it is not kept. With None it is always made and not kept."""
        if key is None:
            return make()
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key][0]
        value = make()
        size = _bytes(value)
        if size <= self.max_bytes:
            self._entries[key] = value, size
            self.size += size
        while self.size > self.max_bytes:
            _, (_, dropped) = self._entries.popitem(last=False)
            self.size -= dropped
        return value


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.untyped_storage().nbytes()
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, (list, tuple)) else 0


latent_cache, prompt_cache = ContentCache(), ContentCache()
