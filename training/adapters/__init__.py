"""Adapters: trainable modules beside frozen layers. One module of this package per kind."""

from __future__ import annotations

from .adapter import Adapter, AdapterConfig
from .adapter_set import AdapterSet
from .lora import LoraAdapter

# A new kind needs its module and one line here.
ADAPTERS: dict[str, type[Adapter]] = {"LoRA": LoraAdapter}

__all__ = ["ADAPTERS", "Adapter", "AdapterConfig", "AdapterSet", "LoraAdapter"]
