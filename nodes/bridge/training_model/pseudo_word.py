"""Pseudo-words: the encoders of a text encoder, their embedding tables, and a clone that knows one more word."""

from __future__ import annotations

import copy
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any, TypeGuard, cast

import comfy.clip_model
import comfy.lora
import comfy.model_management
import comfy.sd1_clip
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ....training.embedding import ALL, CLIP_ONLY, Vocabulary
from ....training.errors import InputError

MakeVectors = Callable[[], Tensor]  # gives a pseudo-word's vectors [vectors, width], possibly with a graph


Encoders = dict[str, tuple[Any, nn.Module]]  # {embedding key: (tokenizer, text model)}


def text_encoders(clip, which: str = ALL) -> Encoders:
    """{embedding key: (tokenizer, text model)} of the encoders that a pseudo-word can be a row of.

    The key is the tokenizer's own, under which ComfyUI looks in an embedding file: clip_l, t5xxl, qwen3_4b, ...
    which: `CLIP_ONLY` leaves out all that are no CLIP. Raises `InputError` where there are none, and for Anima, which
    reads the numbers of T5's tokens beside the prompt's encoding: a vector has no number.
    """
    if any(kind.__name__ == "AnimaTEModel" for kind in type(clip.cond_stage_model).__mro__):
        raise InputError(
            "Anima reads the numbers of T5's tokens, and a pseudo-word has none, so ComfyUI cannot encode a prompt "
            "with one; train a LoRA with a trigger word"
        )
    found = {key: (tokenizer, model) for _, key, tokenizer, model in _pairs(clip)}
    if which == CLIP_ONLY:
        found = {key: one for key, one in found.items() if is_clip_model(one[1])}
    if not found:
        kind = type(clip.cond_stage_model).__name__
        if which == CLIP_ONLY:
            raise InputError(f"encoders is {CLIP_ONLY!r} and the text encoder ({kind}) holds no CLIP; choose {ALL!r}")
        raise InputError(
            f"the text encoder ({kind}) holds no table of words that ComfyUI's prompts read embeddings of; wire in "
            "another CLIP, or train a LoRA with a trigger word"
        )
    return found


def _pairs(clip) -> list[tuple[str, str, Any, nn.Module]]:
    """(attribute, embedding key, tokenizer, text model) of each encoder whose tokenizer and model ComfyUI pairs."""
    found = list[tuple[str, str, Any, nn.Module]]()
    for own, tokenizer in vars(clip.tokenizer).items():
        if isinstance(tokenizer, comfy.sd1_clip.SDTokenizer):
            # Some classes write "clip_" before the one name and not before the other (Wan, PixArt).
            for name in (own, own.removeprefix("clip_"), f"clip_{own}"):
                model = getattr(clip.cond_stage_model, name, None)
                if isinstance(model, comfy.sd1_clip.SDClipModel):
                    found.append((name, tokenizer.embedding_key, tokenizer, model))
                    break
    return found


def encoder_attributes(clip) -> dict[str, str]:
    """{embedding key: the attribute of `clip.cond_stage_model` that holds the text model}."""
    return {key: name for name, key, _, _ in _pairs(clip)}


def is_clip_model(model) -> TypeGuard[nn.Module]:
    """Whether `model` is one of ComfyUI's text models with a CLIP transformer in it."""
    return isinstance(getattr(model, "transformer", None), comfy.clip_model.CLIPTextModel)


def embedding_width(model) -> int:
    """How many numbers a word of one encoder has."""
    return model.transformer.get_input_embeddings().weight.shape[1]


def vocabulary(clip, model) -> Vocabulary:
    """The words of one encoder of the CLIP, as prompts read them.

    With the patches of the wire, such as those of a merge, whether they are loaded at present or not, and with the
    factor that the encoder's class multiplies a word with (Gemma).
    """
    layer = model.transformer.get_input_embeddings()
    table = layer.weight
    key = next(name for name, each in clip.cond_stage_model.named_parameters() if each is table)
    (weight, convert), *patches = clip.patcher.get_key_patches(key)[key]
    weight = weight.detach().to("cpu")  # detached, since ComfyUI moves the parameter itself
    if patches:
        weight = weight.to(torch.float32, copy=True)
        weight = comfy.lora.calculate_weight(patches, convert(weight, inplace=True).float(), key)
    else:
        weight = convert(weight, inplace=False)
    return Vocabulary(weight.dequantize() if isinstance(weight, QuantizedTensor) else weight, _scale_of(layer))


def _scale_of(layer: Any) -> float:
    """What an embedding layer multiplies its rows with, found by reading a table of ones in its place."""
    probe = copy.copy(layer)
    ones = nn.Parameter(torch.ones(1, layer.weight.shape[1]), requires_grad=False)
    vars(probe).update(_parameters={**layer._parameters, "weight": ones}, comfy_cast_weights=False)
    vars(probe).update(weight_function=[], bias_function=[], _forward_hooks={}, _forward_pre_hooks={}, padding_idx=None)
    vars(probe).pop("forward", None)
    with torch.no_grad():
        return float(probe(torch.zeros(1, dtype=torch.long), out_dtype=torch.float32).flatten()[0])


def embedding_table(clip, model) -> Tensor:
    """The vectors [words, width] of all words of one encoder, float32 on the CPU; see `vocabulary`."""
    words = vocabulary(clip, model)
    return words[list(range(words.words))]


def token_ids(tokenizer, text: str) -> list[int]:
    """The token ids of a text, without the start and end tokens."""
    ids = list(tokenizer.tokenizer(text)["input_ids"])[tokenizer.tokens_start :]
    return ids[:-1] if tokenizer.tokenizer_adds_end_token else ids


def clip_with_pseudo_word(clip, name: str, vectors: Mapping[str, MakeVectors]):
    """A clone of the CLIP in which `embedding:name` stands for `vectors`, without a file.

    vectors: for each encoder, by its embedding key. The others get the first of them, as from a file and without a
    gradient, and ComfyUI leaves out vectors of another width. Only this clone and its clones know the word: the
    tokenizers are copied and the user's are not changed.
    """
    out = clip.clone()
    out.tokenizer = copy.copy(clip.tokenizer)
    first = next(iter(vectors.values()))

    def detached() -> Tensor:
        return first().detach()

    for attribute, tokenizer in list(vars(clip.tokenizer).items()):
        if isinstance(tokenizer, comfy.sd1_clip.SDTokenizer):
            copied = copy.copy(tokenizer)
            if copied.embedding_directory is None:
                copied.embedding_directory = []  # ComfyUI reads `embedding:` only where there is a folder for it
            is_clip = is_clip_model(getattr(clip.cond_stage_model, attribute, None))
            vars(copied)["_try_get_embedding"] = partial(
                _get_embedding if is_clip else _get_comparable_embedding,
                name,
                vectors.get(tokenizer.embedding_key, detached),
                copied._try_get_embedding,
            )
            setattr(out.tokenizer, attribute, copied)
    return out


def knows_pseudo_word(clip, name: str) -> bool:
    """Whether a prompt for this CLIP reads `embedding:name` from the wire, by `clip_with_pseudo_word`."""
    for tokenizer in vars(clip.tokenizer).values():
        read = vars(tokenizer).get("_try_get_embedding") if isinstance(tokenizer, comfy.sd1_clip.SDTokenizer) else None
        while isinstance(read, partial) and read.func in (_get_embedding, _get_comparable_embedding):
            own, _, read = read.args
            if posixpath.normpath(own) == posixpath.normpath(name):
                return True
    return False


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


class _TokenVector(Tensor):
    """A vector among the numbers of tokens: it is equal to no number.

    Some of ComfyUI's tokenizers (Qwen-Image, HunyuanVideo) ask of each token whether it is the number of a picture's,
    which a plain tensor answers by one value for each of its numbers. What is computed of one is a plain tensor.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]
    __hash__ = Tensor.__hash__

    def __eq__(self, other: Any) -> Any:
        return False if isinstance(other, int) else torch.eq(self.as_subclass(Tensor), other)


class _TokenVectors:
    """Vectors [n, width] as the tokenizer reads them: their shape, and each as a token."""

    def __init__(self, vectors: Tensor) -> None:
        self._vectors, self.shape = vectors, vectors.shape

    def __getitem__(self, place: int) -> Tensor:
        return self._vectors[place].as_subclass(_TokenVector)


def _get_comparable_embedding(name: str, vectors: MakeVectors, original: Callable[[str], Any], text: str) -> tuple:
    """`_get_embedding` with vectors that tokenizers can compare with numbers."""
    found, *rest = _get_embedding(name, vectors, original, text)
    own = isinstance(found, Tensor) and found.ndim == 2
    return _TokenVectors(found) if own else found, *rest


def spaces_needed(clip, name: str) -> tuple[str, str]:
    """(" " or "", " " or ""): what a prompt needs before a word at its start, and behind one at its end.

    clip: one that knows `embedding:name`. ComfyUI reads a name after white space and up to white space only, and the
    templates of some language models set text right beside the prompt. Raises `InputError` where no place works.
    """
    text = f"embedding:{name}"
    wanted = _count_vectors(clip, f"a {text} here")
    if not wanted:
        raise InputError(
            f"ComfyUI's tokenizer ({type(clip.tokenizer).__name__}) finds no embedding in a prompt; train a LoRA with "
            "a trigger word"
        )
    before = "" if _count_vectors(clip, f"{text} here") == wanted else " "
    behind = "" if _count_vectors(clip, f"a {text}") == wanted else " "
    return before, behind


def _count_vectors(clip, text: str) -> int:
    """How many tokens of a prompt are vectors, over all encoders."""
    return sum(
        torch.is_tensor(token) for chunks in clip.tokenize(text).values() for chunk in chunks for token, *_ in chunk
    )


def not_from_files(clip, keys: Iterable[str]) -> str:
    """Why a prompt does not read a word of these encoders from a file; "" where it does.

    A word on the wire (`clip_with_pseudo_word`) is read all the same.
    """
    pairs = {key: (name, tokenizer) for name, key, tokenizer, _ in _pairs(clip)}
    without = [key for key in keys if key in pairs and pairs[key][1].embedding_directory is None]
    if without:
        return f"ComfyUI gives the tokenizer of {' and '.join(without)} no embeddings folder"
    probe = clip.clone()
    probe.tokenizer = copy.copy(clip.tokenizer)
    for attribute, tokenizer in list(vars(clip.tokenizer).items()):
        if isinstance(tokenizer, comfy.sd1_clip.SDTokenizer):
            copied = copy.copy(tokenizer)
            vector = torch.zeros(1, 2)
            vars(copied)["_try_get_embedding"] = partial(_get_embedding, "w", lambda v=vector: v, lambda _: None)
            setattr(probe.tokenizer, attribute, copied)
    try:
        probe.tokenize("a embedding:w here")
    except Exception:  # of any kind: it is ComfyUI's own code that fails on the vector of a file
        return f"ComfyUI's tokenizer ({type(clip.tokenizer).__name__}) fails on a prompt with an embedding's file"
    return ""


@cache
def _lookup() -> tuple[bool, bool]:
    """Whether this ComfyUI's `_try_get_embedding` gives three values, the name among them, and not two; whether a name
    ends at a bracket."""

    class NoFolders:
        embedding_directory, embedding_size, embedding_key = (), 1, "clip_l"

    result = comfy.sd1_clip.SDTokenizer._try_get_embedding(cast(comfy.sd1_clip.SDTokenizer, NoFolders), "word[x")
    return len(result) == 3, result[-1] != ""
