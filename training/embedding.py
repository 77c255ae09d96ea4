"""Textual inversion (Gal et al. 2022, arXiv 2208.01618): a new word as vectors in the embedding space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from .errors import InputError
from .optimizers import Group
from .randomness import generator
from .tensors import length, to_list

INITS = ("words", "average", "noise")
ALL, CLIP_ONLY = "all", "CLIP only"
ENCODERS = (ALL, CLIP_ONLY)  # which of a model's text encoders learn a word


class PseudoWord:
    """One float32 parameter [vectors, width] per text encoder: a `Trainable` of `loop.py`.

    start: the initial values by encoder. norm_limit: the largest length of a vector by encoder, or None. several:
    whether they are several words, of which a batch may say some only.
    """

    def __init__(
        self,
        start: Mapping[str, Tensor],
        norm_limit: Mapping[str, float] | None,
        device: torch.device,
        several: bool = False,
    ):
        self.vectors = {key: nn.Parameter(value.detach().clone().float().to(device)) for key, value in start.items()}
        self.norm_limit = norm_limit
        self.optional_parameters = list(self.vectors.values()) if several else []

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


class Vocabulary:
    """The vectors that the words of a text encoder have in prompts, read a part at a time.

    weight: the encoder's table [words, width] in the dtype that it is kept in. scale: what the encoder multiplies a row
    with when it reads it (Gemma: the root of the width). No float32 copy of the whole table is made, which would take
    4 GB for the largest vocabularies.
    """

    _ROWS = 1 << 16  # in one part; CLIP's 49408 words are one part

    def __init__(self, weight: Tensor, scale: float = 1.0) -> None:
        self._weight, self.scale = weight, scale
        self.words, self.width = weight.shape
        self._lengths: Tensor | None = None

    def __getitem__(self, ids: list[int]) -> Tensor:
        """The vectors [n, width] of token ids, float32."""
        return self._read(self._weight[ids])

    def _read(self, rows: Tensor) -> Tensor:
        rows = rows.float()
        return rows if self.scale == 1 else rows * self.scale

    def _parts(self) -> Iterator[Tensor]:
        """The rows in order, float32."""
        for start in range(0, self.words, self._ROWS):
            yield self._read(self._weight[start : start + self._ROWS])

    @property
    def lengths(self) -> Tensor:
        """The L2 norm [words] of each word's vector."""
        if self._lengths is None:
            self._lengths = torch.cat([length(part) for part in self._parts()])
        return self._lengths

    @property
    def median(self) -> float:
        """The median L2 norm of the vocabulary."""
        return float(self.lengths.median())

    def cosines(self, vector: Tensor) -> Tensor:
        """The cosine [words] of the angle between `vector` [width] and each word."""
        vector = vector.float()
        products = torch.cat([part @ vector for part in self._parts()])
        # Not `cosine_similarity`, which makes a normalised copy of the whole table.
        return products / (self.lengths * length(vector)).clamp(min=1e-8)


def _vocabulary(table: Tensor | Vocabulary) -> Vocabulary:
    return table if isinstance(table, Vocabulary) else Vocabulary(table)


def start_vectors(table: Tensor | Vocabulary, ids: list[int], vectors: int, init: str, seed: int | str) -> Tensor:
    """The initial vectors [vectors, width].

    table: the vocabulary [words, width]. ids: the tokens of the initial text. init: `words` takes its first `vectors`
    tokens and repeats them when there are fewer; `average` their mean; `noise` random directions with the median
    length of the vocabulary. Raises `InputError` for another init, or without the tokens that it needs.
    """
    words = _vocabulary(table)
    if init == "noise":
        direction = torch.randn(vectors, words.width, generator=generator(seed, "vectors"))
        return direction / length(direction, keepdim=True) * words.lengths.median()
    if not ids:
        raise InputError(
            "init_text is empty; write a word or two that are near to what is learned, or set init to noise"
        )
    if init == "words":
        return words[[ids[i % len(ids)] for i in range(vectors)]].clone()
    if init == "average":
        return words[ids].mean(0, keepdim=True).repeat(vectors, 1)
    raise InputError(f"init is {init!r}; choose one of {', '.join(INITS)}")


def nearest_words(vector: Tensor, table: Tensor | Vocabulary, count: int = 5) -> list[tuple[int, float]]:
    """[(token id, cosine)] of the `count` rows of `table` [words, width] nearest to `vector` [width]."""
    top = _vocabulary(table).cosines(vector).topk(count)
    return list(zip(to_list(top.indices), to_list(top.values), strict=True))
