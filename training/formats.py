"""LoRA files: key names by format, and the metadata that other programs read."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import InputError
from .layer_names.parts import (
    ALPHA,
    DORA_SCALE,
    DOWN,
    HADA_W1_B,
    LOKR_W2_B,
    PEFT_DOWN,
    PEFT_MAGNITUDE,
    PEFT_UP,
    TRAINED_PARTS,
    adapts,
    layer_and_part,
    layers_of,
    split_key,
    trained_kind,
)
from .layer_names.spelling import comfy_known_name, kohya_fallback
from .plain_json import read_json
from .record import Run

KEY_FORMATS = ("kohya", "diffusers", "comfy")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
# The model specification's names -> kohya's.
KOHYA_VERSIONS = {
    "stable-diffusion-v1": "sd_v1",
    "stable-diffusion-v2-768-v": "sd_v2_v",
    "stable-diffusion-v2-512": "sd_v2",
    "stable-diffusion-xl-v1-base": "sdxl_base_v1-0",
    "flux-1-dev": "flux1",
    "flux-1-schnell": "flux1",
}


# What is known of a LoRA's base and its words, which a LoRA made of others keeps.
OF_ITS_BASE = ("ss_base_model_version", "modelspec.architecture", "ss_sd_model_name", "modelspec.prediction_type")
OF_ITS_WORDS = "modelspec.trigger_phrase"

# DoRA's magnitude is a factor of the weight itself, whose rounding to bf16 (0.4 %) is as large as what a training
# changes. It has one number for each output.
FULL_PRECISION = (DORA_SCALE, PEFT_MAGNITUDE)


def dtype_in_file(key: str, dtype: str) -> torch.dtype:
    """What a tensor is stored as in a file of `dtype`, one of `DTYPES`. Those of `FULL_PRECISION` are float32."""
    return torch.float32 if key.endswith(FULL_PRECISION) else DTYPES[dtype]


_OF_DIFFUSERS = {*TRAINED_PARTS["LoRA"], *TRAINED_PARTS["DoRA"]}  # parts that `_diffusers_parts` writes

# What a program calls a layer: a name, or where it has several layers for one, (name, first row, rows) of each.
LayerName = str | Sequence[tuple[str, int, int]]


def to_format(
    lora: Mapping[str, Tensor], key_format: str, names: Mapping[str, Mapping[str, LayerName]]
) -> dict[str, Tensor]:
    """The LoRA under another program's key names.

    lora: `<layer>.<part>` with ComfyUI's layer names, `diffusion_model....` and `text_encoders....`. names: {layer:
    {format: name}}; a run has them, and a LoRA from Inject LoRA. Without a name, kohya's format gets the checkpoint's
    own layer names, which ComfyUI and kohya load too; a layer under a file's name keeps it.
    Raises `InputError` for a format that does not exist, for a key that is part of no adapter, and for diffusers'
    format where a layer's name is not known or diffusers does not read the kind of adapter.
    """
    if key_format not in KEY_FORMATS:
        raise InputError(f"key_format is {key_format!r}; choose one of {', '.join(KEY_FORMATS)}")
    if key_format == "comfy":
        return dict(lora)
    kind = trained_kind(lora)
    if key_format == "diffusers" and kind not in ("LoRA", "DoRA"):
        raise InputError(f"diffusers reads no {kind}, so key_format diffusers cannot be used; choose kohya")
    if key_format == "diffusers" and (others := sorted({layer_and_part(key)[1] for key in lora} - _OF_DIFFUSERS)):
        raise InputError(
            f"diffusers reads no layer with {', '.join(others)}, so key_format diffusers cannot be used; choose kohya"
        )
    out: dict[str, Tensor] = {}
    for key, tensor in lora.items():
        layer, part = layer_and_part(key)
        name = names.get(layer, {}).get(key_format)
        if key_format == "diffusers" and name is None and layer in names:
            raise InputError(
                "diffusers reads no LoRA of this model's class under names that are known here, so a file of "
                "key_format diffusers would change nothing there; choose key_format kohya or comfy"
            )
        if key_format == "diffusers":
            out |= _diffusers_parts(lora, layer, part, tensor, name)
        else:
            out[f"{name or kohya_fallback(layer)}{part}"] = tensor
    return out


def _diffusers_parts(
    lora: Mapping[str, Tensor], layer: str, part: str, tensor: Tensor, name: LayerName | None
) -> dict[str, Tensor]:
    """{key: tensor} of one part. diffusers' files have no alpha: the up factor is scaled by alpha / rank."""
    if name is None:
        raise InputError(
            "the diffusers names of this LoRA's layers are not known; wire the trainer's run into the node, "
            "or choose key_format kohya"
        )
    if part == ALPHA:
        return {}
    if part == DORA_SCALE:
        # [out]; PEFT keeps a convolution's as [1, out, 1, 1].
        magnitude = tensor.flatten() if tensor.ndim == 2 else tensor.transpose(0, 1)
        if isinstance(name, str):
            return {name + PEFT_MAGNITUDE: magnitude}
        return {piece + PEFT_MAGNITUDE: magnitude[first : first + rows] for piece, first, rows in name}
    if part == DOWN:
        if isinstance(name, str):
            return {name + PEFT_DOWN: tensor}
        return {piece + PEFT_DOWN: tensor.clone() if first else tensor for piece, first, _ in name}
    rank = tensor.shape[1]
    up = tensor.float() * (float(lora.get(layer + ALPHA, rank)) / rank)  # torch multiplies no fp8
    if isinstance(name, str):
        return {name + PEFT_UP: up}
    return {piece + PEFT_UP: up[first : first + rows].clone() for piece, first, rows in name}


def from_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A LoRA with diffusers' and PEFT's names, old and modern, under names that ComfyUI maps; others keep theirs.

    `unet.<module>.lora_A.weight`, `base_model.model.<module>.lora_A.weight`,
    `unet.<module>.processor.to_k_lora.down.weight` -> `lora_unet_<module>.lora_down.weight`; a text encoder's
    likewise -> `text_encoder.<module>.lora_down.weight`. DoRA's magnitude [out] becomes `.dora_scale` [out, 1]. Where
    a file has a layer under two names that would become one, the second stays as it is, so that both count.
    """
    out: dict[str, Tensor] = {}
    names = _known_names(layers_of(tensors))
    for key, tensor in tensors.items():
        layer, part = split_key(key)
        if part == DORA_SCALE and tensor.ndim == 1:
            tensor = tensor[:, None]
        out[names[layer] + part] = tensor
    return out


def _known_names(layers: Mapping[str, Mapping[str, Tensor]]) -> dict[str, str]:
    """{a file's layer: a name that ComfyUI maps}, no two layers that change something under one name."""
    known = {layer: comfy_known_name(layer) for layer in layers}
    # A name that is a layer's own is not given to another one.
    owners = {name: layer for layer, name in known.items() if name == layer and adapts(layers[layer])}
    names: dict[str, str] = {}
    for layer, name in known.items():
        owner = owners.setdefault(name, layer) if adapts(layers[layer]) else layer
        names[layer] = name if owner == layer else layer
    return names


def metadata(
    lora: Mapping[str, Tensor], run: Run | None, title: str, prompt: Any = None, workflow: Any = None
) -> dict[str, str]:
    """`ss_*` (kohya), `modelspec.*` (Stability's model specification) and ComfyUI's `prompt` and `workflow`."""
    ranks = sorted({t.shape[0] for k, t in lora.items() if k.endswith((DOWN, HADA_W1_B, LOKR_W2_B))})
    alphas = sorted({float(t) for k, t in lora.items() if k.endswith(ALPHA)})
    out: dict[str, Any] = {
        "ss_network_module": "networks.lora" if trained_kind(lora) == "LoRA" else "lycoris.kohya",
        "ss_network_dim": ranks[0] if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": alphas[0] if len(alphas) == 1 else "Dynamic",
        "ss_output_name": title,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.implementation": "https://github.com/comfyanonymous/ComfyUI",
        "modelspec.title": title,
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if run is not None:
        settings = run.info.settings
        if settings.get("conv_rank") and {*ranks} <= {settings["rank"], settings["conv_rank"]}:
            # kohya has the convolutions' apart, in `ss_network_args`.
            out |= {"ss_network_dim": settings["rank"], "ss_network_alpha": float(settings["alpha"])}
        out |= _run_metadata(run) | {"ss_network_args": _network_args(lora, run)}
    for name, value in (("prompt", prompt), ("workflow", workflow)):
        if value is not None:
            out[name] = json.dumps(value)
    return {key: str(value) for key, value in out.items() if value not in (None, "")}


def _network_args(lora: Mapping[str, Tensor], run: Run) -> str | None:
    """The arguments of kohya's or LyCORIS' network, as JSON; None where there are none."""
    settings = run.info.settings
    args = {"loraplus_lr_ratio": settings.get("loraplus_lr_ratio")}
    kind = trained_kind(lora)
    args |= _LYCORIS_ARGS[kind]
    if kind == "LoKr":
        args["factor"] = settings.get("lokr_factor")
    if settings.get("rslora"):
        args["rs_lora"] = True
    if conv_rank := settings.get("conv_rank"):
        share = conv_rank / settings["rank"]
        args |= {"conv_dim": conv_rank, "conv_alpha": settings["alpha"] * (share**0.5 if "rs_lora" in args else share)}
    args |= {name: settings.get(name) for name in ("rank_dropout", "module_dropout")}
    given = {name: str(value) for name, value in args.items() if value is not None}
    return json.dumps(given) if given else None


# The module "lycoris.kohya" names its algorithm, and DoRA as a LoRA (its "locon") whose weight is decomposed.
_LYCORIS_ARGS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "DoRA": {"algo": "lora", "dora_wd": True},
    "LoKr": {"algo": "lokr"},
    "LoHa": {"algo": "loha"},
}


def _run_metadata(run: Run) -> dict[str, Any]:
    settings = run.info.settings
    return {
        "ss_sd_model_name": run.info.base,
        "ss_steps": len(run.losses),
        "ss_max_train_steps": settings.get("steps"),
        "ss_learning_rate": settings.get("learning_rate"),
        "ss_lr_scheduler": settings.get("lr_schedule"),
        "ss_optimizer": settings.get("optimizer"),
        "ss_seed": settings.get("seed"),
        "ss_scale_weight_norms": settings.get("max_norm"),
        "ss_num_train_images": run.info.images,
        "ss_batch_size_per_device": settings.get("batch_size"),
        "ss_tag_frequency": json.dumps({"images": run.info.tags}),
        "ss_base_model_version": KOHYA_VERSIONS.get(run.info.architecture),
        "modelspec.architecture": f"{run.info.architecture}/lora" if run.info.architecture else None,
        "modelspec.resolution": run.info.resolution.partition(",")[0],  # without a clip's frames
        "modelspec.prediction_type": run.info.prediction,
        "modelspec.trigger_phrase": run.info.trigger,
        "bespoke.run": run.id,
        "bespoke.base_hash": run.info.base_hash,
        "bespoke.settings": json.dumps(settings),
    }


def trigger_words(meta: Mapping[str, str]) -> str:
    """The words that call the LoRA: the trigger phrase, else the commonest tags of its captions."""
    if meta.get("modelspec.trigger_phrase"):
        return meta["modelspec.trigger_phrase"]
    try:
        folders = read_json(meta.get("ss_tag_frequency", "{}"))
        counts: dict[str, int] = {}
        for tags in folders.values():
            for tag, count in tags.items():
                counts[str(tag).strip()] = counts.get(str(tag).strip(), 0) + int(count)
    except (ValueError, AttributeError, TypeError, OverflowError):
        return ""
    common = sorted(counts, key=lambda tag: (-counts[tag], tag))
    return ", ".join(common[:3])
