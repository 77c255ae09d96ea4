"""The separate parts of a mask: its connected components."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ....training.errors import InputError

SPECK = 16  # px: a smaller part beside larger ones is a stray dot
MOST_PARTS = 64  # of one mask


@dataclass(frozen=True)
class Box:
    """Whole pixels; bottom and right are the first beyond."""

    top: int
    left: int
    bottom: int
    right: int

    def united(self, other: Box | None) -> Box:
        if other is None:
            return self
        return Box(
            min(self.top, other.top),
            min(self.left, other.left),
            max(self.bottom, other.bottom),
            max(self.right, other.right),
        )


@dataclass(frozen=True)
class Parts:
    """labels: [H, W] int32, 0 outside, 1 to len(boxes) in the parts, in order from the top. specks: dots left out."""

    labels: np.ndarray
    boxes: tuple[Box, ...]
    specks: int


def box_of(inside: np.ndarray) -> Box | None:
    """The smallest box that holds all true pixels of [H, W], None where none is."""
    rows = np.flatnonzero(inside.any(1))
    if not len(rows):
        return None
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(inside[top:bottom].any(0))
    return Box(top, int(columns[0]), bottom, int(columns[-1]) + 1)


def parts_of(inside: np.ndarray) -> Parts:
    """The connected components of [H, W] bool; pixels that touch at a corner are connected.

    Works on runs: the stretches of true pixels of each row. Runs of neighbouring rows that touch are the edges of a
    graph, whose components are found by hooking and pointer jumping (Shiloach and Vishkin 1982) on all edges at once.
    Components of less than `SPECK` px are left out where a larger one is. Raises `InputError` for more than
    `MOST_PARTS`.
    """
    rows, starts, ends = _runs(inside)
    component = _components(len(rows), *_touching(rows, starts, ends, inside.shape[1]))
    _, component = np.unique(component, return_inverse=True)  # 0, 1, ... in the order of the first runs
    count = int(component.max(initial=-1)) + 1
    areas = np.bincount(component, ends - starts, count)
    large = areas >= SPECK if (areas >= SPECK).any() else np.ones(count, bool)
    if int(large.sum()) > MOST_PARTS:
        raise InputError(
            f"the mask has {int(large.sum())} separate parts and each crops up to {MOST_PARTS}; close its gaps with "
            "core's GrowMask, clear its dots with ThresholdMask, or turn each off"
        )
    number = np.where(large, np.cumsum(large), 0)[component]  # of each run
    labels = np.zeros(inside.shape, np.int32)
    labels[inside] = np.repeat(number, ends - starts)
    boxes = []
    for i in range(1, int(large.sum()) + 1):
        of = number == i
        boxes.append(Box(int(rows[of][0]), int(starts[of].min()), int(rows[of][-1]) + 1, int(ends[of].max())))
    return Parts(labels, tuple(boxes), int((~large).sum()))


def _runs(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, first pixel, first pixel beyond) of each run, in the order of reading."""
    padded = np.zeros((inside.shape[0], inside.shape[1] + 2), np.int8)
    padded[:, 1:-1] = inside
    change = np.diff(padded, axis=1)
    rows, starts = np.nonzero(change == 1)
    _, ends = np.nonzero(change == -1)
    return rows, starts, ends


def _touching(rows: np.ndarray, starts: np.ndarray, ends: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs (run, run of the next row) that touch, as two arrays of indices."""
    stride = width + 2
    # The runs of the next row that touch one are neighbours in the order of reading.
    first = np.searchsorted(rows * stride + ends, (rows + 1) * stride + starts, "left")
    beyond = np.searchsorted(rows * stride + starts, (rows + 1) * stride + ends, "right")
    counts = np.maximum(beyond - first, 0)
    upper = np.repeat(np.arange(len(rows)), counts)
    within = np.arange(len(upper)) - np.repeat(np.cumsum(counts) - counts, counts)
    return upper, first[upper] + within


def _components(count: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The least index of each one's component, in a graph of `count` nodes with the edges (a, b)."""
    root = np.arange(count)
    while not np.array_equal(root[a], root[b]):
        low, high = np.minimum(root[a], root[b]), np.maximum(root[a], root[b])
        np.minimum.at(root, high, low)
        while not np.array_equal(root[root], root):
            root = root[root]
    return root
