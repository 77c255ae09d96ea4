"""A whole difference of weights, and what norms and biases have beside any kind: parts of the weight's own shape."""

from __future__ import annotations

from ....training.layer_names.parts import DIFF, DIFF_BIAS, NORM_BIAS, NORM_WEIGHT, SET_WEIGHT, WHOLE_BIAS
from ..lowrank import from_matrix
from .kind import AdapterKind
from .norms import tensor_norm

OF_WEIGHT = (DIFF, SET_WEIGHT, NORM_WEIGHT)  # of the weight's shape; `SET_WEIGHT` replaces it
OF_BIAS = (DIFF_BIAS, NORM_BIAS, WHOLE_BIAS)  # of the bias' shape; `WHOLE_BIAS` replaces it

# Everything that is no other kind: last in the table.
FULL = AdapterKind(
    "full",
    found=lambda parts: True,
    factors=lambda parts: from_matrix(parts[DIFF]),
    norm=lambda parts: tensor_norm(parts[DIFF]),
)
