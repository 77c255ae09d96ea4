"""Files of diffusers' scripts and of PEFT: the adapter's settings in `lora_adapter_metadata`, and no others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .sheet import Sheet, given, is_on, object_in, shown

KEY = "lora_adapter_metadata"  # diffusers' `LORA_ADAPTER_METADATA_KEY`; PEFT's `LoraConfig` as JSON, by component
_TYPES = {"LORA": "LoRA", "LOHA": "LoHa", "LOKR": "LoKr"}
_ATTENTION = {"to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "attn"}
_FEED_FORWARD = ("ff.", "ff_context.", "net.", "feed_forward", "mlp", "proj_mlp", "proj_out", "ffn", "w1", "w2", "w3")
_NOTES = {
    "lora_dropout": "lora_dropout is {value}; a dropout of the inputs has no widget, the nearest are rank_dropout and "
    "module_dropout.",
    "rank_pattern": "rank_pattern is {value}: layers with a rank of their own; custom_targets can give each one.",
    "alpha_pattern": "alpha_pattern is {value}: layers with an alpha of their own; custom_targets can give each one.",
    "lora_bias": "lora_bias is {value}; biases of the factors are not trained here.",
    "modules_to_save": "modules_to_save is {value}; whole layers are not trained here.",
    "layers_to_transform": "layers_to_transform is {value}; custom_targets can name single blocks.",
}


def read(meta: Mapping[str, str], sheet: Sheet) -> None:
    """Set rank, alpha and the adapter; the text encoder's part is only noted."""
    components = _components(object_in(meta.get(KEY)))
    if not components:
        sheet.note(f"{KEY} is {shown(meta.get(KEY, ''))}, which has no adapter's settings; the file is damaged.")
        return
    text = {name: fields for name, fields in components.items() if name.startswith("text_encoder")}
    main = next((fields for name, fields in components.items() if name not in text), {})
    sheet.values["train_text_encoder"] = bool(text)
    _read_adapter(main, sheet)
    for name, fields in text.items():
        if main and fields.get("r") != main.get("r"):
            sheet.note(f"{name} has rank {shown(fields.get('r'))}; here the text encoder has the rank of the model.")
    for key, sentence in _NOTES.items():
        if is_on(given(main, key)):
            sheet.note(sentence.format(value=shown(main[key])))


def _components(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{component: {field: value}} of keys such as `transformer.lora_alpha`; "" has those without a component."""
    out: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        component, _, field = key.rpartition(".")
        out.setdefault(component, {})[field] = value
    return {name: fields for name, fields in out.items() if "r" in fields or "lora_alpha" in fields}


def _read_adapter(fields: Mapping[str, Any], sheet: Sheet) -> None:
    kind = fields.get("peft_type", "LORA")
    adapter = _TYPES.get(kind) if isinstance(kind, str) else None
    if adapter is None:
        sheet.note(f"peft_type is {shown(kind)}, which is no adapter here; the nearest is LoRA.")
    else:
        sheet.put("adapter", "DoRA" if adapter == "LoRA" and is_on(fields.get("use_dora")) else adapter, "peft_type")
    if "r" in fields:
        sheet.put("rank", fields["r"], "r")
    alpha = "alpha" if adapter in ("LoHa", "LoKr") else "lora_alpha"
    if alpha in fields:
        sheet.put("alpha", fields[alpha], alpha)
    sheet.put("rslora", fields.get("use_rslora", False), "use_rslora")
    for name in ("rank_dropout", "module_dropout"):  # of PEFT's LoHa and LoKr
        sheet.put(name, fields.get(name, 0.0), name)
    if "decompose_factor" in fields:
        sheet.put("lokr_factor", fields["decompose_factor"], "decompose_factor")
    if given(fields, "target_modules") is not None:
        _read_targets(fields["target_modules"], sheet)


def _read_targets(modules: Any, sheet: Sheet) -> None:
    """Set `targets` where the modules are attention, or attention and feed-forward, of all blocks."""
    names = [name for name in modules if isinstance(name, str)] if isinstance(modules, list) else []
    rest = [name for name in names if not any(name == end or name.endswith(f".{end}") for end in _ATTENTION)]
    all_cross = bool(names) and all("attn2" in name for name in names)
    is_whole = bool(names) and not any(part.isdigit() for name in names for part in name.split(".")[:-2])
    if is_whole and not rest:
        sheet.put("targets", "cross-attention" if all_cross else "attention", "target_modules")
    elif is_whole and len(rest) < len(names) and all(name.startswith(_FEED_FORWARD) for name in rest):
        sheet.put("targets", "attention + feed-forward", "target_modules")
    else:
        text = ", ".join(names) if names else shown(modules)
        sheet.note(f"target_modules is {shown(text)}; choose targets, or name the layers in custom_targets.")
