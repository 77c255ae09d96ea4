"""A hash of a training set, by which runs and caches know it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from ...training.images import TrainingImage


def fingerprint(items: Iterable[TrainingImage]) -> str:
    """A hash of all that a training sees of the pictures."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{tuple(item.pixels.shape)}\0{item.prompt}\0{item.original}{item.crop}".encode())
        if item.more_captions or item.weight != 1:  # version 0.1 has neither
            digest.update(repr((item.prompts, item.weight)).encode())
        if item.is_clip:
            digest.update(f"\0clip\0{item.fps}".encode())
        if item.variants is not None:
            digest.update(repr((item.prompts, item.variants, item.trigger)).encode())
        digest.update(item.pixels.contiguous().numpy().data)
        if item.mask is not None:
            digest.update(item.mask.contiguous().numpy().data)
        if item.control is not None:
            digest.update(b"\0second picture\0")
            digest.update(item.control.contiguous().numpy().data)
    return digest.hexdigest()
