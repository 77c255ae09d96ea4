"""LoRA (Hu et al. 2021, arXiv 2106.09685), also of convolutions: W + alpha / rank * up down."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from ....training.layer_names.parts import ALPHA, DOWN, MID, PEFT_UP_BIAS, UP
from ..lowrank import Factors
from .kind import AdapterKind, Pair, Parts, scale
from .norms import product_norm, tucker_norm


def _shape(parts: Parts) -> tuple[int, int]:
    down, mid = parts[DOWN], parts.get(MID)
    inner = down[0].numel() if mid is None else down.flatten(1).shape[1] * prod(mid.shape[2:])
    return parts[UP].shape[0], inner


def _factors(parts: Parts) -> Factors:
    up, down = parts[UP], parts[DOWN]
    strength = scale(parts, down.shape[0])
    if MID in parts:  # Tucker: mid [r_up, r_down, *kernel]
        down = torch.einsum("pq...,qi->pi...", parts[MID], down.flatten(1))
    kernel = tuple(down.shape[2:])
    return Factors(up.flatten(1) * strength, down.flatten(1), kernel)


def _norm(parts: Parts) -> float:
    up, down = parts[UP].flatten(1), parts[DOWN].flatten(1)
    norm = product_norm(up, down) if MID not in parts else tucker_norm(parts[MID], up.t(), down)
    return abs(scale(parts, down.shape[0])) * norm


def parts_of(layer: str, delta: Factors) -> dict[str, Tensor]:
    """A delta as a layer of a LoRA file. alpha is the rank, so that the factors' product is the delta as it is."""
    up, down = delta.up, delta.down
    if delta.kernel:
        up = up.reshape(*up.shape, *[1] * len(delta.kernel))
        down = down.reshape(len(down), -1, *delta.kernel)
    return {
        layer + UP: up.contiguous(),
        layer + DOWN: down.contiguous(),
        layer + ALPHA: torch.tensor(float(delta.rank)),
    }


LORA = AdapterKind(
    "LoRA",
    found=lambda parts: UP in parts,
    matrices=(UP, DOWN, MID),
    needs={UP: (DOWN,), DOWN: (UP,), MID: (DOWN, UP), PEFT_UP_BIAS: (UP, DOWN)},
    pairs=(Pair(UP, DOWN, between=MID),),
    rank=(DOWN,),
    shape=_shape,
    factors=_factors,
    norm=_norm,
)
