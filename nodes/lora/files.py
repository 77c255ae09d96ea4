"""LoRA files: read safely, their keys in ComfyUI's spelling, their parts checked; and what is written into one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import comfy.lora_convert
import torch
from torch import Tensor

from ...training.config import check_choice
from ...training.errors import InputError
from ...training.formats import DTYPES, from_diffusers, metadata, split_key, to_format
from ...training.plain_json import read_json
from ...training.record import Run
from ..bridge.files import writing as storage
from ..bridge.files.reading import read_safetensors


def as_file(
    lora: Mapping[str, Tensor],
    run: Run | None,
    title: str,
    key_format: str = "kohya",
    dtype: str = "fp16",
    graph: tuple = (None, None),
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of the file that a LoRA is saved as. Raises `InputError` for a format that there is not."""
    check_choice("dtype", dtype, list(DTYPES))
    tensors = {
        key: tensor.detach().to("cpu", DTYPES[dtype], copy=True)
        for key, tensor in to_format(lora, key_format, run.info.names if run else {}).items()
    }
    return tensors, metadata(lora, run, title, *graph)


def save_on_the_way(folder: Path, step: int, lora: Mapping[str, Tensor], run: Run, graph: tuple = (None, None)) -> None:
    """Write FOLDER/RUN-stepN.safetensors, a LoRA as it stands in mid-training."""
    path = folder / f"{run.id}-step{step:06}.safetensors"
    storage.write_safetensors(path, *as_file(lora, run, path.stem, dtype="fp32", graph=graph), overwrite=True)


class NamedLora(dict):
    """A LORA_MODEL, {key: tensor}, that knows its file's name and metadata. To ComfyUI's own nodes it is a dict."""

    def __init__(self, tensors: Mapping[str, Tensor], name: str, meta: Mapping[str, str]):
        super().__init__(tensors)
        self.name, self.meta = name, dict(meta)


def read_lora(path: Path) -> NamedLora:
    """A LoRA file under ComfyUI's key names. Raises `InputError` for what is damaged, hostile or no LoRA."""
    tensors, meta = read_safetensors(path, "LoRA")
    return in_comfy_names(tensors, path.name, meta)


def in_comfy_names(tensors: Mapping[str, Tensor], name: str, meta: Mapping[str, str]) -> NamedLora:
    """Any program's LoRA under the key names that ComfyUI maps, with its alphas, and with parts that fit together."""
    try:
        # PEFT keeps a convolution's magnitude as [1, out, 1, 1], the others as [out, 1, 1, 1].
        tensors = {
            key: t.transpose(0, 1) if ".lora_magnitude_vector" in key and t.ndim > 2 else t
            for key, t in tensors.items()
        }
        converted = from_diffusers(comfy.lora_convert.convert_lora(dict(tensors)))
        converted = {_text_encoder_key(key): tensor for key, tensor in converted.items()}
    except (KeyError, IndexError) as error:  # ComfyUI's converters take some parts for granted
        raise InputError(f"{name} lacks {error}; the file is damaged") from error
    lora = NamedLora(converted, name, meta)
    _add_alphas(lora)
    check(lora, name)
    return lora


def _text_encoder_key(key: str) -> str:
    """CLIP's layers without the `text_model` around them, as with transformers 5, under the names of before."""
    key = re.sub(r"^(lora_te\d?_)(?=encoder_layers_\d)", r"\1text_model_", key)
    key = re.sub(r"^base_model\.model\.(?=encoder\.layers\.\d+\.(self_attn|mlp)\.)", "text_encoder.", key)
    return re.sub(r"^(text_encoder(?:_\d)?\.)(?=encoder\.layers\.\d)", r"\1text_model.", key)


def named(lora: Mapping[str, Tensor]) -> NamedLora:
    """What is on the wire, from this pack or another, as `read_lora` gives it."""
    if isinstance(lora, NamedLora):
        return lora
    if not isinstance(lora, Mapping) or not all(torch.is_tensor(tensor) for tensor in lora.values()):
        raise InputError("the lora on the wire holds no tensors by name; wire in a LoRA from a loader or a trainer")
    return in_comfy_names(lora, "the LoRA on the wire", {})


def layers_of(lora: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """{layer: {part: tensor}} in the file's order; a key that is no part of a LoRA is a layer with the part ""."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in lora.items():
        layer, part = split_key(key)
        layers.setdefault(layer, {})[part] = tensor
    return layers


def _add_alphas(lora: NamedLora) -> None:
    # diffusers writes alpha into the metadata: {"unet.r": 4, "unet.lora_alpha": 8, "text_encoder.r": ...}.
    try:
        settings = read_json(lora.meta.get("lora_adapter_metadata", "{}"))
    except ValueError:
        return
    if not isinstance(settings, dict):
        return
    for layer, parts in list(layers_of(lora).items()):
        component = layer.split(".")[0] if layer.startswith("text_encoder") else "unet"
        alpha = settings.get(f"{component}.lora_alpha", settings.get("transformer.lora_alpha"))
        if ".lora_down.weight" in parts and ".alpha" not in parts and isinstance(alpha, int | float):
            lora[f"{layer}.alpha"] = torch.tensor(float(alpha))


_NEEDS = {
    ".lora_up.weight": (".lora_down.weight",),
    ".lora_down.weight": (".lora_up.weight",),
    ".lora_mid.weight": (".lora_down.weight", ".lora_up.weight"),
    ".hada_w1_a": (".hada_w1_b", ".hada_w2_a", ".hada_w2_b"),
    ".hada_t1": (".hada_t2", ".hada_w1_a"),
    ".hada_t2": (".hada_t1",),
    ".lokr_w1_a": (".lokr_w1_b",),
    ".lokr_w1_b": (".lokr_w1_a",),
    ".lokr_w2_a": (".lokr_w2_b",),
    ".lokr_w2_b": (".lokr_w2_a",),
    ".lokr_t2": (".lokr_w2_a",),
    ".a1.weight": (".a2.weight", ".b1.weight", ".b2.weight"),
}
# Axis of the first part that has to be as long as an axis of the second.
_AGREE = (
    (".lora_up.weight", 1, ".lora_down.weight", 0),
    (".hada_w1_a", 1, ".hada_w1_b", 0),
    (".hada_w2_a", 1, ".hada_w2_b", 0),
    (".lokr_w1_a", 1, ".lokr_w1_b", 0),
    (".lokr_w2_a", 1, ".lokr_w2_b", 0),
)


def check(lora: Mapping[str, Tensor], name: str) -> None:
    """Raises `InputError` where a LoRA's parts are incomplete or do not fit each other, before anything is applied."""
    layers = layers_of(lora)
    if not any(set(parts) - {"", ".alpha"} for parts in layers.values()):
        raise InputError(
            f"{name} holds no part of a LoRA ({next(iter(lora), 'nothing at all')!r}); choose another file"
        )
    for layer, parts in layers.items():
        _check_layer(layer, parts, name)


def _check_layer(layer: str, parts: Mapping[str, Tensor], name: str) -> None:
    def damaged(why: str) -> InputError:
        return InputError(f"{name}: {layer} {why}; the file is damaged, fetch it again")

    for part, needed in _NEEDS.items():
        missing = [other for other in needed if other not in parts]
        if part in parts and missing:
            raise damaged(f"has {part} and no {missing[0]}")
    if ".lokr_w1" in parts or ".lokr_w1_a" in parts or ".lokr_w2" in parts or ".lokr_w2_a" in parts:
        for n in "12":
            if not {f".lokr_w{n}", f".lokr_w{n}_a"} & set(parts):
                raise damaged(f"has no .lokr_w{n}")
    for part, tensor in parts.items():
        scalar, vector = part == ".alpha", part in ("", ".rescale", ".dora_scale", ".reshape_weight") or "diff" in part
        if scalar and tensor.numel() != 1:
            raise damaged(f"has an alpha of shape {tuple(tensor.shape)}")
        if not scalar and not vector and not part.endswith(("_norm", "set_weight")) and tensor.ndim < 2:
            raise damaged(f"has {part} of shape {tuple(tensor.shape)}")
        if tensor.numel() == 0 or tensor.is_complex():
            raise damaged(f"has {part} of shape {tuple(tensor.shape)} and type {tensor.dtype}")
    tucker = ".hada_t1" in parts or ".lokr_t2" in parts
    for a, axis, b, other in _AGREE:
        if a in parts and b in parts and not (tucker and a != ".lora_up.weight"):
            one = parts[a].shape[axis]
            two = parts[b].shape[other]
            if ".lora_mid.weight" in parts and a == ".lora_up.weight":
                mid = parts[".lora_mid.weight"]
                one, two = (one, two), tuple(mid.shape[:2])
            if one != two:
                raise damaged(f"has {a} {tuple(parts[a].shape)} and {b} {tuple(parts[b].shape)}, which do not fit")
