"""GLoRA (Chavan et al. 2023, arXiv 2306.07967): W + W A1 A2 + B1 B2, which depends on the base's weight."""

from __future__ import annotations

from ....training.layer_names.parts import GLORA_A1, GLORA_A2, GLORA_B1, GLORA_B2
from .kind import AdapterKind, Parts

_PARTS = (GLORA_A1, GLORA_A2, GLORA_B1, GLORA_B2)


def _shape(parts: Parts) -> tuple[int, int]:
    """A1 [in, r], A2 [r, in], B1 [out, r], B2 [r, in, *kernel]; old files mean W A2 A1 + B2 B1."""
    a1, a2, b1, b2 = (parts[part] for part in _PARTS)
    if b2.shape[0] == b1.shape[1] == a1.shape[1] == a2.shape[0] and b2.shape[1] == a1.shape[0] == a2.shape[1]:
        return b1.shape[0], b2[0].numel()
    if b2.shape[1] == b1.shape[0] == a1.shape[0] == a2.shape[1] and b1.shape[1] == a2.shape[0] == a1.shape[1]:
        return b2.shape[0], b1[0].numel()
    return 0, 0


GLORA = AdapterKind(
    "GLoRA",
    found=lambda parts: GLORA_A1 in parts,
    matrices=_PARTS,
    needs={GLORA_A1: (GLORA_A2, GLORA_B1, GLORA_B2)},
    shape=_shape,
)
