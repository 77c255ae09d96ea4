"""One linear layer with LoRA adapters, a short config and a second kind of adapter, for tests of training."""

from __future__ import annotations

import torch
from bespoke.training.adapters import Adapter, AdapterConfig, AdapterSet, LoraAdapter
from bespoke.training.adapters.layer_shape import layer_shape
from bespoke.training.config import TrainConfig
from torch import nn

NAME = "a.to_q"  # of the layer


def one_layer(in_features=10, out_features=7, rank=3, alpha=6.0, seed=0) -> tuple[nn.Linear, AdapterSet[LoraAdapter]]:
    """(a frozen layer with random weights, LoRA adapters on it under `NAME`)."""
    torch.manual_seed(0)
    layer = nn.Linear(in_features, out_features).requires_grad_(False)
    return layer, AdapterSet(LoraAdapter, {NAME: layer}, AdapterConfig(rank, alpha, seed), torch.device("cpu"))


def train_config(**changes) -> TrainConfig:
    settings = {"steps": 3, "learning_rate": 1e-2, "batch_size": 1, "seed": 0, "lr_schedule": "constant"}
    return TrainConfig(**settings | changes)


def copy_of(trainable) -> dict[str, torch.Tensor]:
    """The state dict as it is now; further steps do not change it."""
    return {name: tensor.clone() for name, tensor in trainable.state_dict().items()}


class BiasAdapter(Adapter):
    """A bias per layer and nothing else (BitFit, Ben Zaken et al. 2022, arXiv 2106.10199)."""

    KIND = "bias"

    def __init__(self, out_features, device):
        super().__init__()
        self.diff_b = nn.Parameter(torch.zeros(out_features, device=device))

    @classmethod
    def for_layer(cls, name, layer, config, device):
        return cls(layer_shape(name, layer).out, device)

    def forward(self, x, output):
        return output + self.diff_b.to(output.device, output.dtype)

    def delta_weight(self):
        return None

    def delta_bias(self):
        return self.diff_b
