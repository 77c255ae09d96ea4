"""What PEFT's settings say about the strength of a file's layers (PEFT 0.21, `LoraConfig` and `LoraModel`).

A layer's factors are multiplied by alpha / rank, or with `use_rslora` by alpha / sqrt(rank) (Kalajdzievski 2023, arXiv
2312.03732). `alpha_pattern` has another alpha for the modules that its keys match. The rank is that of the tensors,
which `rank_pattern` has already decided. PEFT's LoHa and LoKr have `alpha` and `alpha_pattern`, and the scale alpha / r
with the rank of the settings, also where the factors are whole and have none.

The settings are in the header, as JSON under `lora_adapter_metadata` (diffusers) or as keys of their own, with or
without the name of a component before them: `r`, `transformer.lora_alpha`, `unet.alpha_pattern`. PEFT's own
`save_pretrained` writes them into `adapter_config.json` beside `adapter_model.safetensors`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...training.errors import InputError
from ...training.layer_names.spelling import peft_module
from ...training.plain_json import read_json
from .name_pattern import MOST_WORK, NamePattern, PatternError

METADATA = "lora_adapter_metadata"
CONFIG_FILE, CONFIG_OF = "adapter_config.json", "adapter_model.safetensors"
_ALPHA, _RSLORA, _PATTERN = "lora_alpha", "use_rslora", "alpha_pattern"
_TYPE, _LYCORIS_ALPHA, _RANK, _RANK_PATTERN = "peft_type", "alpha", "r", "rank_pattern"
_START = "init_lora_weights"
_FIELDS = (_ALPHA, _RSLORA, _PATTERN, _TYPE, _LYCORIS_ALPHA, _RANK, _RANK_PATTERN, _START)
# Starts with which PEFT takes the first factors out of the base's weights, or quantises these: the file's factors
# belong to that other base. `path_initial_model_for_weight_conversion` writes factors for the base as it was.
_OTHER_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
_LYCORIS_TYPES = ("LOHA", "LOKR")
_Patterns = list[tuple[NamePattern, float]]  # in the file's order


@dataclass
class _Component:
    """The settings of one part of a pipeline. lycoris: whether they are of LoHa or LoKr."""

    lycoris: bool
    alpha: float | None
    alphas: _Patterns
    rank: float | None
    ranks: _Patterns
    rslora: bool


class PeftConfig:
    """The settings of all components of a file. Raises `InputError` for a pattern that cannot be read.

    name: the file's, for errors. meta: its header, text by name.
    """

    def __init__(self, name: str, meta: Mapping[str, str]) -> None:
        self.name = name
        self._work = 0
        self._components = {component: self._read(fields) for component, fields in _fields(meta).items()}

    def alpha(self, layer: str, rank: int) -> float | None:
        """The alpha with which alpha / rank is the scale of a LoRA's layer; None where the settings say nothing.

        layer: the file's own name of it, with dots, such as `transformer.blocks.0.attn.to_q`.
        """
        component, module = self._component(layer)
        if component is None or component.lycoris:
            return None
        alpha = self._matched(module, component.alphas, component.alpha)
        if alpha is None:
            return None
        return alpha * math.sqrt(rank) if component.rslora else alpha

    def lycoris_scale(self, layer: str) -> float:
        """The scale of a layer of LoHa or LoKr; 1 where the settings say nothing."""
        component, module = self._component(layer)
        if component is None or not component.lycoris:
            return 1.0
        alpha = self._matched(module, component.alphas, component.alpha)
        rank = self._matched(module, component.ranks, component.rank)
        return 1.0 if alpha is None or not rank else alpha / rank

    def _component(self, layer: str) -> tuple[_Component | None, str]:
        name, module = peft_module(layer, self._components)
        return (None if name is None else self._components[name]), module

    def _matched(self, module: str, patterns: _Patterns, otherwise: float | None) -> float | None:
        """The number of the first pattern that matches."""
        for pattern, number in patterns:
            self._work += pattern.work(module)
            if self._work > MOST_WORK:
                raise InputError(
                    f"{self.name}: the patterns in its header take too long to match; "
                    "save the LoRA again with the modules' plain names there"
                )
            if pattern.matches(module):
                return number
        return otherwise

    def _read(self, fields: Mapping[str, Any]) -> _Component:
        start = str(fields.get(_START)).lower()
        if start.startswith(_OTHER_BASE):
            raise InputError(
                f"{self.name} was trained with PEFT's {_START} {start!r}, which changes the base's weights too; save "
                "it again with path_initial_model_for_weight_conversion, or merge it into its base with PEFT and "
                "extract a LoRA from that"
            )
        lycoris = fields.get(_TYPE) in _LYCORIS_TYPES
        return _Component(
            lycoris,
            _number(fields.get(_LYCORIS_ALPHA if lycoris else _ALPHA)),
            self._patterns(_PATTERN, fields.get(_PATTERN)),
            _number(fields.get(_RANK)),
            self._patterns(_RANK_PATTERN, fields.get(_RANK_PATTERN)) if lycoris else [],
            fields.get(_RSLORA) is True,
        )

    def _patterns(self, field: str, value: Any) -> _Patterns:
        found: _Patterns = []
        if isinstance(value, str) and value not in ("", "None"):
            raise InputError(
                f"{self.name}: {field} in its header is no JSON ({value[:80]!r}); "
                "write it there as JSON, with double quotes"
            )
        for key, entry in value.items() if isinstance(value, dict) else ():
            number = _number(entry)
            if number is None:
                raise InputError(
                    f"{self.name}: {field} in its header has {entry!r} for {key!r}, which is no number; save the file "
                    "again with a number there"
                )
            try:
                found.append((NamePattern(key), number))
            except PatternError as error:
                raise InputError(
                    f"{self.name}: {field} in its header has {key[:80]!r}, which cannot be read as a pattern: "
                    f"{error}; save the LoRA again with the modules' plain names there"
                ) from error
        return found


def _fields(meta: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """{component: {field: value}}; the component "" has the fields without a prefix."""
    found: dict[str, dict[str, Any]] = {}
    entries = ((key, _value(text)) for key, text in meta.items() if key.rpartition(".")[2] in _FIELDS)
    for key, value in (*entries, *_json_entries(meta.get(METADATA))):
        component, _, name = key.rpartition(".")
        if name in _FIELDS:
            found.setdefault(component, {})[name] = value
    return found


def _json_entries(text: str | None) -> Iterable[tuple[str, Any]]:
    try:
        settings = read_json(text or "{}")
    except ValueError:
        return ()
    return settings.items() if isinstance(settings, dict) else ()


def _value(text: Any) -> Any:
    """The value of a header's entry: JSON, or what Python writes for a truth value."""
    if not isinstance(text, str):
        return None
    try:
        return {"True": True, "False": False}[text] if text in ("True", "False") else read_json(text)
    except ValueError:
        return text


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond every float
        return None
