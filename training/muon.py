"""Muon for matrices, with AdamW for what is no matrix, as one optimiser."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


class MuonWithAdamW(Optimizer):
    """torch's Muon (2.9 and newer) on parameters of two dimensions of at least 2, and AdamW on all others.

    Muon's step has the same length in every direction of a matrix: the momentum is replaced by the nearest matrix with
    orthonormal rows or columns (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/). It is scaled by 0.2
    times the root of the longer side (Liu et al. 2025, arXiv 2502.16982, equation 4), so that a step is as long as one
    of AdamW and takes the same learning rate. A vector (DoRA's magnitude, a single word) and a convolution have no such
    matrix.

    The groups keep the order in which they are given; each has its own "lr". No weight decay.
    """

    def __init__(self, groups: list[dict[str, Any]]):
        super().__init__(groups, {})
        every = [parameter for group in self.param_groups for parameter in group["params"]]
        matrices = [parameter for parameter in every if _is_matrix(parameter)]
        others = [parameter for parameter in every if not _is_matrix(parameter)]
        self._parts: list[tuple[Optimizer, bool]] = []
        if matrices:
            muon = torch.optim.Muon(matrices, lr=0.0, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
            self._parts.append((muon, True))
        if others:
            self._parts.append((torch.optim.AdamW(others, lr=0.0, weight_decay=0.0), False))

    def step(self, closure: Any = None) -> Any:
        for part, of_matrices in self._parts:
            # Both write into the state of this optimiser, so that it is saved and restored as that of any other.
            part.state = self.state
            part.param_groups = [
                part.defaults | {"lr": group["lr"], "params": own}
                for group in self.param_groups
                if (own := [each for each in group["params"] if _is_matrix(each) == of_matrices])
            ]
            part.step()
        return None


def _is_matrix(parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and min(parameter.shape) > 1
