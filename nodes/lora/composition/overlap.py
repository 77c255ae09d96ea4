"""How far LoRAs change the same layers in the same or in opposite directions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ....training.layer_names.blocks import row_order


@dataclass(frozen=True)
class Overlap:
    """Inner products of n LoRAs' deltas, strengths included: by (row, column) of the overview, each [n, n]."""

    products: dict[tuple[str, str], Tensor]
    count: int

    def cosines(self, row: str | None = None, column: str | None = None) -> Tensor:
        """[n, n] over what lies in a row, in a column, or everywhere; nan where one of two has nothing there."""
        total = self._sum(row, column)
        norms = total.diagonal().clamp(min=0).sqrt()
        return total / (norms[:, None] * norms[None, :]).where(
            norms[:, None] * norms[None, :] > 0, torch.tensor(math.nan)
        )

    @property
    def total(self) -> Tensor:
        """The Gram matrix over all layers, [n, n]."""
        return self._sum(None, None)

    def _sum(self, row: str | None, column: str | None) -> Tensor:
        parts = [t for (r, c), t in self.products.items() if row in (None, r) and column in (None, c)]
        return sum(parts, torch.zeros(self.count, self.count, dtype=torch.float64))

    @property
    def rows(self) -> list[str]:
        return sorted({row for row, _ in self.products}, key=row_order)
