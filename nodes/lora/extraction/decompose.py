"""The nearest matrix of low rank to a change of weights, in memory of a few copies of its shorter side.

With the singular values s falling, the nearest matrix of rank r leaves the squared error sum(s[r:] ** 2) (Eckart and
Young 1936). "Energy" is the sum of the squared singular values, the squared Frobenius norm.

Short matrices are decomposed by the eigenvectors of their Gram matrix in float64, which gives every singular value.
Larger ones by a randomised subspace iteration (Halko, Martinsson and Tropp 2011, arXiv 0909.4061, algorithm 4.4), which
reads the matrix a few times and gives the first singular values alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..lowrank import Factors, least_rank

EXACT_SIDE = 192  # the shorter side up to which a matrix is decomposed exactly
EXACT_SHARE = 1 / 3  # of the shorter side: a rank from which on the exact way is the faster one
LONG, EXACT_SHARE_OF_LONG = 16, 1 / 8  # the same where one side is this many times the other, such as a token table
SPECTRUM_SIDE = 1536  # the shorter side up to which all singular values are computed where the first ones do not do
SPECTRUM_SHARE = 0.99  # the share of the energy that the known singular values are to hold
OVERSAMPLING, FIRST_WIDTH = 16, 64
MOST_ITERATIONS, SETTLED = 6, 1e-3  # of the subspace; the relative growth of what it holds that ends them
NEGLIGIBLE = 1e-5  # of the first singular value: what float32 weights round
NEARLY_ALL = 1e-4  # a share of the energy below which the error is computed from the product itself
_CHUNK = 2**20  # numbers that are held in float64 at a time


@dataclass(frozen=True)
class Size:
    """How large a decomposition is. rank: at most. energy: above 0 the share of the energy to keep, instead of rank."""

    rank: int
    energy: float = 0.0


@dataclass(frozen=True)
class Nearest:
    """A matrix of low rank and what it leaves out.

    squares: the squared singular values that are known, falling, float64. total: the energy of the whole matrix. lost:
    the squared Frobenius norm of the difference.
    """

    factors: Factors
    squares: Tensor
    total: float
    lost: float


def nearest(matrix: Tensor, size: Size, kernel: tuple[int, ...] = ()) -> Nearest:
    """The nearest matrix of the size that is asked for. Directions below `NEGLIGIBLE` are left out.

    matrix: [out, in * kernel] in float32, not all 0. The result lies on the matrix' device. Deterministic.
    """
    total = squared_norm(matrix)
    short = min(matrix.shape)
    squares: Tensor | None = None
    rank = min(size.rank, short)
    if size.energy:
        rank = short
        if EXACT_SIDE < short <= SPECTRUM_SIDE:
            squares = _all_squares(matrix)
            rank = _rank_of(squares, size, total)
    if short <= EXACT_SIDE or (rank >= _exact_share(matrix) * short and not _is_searched(size, short)):
        up, down, squares = _exact(matrix, size, total)
    elif _is_searched(size, short):
        up, down, squares = _searched(matrix, size, total)
    else:
        up, down, first = _randomised(matrix, rank, total)
        if squares is None:
            known = float(first.sum()) >= SPECTRUM_SHARE * total or short > SPECTRUM_SIDE
            squares = first if known else _all_squares(matrix)
    lost = total - squared_norm(down)
    if lost < NEARLY_ALL * total:
        lost = _squared_difference(matrix, up, down)
    return Nearest(_balanced(up, down, kernel), squares, total, lost)


def squared_norm(tensor: Tensor) -> float:
    """The sum of the squares, in float64."""
    return sum(float(part.double().square().sum()) for part in tensor.reshape(-1).split(_CHUNK))


def rank_for(squares: Tensor, share: float, total: float) -> int | None:
    """The least rank that holds a share of the energy; None where the known singular values do not hold it."""
    slack = min(1e-6, 0.01 * (1 - share)) + 1e-12  # what is rounded, and little beside what may be left out
    return least_rank(squares, (share - slack) * total)


def _exact_share(matrix: Tensor) -> float:
    return EXACT_SHARE_OF_LONG if max(matrix.shape) >= LONG * min(matrix.shape) else EXACT_SHARE


def _is_searched(size: Size, short: int) -> bool:
    """Whether the rank for a share of the energy is found by trying: all singular values would take too long."""
    return size.energy > 0 and short > SPECTRUM_SIDE


def _rank_of(squares: Tensor, size: Size, total: float) -> int:
    """The rank that is asked for, without directions that are `NEGLIGIBLE`."""
    most = int((squares > NEGLIGIBLE**2 * squares[0]).sum())
    rank = (rank_for(squares, size.energy, total) or len(squares)) if size.energy else size.rank
    return max(1, min(rank, most))


def _gram(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """The inner products of the rows of a matrix [m, n], m <= n: [m, m]."""
    out = torch.zeros(len(matrix), len(matrix), dtype=dtype, device=matrix.device)
    for part in matrix.split(max(1, _CHUNK // len(matrix)), dim=1):
        part = part.to(dtype)
        out.addmm_(part, part.t())
    return out


def _all_squares(matrix: Tensor) -> Tensor:
    """The squares of all singular values, falling, float64, with errors of about 1e-6 of the first one."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.t()
    return torch.linalg.eigvalsh(_gram(wide, torch.float32)).double().clamp(min=0).flip(0).cpu()


def _exact(matrix: Tensor, size: Size, total: float) -> tuple[Tensor, Tensor, Tensor]:
    """(up with orthonormal columns, down, all squared singular values), by the eigenvectors of the Gram matrix."""
    wide = matrix.shape[0] <= matrix.shape[1]
    squares, basis = torch.linalg.eigh(_gram(matrix if wide else matrix.t(), torch.float64))
    squares = squares.clamp(min=0).flip(0).cpu()
    basis = basis.flip(1)[:, : _rank_of(squares, size, total)].to(matrix.dtype)
    if wide:
        return basis, basis.t() @ matrix, squares
    # The basis is of the rows: up = matrix basis has orthogonal columns, whose lengths go to the other factor.
    up = matrix @ basis
    lengths = up.norm(dim=0)
    return up.div_(lengths), lengths[:, None] * basis.t(), squares


def _randomised(matrix: Tensor, rank: int, total: float) -> tuple[Tensor, Tensor, Tensor]:
    """(up with orthonormal columns, down, the first `rank` squared singular values)."""
    width = min(rank + max(OVERSAMPLING, rank // 4), *matrix.shape)
    probe = torch.randn(matrix.shape[1], width, generator=torch.Generator().manual_seed(0)).to(matrix)
    basis, held = torch.linalg.qr(matrix @ probe)[0], 0.0
    for iteration in range(MOST_ITERATIONS):
        across = matrix.t() @ basis  # [in, width]
        side, core = torch.linalg.qr(across)
        u, s, _ = torch.linalg.svd(core.t())
        before, held = held, float(s[:rank].double().square().sum())
        if held - before <= SETTLED * held or iteration == MOST_ITERATIONS - 1:
            break
        basis = torch.linalg.qr(matrix @ side)[0]
    squares = s[:rank].double().square().cpu()
    u = u[:, : _rank_of(squares, Size(rank), total)]
    return basis @ u, u.t() @ across.t(), squares


def _searched(matrix: Tensor, size: Size, total: float) -> tuple[Tensor, Tensor, Tensor]:
    """`_randomised` of the least rank that holds the share of the energy; where that is a high one, `_exact`."""
    width = FIRST_WIDTH
    while width < _exact_share(matrix) * min(matrix.shape):
        up, down, squares = _randomised(matrix, width, total)
        rank = rank_for(squares, size.energy, total)
        if rank is not None:
            return up[:, :rank], down[:rank], squares
        width *= 2
    return _exact(matrix, size, total)


def _squared_difference(matrix: Tensor, up: Tensor, down: Tensor) -> float:
    rows = max(1, _CHUNK // matrix.shape[1])
    parts = zip(matrix.split(rows), up.split(rows), strict=True)
    return sum(float((part - u @ down).double().square().sum()) for part, u in parts)


def _balanced(up: Tensor, down: Tensor, kernel: tuple[int, ...]) -> Factors:
    """Both factors with the root of each singular value, so that neither runs out of half precision first. Changes them
    in place.
    """
    root = down.norm(dim=1).sqrt()
    return Factors(up.mul_(root), down.div_(root[:, None]), kernel)
