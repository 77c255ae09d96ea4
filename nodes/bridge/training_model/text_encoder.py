"""ComfyUI's CLIP as a private copy that gradients can flow through, and the names of its layers."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol, cast

import comfy.clip_model
import comfy.lora
import comfy.model_management
import comfy.sd1_clip
import torch
from torch import Tensor, nn

from ....training.errors import InputError
from ....training.layer_names.spelling import text_encoder_forms
from ..forward_pass.differentiable import DifferentiableFunctions
from ..models.layers import is_linear
from .autograd_views import autocast_for, autograd_view, check_reloadable
from .learned_encoder import (
    backward_through,
    encode_without_padding,
    leaves_out_padding,
    move_private_parts,
    private_parts,
)
from .pseudo_word import encoder_attributes, is_clip_model

Encoded = tuple[Tensor, dict[str, Any]]  # context [1, tokens, width], the further fields of a CONDITIONING
_SHARED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # weights of these are shared with the user's CLIP


class _ClipModel(Protocol):
    """What ComfyUI's text encoders (`cond_stage_model`) have in common."""

    def reset_clip_options(self) -> None: ...
    def set_clip_options(self, options: dict[str, Any], /) -> None: ...
    def encode_token_weights(self, token_weight_pairs: Any, /) -> Any: ...


class TrainableTextEncoder:
    """The user's text encoder as a private, frozen copy that gradients flow through. Made by `prepare_text_encoder`.

    model: the copy, which computes on `device`; adapters may be attached to its layers.
    """

    def __init__(
        self,
        clip,
        model: nn.Module,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
        learned: bool = False,
    ):
        self._clip, self.model, self.device, self._autocast = clip, model, device, autocast
        self._learned = learned  # whether gradients flow through encoders that are no CLIP

    def encode(self, prompts: Sequence[str], tokenizer) -> list[Encoded]:
        """[(context [1, tokens, width], {"pooled_output": [1, width] or None, ...})] for each prompt, with a graph.

        Prompt weights, embeddings and clip skip act as in ComfyUI's own encoding.
        tokenizer: the CLIP that tokenizes; it may know pseudo-words that the user's does not.
        """
        model = cast(_ClipModel, self.model)
        model.reset_clip_options()
        if self._clip.layer_idx is not None:
            model.set_clip_options({"layer": self._clip.layer_idx})
        model.set_clip_options({"execution_device": self.device})
        # A large encoder is called once for each text that a batch has.
        texts = list(dict.fromkeys(prompts)) if self._learned else list(prompts)
        tokens = [tokenizer.tokenize(text) for text in texts]
        with self._autocast(), DifferentiableFunctions() if self._learned else nullcontext():
            if isinstance(model, comfy.sd1_clip.SD1ClipModel) and is_clip_model(getattr(model, model.clip)):
                return _encode_chunks(getattr(model, model.clip), [t[model.clip_name] for t in tokens])
            encoded = [_with_fields(*model.encode_token_weights(t)) for t in tokens]
        return [encoded[texts.index(prompt)] for prompt in prompts] if self._learned else encoded


def _with_fields(cond: Tensor, pooled: Tensor | None, further: Mapping[str, Any] | None = None) -> Encoded:
    """What `encode_token_weights` returns, with its fields named as ComfyUI's CONDITIONING names them."""
    return cond, {"pooled_output": pooled, **(further or {})}


def _encode_chunks(encoder, prompts: list[list[list[tuple]]]) -> list[Encoded]:
    """All 77-token chunks of all prompts in one call of the encoder.

    prompts: the (token, weight) pairs of each chunk of each prompt. A token of weight w is encoded as ComfyUI does it:
    as w (z - e) + e, with its encoding z and the encoding e of the empty prompt at the same place.
    """
    weights = torch.tensor([[weight for _, weight in chunk] for chunks in prompts for chunk in chunks])  # [rows, 77]
    rows = [[token for token, _ in chunk] for chunks in prompts for chunk in chunks]
    weighted = bool((weights != 1).any())
    if weighted:
        rows.append(comfy.sd1_clip.gen_empty_tokens(encoder.special_tokens, weights.shape[1]))
    context, pooled = encoder.encode(rows)[:2]  # [rows, 77, width], [rows, width]
    if weighted:
        context, empty = context[:-1], context[-1]
        factor = weights.to(context)[..., None]  # [rows, 77, 1]
        # A weight of 1 leaves the encoding as it is, to the bit.
        context = torch.where(factor == 1, context, factor * (context - empty) + empty)
    out: list[Encoded] = []
    start = 0
    for chunks in prompts:
        part = context[start : start + len(chunks)]  # [chunks, 77, width]
        first_pooled = None if pooled is None else pooled[start : start + 1]
        out.append((part.reshape(1, -1, part.shape[-1]), {"pooled_output": first_pooled}))
        start += len(chunks)
    return out


@contextmanager
def prepare_text_encoder(
    clip, compute: torch.dtype | None, learned: Collection[str] = (), checkpointing: bool | None = None
) -> Iterator[TrainableTextEncoder]:
    """The CLIP as it is on the wire, copied, with gradients able to flow through its CLIP encoders.

    A copy, since CLIP's in-place sums would break the backward pass and the user's CLIP must not change. Other encoders
    beside them (T5) are the user's own. compute: the dtype of the matrix products, None for float32. learned: the
    embedding keys of further encoders that gradients flow through; they share their matrices with the user's.
    checkpointing: see `backward_through`. Raises `InputError` for a CLIP in which another node has replaced a function:
    the copy does not have it.
    """
    check_own_functions(clip)
    with torch.inference_mode(False), torch.enable_grad():
        patcher = _loaded_patcher(clip)
        device = patcher.load_device
        attributes = encoder_attributes(clip)
        names = [attributes[key] for key in learned if not is_clip_model(getattr(patcher.model, attributes[key]))]
        model = _private_copy(patcher.model, names, patcher.patches)
        parts = [part.requires_grad_(False).to(device) for part in model.modules() if is_clip_model(part)]
        for layer in (layer for part in parts for layer in part.modules()):
            _make_differentiable(layer, compute)
        encoders = [getattr(model, name) for name in names]
        for encoder in encoders:
            move_private_parts(encoder, device)
            if leaves_out_padding(encoder):
                vars(encoder)["encode"] = partial(encode_without_padding, encoder)
        with backward_through(encoders, compute, checkpointing):
            yield TrainableTextEncoder(clip, model, device, autocast_for(device, compute), bool(encoders))


def check_own_functions(clip) -> None:
    """Raise `InputError` where another node has replaced a function of the CLIP, such as NegPip its token weights."""
    replaced = sorted(name for name, value in clip.patcher.object_patches.items() if callable(value))
    if replaced:
        raise InputError(
            f"the CLIP carries a function of another node in the place of {replaced[0]}, which a training of the text "
            "encoder or of a word cannot compute as sampling does; wire the CLIP from before that node into the "
            "trainer, or train a LoRA with train_text_encoder off"
        )


def _private_copy(source: nn.Module, learned: Sequence[str] = (), patches: Collection[str] = ()) -> nn.Module:
    """A deep copy of the CLIP encoders in `source`; other encoders and read-only weights stay shared.

    learned: the attributes of other encoders that gradients flow through. patches: the names of patched weights.
    """
    parts = [part for part in source.modules() if is_clip_model(part)]
    trainable = {id(layer) for part in parts for layer in part.modules()}
    patched = {source.get_submodule(name.rpartition(".")[0]) for name in patches}
    shared_layers, replaced = list[nn.Module](), dict[int, nn.Parameter]()
    for name in learned:
        part = getattr(source, name)
        layers, parameters = private_parts(part, patched)
        shared_layers += layers
        replaced |= parameters
        trainable |= {id(layer) for layer in part.modules()} - {id(layer) for layer in layers}
    # No gradient flows through other encoders (T5 and the like, often fp8 or quantised, and many times a CLIP's size),
    # so they are used as they are. Leaf layers are shared too and not only their tensors, since ComfyUI gives some
    # layers new tensors when it moves them.
    others = [layer for layer in source.modules() if id(layer) not in trainable]
    memo: dict[int, Any] = {
        id(tensor): tensor for layer in others for tensor in (*layer._parameters.values(), *layer._buffers.values())
    }
    memo |= {id(layer): layer for layer in (*others, *shared_layers) if not layer._modules}
    # A CLIP's weights are only read: the copy shares their memory where nothing can take it away. What it needs in
    # another dtype is converted later, in the copy alone.
    shared = [
        weight
        for part in parts
        for weight in part.parameters()
        if weight.device.type == "cpu" and weight.dtype in _SHARED_DTYPES
    ]
    memo |= {id(weight): nn.Parameter(autograd_view(weight), requires_grad=False) for weight in shared}
    return copy.deepcopy(source, memo | replaced)


def _make_differentiable(layer: nn.Module, compute: torch.dtype | None) -> None:
    """Prepare one layer of the copy for autograd: the dtype that it computes in, and no operation in place."""
    attributes = vars(layer)
    if getattr(layer, "_full_precision_mm", True) is False:
        attributes["_full_precision_mm"] = True  # quantised layers: rounding the activations has no gradient
    if isinstance(layer, (nn.Linear, nn.LayerNorm, nn.Embedding)):
        attributes["comfy_cast_weights"] = False  # the weights have the dtype that they are used in
        if isinstance(layer, nn.Embedding) and layer.weight.dtype in _SHARED_DTYPES:
            attributes["forward"] = partial(_embed_in_float32, layer)
            return
        reduced = compute is not None and isinstance(layer, nn.Linear)
        layer.to(compute if reduced else torch.float32)
    if isinstance(layer, comfy.clip_model.CLIPLayer):
        attributes["forward"] = partial(_clip_layer_forward, layer)


def _loaded_patcher(clip):
    """The CLIP's patcher, loaded, with the patches of the wire in its weights.

    Under dynamic VRAM, ComfyUI keeps the weights as the file has them and patches each one when it is cast, into memory
    whose handles belong to the modules. Neither survives a copy, so the CLIP is loaded once more without dynamic VRAM.
    """
    if not clip.patcher.is_dynamic():
        # LTX 2's encoder counts the tokens of a prompt to say what memory it needs, and fails without any.
        counts = hasattr(clip.cond_stage_model, "memory_estimation_function")
        return clip.load_model(clip.tokenize("a photo")) if counts else clip.load_model()
    check_reloadable(clip.patcher, "CLIP", "CLIP")
    patcher = clip.patcher.clone(disable_dynamic=True)
    comfy.model_management.load_models_gpu([patcher])
    return patcher


ATTENTION = r".*encoder\.layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj|out_proj)"


def attention_layers(model: nn.Module) -> dict[str, nn.Module]:
    """{layer name: linear layer} of the CLIPs' attention, which a LoRA of the text encoder trains.

    Raises `InputError` without a CLIP.
    """
    found = {name: layer for name, layer in model.named_modules() if is_linear(layer) and re.fullmatch(ATTENTION, name)}
    if not found:
        raise InputError(
            f"train_text_encoder is on, and the text encoder ({type(model).__name__}) holds no CLIP, which alone "
            "is trained here; switch it off"
        )
    return found


def file_names(model: nn.Module) -> dict[str, dict[str, str]]:
    """{layer name: {"kohya": ..., "diffusers": ...}}: what LoRA files call each layer of ComfyUI's text encoder."""
    two = hasattr(model, "clip_l") and hasattr(model, "clip_g")
    return text_encoder_forms(comfy.lora.model_lora_keys_clip(model, {}), two)


def _embed_in_float32(layer: nn.Embedding, ids: Tensor, **_) -> Tensor:
    """The vectors of token ids in float32, from a table that may be narrower: autocast on the CPU does not join float16
    with other dtypes."""
    return nn.functional.embedding(ids, layer.weight).float()


def _clip_layer_forward(layer, x: Tensor, mask=None, optimized_attention=None) -> Tensor:
    """`CLIPLayer.forward` without `x +=`, which would overwrite what the backward pass needs. x: [B, tokens, width]."""
    x = x + layer.self_attn(layer.layer_norm1(x), mask, optimized_attention)
    return x + layer.mlp(layer.layer_norm2(x))
