"""LoRA adapters with random factors, for tests of gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from bespoke.training.adapters import AdapterConfig, AdapterSet, LoraAdapter
from torch import nn


def random_lora(
    layers: Mapping[str, nn.Module], rank: int = 4, device: torch.device | str = "cpu"
) -> AdapterSet[LoraAdapter]:
    """Adapters with alpha = rank whose up factors are random instead of zero, so that both factors get a gradient."""
    adapters = AdapterSet(LoraAdapter, layers, AdapterConfig(rank, rank, 0), torch.device(device))
    for seed, adapter in enumerate(adapters):
        adapter.up.data.normal_(std=0.05, generator=torch.Generator().manual_seed(seed))
    return adapters
