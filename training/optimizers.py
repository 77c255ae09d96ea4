"""Optimisers and learning-rate schedules: torch's, those of packages that a user may have installed, and Prodigy."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim import lr_scheduler as schedulers
from torch.optim.lr_scheduler import LRScheduler

from .errors import InputError
from .muon import MuonWithAdamW
from .rate_free import Prodigy

Group = tuple[list[nn.Parameter], float]  # parameters and their learning rate
Settings = list[dict[str, Any]]  # the same as torch takes it


def _adamw(groups: Settings, learning_rate: float) -> Optimizer:
    # One kernel for all parameters instead of a dozen each: a LoRA has hundreds of small ones.
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999), weight_decay=0.0, fused=fused)


def _adafactor(groups: Settings, learning_rate: float) -> Optimizer:
    # Its steps are relative to the size of a parameter, and the up factor of LoRA starts at zero: sizes below 1 count
    # as 1.
    return torch.optim.Adafactor(groups, lr=learning_rate, eps=(None, 1.0), weight_decay=0.0)


def _sgd(groups: Settings, learning_rate: float) -> Optimizer:
    return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9)


def _muon(groups: Settings, learning_rate: float) -> Optimizer:
    if not hasattr(torch.optim, "Muon"):
        raise InputError(
            f"optimizer is Muon, which came with torch 2.9, and this is torch {torch.__version__}; update torch, or "
            "choose AdamW"
        )
    return MuonWithAdamW(groups)


def _adamw_8bit(groups: Settings, learning_rate: float) -> Optimizer:
    made: Optimizer = _package("AdamW 8-bit").optim.AdamW8bit(
        groups, lr=learning_rate, betas=(0.9, 0.999), weight_decay=0.0
    )
    return made


def _schedule_free(groups: Settings, learning_rate: float) -> Optimizer:
    made = _package("schedule-free AdamW").AdamWScheduleFree(
        groups, lr=learning_rate, betas=(0.9, 0.999), weight_decay=0.0
    )
    made.train()
    return made


def _prodigy_of_package(groups: Settings, learning_rate: float) -> Optimizer:
    # It refuses groups of different rates, so all have the same.
    factor = rate_factor(learning_rate)
    alike = [group | {"lr": factor} for group in groups]
    made: Optimizer = _package("Prodigy").Prodigy(alike, use_bias_correction=True, safeguard_warmup=True)
    return made


def _prodigy(groups: Settings, learning_rate: float) -> Optimizer:
    factor = rate_factor(learning_rate)
    # Multiples of the run's rate. At a rate of 0 nothing is learned, whatever they are.
    ratios = [group["lr"] / learning_rate if learning_rate > 0 else 1.0 for group in groups]
    return Prodigy(
        [group | {"lr": factor * ratio, "ratio": ratio} for group, ratio in zip(groups, ratios, strict=True)]
    )


@dataclass(frozen=True)
class OptimizerKind:
    """One optimiser.

    make: (the groups, the run's learning rate) -> the optimiser. state_bytes: bytes of its state for each trained
    number; the number itself and its gradient come on top. package: what has to be installed besides ComfyUI, and
    instead: what to choose without it. finds_rate: whether it finds the learning rate itself, so that the run's is a
    factor, see `rate_factor`; its estimate is "d" of each group. one_rate: whether all groups learn at the same rate.
    has_schedule: False where the rate is constant after the warm-up, whatever schedule is chosen. group_state: the
    numbers that it keeps in each group, which are saved with the state.
    """

    make: Callable[[Settings, float], Optimizer]
    state_bytes: int
    package: str = ""
    instead: str = "AdamW"
    finds_rate: bool = False
    one_rate: bool = False
    has_schedule: bool = True
    group_state: tuple[str, ...] = ()


# The trainers' widget lists these names, and the memory forecast reads `state_bytes`. No weight decay: training starts
# at the base model, not at zero. Those of packages are always in the list, so that a shared graph opens everywhere.
OPTIMIZERS: dict[str, OptimizerKind] = {
    "AdamW": OptimizerKind(_adamw, 8),
    "Adafactor": OptimizerKind(_adafactor, 1),
    "SGD": OptimizerKind(_sgd, 4),
    "Prodigy (built in)": OptimizerKind(_prodigy, 16, finds_rate=True, group_state=Prodigy.GROUP_STATE),
    "Muon": OptimizerKind(_muon, 4),
    "AdamW 8-bit": OptimizerKind(_adamw_8bit, 2, "bitsandbytes"),
    "schedule-free AdamW": OptimizerKind(
        _schedule_free, 8, "schedulefree", has_schedule=False, group_state=("k", "weight_sum", "lr_max")
    ),
    "Prodigy": OptimizerKind(
        _prodigy_of_package,
        16,
        "prodigyopt",
        "Prodigy (built in)",
        finds_rate=True,
        one_rate=True,
        group_state=("d", "d_max", "d_numerator", "k"),
    ),
}
LEAST_FACTOR = 0.1  # the smallest learning rate that counts as a factor of what an optimiser finds itself

# (the optimiser, steps) -> the learning rate over that many steps after the warm-up. The trainers' widget lists these
# names. "cosine with restarts" has a cycle per 500 steps, at least two.
LR_SCHEDULES: dict[str, Callable[[Optimizer, int], LRScheduler]] = {
    "constant": lambda optimizer, steps: schedulers.ConstantLR(optimizer, 1.0),
    "linear": lambda optimizer, steps: schedulers.LinearLR(optimizer, 1.0, 0.0, steps),
    "cosine": lambda optimizer, steps: schedulers.CosineAnnealingLR(optimizer, steps),
    "cosine with restarts": lambda optimizer, steps: schedulers.CosineAnnealingWarmRestarts(
        optimizer, math.ceil(steps / max(2, steps // 500))
    ),
}


def _package(name: str) -> Any:
    """The module of the package that the optimiser `name` needs. Raises `InputError` where it is not installed."""
    kind = OPTIMIZERS[name]
    try:
        return importlib.import_module(kind.package)
    except ModuleNotFoundError as error:
        if error.name == kind.package:
            raise InputError(
                f"optimizer is {name}, which is in the package {kind.package}, and that is not installed here; install "
                f"it into the Python of ComfyUI (pip install {kind.package}) and restart ComfyUI, or choose "
                f"{kind.instead}"
            ) from error
        reason: Exception = error
    except Exception as error:  # a broken installation raises what it likes
        reason = error
    raise InputError(
        f"optimizer is {name}, and its package {kind.package} cannot be loaded ({_shown(reason)}); install it anew, or "
        f"choose {kind.instead}"
    ) from reason


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def check_optimizer(name: str, device: torch.device) -> None:
    """Raise `InputError` where the optimiser cannot run here: its package is missing, or not made for this device.

    One of a package makes a step on a tensor of zeros.
    """
    kind = OPTIMIZERS[name]
    try:
        with torch.inference_mode(False):  # nodes run in inference mode, trainings do not
            probe = nn.Parameter(torch.zeros(64, 128, device=device if kind.package else None))
            probe.grad = torch.zeros_like(probe)
            optimizer = make_optimizer(name, [([probe], 1e-3)], 1e-3)
            if kind.package:
                optimizer.step()
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"optimizer is {name}, and its package {kind.package or 'torch'} makes no step on {device} "
            f"({_shown(error)}); choose {kind.instead}"
        ) from error


def rate_factor(learning_rate: float) -> float:
    """What multiplies the rate that an optimiser finds itself, from the widget `learning_rate`.

    From `LEAST_FACTOR` up it is the learning rate, and at 0 it is 0. What lies between is a rate for other optimisers
    (such as 1e-4, the default), with which nothing would be learned: it counts as 1.
    """
    return learning_rate if learning_rate >= LEAST_FACTOR or learning_rate == 0.0 else 1.0


def found_rate(optimizer: Optimizer) -> float | None:
    """The rate that the optimiser has found so far, before factor and schedule; None where it is given one."""
    found = optimizer.param_groups[0].get("d")
    return None if found is None else float(found)


@contextmanager
def without_rate(optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> Generator[None]:
    """Within the block the groups of `parameters` have the learning rate 0, which moves none of theirs.

    For optimisers that take a rate; one that finds its own, or averages instead of a schedule, may move them.
    """
    chosen = set(map(id, parameters))
    rates = [(group, group["lr"]) for group in optimizer.param_groups if chosen & set(map(id, group["params"]))]
    for group, _ in rates:
        group["lr"] = 0.0
    try:
        yield
    finally:
        for group, rate in rates:
            group["lr"] = rate


@contextmanager
def evaluation_weights(optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> Generator[bool]:
    """Within the block the parameters are those to be used; afterwards their own again, to the bit.

    Yields whether they differ, as for a schedule-free optimiser (Defazio et al. 2024, arXiv 2405.15682): gradients are
    taken at y, and x is used.
    """
    switch: Any = optimizer
    if not hasattr(switch, "eval"):
        yield False
        return
    own = [parameter.detach().clone() for parameter in parameters]
    switch.eval()
    try:
        yield True
    finally:
        switch.train()
        with torch.no_grad():
            for parameter, value in zip(parameters, own, strict=True):
                parameter.copy_(value)


@torch.no_grad()
def hold_between_steps(optimizer: Optimizer, after_step: Callable[[], None]) -> None:
    """Call `after_step`, which restores what must hold of the parameters, after a step of the optimiser.

    A schedule-free optimiser steps z, and uses x, the weighted mean of all z. There z is restored, and x is the mean of
    the restored ones: y = (1 - beta1) z + beta1 x, where gradients are taken, follows. Were y restored instead, z would
    grow without end, and x = (y - (1 - beta1) z) / beta1 with it, in the other direction.
    """
    if not hasattr(optimizer, "eval"):
        after_step()
        return
    held = [(p, optimizer.state[p]["z"], group) for group in optimizer.param_groups for p in group["params"]]
    own = [parameter.detach().clone() for parameter, _, _ in held]
    for parameter, z, _ in held:
        parameter.copy_(z)
    after_step()
    for (parameter, z, group), y in zip(held, own, strict=True):
        beta1, _ = group["betas"]
        newest = group["k"] ** group["r"] * group["lr_max"] ** group["weight_lr_power"]
        share = newest / group["weight_sum"] if group["weight_sum"] else 0.0  # of this step's z in x
        y.add_(parameter - z, alpha=1 - beta1 + beta1 * share)
        z.copy_(parameter)
        parameter.copy_(y)


def make_optimizer(name: str, groups: Sequence[Group], learning_rate: float) -> Optimizer:
    """The optimiser `name` of `OPTIMIZERS` over groups of parameters. learning_rate: the run's."""
    return OPTIMIZERS[name].make([{"params": parameters, "lr": rate} for parameters, rate in groups], learning_rate)


def state_shapes(name: str, parameters: Sequence[nn.Parameter]) -> list[dict[str, tuple[int, ...]]]:
    """The shapes of the tensors that the optimiser keeps for each parameter after a step: {name: shape} for each.

    Found by a step with a gradient of zeros, once for each shape of parameter. prodigyopt keeps less of a parameter
    that starts at zero.
    """
    known: dict[tuple[Any, ...], dict[str, tuple[int, ...]]] = {}
    shapes: list[dict[str, tuple[int, ...]]] = []
    for parameter in parameters:
        key = (tuple(parameter.shape), bool(parameter.any()))
        if key not in known:
            probe = nn.Parameter(parameter.detach().clone())
            probe.grad = torch.zeros_like(probe)
            optimizer = make_optimizer(name, [([probe], 0.0)], 0.0)
            optimizer.step()
            kept: dict[str, Any] = optimizer.state[probe]
            known[key] = {key: tuple(value.shape) for key, value in kept.items() if isinstance(value, Tensor)}
        shapes.append(known[key])
    return shapes


def group_numbers(name: str, optimizer: Optimizer) -> list[dict[str, float]]:
    """What the optimiser `name` keeps in each group, see `OptimizerKind.group_state`; empty where it keeps nothing."""
    kept = OPTIMIZERS[name].group_state
    return [{key: group[key] for key in kept} for group in optimizer.param_groups] if kept else []


def set_group_numbers(optimizer: Optimizer, numbers: Sequence[Mapping[str, float]]) -> None:
    """Put back what `group_numbers` gave."""
    for group, values in zip(optimizer.param_groups, numbers, strict=False):
        group.update(values)


def schedule_of(optimizer: str, lr_schedule: str) -> str:
    """The schedule that a run with the optimiser `optimizer` has, where `lr_schedule` is chosen."""
    return lr_schedule if OPTIMIZERS[optimizer].has_schedule else "constant"


def make_lr_schedule(name: str, optimizer: Optimizer, steps: int, warmup_steps: int) -> LRScheduler:
    """The learning rate over `steps`: a linear rise over `warmup_steps`, then `name` of `LR_SCHEDULES`.

    The first step has the rate 1 / (warmup_steps + 1) of the highest, since a step at rate 0 learns nothing.
    """
    main = LR_SCHEDULES[name](optimizer, steps - warmup_steps)
    if not warmup_steps:
        return main
    rise = schedulers.LinearLR(optimizer, 1 / (warmup_steps + 1), 1.0, warmup_steps)
    return schedulers.SequentialLR(optimizer, [rise, main], [warmup_steps])


def check_gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """The gradients. Raises `InputError` where a parameter has none."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if len(gradients) < len(parameters):
        raise InputError("a trained parameter got no gradient, so it would never learn; check the targets")
    return gradients


def clip_gradient(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """Scale the gradient down to the length `max_norm` (0 is no limit). Returns the length before."""
    return float(nn.utils.clip_grad_norm_(parameters, max_norm or math.inf))
