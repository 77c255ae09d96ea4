"""Textual inversion (Gal et al. 2022, arXiv 2208.01618): a new word as vectors in the embedding space."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .errors import InputError
from .optimizers import Group
from .randomness import generator
from .tensors import length, to_list

INITS = ("words", "average", "noise")


class PseudoWord:
    """One float32 parameter [vectors, width] per text encoder: a `Trainable` of `loop.py`.

    start: the initial values by encoder. norm_limit: the largest length of a vector by encoder, or None.
    """

    def __init__(self, start: Mapping[str, Tensor], norm_limit: Mapping[str, float] | None, device: torch.device):
        self.vectors = {key: nn.Parameter(value.detach().clone().float().to(device)) for key, value in start.items()}
        self.norm_limit = norm_limit
        self.optional_parameters: list[nn.Parameter] = []

    def parameter_groups(self, learning_rate: float) -> list[Group]:
        return [(list(self.vectors.values()), learning_rate)]

    @property
    def is_limited(self) -> bool:
        return bool(self.norm_limit)

    def after_step(self) -> None:
        self.hold()

    @torch.no_grad()
    def hold(self) -> None:
        """Scale vectors that are longer than the limit to it: prompts cannot control a word far from the vocabulary."""
        for key, limit in (self.norm_limit or {}).items():
            vectors = self.vectors[key]
            vectors.mul_((limit / length(vectors, keepdim=True)).clamp(max=1.0))

    def state_dict(self) -> dict[str, Tensor]:
        return {key: value.detach() for key, value in self.vectors.items()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        for key, value in self.vectors.items():
            value.copy_(state_dict[key])


def start_vectors(table: Tensor, ids: list[int], vectors: int, init: str, seed: int) -> Tensor:
    """The initial vectors [vectors, width].

    table: the vocabulary [words, width]. ids: the tokens of the initial text. init: `words` takes its first `vectors`
    tokens and repeats them when there are fewer; `average` their mean; `noise` random directions with the median
    length of the vocabulary. Raises `InputError` for another init, or without the tokens that it needs.
    """
    if init == "noise":
        direction = torch.randn(vectors, table.shape[1], generator=generator(seed, "vectors"))
        return direction / length(direction, keepdim=True) * length(table).median()
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
    """[(token id, cosine)] of the `count` rows of `table` [words, width] nearest to `vector` [width]."""
    vector = vector.float()
    # Not `cosine_similarity`, which makes a normalised copy of the whole table.
    cosine = (table @ vector) / (length(table) * length(vector)).clamp(min=1e-8)
    top = cosine.topk(count)
    return list(zip(to_list(top.indices), to_list(top.values), strict=True))
