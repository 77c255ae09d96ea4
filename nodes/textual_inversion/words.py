"""The words of one training: parsed from the widget, said in captions, and as tensors on the wire and in files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...training.config import check_range
from ...training.errors import InputError
from .names import check_name, prompt_word
from .templates import WORD

Embedding = Mapping[str, Tensor] | Mapping[str, Mapping[str, Tensor]]  # {encoder: vectors}, or {name: {encoder: ...}}
_JOIN = ":"  # between the name and the encoder of a trained tensor; a name cannot hold it
# What may stand right behind a name: commas, the end of a bracket, and the bracket's weight.
_ENDS_A_NAME = re.compile(r",*(?:\s|$|\)|:[-+.\d]+\))")


@dataclass(frozen=True)
class Word:
    """One word to learn. init_text: what its vectors begin at. vectors: how many it has."""

    name: str
    init_text: str
    vectors: int

    def slot(self, key: str, several: bool) -> str:
        """The name of the trained tensor for the encoder `key`: the key, with several words the word's name too."""
        return f"{self.name}{_JOIN}{key}" if several else key


def parse_words(text: str, init_text: str, vectors: int) -> tuple[Word, ...]:
    """The words of `name`, one a line: `cat`, `cat : a cat`, `cat : a cat : 4` or `cat : : 4`.

    init_text, vectors: for lines that do not give their own. Raises `InputError` for a name, a count or a repetition
    that cannot be used.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    words = [_parse_line(line, init_text, vectors) for line in lines or [text]]
    names = [word.name for word in words]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"name lists {name!r} twice; give each word a name of its own")
    if len(words) > 1 and "word" in names:
        raise InputError("name lists 'word', and captions say {word} for a single word; give it another name")
    return tuple(words)


def _parse_line(line: str, init_text: str, vectors: int) -> Word:
    name, *rest = (part.strip() for part in line.split(":"))
    count = vectors
    if len(rest) == 1 and rest[0].isdecimal():
        raise InputError(
            f"the line {line!r} of name begins at the text {rest[0]!r}; for {rest[0]} vectors write "
            f"'{name} : : {rest[0]}'"
        )
    if len(rest) > 1:
        if not rest[-1].isdecimal():
            raise InputError(
                f"the line {line!r} of name ends in {rest[-1]!r}, which is no count of vectors; write a line as "
                "'cat : a cat : 4'"
            )
        count = int(rest.pop())
        check_range("vectors", count, f" of {name!r}")
    return Word(check_name(name), ":".join(rest).strip() or init_text, count)


def say_words(text: str, words: Sequence[Word]) -> str:
    """The text with each `{name}` replaced by `embedding:name`, and `{word}` where there is one word.

    ComfyUI reads a name after white space or an opening bracket, and up to white space: in "a {cat}." it would look for
    a file called "cat." and leave the word out. A space is put between the name and what touches it otherwise.
    """
    spoken = {f"{{{word.name}}}": prompt_word(word.name) for word in words}
    if len(words) == 1:
        spoken[WORD] = prompt_word(words[0].name)

    def say(mark: re.Match[str]) -> str:
        before, behind = text[: mark.start()], text[mark.end() :]
        starts = not before or before[-1] in " \n" or (before[-1] == "(" and not before.endswith("\\("))
        return ("" if starts else " ") + spoken[mark[0]] + ("" if _ENDS_A_NAME.match(behind) else " ")

    return re.sub("|".join(map(re.escape, spoken)), say, text)


def prompt_words(names: Sequence[str]) -> str:
    """All words as one text for a prompt."""
    return ", ".join(map(prompt_word, names))


def on_wire(learned: Mapping[str, Tensor]) -> Embedding:
    """What was learned, as `BESPOKE_EMBEDDING` has it: {encoder: vectors}, of several words {name: {encoder: ...}}."""
    if not any(_JOIN in slot for slot in learned):
        return learned
    out: dict[str, dict[str, Tensor]] = {}
    for slot, tensor in learned.items():
        name, _, key = slot.rpartition(_JOIN)
        out.setdefault(name, {})[key] = tensor
    return out


def words_of(embedding: Embedding) -> dict[str, Mapping[str, Tensor]]:
    """{name: {encoder: vectors}}; the name of a single word, which has none on the wire, is "".

    Raises `InputError` for a mixture of both forms.
    """
    named = {name: each for name, each in embedding.items() if isinstance(each, Mapping)}
    single = {key: each for key, each in embedding.items() if isinstance(each, Tensor)}
    if (named and single) or not (named or single):
        raise InputError(
            f"the embedding on the wire holds {', '.join(map(str, embedding)) or 'nothing'}, which is neither one word "
            "nor several; wire in what Bespoke Train Textual Inversion gives"
        )
    return named or {"": single}


def named_by(prefix: str, embedding: Embedding) -> dict[str, Mapping[str, Tensor]]:
    """{what prompts call a word: {encoder: vectors}}: a single word by `prefix`, several by `full_name`.

    Raises `InputError` where two would have one name.
    """
    words = words_of(embedding)
    if len(words) == 1 and prefix:
        (word,) = words.values()
        return {prefix: word}
    named = {full_name(prefix, name): each for name, each in words.items()}
    if len(named) < len(words):
        raise InputError(
            f"two of the words {', '.join(words)} would both be called {', '.join(named)}; leave name empty, which "
            "keeps their own names, or train them under other names"
        )
    return named


def full_name(prefix: str, name: str) -> str:
    """What prompts call a word of `words_of`: the prefix for a single word, else both, joined by a hyphen."""
    own = name.replace("/", "-")
    return f"{prefix}-{own}" if prefix and own else prefix or own
