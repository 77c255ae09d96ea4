"""The state of a run as tensors and numbers, for a safetensors file (no pickle)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .config import RANGES
from .plain_json import read_json

OptimizerState = dict[int, dict[str, Tensor | float | None]]  # by the index of the parameter, then by name


MOST_STEPS = int(RANGES["steps"][1])


class UnusableState(ValueError):
    """A saved state that no run can go on from. The message is the reason, without the name of a file."""


@dataclass
class State:
    """What a run needs to be resumed after `step` steps. All tensors are on the CPU.

    trained: the state dict of what is trained. optimizer: the optimiser's `state_dict()["state"]`. best: the state
    dict with the lowest validation loss, `best_loss` at `best_step`. average: that of `ParameterAverage`, or empty.
    scored_step: the step whose validation was the last one; None in a state of version 0.1. groups: the numbers that
    the optimiser keeps in each of its groups, see `optimizers.group_numbers`. stopping: that of `StopRule`, or empty.
    """

    step: int
    trained: dict[str, Tensor]
    optimizer: OptimizerState
    best: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    best_loss: float = float("inf")
    best_step: int = 0
    average: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    scored_step: int | None = None
    groups: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    stopping: Mapping[str, Any] = field(default_factory=dict[str, Any])


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
    meta: dict[str, Any] = {"step": state.step, "best_loss": state.best_loss, "best_step": state.best_step}
    meta |= {"optimizer": numbers, "scored_step": state.scored_step}
    if state.groups:
        meta["groups"] = state.groups
    if state.stopping:
        meta["stopping"] = state.stopping
    return tensors, {"bespoke.state": json.dumps(meta)}


def unpack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> State:
    """The state that `pack` wrote. Raises `UnusableState` for other files."""
    try:
        return _unpack(tensors, read_json(metadata["bespoke.state"]))
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UnusableState(f"it is no state of a training ({type(error).__name__}: {error})") from error


def _unpack(tensors: Mapping[str, Tensor], meta: Any) -> State:
    state = State(
        _whole_number(meta["step"]),
        {},
        {},
        best_loss=float(meta["best_loss"]),
        best_step=_whole_number(meta["best_step"]),
        scored_step=None if meta.get("scored_step") is None else _whole_number(meta["scored_step"]),
        groups=[_numbers(values) for values in meta.get("groups", [])],
        stopping=dict(meta.get("stopping", {})),
    )
    parts = {"trained": state.trained, "best": state.best, "average": state.average}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        if part == "optimizer":
            index, _, name = name.partition("/")
            state.optimizer.setdefault(int(index), {})[name] = tensor
        else:
            parts[part][name] = tensor
    for index, values in meta["optimizer"].items():
        state.optimizer.setdefault(int(index), {}).update(_numbers(values))
    return state


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Numbers by name. Whole ones stay int: bitsandbytes counts its steps in one, and takes no other."""
    for value in values.values():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < math.inf:
            raise ValueError(f"{str(value)[:40]} is no number of an optimiser")
    return dict(values)


def _whole_number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_STEPS:
        raise ValueError(f"{str(value)[:40]} is no number of steps")
    return value


Shapes = Mapping[str, tuple[int, ...]]  # {name of a tensor: its shape}


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """{name: shape} of tensors."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def check_state(
    state: State,
    trained: Shapes,
    optimizer: Sequence[Shapes],
    average: Shapes,
    groups: Sequence[Mapping[str, float]] = (),
) -> None:
    """Raise `UnusableState` where a training cannot go on from a state: other tensors, or numbers that are not finite.

    trained: of the trainable's `state_dict`. optimizer: of what the optimiser keeps for each parameter, see
    `optimizers.state_shapes`. average: of `ParameterAverage`. groups: what the optimiser keeps in each group; only the
    names are compared.
    """
    _check_tensors("trained tensors", state.trained, trained)
    if state.best:
        _check_tensors("best tensors", state.best, trained)
    if sorted(state.optimizer) != list(range(len(optimizer))):
        raise UnusableState(
            f"it holds the optimiser's state of {len(state.optimizer)} parameters, and {len(optimizer)} are trained"
        )
    for index, wanted in enumerate(optimizer):
        values = state.optimizer[index]
        _check_tensors("optimiser", {k: v for k, v in values.items() if isinstance(v, Tensor)}, wanted)
    if [set(group) for group in state.groups] != [set(group) for group in groups]:
        raise UnusableState(
            f"its optimiser keeps other numbers: {_named(state.groups)}; here it keeps {_named(groups)}"
        )
    _check_tensors("averages", state.average, average)
    if state.step < 1 or max(state.best_step, state.scored_step or 0) > state.step or math.isnan(state.best_loss):
        raise UnusableState(
            f"its numbers contradict each other: step {state.step}, the best is step {state.best_step} with a loss of "
            f"{state.best_loss:g}"
        )


def _named(groups: Sequence[Mapping[str, float]]) -> str:
    names = sorted({name for group in groups for name in group})
    return f"{', '.join(names)[:200] or 'none'} in {len(groups)} groups"


def _check_tensors(what: str, found: Mapping[str, Tensor], wanted: Shapes) -> None:
    if found.keys() != wanted.keys():
        name = min(found.keys() ^ wanted.keys())
        raise UnusableState(f"its {what} are of another training: {name} is only in one of the two")
    for name, tensor in found.items():
        if tuple(tensor.shape) != tuple(wanted[name]):
            raise UnusableState(
                f"its {what} are of another training: {name} is {tuple(tensor.shape)} in it, and "
                f"{tuple(wanted[name])} here"
            )
    _check_finite(what, found)


def _check_finite(what: str, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UnusableState(f"its {what} hold numbers that are not finite, in {name}")


def copy_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict copied to the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}


def optimizer_state(optimizer: torch.optim.Optimizer) -> OptimizerState:
    """The optimiser's state by the index of the parameter, copied to the CPU.

    bitsandbytes puts the tensors of a parameter into a dict of their own, and reads them without it too.
    """
    out: OptimizerState = {}
    for index, values in optimizer.state_dict()["state"].items():
        flat: dict[str, Any] = {}
        for name, value in values.items():
            flat |= value if isinstance(value, dict) else {name: value}
        out[index] = {k: v.detach().to("cpu", copy=True) if isinstance(v, Tensor) else v for k, v in flat.items()}
    return out


def restore_optimizer(optimizer: torch.optim.Optimizer, state: OptimizerState) -> None:
    """Load the optimiser's state of each parameter. Its learning rates and what is in its groups stay as they are."""
    optimizer.load_state_dict({"state": dict(state), "param_groups": optimizer.state_dict()["param_groups"]})
