"""Adaptations as two thin factors, so that sums, norms, angles and spectra never need the full matrix.

A layer's delta is up @ down with up [out, R] and down [R, in * kernel], the strength alpha / rank already in `up`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TOO_LARGE = 1e15  # the norm of a factor: its square times another's is still a float32


@dataclass(frozen=True)
class Factors:
    """delta = up @ down, [out, in * kernel], in float32. kernel: a convolution's, such as (3, 3); () for a linear
    layer."""

    up: Tensor  # [out, R]
    down: Tensor  # [R, in * kernel]
    kernel: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        return self.up.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]

    def scaled(self, strength: float) -> Factors:
        return Factors(self.up * strength, self.down, self.kernel)


def from_matrix(diff: Tensor) -> Factors:
    """A difference of weights [out, in, *kernel] as itself times the identity, the smaller one of the two sides."""
    kernel, flat = tuple(diff.shape[2:]), diff.flatten(1)
    rows, columns = flat.shape
    return Factors(flat, torch.eye(columns), kernel) if columns <= rows else Factors(torch.eye(rows), flat, kernel)


def add(terms: Sequence[Factors]) -> Factors:
    """The exact sum of deltas of one shape: factors side by side, ranks added."""
    return Factors(torch.cat([t.up for t in terms], 1), torch.cat([t.down for t in terms], 0), terms[0].kernel)


def inner_products(terms: Sequence[Factors], whole: Factors | None = None) -> Tensor:
    """The Frobenius inner products of n deltas of one shape: [n, n], float64. whole: their sum, where it is known.

    tr(A^T B) = sum((Ua^T Ub) * (Da Db^T)), for all pairs in two products, at a cost of R^2 (out + in).
    """
    whole = whole or add(terms)
    product = (whole.up.t() @ whole.up).double() * (whole.down @ whole.down.t()).double()
    owner = torch.repeat_interleave(torch.arange(len(terms)), torch.tensor([t.rank for t in terms]))
    sums = torch.zeros(len(terms), whole.rank, dtype=torch.float64).index_add_(0, owner, product)
    return torch.zeros(len(terms), len(terms), dtype=torch.float64).index_add_(1, owner, sums)


def _reduced(delta: Factors) -> tuple[Tensor, Tensor, Tensor]:
    """(Q_up, core, Q_down) with delta = Q_up core Q_down^T and core no larger than R x R."""
    q_up, r_up = torch.linalg.qr(delta.up)
    q_down, r_down = torch.linalg.qr(delta.down.t())
    return q_up, r_up @ r_down.t(), q_down


def spectrum(delta: Factors) -> Tensor:
    """The delta's singular values, falling: [min(R, out, in)]."""
    _, core, _ = _reduced(delta)
    return torch.linalg.svdvals(core)


def truncate(delta: Factors, rank: int | Callable[[Tensor], int]) -> tuple[Factors, Tensor]:
    """(the nearest delta of at most this rank, all singular values, falling), as of Eckart and Young (1936).

    rank: or a function that decides it by the singular values. With energy the sum of the squared singular values,
    1 - kept / whole is the squared relative error.
    """
    q_up, core, q_down = _reduced(delta)
    u, s, vh = torch.linalg.svd(core)
    rank = min(rank(s) if callable(rank) else rank, len(s))
    root = s[:rank].sqrt()
    return Factors(q_up @ (u[:, :rank] * root), (root[:, None] * vh[:rank]) @ q_down.t(), delta.kernel), s


def least_rank(squares: Tensor, wanted: float) -> int | None:
    """The least number of the first squared singular values whose sum is at least `wanted`; None where all are less.

    squares: falling, float64, [n].
    """
    enough = (squares.cumsum(0) >= wanted).nonzero()
    return int(enough[0, 0]) + 1 if len(enough) else None


def directions(delta: Factors, share: float) -> tuple[Tensor, Tensor]:
    """(left [out, k], right [in * kernel, k]): the first singular vectors, which hold a share of the delta's energy.

    k is 0 for a delta of zeros.
    """
    q_up, core, q_down = _reduced(delta)
    u, s, vh = torch.linalg.svd(core)
    squares = s.double() ** 2
    whole = float(squares.sum())
    k = (least_rank(squares, share * whole) or len(squares)) if whole > 0 else 0
    return q_up @ u[:, :k], q_down @ vh[:k].t()
