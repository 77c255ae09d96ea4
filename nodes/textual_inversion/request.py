"""The settings of `BespokeTrainTextualInversion`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ...training.config import PRECISIONS, TrainConfig, check_choice, check_range
from ...training.embedding import INITS
from ...training.errors import InputError
from ...training.sample_prompts import parse_sample_prompts
from ...training.stopping import STOPS as RULES
from .names import check_name
from .templates import TEMPLATES

PATIENT = "after 5 without a gain"  # `TrainConfig.patience` ends the run
STOPS = (PATIENT, *RULES)


@dataclass(frozen=True)
class InversionRequest:
    """The settings of a textual inversion; see `trainer.TrainingRequest`.

    name: of the word, as in embedding:NAME. init_text: the words whose vectors the training starts from. vectors: how
    many tokens the word has. norm_limit: the largest norm of a vector, in units of the vocabulary's median norm; 0 is
    no limit. sample_prompt: see `sample_prompts`; `{word}` in it stands for the word, and an empty prompt is
    "a photo of {word}". stop: one of `STOPS`; others than `PATIENT` are also `train.stop`. Raises `InputError` for
    values out of range.
    """

    train: TrainConfig
    name: str
    init_text: str
    vectors: int = 1
    init: str = "words"
    template: str = "object"
    norm_limit: float = 0.0
    precision: str = "auto"
    sample_prompt: str = ""
    resume: bool = True
    stop: str = PATIENT

    def __post_init__(self) -> None:
        check_name(self.name)
        parse_sample_prompts(self.sample_prompt)
        if self.train.optimizer == "Muon":
            raise InputError("optimizer is Muon, which is for matrices, and a word is vectors; choose AdamW")
        check_range("vectors", self.vectors)
        check_range("norm_limit", self.norm_limit)
        for name, value, choices in (
            ("init", self.init, INITS),
            ("template", self.template, TEMPLATES),
            ("precision", self.precision, PRECISIONS),
            ("stop", self.stop, STOPS),
        ):
            check_choice(name, value, choices)

    def settings(self) -> dict[str, Any]:
        """{widget name: value} of all settings but `resume`, and of `stop`, which version 0.1 lacks, at its default."""
        left_out = {"train", "resume", *(["stop"] if self.stop == PATIENT else [])}
        own = {k: v for k, v in asdict(self).items() if k not in left_out}
        return self.train.settings() | own
