"""The nearest matrix of low rank: by Eckart and Young, with torch's SVD in float64 as the oracle."""

import math

import pytest
import torch
from bespoke.nodes.lora.extraction import decompose
from bespoke.nodes.lora.extraction.decompose import Size, nearest, rank_for

SHAPES = {"square": (96, 96), "wide": (64, 300), "tall": (300, 64), "large": (400, 330), "large and wide": (260, 900)}
SHAPES |= {"long": (3600, 220), "long and wide": (220, 3600)}  # exact from a rank of 28 on


def falling(rows: int, columns: int, power: float = 1.0, seed: int = 0) -> torch.Tensor:
    """A matrix whose singular values fall as 1 / i ** power."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(rows, min(rows, columns), generator=generator, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(columns, min(rows, columns), generator=generator, dtype=torch.float64))[0]
    values = torch.arange(1, min(rows, columns) + 1, dtype=torch.float64) ** -power
    return (u * values @ v.t()).float()


def of_rank(rows: int, columns: int, rank: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, rank, generator=generator) @ torch.randn(rank, columns, generator=generator)


def product(found) -> torch.Tensor:
    return found.factors.up.double() @ found.factors.down.double()


def error(matrix, found) -> float:
    return float((matrix.double() - product(found)).norm() / matrix.double().norm())


def least_error(matrix, rank: int) -> float:
    squares = torch.linalg.svdvals(matrix.double()) ** 2
    return math.sqrt(float(squares[rank:].sum() / squares.sum()))


def kohya(matrix, rank: int, quantile: float = 0.99):
    """kohya's extraction: the SVD with S in U, both factors clamped to a quantile of all their numbers."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    up, down = u[:, :rank] * s[:rank], vh[:rank]
    most = float(torch.quantile(torch.cat([up.flatten(), down.flatten()]), quantile))
    return up.clamp(-most, most).double() @ down.clamp(-most, most).double()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("rank", [1, 8, 40])
def test_the_error_is_the_least_that_the_rank_allows(shape, rank):
    """Eckart and Young 1936. The randomised way may be 1 % above it."""
    matrix = falling(*shape)
    found = nearest(matrix, Size(rank))
    assert found.factors.rank == rank
    assert error(matrix, found) <= least_error(matrix, rank) * (1.0001 if min(shape) <= decompose.EXACT_SIDE else 1.01)
    assert math.sqrt(found.lost / found.total) == pytest.approx(error(matrix, found), rel=1e-3)
    assert found.total == pytest.approx(float(matrix.double().square().sum()), rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_matrix_of_low_rank_comes_back(shape):
    """At its rank and above: directions that are rounding alone are left out."""
    matrix = of_rank(*shape, 8)
    for rank in (8, 40):
        found = nearest(matrix, Size(rank))
        assert found.factors.rank == 8
        assert error(matrix, found) < 1e-5
        assert math.sqrt(max(found.lost, 0.0) / found.total) < 1e-5


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99])
def test_energy_takes_the_least_rank_that_keeps_it(shape, energy):
    matrix = falling(*shape, power=0.7)
    squares = torch.linalg.svdvals(matrix.double()) ** 2
    least = int((squares.cumsum(0) < energy * squares.sum()).sum()) + 1
    found = nearest(matrix, Size(1, energy))
    assert least <= found.factors.rank <= least + 1
    assert 1 - error(matrix, found) ** 2 >= energy - 1e-3


def test_energy_of_a_matrix_too_large_for_all_singular_values(monkeypatch):
    """The rank is searched for by the randomised way, at first and, where it is a large share, by the exact one."""
    monkeypatch.setattr(decompose, "SPECTRUM_SIDE", 100)
    matrix = falling(400, 330, power=0.7)
    squares = torch.linalg.svdvals(matrix.double()) ** 2
    for energy in (0.5, 0.99):
        least = int((squares.cumsum(0) < energy * squares.sum()).sum()) + 1
        found = nearest(matrix, Size(1, energy))
        assert least <= found.factors.rank <= math.ceil(1.05 * least)
        assert 1 - error(matrix, found) ** 2 >= energy - 1e-3


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_spectrum_is_the_matrix_own(shape):
    matrix = falling(*shape)
    squares = torch.linalg.svdvals(matrix.double()) ** 2
    found = nearest(matrix, Size(8))
    assert len(found.squares) == min(shape)
    assert torch.allclose(found.squares, squares, atol=2e-6 * float(squares[0]))
    for share in (0.9, 0.95, 0.99):
        assert rank_for(found.squares, share, found.total) == int((squares.cumsum(0) < share * squares.sum()).sum()) + 1
    assert rank_for(found.squares[:2], 0.99, found.total) is None


def test_the_same_matrix_gives_the_same_bits():
    matrix = falling(400, 330)
    one, two = (nearest(matrix.clone(), Size(16)).factors for _ in range(2))
    assert torch.equal(one.up, two.up)
    assert torch.equal(one.down, two.down)


def test_both_factors_have_the_same_size():
    """The root of each singular value in each, so that half precision serves both alike."""
    found = nearest(1e-4 * falling(400, 330), Size(16)).factors
    assert torch.allclose(found.up.norm(dim=0), found.down.norm(dim=1), rtol=1e-3)


@pytest.mark.parametrize("shape", [(320, 320), (320, 2880), (1280, 320)])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0], ids=["flat", "slow", "fast"])
def test_the_error_is_not_larger_than_kohyas(shape, power):
    """kohya's `extract_lora_from_models.py` clamps its factors at the quantile 0.99, which costs where the first
    directions are strong; without the clamp it is the exact SVD, from which the randomised way differs by 1 %.
    """
    matrix = falling(*shape, power=power)
    ours = error(matrix, nearest(matrix, Size(32)))
    theirs = float((matrix.double() - kohya(matrix, 32)).norm() / matrix.double().norm())
    exact = float((matrix.double() - kohya(matrix, 32, 1.0)).norm() / matrix.double().norm())
    print(f"{shape}, 1/i^{power}: error {ours:.4f}, kohya's {theirs:.4f}, without its clamp {exact:.4f}")
    assert ours <= exact * 1.01
    if power:
        assert ours < theirs
