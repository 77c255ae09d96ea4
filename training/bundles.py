"""Words in a LoRA's file: tensors `bundle_emb.<word>.<key>` beside the layers.

The form is that of stable-diffusion-webui (pull request 13568), which OneTrainer and hcp-diffusion write too. The key
is the one that the tensor has in a file of the word alone: `clip_l`, `clip_g` and so on by encoder, or
`string_to_param.*` or `emb_params` where the encoder is not named. Some programs leave the key out
(`bundle_emb.<word>`, the bundle converter of sd-ext); that is read as `emb_params`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from .errors import InputError

PREFIX = "bundle_emb."
NAMELESS = ("string_to_param.*", "emb_params")  # keys of a tensor that any encoder of its width reads
OF_OUTPUT = "_out"  # ends OneTrainer's keys of vectors that replace the encoder's output; no prompt reader has them
# OneTrainer's keys of encoders, with which ComfyUI's own begin: t5 and t5xxl, gemma and gemma2_2b, qwen and qwen25_7b.
SHORT = ("t5", "gemma", "qwen", "llama")
_LIST = ".string_to_param."

Words = Mapping[str, Mapping[str, Tensor]]  # {word: {key: vectors [n, width]}}


def split_bundle(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """(the layers, {word: {key: vectors}}) of a LoRA's tensors. Without a bundle the second is empty.

    Raises `InputError` for a key of a bundle that has no word, and where two keys are one part of a word.
    """
    layers: dict[str, Tensor] = {}
    words: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if not key.startswith(PREFIX):
            layers[key] = tensor
            continue
        word, part = _word_and_key(key)
        parts = words.setdefault(word, {})
        if part in parts:
            raise InputError(
                f"the file has the vectors of {word!r} twice, as {key} and {PREFIX}{word}.{part}; take one of them out"
            )
        parts[part] = tensor
    return layers, words


def _word_and_key(key: str) -> tuple[str, str]:
    """(word, key of the tensor) of a key of a bundle. A word may have dots in its name.

    A key that is left out is `emb_params`. Raises `InputError` where there is no word.
    """
    rest = key.removeprefix(PREFIX)
    word, found, part = rest.rpartition(_LIST)
    if found:
        part = _LIST.removeprefix(".") + part
    else:
        word, found, part = rest.rpartition(".")
    if not found:
        word, part = rest, NAMELESS[-1]
    if not word or not part:
        raise InputError(
            f"the file has the tensor {key}, which is a word without a name or without a key "
            f"({PREFIX}NAME.clip_l is a whole one); fetch the file again, or save it anew where it was made"
        )
    return word, part


def key_for(encoder: str, parts: Mapping[str, Tensor], encoders: Collection[str]) -> str | None:
    """The key among a word's `parts` that the encoder reads; None where there is none.

    Its own; else OneTrainer's, see `SHORT`; else another CLIP's that none of `encoders` has, since OneTrainer has
    written Flux's CLIP-L as `clip_g` (its issue 514); else a nameless one. The caller compares the widths.
    """
    other = [key for key in parts if key.startswith("clip_") and encoder.startswith("clip_") and key not in encoders]
    short = [key for key in SHORT if encoder.startswith(key)]
    wanted = (encoder, *short, *(key for key in other if not key.endswith(OF_OUTPUT)), *NAMELESS)
    return next((key for key in wanted if key in parts), None)


def check_bundle_name(word: str) -> str:
    """The word. Raises `InputError` for a name that the programs which read bundles would cut."""
    if not word or "." in word:
        raise InputError(
            f"the word's name in a LoRA's file is {word!r}, and programs read it up to the first dot; give a name "
            "without one, such as my-cat"
        )
    return word


def bundled(words: Words) -> dict[str, Tensor]:
    """{key in the file: vectors} of words."""
    return {f"{PREFIX}{word}.{key}": tensor for word, parts in words.items() for key, tensor in parts.items()}
