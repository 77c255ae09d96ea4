"""The settings of `BespokeTrainWordAndLora`."""

from __future__ import annotations

from dataclasses import dataclass

from ...training.bundles import check_bundle_name
from ...training.config import check_range
from ...training.embedding import ALL
from ...training.errors import InputError
from ...training.optimizers import OPTIMIZERS
from ..lora.training.request import LoraRequest
from ..textual_inversion.request import InversionRequest

NEEDS_A_RATE = "choose AdamW, whose groups have rates of their own"


@dataclass(frozen=True)
class WordAndLoraRequest(LoraRequest):
    """The settings of a LoRA training and those of the word that its captions say as `{word}`.

    name, init_text, vectors, init, norm_limit, encoders: see `InversionRequest`. word_learning_rate: the highest of the
    words' vectors; the schedule is that of `train`. word_until: in 0..1, the share of the steps after which the words
    stay as they are. Raises `InputError` for values out of range, and for an optimiser that cannot have both rates.
    """

    name: str = "my-word"
    init_text: str = ""
    vectors: int = 1
    init: str = "words"
    norm_limit: float = 0.0
    word_learning_rate: float = 5e-3
    word_until: float = 1.0
    encoders: str = ALL

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("word_learning_rate", "word_until"):
            check_range(name, getattr(self, name))
        kind, optimizer = OPTIMIZERS[self.train.optimizer], self.train.optimizer
        if kind.finds_rate:
            raise InputError(
                f"optimizer is {optimizer}, which finds one learning rate, and a word and a LoRA learn at two that lie "
                f"far apart; {NEEDS_A_RATE}"
            )
        if self.word_until < 1.0 and not kind.has_schedule:
            raise InputError(
                f"word_until is {self.word_until:g} and optimizer is {optimizer}, which averages over all steps and so "
                "moves the word after the last one that trains it; set word_until to 1, or choose AdamW"
            )
        for name in self.word_names:
            check_bundle_name(name)

    @property
    def runs_text_encoder(self) -> bool:
        return True

    @property
    def word(self) -> InversionRequest:
        """The word's part, as its technique takes it."""
        return InversionRequest(
            self.train,
            self.name,
            self.init_text,
            self.vectors,
            self.init,
            template="captions",
            norm_limit=self.norm_limit,
            precision=self.precision,
            sample_prompt=self.sample_prompt,
            resume=self.resume,
            encoders=self.encoders,
        )

    @property
    def word_names(self) -> list[str]:
        """The names of the words, one or several."""
        return [word.name for word in self.word.words]

    @property
    def word_steps(self) -> int:
        """The steps after which the word stays as it is."""
        return round(self.word_until * self.train.steps)
