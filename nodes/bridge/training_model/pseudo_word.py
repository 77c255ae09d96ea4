"""Pseudo-words: the CLIP encoders of a text encoder, their embedding tables, and a clone that knows one more word."""

from __future__ import annotations

import copy
import posixpath
import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, TypeGuard, cast

import comfy.clip_model
import comfy.lora
import comfy.model_management
import comfy.sd1_clip
import torch
from torch import Tensor, nn

from ....training.errors import InputError

MakeVectors = Callable[[], Tensor]  # gives a pseudo-word's vectors [vectors, width], possibly with a graph


def clip_encoders(clip) -> dict[str, tuple[Any, nn.Module]]:
    """{embedding key: (tokenizer, text model)} of every CLIP encoder, such as {"clip_l": ..., "clip_g": ...}.

    Raises `InputError` for a text encoder without CLIP: a pseudo-word is a row of CLIP's embedding table.
    """
    found: dict[str, tuple[Any, nn.Module]] = {}
    for name, tokenizer in vars(clip.tokenizer).items():
        model = getattr(clip.cond_stage_model, name, None)
        if isinstance(tokenizer, comfy.sd1_clip.SDTokenizer) and is_clip_model(model):
            found[tokenizer.embedding_key] = (tokenizer, model)
    if not found:
        raise InputError(
            f"the text encoder ({type(clip.cond_stage_model).__name__}) holds no CLIP; a pseudo-word is a row of "
            "CLIP's table of words, so wire in a model with CLIP-L, -G or -H, or train a LoRA with a trigger word"
        )
    return found


def is_clip_model(model) -> TypeGuard[nn.Module]:
    """Whether `model` is one of ComfyUI's text models with a CLIP transformer in it."""
    return isinstance(getattr(model, "transformer", None), comfy.clip_model.CLIPTextModel)


def embedding_width(model) -> int:
    """How many numbers a word of one encoder has."""
    return model.transformer.get_input_embeddings().weight.shape[1]


def embedding_table(clip, model) -> Tensor:
    """The embedding table [words, width] of one encoder of the CLIP, float32 on the CPU.

    It is the one that prompts read: with the patches of the wire, such as those of a merge, whether they are loaded at
    present or not.
    """
    table = model.transformer.get_input_embeddings().weight
    key = next(name for name, each in clip.cond_stage_model.named_parameters() if each is table)
    (weight, convert), *patches = clip.patcher.get_key_patches(key)[key]
    weight = comfy.model_management.cast_to_device(weight, torch.device("cpu"), torch.float32, copy=True)
    weight = convert(weight, inplace=True).float()
    return comfy.lora.calculate_weight(patches, weight, key) if patches else weight


def token_ids(tokenizer, text: str) -> list[int]:
    """The token ids of a text, without the start and end tokens."""
    ids = tokenizer.tokenizer(text)["input_ids"][tokenizer.tokens_start :]
    return ids[:-1] if tokenizer.tokenizer_adds_end_token else ids


def clip_with_pseudo_word(clip, name: str, vectors: Mapping[str, MakeVectors]):
    """A clone of the CLIP in which `embedding:name` stands for `vectors`, without a file.

    vectors: for each encoder, by its embedding key. The others get the first of them, as from a file, and ComfyUI
    leaves out vectors of another width. Only this clone and its clones know the word: the tokenizers are copied and the
    user's are not changed.
    """
    out = clip.clone()
    out.tokenizer = copy.copy(clip.tokenizer)
    first = next(iter(vectors.values()))
    for attribute, tokenizer in list(vars(clip.tokenizer).items()):
        if isinstance(tokenizer, comfy.sd1_clip.SDTokenizer):
            copied = copy.copy(tokenizer)
            vars(copied)["_try_get_embedding"] = partial(
                _get_embedding, name, vectors.get(tokenizer.embedding_key, first), tokenizer._try_get_embedding
            )
            if copied.embedding_directory is None:
                copied.embedding_directory = []  # ComfyUI reads `embedding:` only where there is a folder for it
            setattr(out.tokenizer, attribute, copied)
    return out


def _get_embedding(name: str, vectors: MakeVectors, original: Callable[[str], Any], text: str) -> tuple:
    """Replaces `SDTokenizer._try_get_embedding`: (vectors, the name found, the rest of the text).

    The word is found where ComfyUI finds a file of that name: up to a `[` or `<`, without commas around it, with
    `.safetensors` and `/` behind it. text: what follows `embedding:` in the prompt. original: the method for all
    other names. Older versions of ComfyUI expect no name in the result.
    """
    first, *rest = text.split()
    leftover = " ".join(rest)
    if _lookup()[1] and (cut := re.search(r"[<\[]", first)):
        leftover = first[cut.start() :] + (f" {leftover}" if leftover else "")
        first = first[: cut.start()]
    word = first.strip(",")
    if not word or posixpath.normpath(word).removesuffix(".safetensors") != posixpath.normpath(name):
        return original(text)
    found = (first,) if _lookup()[0] else ()
    return vectors(), *found, leftover if word == first else f"{first[len(word) :]} {leftover}"


@cache
def _lookup() -> tuple[bool, bool]:
    """Whether this ComfyUI's `_try_get_embedding` gives three values, the name among them, and not two; whether a name
    ends at a bracket."""

    class NoFolders:
        embedding_directory, embedding_size, embedding_key = (), 1, "clip_l"

    result = comfy.sd1_clip.SDTokenizer._try_get_embedding(cast(comfy.sd1_clip.SDTokenizer, NoFolders), "word[x")
    return len(result) == 3, result[-1] != ""
