"""The state of a run as plain tensors and numbers, so that it goes into a safetensors file and no pickle is needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .plain_json import read_json


@dataclass
class State:
    """All that a run needs to go on: `step` steps are done.

    trained: the parameters. optimizer: its `state_dict()["state"]`. best: the parameters at the lowest held-out loss,
    `best_loss` at `best_step`. average: the running mean of the parameters, or empty.
    """

    step: int
    trained: dict[str, Tensor]
    optimizer: dict[int, dict[str, Tensor | float | int]]
    best: dict[str, Tensor] = field(default_factory=dict)
    best_loss: float = float("inf")
    best_step: int = 0
    average: dict[str, Tensor] = field(default_factory=dict)


def pack(state: State) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a state, for a safetensors file."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, float | int]] = {}
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
    """The state that `pack` wrote. Raises `KeyError` or `ValueError` when it is none."""
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


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor | float | int]]:
    """What the optimiser remembers of each parameter, copied to the CPU."""
    return {
        index: {k: v.detach().to("cpu", copy=True) if isinstance(v, Tensor) else v for k, v in values.items()}
        for index, values in optimizer.state_dict()["state"].items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, state: Mapping[int, Mapping[str, Tensor | float | int]]
) -> None:
    """Give the optimiser its memory back; learning rates and settings stay the present ones."""
    optimizer.load_state_dict({"state": dict(state), "param_groups": optimizer.state_dict()["param_groups"]})
