"""The settings of `BespokeTrainTextualInversion`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ...training.config import PRECISIONS, TrainConfig, check_choice, check_range
from ...training.embedding import ALL, ENCODERS, INITS
from ...training.errors import InputError
from ...training.sample_prompts import parse_sample_prompts
from ...training.stopping import STOPS as RULES
from .templates import TEMPLATES
from .words import Word, parse_words

PATIENT = "after 5 without a gain"  # `TrainConfig.patience` ends the run
STOPS = (PATIENT, *RULES)
ADDED = ("stop", "encoders")  # settings that version 0.1 lacks; they are written where they differ from their defaults


@dataclass(frozen=True)
class InversionRequest:
    """The settings of a textual inversion; see `trainer.TrainingRequest`.

    name: of the word, as in embedding:NAME, or several, one a line; see `parse_words`. init_text: the words whose
    vectors the training starts from. vectors: how many tokens a word has. encoders: one of `ENCODERS`, those of the
    CLIP that learn it. norm_limit: the largest norm of a vector, in units of the vocabulary's median norm; 0 is
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
    encoders: str = ALL

    def __post_init__(self) -> None:
        words = self.words
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
            ("encoders", self.encoders, ENCODERS),
        ):
            check_choice(name, value, choices)
        if len(words) > 1 and self.template != "captions":
            raise InputError(
                f"name lists {len(words)} words and template is {self.template!r}, which does not say which picture "
                f"shows which; set template to captions, and write {{{words[0].name}}} in them, or name one word"
            )

    @property
    def words(self) -> tuple[Word, ...]:
        """The words to learn."""
        return parse_words(self.name, self.init_text, self.vectors)

    @property
    def names(self) -> list[str]:
        """The names of several words; empty where there is one."""
        words = self.words
        return [word.name for word in words] if len(words) > 1 else []

    def settings(self) -> dict[str, Any]:
        """{widget name: value} of all settings but `resume`, and those that version 0.1 lacks at their defaults."""
        left_out = {"train", "resume"} | {name for name in ADDED if getattr(self, name) == getattr(type(self), name)}
        own = {k: v for k, v in asdict(self).items() if k not in left_out}
        return self.train.settings() | own
