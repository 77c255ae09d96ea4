"""The words that a LoRA's file carries beside its layers, see `training/bundles.py`: for a CLIP and in reports."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...training.bundles import OF_OUTPUT, bundled, check_bundle_name, key_for
from ...training.errors import InputError
from ...training.formats import trigger_words
from ..bridge.training_model.pseudo_word import (
    clip_with_pseudo_word,
    embedding_width,
    knows_pseudo_word,
    text_encoders,
)
from ..textual_inversion.names import check_name, prompt_word
from .named_lora import NamedLora


def words_of_wire(embedding: Any, name: str = "") -> dict[str, dict[str, Tensor]]:
    """{word: {encoder: vectors}} of what an embedding wire carries, and `name` for a word without one.

    Several words are {word: {encoder: vectors}} on the wire, a single one is {encoder: vectors}. Raises `InputError`
    for another object, and for a word without a name.
    """
    if not isinstance(embedding, Mapping) or not embedding:
        raise InputError("the embedding on the wire holds no vectors; wire in one of a trainer")
    if all(isinstance(parts, Mapping) for parts in embedding.values()):
        if name and len(embedding) > 1:
            raise InputError(
                f"embedding_name is {name!r} and the embedding holds {len(embedding)} words with names of their own: "
                f"{', '.join(embedding)}; leave embedding_name empty"
            )
        return {_written(name or word): dict(parts) for word, parts in embedding.items()}
    if not name:
        raise InputError(
            "the embedding on the wire has no name; give embedding_name the word that prompts say, such as my-cat"
        )
    return {_written(name): dict(embedding)}


def _written(name: str) -> str:
    """A word's name for a file. Raises `InputError` for one that prompts or other programs would read differently."""
    return check_bundle_name(check_name(name))


def with_words(
    lora: Mapping[str, Tensor], embedding: Any, name: str, key_format: str
) -> tuple[Mapping[str, Tensor], list[str]]:
    """(a LoRA with the words that its file is to carry, what the save node says of them).

    embedding: of the wire, or None; its words are added to those that the LoRA carries itself, and win over them. name:
    see `words_of_wire`. diffusers loads no file with a key that is not a LoRA's: in its format a file has the words of
    `embedding` alone, which are asked for.
    """
    if embedding is None and name:
        raise InputError(f"embedding_name is {name!r} and no embedding is wired in; wire one in, or leave it empty")
    wired = {} if embedding is None else words_of_wire(embedding, name)
    own = dict(lora.words) if isinstance(lora, NamedLora) else {}
    for_diffusers = key_format == "diffusers"
    words = wired if for_diffusers else own | wired
    remarks = [f"it carries {', '.join(map(prompt_word, words))}"] if words else []
    if words and for_diffusers:
        remarks.append("diffusers itself refuses a LoRA that carries a word: leave embedding unwired for it")
    if left := [word for word in own if word not in words]:
        remarks.append(f"without {', '.join(left)}, since diffusers refuses a LoRA that carries a word; wire it in")
    if isinstance(lora, NamedLora):
        return lora.carrying(words), remarks
    return {**lora, **bundled(words)}, remarks


def spoken(word: str) -> str | None:
    """The name by which a prompt can say a word of a file; None where nothing of its name can be said.

    OneTrainer's words are called as its captions say them, such as `<my-cat>`, and ComfyUI ends a name at `<`.
    """
    for name in (word, re.sub(r"[^\w-]+", "_", word.strip("<>[](){} ")).strip("_-")):
        try:
            return check_name(name)
        except InputError:
            continue
    return None


def prompt_words(lora: NamedLora) -> list[str]:
    """What prompts say for each word that the file carries: `embedding:NAME`."""
    return list(dict.fromkeys(prompt_word(name) for word in lora.words if (name := spoken(word))))


def words_to_say(loras: Iterable[NamedLora]) -> str:
    """The trigger words of LoRAs by their metadata, and the words that they carry, each once."""
    found: list[str] = []
    for lora in loras:
        told = trigger_words(lora.meta)
        named = re.split(r"[\s,]+", told)
        found += [text for text in (told, *(word for word in prompt_words(lora) if word not in named)) if text]
    return ", ".join(dict.fromkeys(found))


def describe_words(lora: NamedLora) -> list[str]:
    """A line for each word that the file carries; empty without any."""
    return [f"Carries the word {_called(word)}: {_sizes(parts)}." for word, parts in lora.words.items()]


def _called(word: str) -> str:
    name = spoken(word)
    if name is None:
        return f"{word!r}, which no prompt can say"
    return prompt_word(name) if name == word else f"{prompt_word(name)} (the file calls it {word!r})"


def _sizes(parts: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{key} {_count(tensor)}" for key, tensor in parts.items())


def _count(tensor: Tensor) -> str:
    count = tensor.shape[0] if tensor.ndim > 1 else 1
    return f"{count} vector{'s' if count != 1 else ''} of {tensor.shape[-1] if tensor.ndim else 1} numbers"


def clip_with_words(clip: Any, lora: NamedLora, carried_before: Sequence[str] = ()) -> tuple[Any, list[str]]:
    """(a clone of the CLIP that knows the words of the file, what the report says of them).

    clip: None where none is wired in. Without words the CLIP is handed through. carried_before: prompt words that an
    earlier LoRA of the same node has given the CLIP. What does not fit the CLIP is left out and named.
    """
    words = {word: parts for word, parts in lora.words.items() if spoken(word)}
    if not words:
        return clip, []
    if clip is None:
        return None, [
            f"The file carries {', '.join(prompt_words(lora))}; wire in a clip, and the clip that comes out knows it."
        ]
    known, lines = list[str](), list[str]()
    for word, parts in words.items():
        fits, unread, reason = _fitting(clip, parts)
        name = spoken(word) or word
        if not fits:
            lines.append(f"{prompt_word(name)} is left out: {reason}.")
            continue
        if prompt_word(name) in known:
            lines.append(f"Two words of the file are said {prompt_word(name)}; {word!r} counts.")
        if prompt_word(name) in carried_before:
            lines.append(f"{prompt_word(name)} is a word of an earlier LoRA too; this file's counts.")
        elif prompt_word(name) not in known and knows_pseudo_word(clip, name):
            lines.append(f"The clip that is wired in knows {prompt_word(name)} already; this file's counts.")
        clip = clip_with_pseudo_word(clip, name, {key: partial(torch.clone, tensor) for key, tensor in fits.items()})
        known.append(prompt_word(name))
        lines += [
            f"{prompt_word(name)} has {key} in the file, vectors for the encoder's output, which ComfyUI does not "
            "read: they are left out."
            for key in parts
            if key.endswith(OF_OUTPUT)
        ]
        lines += [
            f"{prompt_word(name)} has {_sizes({key: parts[key]})} in the file, which no encoder of this CLIP reads."
            for key in unread
        ]
    if known:
        lines.insert(0, f"The clip output knows {', '.join(dict.fromkeys(known))}, by the vectors in the file.")
    return clip, lines


def _fitting(clip: Any, parts: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str], str]:
    """One word for this CLIP: ({encoder: vectors [n, width], float32 on the CPU}, the file's keys that none reads, why
    there are no vectors)."""
    try:
        widths = {key: embedding_width(model) for key, (_, model) in text_encoders(clip).items()}
    except InputError as error:
        return {}, [], str(error)
    found: dict[str, Tensor] = {}
    read = set[str]()
    for key, width in widths.items():
        own = key_for(key, parts, widths)
        tensor = None if own is None else parts[own]
        if tensor is None or tensor.ndim not in (1, 2) or tensor.shape[-1] != width or not tensor.numel():
            continue
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor.float()).all()):
            return {}, [], f"{own} holds what is no finite number"
        found[key] = tensor.detach().float().cpu().reshape(-1, width)
        read.add(str(own))
    theirs = ", ".join(f"{key} ({width} numbers)" for key, width in widths.items())
    unread = [key for key in parts if key not in read and not key.endswith(OF_OUTPUT)]
    return found, unread, f"the file has {_sizes(parts)}, and this text encoder reads {theirs}"
