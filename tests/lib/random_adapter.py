"""Adapters whose parameters are all random, and the gradients of a loss that depends on every output differently."""

from __future__ import annotations

import torch
from bespoke.training.adapters import ADAPTERS, AdapterConfig
from torch import nn


def random_adapter(kind: str, layer: nn.Module, config: AdapterConfig):
    """An adapter of a frozen layer, on the CPU."""
    adapter = ADAPTERS[kind].for_layer("a", layer, config, torch.device("cpu"))
    for name, parameter in adapter.named_parameters():
        if name == "dora_scale":
            parameter.data.mul_(1 + 0.3 * torch.randn(parameter.shape))
        else:
            nn.init.normal_(parameter, std=0.5)
    return adapter


def gradients(parameters, output):
    loss = (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum()
    return torch.autograd.grad(loss, parameters)
