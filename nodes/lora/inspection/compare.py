"""Two LoRAs beside each other: how alike their changes are, layer by layer, without making the changes themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ....training.errors import InputError
from ....training.layer_names.blocks import row_order
from ....training.layer_names.dialects import flat_name
from ....training.layer_names.parts import DIFF, adapts, layers_of
from .. import kinds
from ..fit import check_same_shape
from ..kinds.full import OF_BIAS, OF_WEIGHT
from ..kinds.kind import Parts
from ..lowrank import Factors, add, directions, inner_products
from ..named_lora import NamedLora
from ..overview_names import OverviewNames, overview_names
from .inspect import ENERGY

NEAR = math.cos(math.radians(45))  # of the angle below which a direction counts as shared


@dataclass(frozen=True)
class Overlap:
    """How much of two subspaces is shared.

    cosines: of their principal angles, falling. chance: what `share` is on average for two random subspaces of these
    sizes.
    """

    cosines: tuple[float, ...]
    chance: float

    @property
    def share(self) -> float:
        """The mean squared cosine: 1 where one lies in the other, 0 where they are orthogonal. It is the similarity of
        Hu et al. 2021 (arXiv 2106.09685, equation 4)."""
        return sum(cosine**2 for cosine in self.cosines) / len(self.cosines)

    @property
    def near(self) -> int:
        return sum(cosine >= NEAR for cosine in self.cosines)


@dataclass(frozen=True)
class Shared:
    """A layer that both change. products: [[aa, ab], [ab, bb]], the Frobenius inner products of their changes, float64.

    out, inner: the overlap of the directions that hold 90 % of the energy, on the output's and the input's side; None
    where one of the changes is 0.
    """

    name: str
    row: str
    column: str
    products: Tensor
    out: Overlap | None
    inner: Overlap | None


@dataclass(frozen=True)
class Comparison:
    """alone: the number of layers that one of the two has alone. unknown: of both, whose change is not known without
    the base (DoRA, OFT), or is a vector."""

    shared: Sequence[Shared]
    alone: tuple[int, int]
    unknown: int

    @property
    def rows(self) -> list[str]:
        return sorted({each.row for each in self.shared}, key=row_order)

    @cached_property
    def _cells(self) -> dict[tuple[str, str], Tensor]:
        """The sums of `Shared.products` by row and column."""
        out: dict[tuple[str, str], Tensor] = {}
        for each in self.shared:
            at = each.row, each.column
            out[at] = out[at] + each.products if at in out else each.products
        return out

    def products(self, row: str | None = None, column: str | None = None) -> Tensor:
        """The sum of the inner products of what lies in a row, in a column, or everywhere: [2, 2]."""
        some = [one for (r, c), one in self._cells.items() if row in (None, r) and column in (None, c)]
        return sum(some, torch.zeros(2, 2, dtype=torch.float64))

    def cosine(self, row: str | None = None, column: str | None = None) -> float | None:
        """None where one of the two has no change there."""
        products = self.products(row, column)
        norms = math.sqrt(max(float(products[0, 0] * products[1, 1]), 0.0))
        return float(products[0, 1]) / norms if norms > 0 else None


def compare(one: NamedLora, other: NamedLora) -> Comparison:
    """Layers are the same where their common names are, in any two programs' spellings.

    Raises `InputError` where a layer's change has one shape in one LoRA and another in the other.
    """
    names = overview_names(one, other)
    ours, theirs = _by_name(one, names), _by_name(other, names)
    found, unknown = [], 0
    for key, layers in ours.items():
        if key not in theirs:
            continue
        deltas = _change(layers, one), _change(theirs[key], other)
        if deltas[0] is None or deltas[1] is None:
            unknown += 1
            continue
        name = names.common(layers[0][0])
        check_same_shape(name, (one, deltas[0]), (other, deltas[1]), "compare")
        found.append(_shared(name, names.place(name), deltas[0], deltas[1]))
    found.sort(key=lambda each: (row_order(each.row), each.name))
    alone = len(ours.keys() - theirs.keys()), len(theirs.keys() - ours.keys())
    return Comparison(found, alone, unknown)


def _by_name(lora: NamedLora, names: OverviewNames) -> dict[str, list[tuple[str, Parts]]]:
    """{the layer's name without dots and underscores: [(its name in the file, its parts)]}; a file may have a layer in
    two spellings, which both count."""
    out: dict[str, list[tuple[str, Parts]]] = {}
    for layer, parts in layers_of(lora).items():
        if adapts(parts):
            out.setdefault(flat_name(names.common(layer)), []).append((layer, parts))
    return out


def _change(layers: Sequence[tuple[str, Parts]], lora: NamedLora) -> Factors | None:
    """The sum of a layer's spellings in one file; None where one of them is not known without the base."""
    terms: list[Factors] = []
    for layer, parts in layers:
        delta = _factors(layer, parts)
        if delta is None:
            return None
        check_same_shape(layer, (lora, terms[0] if terms else delta), (lora, delta), "compare")
        terms.append(delta)
    return add(terms)


def _factors(layer: str, parts: Parts) -> Factors | None:
    """A layer's change of its weight; None where it has none that is known without the base."""
    matrices: Mapping[str, Tensor] = {
        part: tensor
        for part, tensor in parts.items()
        if part not in OF_BIAS and not (part in (DIFF, *OF_WEIGHT) and tensor.ndim < 2)
    }
    if not adapts(matrices):
        return None
    try:
        return kinds.factors(layer, matrices)
    except InputError:
        return None


def _shared(name: str, at: tuple[str, str], one: Factors, other: Factors) -> Shared:
    (left, right), (their_left, their_right) = (directions(each, ENERGY) for each in (one, other))
    products = inner_products([one, other])
    return Shared(name, *at, products, _overlap(left, their_left), _overlap(right, their_right))


def _overlap(one: Tensor, other: Tensor) -> Overlap | None:
    """Of two subspaces with orthonormal bases [n, k]."""
    if not (one.shape[1] and other.shape[1]):
        return None
    cosines = torch.linalg.svdvals(one.t() @ other).clamp(max=1.0)
    return Overlap(tuple(cosines.tolist()), max(one.shape[1], other.shape[1]) / len(one))
