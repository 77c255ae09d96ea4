"""How the changes of several LoRAs are put together where a plain sum lets them get in each other's way.

`ties` and `dare` work on whole matrices, layer by layer, as PEFT's `add_weighted_adapter` does; TIES' paper cuts over
all layers at once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ....training.config import check_choice
from ....training.errors import InputError
from .ranks import KINDS, check_share

METHODS = ("sum", "ties", "dare", "balance")
DENSITY = {"min": 0.01, "max": 1.0}
MOST_RANK = 4096
MOST_CONDITION = 1e6  # of the Gram matrix: above it two LoRAs are one in all but the strength


@dataclass(frozen=True)
class How:
    """How LoRAs are put together, and what rank the result has.

    method: one of `METHODS`. density: the share of a change's numbers that ties and dare keep. rank: 0 for the exact
    sum, else the most that a layer gets. energy: 0 is off; else what each layer keeps, which decides its rank instead,
    by `energy_kind`, see `ranks.rank_by`.
    """

    rank: int = 0
    method: str = METHODS[0]
    density: float = 0.5
    energy: float = 0.0
    energy_kind: str = KINDS[0]

    def __post_init__(self) -> None:
        check_choice("method", self.method, list(METHODS))
        check_choice("energy_kind", self.energy_kind, list(KINDS))
        if not 0 <= self.rank <= MOST_RANK:
            raise InputError(f"rank is {self.rank}; give 0 for the exact sum, or 1 to {MOST_RANK}")
        if not DENSITY["min"] <= self.density <= DENSITY["max"]:
            raise InputError(f"density is {self.density}; give a share from {DENSITY['min']} to {DENSITY['max']:g}")
        if self.energy:
            check_share(self.energy, self.energy_kind)

    @property
    def is_dense(self) -> bool:
        """Whether the method makes a whole matrix of each layer, whose rank is that of no sum."""
        return self.method in ("ties", "dare")


# --- of a layer ------------------------------------------------------------------------------------------------------


def ties(changes: Sequence[Tensor], strengths: Sequence[float], density: float) -> Tensor:
    """TIES (Yadav et al. 2023, arXiv 2306.01708, algorithm 1): trim, elect a sign, and mean of those that agree.

    changes: n matrices of one shape. Of each the `density` largest by absolute value stay. The sign of a number is that
    of the trimmed changes' sum, and the result the mean of strength * change over the changes that have this sign.
    """
    kept = torch.stack([_largest(change, density) for change in changes])
    elected = torch.where(kept.sum(0) >= 0, 1.0, -1.0)
    agrees = torch.sign(kept) == elected
    weighted = kept * torch.tensor(strengths, dtype=kept.dtype).reshape(-1, *[1] * (kept.ndim - 1))
    return (weighted * agrees).sum(0) / agrees.sum(0).clamp(min=1)


def _largest(change: Tensor, density: float) -> Tensor:
    """The change with all but the `density` largest of its numbers, by absolute value, at 0."""
    if density >= 1.0:
        return change
    flat = change.flatten()
    chosen = flat.abs().topk(int(density * flat.numel())).indices
    out = torch.zeros_like(flat)
    out[chosen] = flat[chosen]
    return out.reshape(change.shape)


def dare(changes: Sequence[Tensor], strengths: Sequence[float], density: float, name: str) -> Tensor:
    """DARE (Yu et al. 2023, arXiv 2311.03099): each number is dropped with the probability 1 - density and the others
    are divided by density, which keeps the mean; then the weighted sum.

    name: the layer's, which decides with the change's number what is dropped: the same LoRAs make the same file.
    """
    out = torch.zeros_like(changes[0])
    for number, (change, strength) in enumerate(zip(changes, strengths, strict=True)):
        out += strength / density * change * drawn(change.shape, density, f"{name}/{number}")
    return out


def drawn(shape: Sequence[int], density: float, name: str) -> Tensor:
    """A matrix of 0 and, with the probability `density`, 1, as the name decides."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    return torch.bernoulli(torch.full(tuple(shape), density), generator=torch.Generator().manual_seed(seed))


# --- of all layers ---------------------------------------------------------------------------------------------------


def balanced(products: Tensor, names: Sequence[str]) -> list[float]:
    """Factors c with which each LoRA keeps its own effect in the sum: <sum c_j D_j, D_i> = <D_i, D_i> for every i.

    products: the Gram matrix G of the changes D, [n, n], strengths included; c solves G c = diag(G). A LoRA that
    changes nothing keeps 1. Raises `InputError` where two LoRAs are one in all but the strength, or one is a sum of
    others: no factors give all of them back.
    """
    own = products.diagonal()
    factors = torch.ones(len(own), dtype=torch.float64)
    there = (own > 0).nonzero().flatten()
    scale = own[there].sqrt()
    cosines = products[there][:, there].double() / (scale[:, None] * scale[None, :])
    if len(there) and float(torch.linalg.cond(cosines)) > MOST_CONDITION:
        raise InputError(_dependent(cosines, [names[int(i)] for i in there]))
    if len(there):
        factors[there] = torch.linalg.solve(cosines, scale) / scale
    return factors.tolist()


def _dependent(cosines: Tensor, names: Sequence[str]) -> str:
    """Which LoRAs no factors give back, in words: two that are one, or those that a mixture of which is next to 0."""
    mixture = torch.linalg.eigh(cosines)[1][:, 0].abs()  # of the least eigenvalue
    some = [i for i, share in enumerate(mixture.tolist()) if share > 0.01]
    mend = "leave one of them out, or set method to sum"
    if len(some) == 2:
        i, j = some
        return (
            f"{names[i]} and {names[j]} make the same change, up to a factor (cosine {float(cosines[i, j]):.4f}), so "
            f"no strengths give both their own effect; {mend}"
        )
    listed = ", ".join(names[i] for i in some)
    return (
        f"{listed} depend on each other: the change of one is a sum of the others' changes, up to factors, so no "
        f"strengths give each its own effect; {mend}"
    )


def own_effects(products: Tensor, factors: Sequence[float]) -> list[float]:
    """The projection of the sum of factor * change on each change, over the change's own square; nan for none."""
    effects = products.double() @ torch.tensor(factors, dtype=torch.float64)
    own = products.diagonal().double()
    return [float(effect / size) if size > 0 else math.nan for effect, size in zip(effects, own, strict=True)]
