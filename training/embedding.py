"""Textual inversion (Gal et al. 2022, arXiv 2208.01618): a new word as vectors in the text encoder's embedding
space."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .errors import InputError
from .randomness import generator

INITS = ("words", "average", "noise")


class PseudoWord:
    """One float32 parameter [vectors, width] per text encoder; everything else is frozen.

    start: the first values by encoder. norm_limit: by encoder, the longest that a vector may grow, or None.
    """

    def __init__(self, start: Mapping[str, Tensor], norm_limit: Mapping[str, float] | None, device: torch.device):
        self.vectors = {key: nn.Parameter(value.detach().clone().float().to(device)) for key, value in start.items()}
        self.norm_limit = norm_limit
        self.idle: list[nn.Parameter] = []

    def groups(self, learning_rate: float) -> list[tuple[list[nn.Parameter], float]]:
        return [(list(self.vectors.values()), learning_rate)]

    @torch.no_grad()
    def after_step(self) -> None:
        """Scale vectors that grew past the limit back to it: far from the vocabulary a word obeys no prompt."""
        for key, limit in (self.norm_limit or {}).items():
            length = self.vectors[key].norm(dim=-1, keepdim=True)
            self.vectors[key].mul_((limit / length).clamp(max=1.0))

    def state_dict(self) -> dict[str, Tensor]:
        return {key: value.detach().to("cpu", copy=True) for key, value in self.vectors.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for key, value in self.vectors.items():
            value.copy_(state[key])


def start_vectors(table: Tensor, ids: list[int], vectors: int, init: str, seed: int) -> Tensor:
    """[vectors, width]: where the word begins.

    table: the vocabulary [words, width]. ids: tokens of the starting text. `words` takes its first `vectors` tokens
    and repeats them when there are fewer; `average` their mean; `noise` a random direction at the vocabulary's median
    length.
    """
    if init == "noise":
        direction = torch.randn(vectors, table.shape[1], generator=generator(seed, "vectors"))
        return direction / direction.norm(dim=-1, keepdim=True) * table.norm(dim=-1).median()
    if not ids:
        raise InputError(
            "init_text is empty; write a word or two that are near to what is learned, or set init to noise"
        )
    if init == "words":
        return table[[ids[i % len(ids)] for i in range(vectors)]].clone()
    if init == "average":
        return table[ids].mean(0, keepdim=True).repeat(vectors, 1)
    raise InputError(f"init is {init!r}; choose one of {', '.join(INITS)}")


def nearest_words(vector: Tensor, table: Tensor, count: int = 5) -> list[tuple[int, float]]:
    """[(token id, cosine)] of the vocabulary's rows nearest to `vector` [width]."""
    vector = vector.float()
    # A product and lengths, where `cosine_similarity` would make a normalised copy of the whole table.
    cosine = (table @ vector) / (table.norm(dim=-1) * vector.norm()).clamp(min=1e-8)
    top = cosine.topk(count)
    return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
