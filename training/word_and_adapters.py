"""A new word, or several, and the adapters that draw them, trained as one.

Known as pivotal tuning, after Roich et al. 2021, arXiv 2106.05744, who tune one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from .adapters import Adapter, AdapterSet
from .bundles import bundled, split_bundle
from .embedding import PseudoWord
from .optimizers import Group


class WordAndAdapters:
    """Both sets of parameters as one `Trainable` of `loop.py`. The adapters' groups come first.

    The state dict has the keys of a LoRA's file with a bundle: `<layer>.<part>` and `bundle_emb.<name>.<encoder>`.

    words: {name of a word: {encoder: name of its tensor in `word`}}; `word` holds the vectors of all. word_rate: their
    learning rate. word_steps: the steps after which they stay as they are. word_is_rare: whether a batch may lack a
    word, so that it gets no gradient.
    """

    def __init__(
        self,
        adapters: AdapterSet[Adapter],
        word: PseudoWord,
        words: Mapping[str, Mapping[str, str]],
        word_rate: float,
        word_steps: int,
        word_is_rare: bool,
    ):
        self.adapters, self.word, self._words = adapters, word, words
        self._word_rate, self._word_steps = word_rate, word_steps
        self._vectors = [parameter for parameters, _ in word.parameter_groups(word_rate) for parameter in parameters]
        self.optional_parameters = [*adapters.optional_parameters, *(self._vectors if word_is_rare else ())]

    def parameter_groups(self, learning_rate: float) -> list[Group]:
        return [*self.adapters.parameter_groups(learning_rate), *self.word.parameter_groups(self._word_rate)]

    def resting(self, steps_done: int) -> Sequence[nn.Parameter]:
        return self._vectors if steps_done >= self._word_steps else ()

    @property
    def is_limited(self) -> bool:
        return self.adapters.is_limited or self.word.is_limited

    def hold(self) -> None:
        self.adapters.hold()
        self.word.hold()

    def after_step(self) -> None:
        self.adapters.after_step()
        self.word.after_step()

    def state_dict(self) -> dict[str, Tensor]:
        vectors = self.word.state_dict()
        words = {name: {key: vectors[slot] for key, slot in slots.items()} for name, slots in self._words.items()}
        return {**self.adapters.state_dict(), **bundled(words)}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        layers, words = split_bundle(state_dict)
        self.word.load_state_dict(
            {slot: words[name][key] for name, slots in self._words.items() for key, slot in slots.items()}
        )
        self.adapters.load_state_dict(layers)
