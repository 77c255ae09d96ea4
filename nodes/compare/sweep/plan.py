"""What a sweep draws: the LoRAs across, the strengths down, and the prompts as blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ....training.captions import says, without_words
from ....training.errors import InputError
from ....training.record import Run
from ....training.sample_prompts import lines_of, prompt_alone
from ....training.timestep_range import range_in
from ...bridge.files.listing import ENDING
from ...bridge.types import grown_values
from ...lora.files import as_named_lora, read_lora, saved_on_the_way
from ...lora.injection.request import STRENGTH
from ...lora.named_lora import NamedLora
from ...lora.training.request import fingerprint_of

MOST_STRENGTHS, MOST_PROMPTS, MOST_CELLS = 20, 20, 2000


@dataclass(frozen=True, eq=False)
class Column:
    """One LoRA of a sweep, or with None the model without a LoRA."""

    name: str
    lora: NamedLora | None = None

    @cached_property
    def key(self) -> str:
        """A text that tells what the LoRA does from what others do, computed once; "" without a LoRA."""
        if self.lora is None:
            return ""
        part = range_in(self.lora.meta)  # the LoRA acts there alone
        words = {f"{word}/{key}": vectors for word, parts in self.lora.words.items() for key, vectors in parts.items()}
        return fingerprint_of(self.lora) + fingerprint_of(words) + ("" if part.is_whole else f" {part!r}")


@dataclass(frozen=True)
class Row:
    """One row of a block. without_trigger: whether the trigger words are taken out of the block's prompt."""

    name: str
    prompt: str
    strength: float
    without_trigger: bool = False


@dataclass(frozen=True)
class Block:
    """The rows of one prompt."""

    prompt: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Plan:
    """columns: the model without a LoRA first. notes: what the report must say about the plan."""

    columns: Sequence[Column]
    blocks: Sequence[Block]
    notes: Sequence[str] = field(default_factory=list)

    @property
    def cells(self) -> int:
        """The number of pictures. The model without a LoRA has one for each prompt that differs."""
        own = sum(len(block.rows) for block in self.blocks) * (len(self.columns) - 1)
        return own + sum(len({row.prompt for row in block.rows}) for block in self.blocks)


def make_plan(loras: Sequence[Column], strengths: str, prompts: str, trigger: str) -> Plan:
    """The plan of a sweep.

    loras: the columns. strengths: numbers, separated by commas, spaces or lines. prompts: one a line, of which options
    of sample prompts, such as --w 768, are left out; without any the trigger words are the prompt. trigger: the words
    that call the LoRAs, several separated by commas. A prompt that has them gets a last row without them at the
    strength that is farthest from 0. Raises `InputError` for no column, for numbers that are no strengths, without a
    prompt, and for more cells than `MOST_CELLS`.
    """
    if not loras:
        raise InputError(
            "no LoRA is wired in; wire LoRAs into loras, or the run of a trainer whose save_every is above 0"
        )
    values = parse_strengths(strengths)
    lines = [line for line in lines_of(prompts) if line]
    alone = [prompt_alone(line) for line in lines]
    texts = [text for text in alone if text] or ([trigger] if trigger.strip() else [])
    if not texts:
        raise InputError(
            "prompts is empty, and the LoRA names no trigger words that could stand for it; type a prompt a line"
        )
    if len(texts) > MOST_PROMPTS:
        raise InputError(f"prompts has {len(texts)} lines; give {MOST_PROMPTS} at most")
    notes = list[str]()
    if alone != lines:
        notes.append(
            "prompts has options of sample prompts (--n, --w, --h, --d, --l, --s, --f). They are not used here: "
            "negative, width, height, seed, cfg and steps are inputs of this node."
        )
    blocks = [Block(text, _rows(text, values, trigger)) for text in dict.fromkeys(texts)]
    if not trigger.strip():
        notes.append("No trigger words are known, so there is no row without them: it is not shown what leaks.")
    elif without := [repr(block.prompt) for block in blocks if not block.rows[-1].without_trigger]:
        notes.append(f"{', '.join(without)}: says no trigger word ({trigger}), so it has no row without it.")
    plan = Plan([Column("without a LoRA"), *loras], blocks, notes)
    if plan.cells > MOST_CELLS:
        raise InputError(
            f"this sweep has {plan.cells:,} pictures ({len(loras)} LoRAs, {len(values)} strengths, {len(blocks)} "
            f"prompts); give at most {MOST_CELLS:,}"
        )
    return plan


def _rows(prompt: str, strengths: Sequence[float], trigger: str) -> list[Row]:
    rows = [Row(f"strength {value:g}", prompt, value) for value in strengths]
    plain = without_triggers(prompt, trigger)
    if plain != prompt:
        strongest = max(strengths, key=abs)
        rows.append(Row(f"without the trigger, strength {strongest:g}", plain, strongest, without_trigger=True))
    return rows


def parse_strengths(text: str) -> list[float]:
    """The numbers of a text, each once, in its order. Raises `InputError` for what is no strength."""
    values = list[float]()
    for word in text.replace(",", " ").replace(";", " ").split():
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not STRENGTH["min"] <= value <= STRENGTH["max"]:
            raise InputError(
                f"strengths has {word!r}; give numbers from {STRENGTH['min']:g} to {STRENGTH['max']:g}, such as "
                "0.6, 0.8, 1"
            )
        values.append(value)
    values = list(dict.fromkeys(values))
    if not values:
        raise InputError("strengths is empty; give numbers, such as 0.6, 0.8, 1")
    if len(values) > MOST_STRENGTHS:
        raise InputError(f"strengths has {len(values)} numbers; give {MOST_STRENGTHS} at most")
    return values


def without_triggers(prompt: str, trigger: str) -> str:
    """The prompt without the trigger words; as it is where it says none. trigger: several are separated by commas.

    "" where one stands there in a spelling that is not found: see `without_words`.
    """
    phrases = sorted((phrase.strip() for phrase in trigger.split(",") if phrase.strip()), key=len, reverse=True)
    for phrase in phrases:  # the longer first: "ohwx woman" before "ohwx"
        if says(prompt, phrase):
            prompt = without_words(prompt, phrase)
    return prompt


def columns_of(run: Run | None, loras: Mapping[str, Any] | None) -> list[Column]:
    """The columns of a node's inputs: the files that a run saved on the way, by their steps, then the wired LoRAs.

    Raises `InputError` for a run that saved none, and for what is no LoRA.
    """
    columns = list[Column]()
    if run is not None:
        saved = saved_on_the_way(run.id)
        if not saved:
            raise InputError(
                f"the run {run.id} saved no LoRA on the way: its files would be in the loras folder under "
                "bespoke/runs; train with save_every above 0, or wire LoRAs into loras"
            )
        columns += [Column(f"step {step}", read_lora(path)) for step, path in saved]
    for number, value in enumerate(grown_values(loras), 1):
        lora = as_named_lora(value)
        name = f"lora {number}" if lora.name == "the LoRA on the wire" else lora.name.removesuffix(ENDING)
        names = [column.name for column in columns]
        columns.append(Column(f"{name} ({number})" if name in names else name, lora))
    return columns


def trigger_of(run: Run | None, columns: Sequence[Column]) -> str:
    """The words that call the LoRAs: the run's, else those in the files' metadata, each once."""
    if run is not None and run.info.trigger:
        return run.info.trigger
    metas = [column.lora.meta for column in columns if column.lora is not None]
    return ", ".join(
        dict.fromkeys(meta["modelspec.trigger_phrase"] for meta in metas if meta.get("modelspec.trigger_phrase"))
    )
