"""Frobenius norms of deltas from their factors, in memory that the factors bound.

The delta itself, or the thin factors that `lowrank` works with, can be a million times as large as the file: a
Kronecker product of two columns of n numbers has n^2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ....training.errors import InputError

MAX_WORK = 1e11  # multiplications for one layer: seconds. A rank of 512 on a layer of 10,240 x 10,240 takes 5e9.
MAX_NUMBERS = 2**25  # of a factor that is put together from smaller ones
_CHUNK = 2**22  # numbers of a product that are held at a time


def check_work(work: float) -> None:
    """Raise `InputError` for a norm that needs more than `MAX_WORK` multiplications."""
    if work > MAX_WORK:
        raise InputError(
            f"the norm of this layer takes {work:.0e} multiplications, and the limit is {MAX_WORK:.0e}; choose "
            "another file"
        )


def check_size(numbers: int) -> None:
    """Raise `InputError` for a tensor of more than `MAX_NUMBERS` numbers, before it is made."""
    if numbers > MAX_NUMBERS:
        raise InputError(
            f"this layer takes a tensor of {numbers:,} numbers, and the limit is {MAX_NUMBERS:,}; choose another file"
        )


def product_norm(left: Tensor, right: Tensor) -> float:
    """The norm of left [m, r] @ right [r, n].

    |A B|^2 = sum((A^T A) * (B B^T)) holds r^2 numbers and the product m n, of which the smaller is at most half as many
    as both factors have together.
    """
    (m, r), n = left.shape, right.shape[1]
    a, b = left.double(), right.double()
    if r * r <= m * n:
        check_work(r * r * (m + n))
        return _root(float(((a.t() @ a) * (b @ b.t())).sum()))
    check_work(m * n * r)
    rows = max(1, _CHUNK // n)
    return _root(sum(float((part @ b).square().sum()) for part in a.split(rows)))


def tucker_norm(core: Tensor, left: Tensor, right: Tensor) -> float:
    """The norm of the sum over p and q of left[p] x right[q] x core[p, q].

    left: [p, m]. right: [q, n]. core: [p, q, *kernel].
    """
    one = _with_side(core.double().flatten(2), left.double())
    return _side_norm(one, right.double())


def _with_side(core: Tensor, side: Tensor) -> Tensor:
    """A core [c, q, k] of the same norm in all further products, with the side [p, m] multiplied in: c = min(p, m)."""
    p, m = side.shape
    check_work(min(p, m) * core.numel() + min(p, m) ** 2 * max(p, m))
    if m > p:  # S = Q R: Q has orthonormal rows, which no norm sees
        side = torch.linalg.qr(side.t(), mode="r")[1].t()  # [p, p]
    return torch.einsum("pm,pqk->mqk", side, core)


def _side_norm(core: Tensor, side: Tensor) -> float:
    return _root(float(_with_side(core.transpose(0, 1), side).square().sum()))


def hadamard_norm(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    """The norm of (A1 B1) * (A2 B2), elementwise; A [m, r], B [r, n].

    By the product row by row, or, where that takes more, by the r1 r2 columns of its thin factors.
    """
    (a1, b1), (a2, b2) = ((a.double(), b.double()) for a, b in (first, second))
    m, n, (r1, r2) = a1.shape[0], b1.shape[1], (a1.shape[1], a2.shape[1])
    columns = r1 * r2
    if columns * columns * (m + n) < m * n * (r1 + r2) and columns * (m + n) <= _CHUNK:
        up = (a1[:, :, None] * a2[:, None, :]).flatten(1)
        down = (b1[:, None, :] * b2[None, :, :]).flatten(0, 1)
        return product_norm(up, down)
    check_work(m * n * (r1 + r2))
    rows = max(1, _CHUNK // n)
    parts = zip(a1.split(rows), a2.split(rows), strict=True)
    return _root(sum(float(((x @ b1) * (y @ b2)).square().sum()) for x, y in parts))


def tensor_norm(tensor: Tensor) -> float:
    """The norm of a tensor, summed in float64."""
    return _root(sum(float(part.double().square().sum()) for part in tensor.flatten().split(_CHUNK)))


def _root(square: float) -> float:
    return math.sqrt(square) if math.isnan(square) or square > 0 else 0.0
