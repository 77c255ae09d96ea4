"""What is known of one kind of adapter: a row of the table in `kinds/__init__.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ....training.layer_names.parts import ALPHA
from ..lowrank import Factors

Parts = Mapping[str, Tensor]  # {part: tensor} of one layer
Shape = tuple[int, int | None]  # (out, in * kernel) of a layer's delta; None: the adapter does not tell


@dataclass(frozen=True)
class Pair:
    """Two matrices that are multiplied: the left one's axis 1 is as long as the right one's axis 0.

    between: a core [left's axis 1, right's axis 0, *kernel] that may stand between both.
    tucker: a core [rank, rank, *kernel] with which both are [rank, ...] instead, so that their axes are not compared.
    """

    left: str
    right: str
    between: str | None = None
    tucker: str | None = None


def unknown_shape(parts: Parts) -> Shape | None:
    """Any shape would do, as far as the parts tell."""
    return None


@dataclass(frozen=True)
class AdapterKind:
    """One kind of adapter, as a file has it.

    name: what reports call it. found: whether a layer's parts are of this kind. matrices: parts of two axes or more.
    needs: {part: the parts that have to be there with it}. either: alternatives; with any of them, one of each must be
    there. pairs: see `Pair`. strict: ComfyUI multiplies the pairs unchecked, so both must have exactly two axes.
    rank: the parts whose first axis is the rank that alpha is divided by, the first one that is there counts.
    shape: (out, in * kernel) of the delta from the parts' shapes, None where any weight would do, zeros where the
    parts contradict each other. factors: the delta in two factors; None where it depends on the base's weight.
    norm: the delta's Frobenius norm without its factors, for a kind that has factors.
    """

    name: str
    found: Callable[[Parts], bool]
    matrices: tuple[str, ...] = ()
    needs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    either: tuple[tuple[str, ...], ...] = ()
    pairs: tuple[Pair, ...] = ()
    strict: bool = False
    rank: tuple[str, ...] = ()
    shape: Callable[[Parts], Shape | None] = unknown_shape
    factors: Callable[[Parts], Factors] | None = None
    norm: Callable[[Parts], float] | None = None


def scale(parts: Parts, rank: int) -> float:
    """alpha / rank, or 1 where a layer has no alpha."""
    return float(parts[ALPHA]) / rank if ALPHA in parts else 1.0
