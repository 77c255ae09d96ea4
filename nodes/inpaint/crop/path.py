"""A crop that follows a mask through a clip: one size, and a path without jumps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .parts import Box
from .rectangles import Need

REACH = 8  # frames to each side over which the path is smoothed


def smooth_path(needs: Sequence[Need | None]) -> list[Need]:
    """One need for each frame, of the same size and with centres on a smooth path.

    needs: of each frame, None where its mask is empty; at least one is not. Centres between are interpolated, and all
    are averaged with a Hann window of `REACH` frames to each side. A frame without a mask has to hold nothing.
    """
    known = [(i, need) for i, need in enumerate(needs) if need is not None]
    frames = np.array([i for i, _ in known])
    height, width = max(need.height for _, need in known), max(need.width for _, need in known)
    steps = np.arange(len(needs))
    y = _smoothed(np.interp(steps, frames, [need.y for _, need in known]))
    x = _smoothed(np.interp(steps, frames, [need.x for _, need in known]))
    path = []
    for i, need in enumerate(needs):
        at = math.floor(y[i]), math.floor(x[i])
        must = need.must if need is not None else Box(*at, *at)
        path.append(Need(must, float(y[i]), float(x[i]), height, width))
    return path


def _smoothed(values: np.ndarray) -> np.ndarray:
    window = np.hanning(2 * REACH + 3)[1:-1]
    padded = np.pad(values, REACH, mode="edge")
    return np.convolve(padded, window / window.sum(), mode="valid")


def united(needs: Sequence[Need]) -> Need:
    """One need for a whole clip."""
    top, bottom = min(n.y - n.height / 2 for n in needs), max(n.y + n.height / 2 for n in needs)
    left, right = min(n.x - n.width / 2 for n in needs), max(n.x + n.width / 2 for n in needs)
    must = needs[0].must
    for need in needs:
        must = must.united(need.must)
    return Need(must, (top + bottom) / 2, (left + right) / 2, bottom - top, right - left)
