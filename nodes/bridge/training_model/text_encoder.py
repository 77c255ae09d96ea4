"""ComfyUI's CLIP: a clone that knows a new word, and a private copy that gradients can flow through."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import comfy.clip_model
import comfy.lora
import comfy.model_management
import comfy.sd1_clip
import torch
from torch import Tensor, nn

from ....training.errors import InputError
from ..models.layers import is_linear
from .autograd_views import autocast_for, ordinary, refuse_evictable

_READABLE = (torch.float32, torch.float16, torch.bfloat16)  # of a table of words, without a copy in another type
Vectors = Callable[[], Tensor]  # gives [vectors, width], possibly with a graph


def encoders(clip) -> dict[str, tuple[Any, nn.Module]]:
    """{"clip_l": (tokenizer, text model)} for every CLIP encoder of the user's CLIP, by its embedding key.

    Raises `InputError` for a text encoder without CLIP: a pseudo-word is a row of CLIP's embedding table.
    """
    found = {}
    for name, tokenizer in vars(clip.tokenizer).items():
        model = getattr(clip.cond_stage_model, name, None)
        if isinstance(tokenizer, comfy.sd1_clip.SDTokenizer) and _is_clip(model):
            found[tokenizer.embedding_key] = (tokenizer, model)
    if not found:
        raise InputError(
            f"the text encoder ({type(clip.cond_stage_model).__name__}) holds no CLIP; a pseudo-word is a row of "
            "CLIP's table of "
            "words, so wire in a model with CLIP-L, -G or -H, or train a LoRA with a trigger word"
        )
    return found


def _is_clip(model) -> bool:
    return isinstance(getattr(model, "transformer", None), comfy.clip_model.CLIPTextModel)


def vocabulary(model) -> Tensor:
    """The embedding table [words, width] of one encoder, float32 on the CPU."""
    return model.transformer.get_input_embeddings().weight.detach().float().cpu()


def token_ids(tokenizer, text: str) -> list[int]:
    """The token ids of a text without start and end."""
    ids = tokenizer.tokenizer(text)["input_ids"][tokenizer.tokens_start :]
    return ids[:-1] if tokenizer.tokenizer_adds_end_token else ids


def clip_with_word(clip, name: str, vectors: Mapping[str, Vectors]):
    """A clone of the CLIP in which `embedding:name` stands for `vectors`, with no file.

    Only this clone and its clones know the word: the tokenizers are copied, the user's stay as they are.
    """
    out = clip.clone()
    out.tokenizer = copy.copy(clip.tokenizer)
    for attribute, tokenizer in list(vars(clip.tokenizer).items()):
        if isinstance(tokenizer, comfy.sd1_clip.SDTokenizer) and tokenizer.embedding_key in vectors:
            knowing = copy.copy(tokenizer)
            knowing._try_get_embedding = partial(
                _look_up, name, vectors[tokenizer.embedding_key], tokenizer._try_get_embedding
            )
            if knowing.embedding_directory is None:
                knowing.embedding_directory = []  # ComfyUI reads `embedding:` only where there is a folder for it
            setattr(out.tokenizer, attribute, knowing)
    return out


def _look_up(name: str, vectors: Vectors, otherwise, text: str):
    """As ComfyUI's own look-up: (vectors, the name found, what follows it in the prompt); older ones give no name."""
    first, *rest = text.split()
    word = first.strip(",")
    if word != name:
        return otherwise(text)
    leftover = " ".join(rest)
    found = (first,) if _look_up_gives_the_name() else ()
    return vectors(), *found, leftover if word == first else f"{first[len(word) :]} {leftover}"


@cache
def _look_up_gives_the_name() -> bool:
    class Nowhere:
        embedding_directory, embedding_size, embedding_key = (), 1, "clip_l"

    return len(comfy.sd1_clip.SDTokenizer._try_get_embedding(Nowhere, "word")) == 3


class TrainableText:
    """The user's text encoder as a private, frozen copy that gradients flow through. Made by `prepare_text_encoder`.

    model: the copy, whose layers may carry adapters.
    """

    def __init__(self, clip, model: nn.Module, device: torch.device, autocast):
        self._clip, self.model, self._device, self._autocast = clip, model, device, autocast

    def encode(self, prompts: Sequence[str], tokenizer) -> list[tuple[Tensor, dict[str, Any]]]:
        """[(context [1, tokens, width], {"pooled_output": ...})] of each prompt, with a graph to what is trained.

        tokenizer: a CLIP whose `tokenize` is asked; it may know words that the user's does not.
        """
        model = self.model
        model.reset_clip_options()
        if self._clip.layer_idx is not None:
            model.set_clip_options({"layer": self._clip.layer_idx})
        model.set_clip_options({"execution_device": self._device})
        tokens = [tokenizer.tokenize(prompt) for prompt in prompts]
        with self._autocast():
            if isinstance(model, comfy.sd1_clip.SD1ClipModel):
                return self._encode_rows(getattr(model, model.clip), [t[model.clip_name] for t in tokens])
            return [
                (cond, {"pooled_output": pooled})
                for cond, pooled in (model.encode_token_weights(t)[:2] for t in tokens)
            ]

    @staticmethod
    def _encode_rows(encoder, prompts: list[list[list[tuple]]]) -> list[tuple[Tensor, dict[str, Any]]]:
        # All chunks of all prompts in one call of the encoder; prompts here carry no weights.
        rows = [[token for token, _ in chunk] for chunks in prompts for chunk in chunks]
        context, pooled = encoder.encode(rows)[:2]
        out, at = [], 0
        for chunks in prompts:
            part = context[at : at + len(chunks)]  # [chunks, 77, width]
            out.append(
                (
                    part.reshape(1, -1, part.shape[-1]),
                    {"pooled_output": None if pooled is None else pooled[at : at + 1]},
                )
            )
            at += len(chunks)
        return out


@contextmanager
def prepare_text_encoder(clip, compute: torch.dtype | None) -> Iterator[TrainableText]:
    """The CLIP as it is on the wire, copied: its in-place sums would break a backward pass, the user's stays whole.

    Only the CLIP encoders are copied; a T5 beside them is the user's own.
    compute: the type of the matrix products, None for float32.
    """
    with torch.inference_mode(False), torch.enable_grad():
        patcher = _loaded(clip)
        own, device = patcher.model, patcher.load_device
        learning = {id(layer) for part in own.modules() if _is_clip(part) for layer in part.modules()}
        # Through other encoders (T5 and the like, often fp8 or quantised, and many times a CLIP's size) no gradient
        # flows:
        # theirs are used as they lie. The layers themselves, since ComfyUI gives some new tensors when it moves them.
        others = [layer for layer in own.modules() if id(layer) not in learning]
        known = {
            id(tensor): tensor for layer in others for tensor in (*layer._parameters.values(), *layer._buffers.values())
        }
        known |= {id(layer): layer for layer in others if not layer._modules}
        # A CLIP's weights are only read: the copy shares their memory where nothing can take it away. What it needs in
        # another type is replaced below, in the copy alone.
        shared = [
            weight
            for part in own.modules()
            if _is_clip(part)
            for weight in part.parameters()
            if weight.device.type == "cpu" and weight.dtype in _READABLE
        ]
        model = copy.deepcopy(
            own, known | {id(weight): nn.Parameter(ordinary(weight), requires_grad=False) for weight in shared}
        )
        parts = [part.requires_grad_(False).to(device) for part in model.modules() if _is_clip(part)]
        for layer in (layer for part in parts for layer in part.modules()):
            if getattr(layer, "_full_precision_mm", True) is False:
                layer._full_precision_mm = True  # quantised layers: rounding the activations has no gradient
            if isinstance(layer, (nn.Linear, nn.LayerNorm, nn.Embedding)):
                layer.comfy_cast_weights = False  # the weights have the type they are used in
                if isinstance(layer, nn.Embedding) and layer.weight.dtype in _READABLE:
                    layer.forward = partial(_rows, layer)
                    continue
                narrow = compute is not None and isinstance(layer, nn.Linear)
                layer.to(compute if narrow else torch.float32)
            if isinstance(layer, comfy.clip_model.CLIPLayer):
                layer.forward = partial(_out_of_place, layer)
        yield TrainableText(clip, model, device, autocast_for(device, compute))


def _loaded(clip):
    """The CLIP's patcher with its weights and what the wire patches into them in place.

    Under dynamic VRAM ComfyUI leaves the weights as the file has them and patches each when it is cast, into memory
    that
    its modules hold handles of, each freed by its last owner: neither survives a copy, so the CLIP is loaded anew.
    """
    if not clip.patcher.is_dynamic():
        return clip.load_model()
    refuse_evictable(clip.patcher, "CLIP", "CLIP")
    patcher = clip.patcher.clone(disable_dynamic=True)
    comfy.model_management.load_models_gpu([patcher])
    return patcher


ATTENTION = r".*encoder\.layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj|out_proj)"
TEXT_PREFIX = "text_encoders."  # ComfyUI's own name for a text encoder's layer is this and the layer's


def attention_layers(model: nn.Module) -> dict[str, nn.Module]:
    """{layer name: linear layer} of the CLIPs' attention: what a LoRA of theirs trains. Raises `InputError` without a
    CLIP."""
    found = {name: layer for name, layer in model.named_modules() if is_linear(layer) and re.fullmatch(ATTENTION, name)}
    if not found:
        raise InputError(
            f"train_text_encoder is on, and the text encoder ({type(model).__name__}) holds no CLIP, which alone "
            "is trained "
            "here; switch it off"
        )
    return found


def file_names(model: nn.Module) -> dict[str, dict[str, str]]:
    """{layer name: {"kohya": ..., "diffusers": ...}}: what LoRA files call each layer of ComfyUI's text encoder."""
    two = hasattr(model, "clip_l") and hasattr(model, "clip_g")
    starts = {"kohya": "lora_te1_" if two else "lora_te_", "diffusers": "text_encoder."}
    found: dict[str, dict[str, str]] = {}
    for name, key in comfy.lora.model_lora_keys_clip(model, {}).items():
        layer = key.removesuffix(".weight")
        for form, start in starts.items():
            second = start.replace("te1_", "te2_").replace("text_encoder.", "text_encoder_2.")
            if name.startswith((start, second)):
                found.setdefault(layer, {})[form] = name
    return found


def _rows(layer: nn.Embedding, ids: Tensor, **_) -> Tensor:
    """The words' vectors in float32, of a table that may be narrower: autocast on a CPU joins no float16 with
    others."""
    return nn.functional.embedding(ids, layer.weight).float()


def _out_of_place(layer, x: Tensor, mask=None, optimized_attention=None) -> Tensor:
    """A CLIP layer without `x +=`, which would overwrite what the backward pass needs. x: [B, tokens, width]."""
    x = x + layer.self_attn(layer.layer_norm1(x), mask, optimized_attention)
    return x + layer.mlp(layer.layer_norm2(x))
