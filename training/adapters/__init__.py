"""Adapters: trainable modules beside frozen layers. One module of this package per kind."""

from __future__ import annotations

from .adapter import Adapter, AdapterConfig
from .adapter_set import AdapterSet
from .dora import DoraAdapter
from .loha import LohaAdapter
from .lokr import LokrAdapter
from .lora import LoraAdapter

# By `Adapter.KIND`. A new kind needs its module and one line here; CONTRIBUTING.md says how a user gets at it.
ADAPTERS: dict[str, type[Adapter]] = {
    "LoRA": LoraAdapter,
    "DoRA": DoraAdapter,
    "LoKr": LokrAdapter,
    "LoHa": LohaAdapter,
}

__all__ = [
    "ADAPTERS",
    "Adapter",
    "AdapterConfig",
    "AdapterSet",
    "DoraAdapter",
    "LohaAdapter",
    "LokrAdapter",
    "LoraAdapter",
]
