"""The state of a run as tensors and numbers, for a safetensors file (no pickle)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .plain_json import read_json

OptimizerState = dict[int, dict[str, Tensor | float | None]]  # by the index of the parameter, then by name


@dataclass
class State:
    """What a run needs to be resumed after `step` steps. All tensors are on the CPU.

    trained: the state dict of what is trained. optimizer: the optimiser's `state_dict()["state"]`. best: the state
    dict with the lowest validation loss, `best_loss` at `best_step`. average: that of `ParameterAverage`, or empty.
    """

    step: int
    trained: dict[str, Tensor]
    optimizer: OptimizerState
    best: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    best_loss: float = float("inf")
    best_step: int = 0
    average: dict[str, Tensor] = field(default_factory=dict[str, Tensor])


def pack(state: State) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, float]] = {}
    for part in ("trained", "best", "average"):
        tensors |= {f"{part}/{name}": tensor for name, tensor in getattr(state, part).items()}
    for index, values in state.optimizer.items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value.detach().to("cpu", copy=True)
            elif value is not None:
                numbers.setdefault(str(index), {})[name] = value
    meta = {"step": state.step, "best_loss": state.best_loss, "best_step": state.best_step, "optimizer": numbers}
    return tensors, {"bespoke.state": json.dumps(meta)}


def unpack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> State:
    """The state that `pack` wrote. Raises `KeyError` or `ValueError` for other files."""
    meta = read_json(metadata["bespoke.state"])
    state = State(int(meta["step"]), {}, {}, best_loss=float(meta["best_loss"]), best_step=int(meta["best_step"]))
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        if part == "optimizer":
            index, _, name = name.partition("/")
            state.optimizer.setdefault(int(index), {})[name] = tensor
        else:
            getattr(state, part)[name] = tensor
    for index, values in meta["optimizer"].items():
        state.optimizer.setdefault(int(index), {}).update(values)
    return state


def copy_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict copied to the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}


def optimizer_state(optimizer: torch.optim.Optimizer) -> OptimizerState:
    """The optimiser's state by the index of the parameter, copied to the CPU."""
    return {
        index: {k: v.detach().to("cpu", copy=True) if isinstance(v, Tensor) else v for k, v in values.items()}
        for index, values in optimizer.state_dict()["state"].items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, state: OptimizerState) -> None:
    """Load the optimiser's state. Its learning rates and settings stay as they are."""
    optimizer.load_state_dict({"state": dict(state), "param_groups": optimizer.state_dict()["param_groups"]})
