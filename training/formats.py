"""LoRA files: key names by format, and the metadata that other programs read."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .errors import InputError
from .plain_json import read_json
from .record import Run

KEY_FORMATS = ("kohya", "diffusers", "comfy")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_PARTS = (".lora_up.weight", ".lora_down.weight", ".alpha")
# The model specification's names -> kohya's.
KOHYA_VERSIONS = {
    "stable-diffusion-v1": "sd_v1",
    "stable-diffusion-v2-768-v": "sd_v2_v",
    "stable-diffusion-v2-512": "sd_v2",
    "stable-diffusion-xl-v1-base": "sdxl_base_v1-0",
    "flux-1-dev": "flux1",
    "flux-1-schnell": "flux1",
}
COMFY_PREFIX = "diffusion_model."


def layer_and_part(key: str) -> tuple[str, str]:
    """("diffusion_model....to_k", ".lora_up.weight") of a key in ComfyUI's naming."""
    for part in _PARTS:
        if key.endswith(part):
            return key.removesuffix(part), part
    raise InputError(f"the LoRA holds {key!r}, which is no low-rank factor; save it with ComfyUI's own node")


def to_format(lora: Mapping[str, Tensor], key_format: str, names: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """The LoRA under another program's key names.

    lora: `<layer>.lora_up.weight`, `.lora_down.weight`, `.alpha` with ComfyUI's layer names, `diffusion_model....` and
    `text_encoders....`. names: what each layer is called by format (a run knows them); where a program
    has several layers for one, a list of (name, first row, rows). Without a name, kohya's gets the checkpoint's own
    layer names, which ComfyUI and kohya
    load too; diffusers' is refused.
    """
    if key_format not in KEY_FORMATS:
        raise InputError(f"key_format is {key_format!r}; choose one of {', '.join(KEY_FORMATS)}")
    if key_format == "comfy":
        return dict(lora)
    out: dict[str, Tensor] = {}
    for key, tensor in lora.items():
        layer, part = layer_and_part(key)
        name = names.get(layer, {}).get(key_format)
        if key_format == "kohya":
            # A layer that came from a file keeps the name it has there.
            own = (
                "lora_unet_" + layer.removeprefix(COMFY_PREFIX).replace(".", "_")
                if layer.startswith(COMFY_PREFIX)
                else layer
            )
            out[(name or own) + part] = tensor
            continue
        if name is None:
            raise InputError(
                "the diffusers names of this LoRA's layers are not known; wire the trainer's run into the node, "
                "or choose key_format kohya"
            )
        if part == ".alpha":
            continue  # diffusers' files have none: it is folded into the up factor below
        pieces = [(name, None, None)] if isinstance(name, str) else name
        for piece, first, rows in pieces:
            if part == ".lora_up.weight":
                alpha, rank = float(lora[f"{layer}.alpha"]), tensor.shape[1]
                own = tensor if first is None else tensor[first : first + rows]
                out[f"{piece}.lora_B.weight"] = own * (alpha / rank)
            else:
                out[f"{piece}.lora_A.weight"] = tensor.clone() if first else tensor
    return out


_LOW_RANK = re.compile(
    r"(?:[._]lora[._](?P<name>up|down)|\.lora_(?P<letter>[AB])(?:\.[\w-]+)??|\.lora_linear_layer\.(?P<old>up|down))(?:\.weight)?"
)
_MAGNITUDE = re.compile(r"\.lora_magnitude_vector(?:\.[\w-]+)??(?:\.weight)?")
_OTHER_PARTS = (
    ".alpha",
    ".dora_scale",
    ".lora_mid.weight",
    ".reshape_weight",
    ".diff",
    ".diff_b",
    ".set_weight",
    ".w_norm",
    ".b_norm",
    ".rescale",
    ".oft_blocks",
    ".hada_w1_a",
    ".hada_w1_b",
    ".hada_w2_a",
    ".hada_w2_b",
    ".hada_t1",
    ".hada_t2",
    ".lokr_w1",
    ".lokr_w2",
    ".lokr_w1_a",
    ".lokr_w1_b",
    ".lokr_w2_a",
    ".lokr_w2_b",
    ".lokr_t2",
    ".a1.weight",
    ".a2.weight",
    ".b1.weight",
    ".b2.weight",
)
_UNET_BLOCKS = re.compile(r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|add_embedding)\b")
_TEXT_PROJECTIONS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@lru_cache(maxsize=2**16)  # asked for each key of each file several times, and ten LoRAs of a graph share their keys
def split_key(key: str) -> tuple[str, str]:
    """(layer, part) of a key in any program's spelling; the part in kohya's, `.lora_up.weight` for what multiplies
    last.

    What is no part of a LoRA that is known here comes back whole, with an empty part.
    """
    for part in _OTHER_PARTS:
        if key.endswith(part):
            return key.removesuffix(part), part
    # From the last place on where a part's name may begin, as layers can have "lora" in their own names.
    at = max(key.rfind(".lora_"), key.rfind("_lora."), key.rfind(".lora."))
    if at > 0:
        if found := _LOW_RANK.fullmatch(key, at):
            up = (found["name"] or found["letter"] or found["old"]) in ("up", "B")
            return key[:at], ".lora_up.weight" if up else ".lora_down.weight"
        if _MAGNITUDE.fullmatch(key, at):
            return key[:at], ".dora_scale"
    return key, ""


def from_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' and PEFT's names, old and modern, as those that ComfyUI maps; other layers keep their names.

    `unet.<module>.lora_A.weight`, `base_model.model.<module>.lora_A.weight`,
    `unet.<module>.processor.to_k_lora.down.weight`
    -> `lora_unet_<module>.lora_down.weight`, the text encoders' likewise -> `text_encoder.<module>.lora_down.weight`.
    DoRA's magnitude [out] becomes `.dora_scale` [out, 1].
    """
    out = {}
    for key, tensor in tensors.items():
        layer, part = split_key(key)
        if part == ".dora_scale" and tensor.ndim == 1:
            tensor = tensor[:, None]
        out[_kohya_layer(layer) + part] = tensor
    return out


def _kohya_layer(layer: str) -> str:
    encoder, rest = "", layer
    if found := re.match(r"(text_encoder(?:_\d)?)\.", layer):
        encoder, rest = found[1], layer[found.end() :]
    for prefix in ("unet.", "base_model.model.", "unet."):
        rest = rest.removeprefix(prefix)
    if encoder or rest.startswith("text_model."):
        rest = re.sub(
            r"\bself_attn\.(to_\w+)$", lambda found: "self_attn." + _TEXT_PROJECTIONS.get(found[1], found[1]), rest
        )
        return f"{encoder or 'text_encoder'}.{rest}"
    if _UNET_BLOCKS.match(rest) and not layer.startswith(("diffusion_model.", "lora_")):
        rest = re.sub(r"\.to_out$", ".to_out.0", rest.replace(".processor.", "."))
        return "lora_unet_" + rest.replace(".", "_")
    return layer


def metadata(
    lora: Mapping[str, Tensor], run: Run | None, title: str, prompt: Any = None, workflow: Any = None
) -> dict[str, str]:
    """`ss_*` (kohya), `modelspec.*` (Stability's model specification) and ComfyUI's `prompt` and `workflow`."""
    ranks = sorted({t.shape[0] for k, t in lora.items() if k.endswith(".lora_down.weight")})
    alphas = sorted({float(t) for k, t in lora.items() if k.endswith(".alpha")})
    out: dict[str, Any] = {
        "ss_network_module": "networks.lora",
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
        ratio = settings.get("loraplus_lr_ratio")
        out |= {
            "ss_sd_model_name": run.info.base,
            "ss_steps": len(run.losses),
            "ss_max_train_steps": settings.get("steps"),
            "ss_learning_rate": settings.get("learning_rate"),
            "ss_lr_scheduler": settings.get("lr_schedule"),
            "ss_optimizer": settings.get("optimizer"),
            "ss_network_args": ratio and json.dumps({"loraplus_lr_ratio": str(ratio)}),
            "ss_seed": settings.get("seed"),
            "ss_num_train_images": run.info.images,
            "ss_batch_size_per_device": settings.get("batch_size"),
            "ss_tag_frequency": json.dumps({"images": run.info.tags}),
            "ss_base_model_version": KOHYA_VERSIONS.get(run.info.architecture),
            "modelspec.architecture": f"{run.info.architecture}/lora" if run.info.architecture else None,
            "modelspec.resolution": run.info.resolution,
            "modelspec.prediction_type": run.info.prediction,
            "modelspec.trigger_phrase": run.info.trigger,
            "bespoke.run": run.id,
            "bespoke.base_hash": run.info.base_hash,
            "bespoke.settings": json.dumps(settings),
        }
    for name, value in (("prompt", prompt), ("workflow", workflow)):
        if value is not None:
            out[name] = json.dumps(value)
    return {key: str(value) for key, value in out.items() if value not in (None, "")}


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
