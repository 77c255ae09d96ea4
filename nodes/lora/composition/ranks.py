"""The rank that a layer gets, by what is kept of its singular values.

`sv_fro` and `sv_ratio` are the definitions of kohya's sd-scripts (`networks/resize_lora.py`, `--dynamic_method`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ....training.errors import InputError
from ..lowrank import least_rank

KINDS = ("energy", "sv_fro", "sv_ratio")
MOST_RATIO = 10_000.0


def check_share(share: float, kind: str) -> None:
    """Raises `InputError` for a number that `rank_by` has no meaning for."""
    if kind == "sv_ratio":
        if not 1.0 <= share <= MOST_RATIO:
            raise InputError(
                f"energy is {share:g}, and with energy_kind sv_ratio it is how many times smaller than a layer's "
                f"largest singular value the smallest may be; give 1 to {MOST_RATIO:g}, such as 20"
            )
    elif not 0.0 < share <= 1.0:
        raise InputError(f"energy is {share:g}; with energy_kind {kind} give a share above 0, up to 1, or 0 for off")


def rank_by(values: Tensor, share: float, kind: str) -> int:
    """The least rank of a layer that keeps what is asked for, at least 1.

    values: the layer's singular values s, falling, [n]. energy: the sum of the squares s^2 that are kept is `share` of
    all. sv_fro: the Frobenius norm of what is kept is `share` of the whole, so the squares are share^2. sv_ratio: all s
    above the largest over `share` are kept.
    """
    s = values.double()
    if not len(s) or float(s[0]) <= 0.0 or not math.isfinite(float(s[0])):
        return 1
    if kind == "sv_ratio":
        return max(1, int((s > s[0] / share).sum()))
    wanted = share if kind == "energy" else share**2
    squares = s**2
    total = float(squares.cumsum(0)[-1])
    # Rounding must not ask for values that are none.
    enough = least_rank(squares, wanted * total * (1 - 1e-12)) or len(s)
    return min(enough, int(torch.count_nonzero(s > s[0] * 1e-7)))
