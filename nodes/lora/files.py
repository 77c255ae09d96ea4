"""LoRA files: read safely, their keys in ComfyUI's spelling, their parts checked; and what is written into one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import comfy.lora_convert
import torch
from torch import Tensor

from ...training import strength_range
from ...training.bundles import bundled, split_bundle
from ...training.config import check_choice
from ...training.errors import InputError
from ...training.formats import (
    DTYPES,
    OF_ITS_BASE,
    OF_ITS_WORDS,
    dtype_in_file,
    from_diffusers,
    metadata,
    to_format,
)
from ...training.layer_names.foreign import foreign_kind
from ...training.layer_names.parts import (
    ALPHA,
    DIFF_BIAS,
    DOWN,
    HADA_W1_A,
    LOKR_W1,
    LOKR_W1_A,
    LOKR_W2,
    PEFT_UP_BIAS,
    is_peft_magnitude,
    layers_of,
    split_key,
)
from ...training.layer_names.spelling import program_names, with_text_model
from ...training.record import Run
from ...training.strength_range import strengths_in
from ...training.timestep_range import WHOLE, range_in
from ..bridge.files import writing as storage
from ..bridge.files.reading import read_safetensors, read_text
from .fit import check_parts
from .kinds.kind import scale
from .named_lora import NamedLora
from .peft_config import CONFIG_FILE, CONFIG_OF, METADATA, PeftConfig

MUSUBI_FACTOR = "lokr_factor"  # the argument of musubi-tuner's LoKr, beside the layers
MOST_CONFIG_BYTES = 4 * 2**20  # of PEFT's `adapter_config.json`


def as_file(
    lora: Mapping[str, Tensor],
    run: Run | None,
    title: str,
    key_format: str = "kohya",
    dtype: str = "fp16",
    graph: tuple = (None, None),
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of the file that a LoRA is saved as.

    title: the file's name in its metadata. key_format: one of `formats.KEY_FORMATS`. dtype: one of `formats.DTYPES`.
    graph: (prompt, workflow) for the metadata, see `graph_of`. The part of the schedule that it was trained on is what
    the LoRA itself says, else what the run says, and so are the useful strengths of a slider; without a run the file
    keeps what the LoRA says of its base and its words. The words of a bundle, of a `NamedLora` or among the keys,
    follow the layers as float32. Raises `InputError` for an unknown format or dtype, and for numbers that the dtype
    cannot hold.
    """
    check_choice("dtype", dtype, list(DTYPES))
    named = lora if isinstance(lora, NamedLora) else None
    lora, words = split_bundle(lora)
    words = words | dict(named.words if named else {})
    names = run.info.names if run else named.layer_names if named else {}
    tensors = {key: _in_file(key, tensor.detach(), dtype) for key, tensor in to_format(lora, key_format, names).items()}
    part = range_in(named.meta) if named else run.info.part if run else WHOLE
    useful = (strengths_in(named.meta) if named else None) or (run.useful_strengths if run else ())
    kept = {key: named.meta[key] for key in (*OF_ITS_BASE, OF_ITS_WORDS) if key in named.meta} if named else {}
    tensors |= {key: tensor.detach().to("cpu", torch.float32, copy=True) for key, tensor in bundled(words).items()}
    return tensors, kept | metadata(lora, run, title, *graph) | part.metadata() | strength_range.metadata(useful)


def _in_file(key: str, tensor: Tensor, dtype: str) -> Tensor:
    """A copy of a tensor as it is stored. Raises `InputError` for numbers that fp16 makes infinite."""
    out = tensor.to("cpu", dtype_in_file(key, dtype), copy=True)
    if out.dtype == torch.float16 and bool(out.isinf().any()) and not bool(tensor.float().isinf().any()):
        largest = float(tensor.float().abs().max())
        raise InputError(
            f"{key} holds numbers up to {largest:.3g}, and fp16 none above 65504; set dtype to bf16 or fp32"
        )
    return out


def save_on_the_way(folder: Path, step: int, lora: Mapping[str, Tensor], run: Run, graph: tuple = (None, None)) -> None:
    """Write `<run id>-step<step>.safetensors` in `folder`: the LoRA after `step` steps of an unfinished training.

    graph: (prompt, workflow) for the file's metadata, see `graph_of`.
    """
    path = folder / f"{run.id}-step{step:06}.safetensors"
    storage.write_safetensors(path, *as_file(lora, run, path.stem, dtype="fp32", graph=graph), overwrite=True)


def saved_on_the_way(run_id: str) -> list[tuple[int, Path]]:
    """[(step, path)] of the files in the loras folder that `save_on_the_way` wrote for a run, by step."""
    folder = storage.models_folder("loras") / "bespoke" / "runs"
    found = [
        (int(match.group(1)), path)
        for path in folder.glob("*.safetensors")
        if (match := re.fullmatch(re.escape(run_id) + r"-step(\d+)", path.stem))
    ]
    return sorted(found)


def read_lora(path: Path) -> NamedLora:
    """A LoRA file under ComfyUI's key names. Raises `InputError` for what is damaged, hostile or no LoRA."""
    tensors, meta = read_safetensors(path, "LoRA")
    config = path.with_name(CONFIG_FILE)
    if path.name == CONFIG_OF and METADATA not in meta and config.is_file():
        try:
            meta = {**meta, METADATA: read_text(config, MOST_CONFIG_BYTES)}
        except (OSError, ValueError) as error:
            raise InputError(
                f"{CONFIG_FILE} beside {path.name} cannot be read; fetch both again, or rename the LoRA to use it "
                "without its settings"
            ) from error
    return in_comfy_names(tensors, path.name, meta)


def in_comfy_names(tensors: Mapping[str, Tensor], name: str, meta: Mapping[str, str]) -> NamedLora:
    """Any program's LoRA under the key names that ComfyUI maps, with its alphas, and with parts that fit together.

    The words of its bundle are `NamedLora.words`.
    """
    tensors, words = split_bundle(tensors)
    if words and not tensors:
        raise InputError(
            f"{name} holds words ({', '.join(words)}) and no LoRA; put it into the embeddings folder, or give a LoRA"
        )
    if found := foreign_kind(tensors):
        kind, key = found
        raise InputError(
            f"{name} is {kind} ({key}), which is not applied here; merge it into its base with the program that wrote "
            "it and extract a LoRA from that, or fetch a LoRA, LoHa, LoKr or OFT of it"
        )
    try:
        # PEFT keeps a convolution's magnitude as [1, out, 1, 1], the others as [out, 1, 1, 1].
        tensors = {key: t.transpose(0, 1) if is_peft_magnitude(key) and t.ndim > 2 else t for key, t in tensors.items()}
        tensors |= _scaled_by_settings(tensors, PeftConfig(name, meta))
        tensors = _in_lycoris_scale(tensors)
        converted = from_diffusers(comfy.lora_convert.convert_lora(dict(tensors)))
        converted = {with_text_model(key): tensor for key, tensor in converted.items()}
    except (KeyError, IndexError) as error:  # ComfyUI's converters take some parts for granted
        raise InputError(f"{name} lacks {error}; the file is damaged") from error
    lora = NamedLora(converted, name, meta, program_names(split_key(key)[0] for key in tensors), words=words)
    check_parts(lora, name)
    _fold_biases(lora)
    return lora


def as_named_lora(lora: Mapping[str, Tensor]) -> NamedLora:
    """What is on the wire, from this pack or another, as `read_lora` gives it."""
    if isinstance(lora, NamedLora):
        return lora
    if not isinstance(lora, Mapping) or not all(torch.is_tensor(tensor) for tensor in lora.values()):
        raise InputError("the lora on the wire holds no tensors by name; wire in a LoRA from a loader or a trainer")
    return in_comfy_names(lora, "the LoRA on the wire", {})


def _scaled_by_settings(tensors: Mapping[str, Tensor], config: PeftConfig) -> dict[str, Tensor]:
    """What PEFT's settings add or change, by key, under the file's own names: the alphas of LoRA's layers that have
    none, and the first factor of LoHa and LoKr times their scale.
    """
    found: dict[str, Tensor] = {}
    for layer, parts in layers_of(tensors).items():
        if ALPHA in parts:
            continue
        first = next((part for part in (HADA_W1_A, LOKR_W1, LOKR_W1_A) if part in parts), None)
        if DOWN in parts and parts[DOWN].ndim:
            alpha = config.alpha(layer, parts[DOWN].shape[0])
            if alpha is not None:
                found[layer + ALPHA] = torch.tensor(alpha)
        elif first is not None and (scale_of_layer := config.lycoris_scale(layer)) != 1.0:
            found[layer + first] = parts[first].float() * scale_of_layer
    return found


def _in_lycoris_scale(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file of musubi-tuner's own LoKr with the scale of LyCORIS' files; others as they are.

    musubi-tuner (`networks/lokr.py`) multiplies the product of two whole factors by alpha over the longer side of W2,
    where LyCORIS and sd-scripts have 1. Its files have a tensor that theirs have not.
    """
    out = {key: tensor for key, tensor in tensors.items() if key != MUSUBI_FACTOR}
    if len(out) == len(tensors):
        return out
    for layer, parts in layers_of(out).items():
        if LOKR_W1 in parts and LOKR_W2 in parts and ALPHA in parts and parts[LOKR_W2].ndim:
            out[layer + LOKR_W1] = parts[LOKR_W1].float() * (float(parts[ALPHA]) / max(parts[LOKR_W2].shape))
    return out


def _fold_biases(lora: NamedLora) -> None:
    """Replace PEFT's bias of the up factor by the change of the layer's bias that it is: scale * bias.

    ComfyUI's own nodes read the change and do not know the other.
    """
    for layer, parts in layers_of(lora).items():
        if PEFT_UP_BIAS not in parts:
            continue
        change = parts[PEFT_UP_BIAS].float() * scale(parts, parts[DOWN].shape[0])
        other = parts.get(DIFF_BIAS)
        if other is not None and other.shape != change.shape:
            raise InputError(
                f"{lora.name}: {layer} has two changes of its bias, of the shapes {tuple(change.shape)} and "
                f"{tuple(other.shape)}; the file is damaged, fetch it again"
            )
        del lora[layer + PEFT_UP_BIAS]
        lora[layer + DIFF_BIAS] = change if other is None else change + other
