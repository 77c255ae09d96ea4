"""LoHa (Hyeon-Woo et al. 2022, "FedPara", arXiv 2108.06098): W + alpha / rank * (A1 B1) * (A2 B2), elementwise."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from ....training.layer_names.parts import HADA_T1, HADA_T2, HADA_W1_A, HADA_W1_B, HADA_W2_A, HADA_W2_B
from ..lowrank import Factors, from_matrix
from .kind import AdapterKind, Pair, Parts, scale
from .norms import check_size, hadamard_norm

_HALVES = ((HADA_W1_A, HADA_W1_B, HADA_T1), (HADA_W2_A, HADA_W2_B, HADA_T2))


def _shape(parts: Parts) -> tuple[int, int]:
    shapes: set[tuple[int, int]] = set()
    for left, right, tucker in _HALVES:
        a, b, core = parts[left], parts[right], parts.get(tucker)
        shapes.add((a.shape[0], b.shape[1]) if core is None else (a.shape[1], b.shape[1] * prod(core.shape[2:])))
    return shapes.pop() if len(shapes) == 1 else (0, 0)


def _factors(parts: Parts) -> Factors:
    """(A1 B1) * (A2 B2) is the sum over pairs (p, q) of (a1_p * a2_q)(b1_p * b2_q): rank r^2."""
    strength = scale(parts, parts[HADA_W1_B].shape[0])
    (a1, b1), (a2, b2) = _sides(parts)
    kernel = tuple(parts[HADA_T2].shape[2:]) if HADA_T2 in parts else ()
    if a1.shape[1] * a2.shape[1] > min(a1.shape[0], b1.shape[1]):  # the delta itself is smaller than its factors
        delta = (a1 @ b1) * (a2 @ b2) * strength
        return from_matrix(delta.reshape(*delta.shape[:1], -1, *kernel))
    up = (a1[:, :, None] * a2[:, None, :]).flatten(1)
    down = (b1[:, None, :] * b2[None, :, :]).flatten(0, 1)
    return Factors(up * strength, down, kernel)


def _sides(parts: Parts) -> list[tuple[Tensor, Tensor]]:
    """(A [out, r], B [r, in * kernel]) of both halves."""
    sides: list[tuple[Tensor, Tensor]] = []
    for left, right, tucker in _HALVES:
        a, b = parts[left], parts[right]
        if tucker in parts:
            core = parts[tucker]  # [r, r, *kernel]; a [r, out], b [r, in]
            check_size(core.shape[0] * b.shape[1] * prod(core.shape[2:]))
            a, b = a.t(), torch.einsum("pq...,qi->pi...", core, b).flatten(1)
        sides.append((a, b))
    return sides


def _norm(parts: Parts) -> float:
    first, second = _sides(parts)
    return abs(scale(parts, parts[HADA_W1_B].shape[0])) * hadamard_norm(first, second)


LOHA = AdapterKind(
    "LoHa",
    found=lambda parts: HADA_W1_A in parts,
    matrices=(HADA_W1_A, HADA_W1_B, HADA_W2_A, HADA_W2_B, HADA_T1, HADA_T2),
    needs={
        HADA_W1_A: (HADA_W1_B, HADA_W2_A, HADA_W2_B),
        HADA_T1: (HADA_T2, HADA_W1_A),
        HADA_T2: (HADA_T1,),
    },
    pairs=(Pair(HADA_W1_A, HADA_W1_B, tucker=HADA_T1), Pair(HADA_W2_A, HADA_W2_B, tucker=HADA_T2)),
    strict=True,
    rank=(HADA_W1_B,),
    shape=_shape,
    factors=_factors,
    norm=_norm,
)
