"""LoKr (Yeh et al. 2024, "LyCORIS", arXiv 2309.14859): W + scale * kron(W1, W2), each whole or in two factors."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from ....training.layer_names.parts import LOKR_T2, LOKR_W1, LOKR_W1_A, LOKR_W1_B, LOKR_W2, LOKR_W2_A, LOKR_W2_B
from ..lowrank import Factors
from .kind import AdapterKind, Pair, Parts, scale
from .norms import product_norm, tensor_norm, tucker_norm

_PARTS = (LOKR_W1, LOKR_W1_A, LOKR_W1_B, LOKR_W2, LOKR_W2_A, LOKR_W2_B, LOKR_T2)


def _shape(parts: Parts) -> tuple[int, int]:
    sides: list[tuple[int, int]] = []
    for whole, left, right, tucker in (
        (LOKR_W1, LOKR_W1_A, LOKR_W1_B, None),
        (LOKR_W2, LOKR_W2_A, LOKR_W2_B, LOKR_T2),
    ):
        if whole in parts:
            sides.append((parts[whole].shape[0], parts[whole][0].numel()))
            continue
        a, b, core = parts[left], parts[right], parts.get(tucker) if tucker else None
        sides.append((a.shape[0], b[0].numel()) if core is None else (a.shape[1], b.shape[1] * prod(core.shape[2:])))
    return sides[0][0] * sides[1][0], sides[0][1] * sides[1][1]


def _factors(parts: Parts) -> Factors:
    """kron(W1, U V) = kron(W1, U) kron(I, V) = kron(I, U) kron(W1, V): the one of less rank."""
    strength = 1.0
    if LOKR_W1 in parts:
        w1 = parts[LOKR_W1]
    else:
        w1 = parts[LOKR_W1_A] @ parts[LOKR_W1_B]
        strength = scale(parts, parts[LOKR_W1_B].shape[0])
    kernel: tuple[int, ...] = ()
    if LOKR_W2 in parts:
        w2 = parts[LOKR_W2]
        kernel = tuple(w2.shape[2:])
        full = w2.flatten(1)
        u, v = (full, torch.eye(full.shape[1])) if full.shape[1] <= full.shape[0] else (torch.eye(full.shape[0]), full)
    else:
        u, v = parts[LOKR_W2_A], parts[LOKR_W2_B]
        strength = scale(parts, v.shape[0])
        if LOKR_T2 in parts:
            core = parts[LOKR_T2]
            kernel = tuple(core.shape[2:])
            u, v = u.t(), torch.einsum("pq...,qi->pi...", core, v)
        v = v.flatten(1)
    rows, columns = w1.shape
    if columns <= rows:
        up, down = torch.kron(w1, u), torch.kron(torch.eye(columns), v)
    else:
        up, down = torch.kron(torch.eye(rows), u), torch.kron(w1, v)
    return Factors(up * strength, down, kernel)


def _norm(parts: Parts) -> float:
    """|kron(W1, W2)| = |W1| |W2|."""
    strength = 1.0
    if LOKR_W1 in parts:
        first = tensor_norm(parts[LOKR_W1])
    else:
        first = product_norm(parts[LOKR_W1_A], parts[LOKR_W1_B])
        strength = scale(parts, parts[LOKR_W1_B].shape[0])
    if LOKR_W2 in parts:
        return abs(strength) * first * tensor_norm(parts[LOKR_W2])
    left, right = parts[LOKR_W2_A], parts[LOKR_W2_B].flatten(1)
    second = tucker_norm(parts[LOKR_T2], left, right) if LOKR_T2 in parts else product_norm(left, right)
    return abs(scale(parts, right.shape[0])) * first * second


def rebuilt_tucker(core: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """[out, in, *kernel] of a Tucker core [rank, rank, *kernel], left [rank, out] and right [rank, in]."""
    return torch.einsum("pq...,po,qi->oi...", core, left, right)


LOKR = AdapterKind(
    "LoKr",
    found=lambda parts: any(part in parts for part in _PARTS),
    matrices=_PARTS,
    needs={
        LOKR_W1_A: (LOKR_W1_B,),
        LOKR_W1_B: (LOKR_W1_A,),
        LOKR_W2_A: (LOKR_W2_B,),
        LOKR_W2_B: (LOKR_W2_A,),
        LOKR_T2: (LOKR_W2_A,),
    },
    either=((LOKR_W1, LOKR_W1_A), (LOKR_W2, LOKR_W2_A)),
    pairs=(Pair(LOKR_W1_A, LOKR_W1_B, tucker=LOKR_T2), Pair(LOKR_W2_A, LOKR_W2_B, tucker=LOKR_T2)),
    rank=(LOKR_W2_B, LOKR_W1_B),
    shape=_shape,
    factors=_factors,
    norm=_norm,
)
