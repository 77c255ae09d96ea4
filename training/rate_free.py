"""Prodigy: AdamW that estimates its own learning rate (Mishchenko and Defazio 2023, arXiv 2306.06101)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .tensors import inner_product, sum_of_sizes

D0 = 1e-6  # the estimate before the first step, as in the paper
BETAS = (0.9, 0.999)
EPS = 1e-8
lists: Any = torch  # for its calls on lists of tensors, which have no types: one kernel instead of hundreds
# The estimate has settled where it is this many times `D0` and has grown by less than a twentieth for five steps.
LEAST_GROWTH, GROWTH, PATIENCE = 10.0, 1.05, 5


class Prodigy(Optimizer):
    """Algorithm 4 of the paper, without weight decay, run twice: until d has settled, and again from the start with it.

    The estimate d is of the distance from the start to the solution, in the largest norm over the parameters. It begins
    at `D0`, never falls, and multiplies the learning rate of every group:

        d_hat = sum_k l_k d_k <g_k, x_0 - x_k> / |sum_k d_k^2 g_k|_1

    with weights that decay by sqrt(beta2) a step. Until d has settled, the steps are those of the paper: up to six
    times d, as Adam's moments are not corrected for their start at zero. So d grows to its order within some tens of
    steps, also with the noisy gradients of small batches. With corrected steps it hardly leaves `D0` in a hundred.
    Steps that large do harm that a short training does not make good. So once d has settled, the parameters go back to
    their start and the algorithm begins again with that d, now with Adam's bias correction: a step is about d.

    groups: each with its parameters, "lr" and "ratio". The ratio r is the multiple of the group's rate (LoRA+): its
    step is r times as large as that of a group with ratio 1. That is Prodigy on the variables x / r, whose gradients
    are r g, so the inner products stay as they are, and r multiplies the group's part of the denominator. There is one
    d for all groups. "lr" is the schedule's factor times r; the denominator does not have the factor, so that d is not
    estimated too high after a warm-up ("safeguard_warmup" of the authors' program).

    state of a parameter: the two moments, the decayed sum s of gradients, and its start p0, all float32. State of each
    group, equal in all: `GROUP_STATE`; k counts steps, `grown` is the last one in which d grew, `settled` is the number
    of steps up to the new beginning, 0 before it.
    """

    GROUP_STATE = ("d", "d_numerator", "k", "grown", "settled")

    def __init__(self, groups: list[dict[str, Any]]):
        numbers = {"d": D0, "d_numerator": 0.0, "k": 0, "grown": 0, "settled": 0}
        super().__init__(groups, {"lr": 1.0, "ratio": 1.0, **numbers})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Estimate d with the gradients of this step, then step with the d of before, as the algorithm says."""
        first = self.param_groups[0]
        d, factor, k = first["d"], first["lr"] / first["ratio"], first["k"]
        beta1, beta2 = BETAS
        since = k + 1 - first["settled"]
        correction = math.sqrt(1 - beta2**since) / (1 - beta1**since) if first["settled"] else 1.0
        step_size = d * factor * correction
        numerator, denominator = self._estimate(d, step_size)
        if denominator == 0.0:  # no gradient at all
            return None
        first["d_numerator"] = first["d_numerator"] * math.sqrt(beta2) + numerator
        if factor > 0.0:
            first["d"] = max(d, first["d_numerator"] / denominator)
        first["k"] = k + 1
        if first["d"] > GROWTH * d:
            first["grown"] = k
        elif not first["settled"] and first["d"] > LEAST_GROWTH * D0 and k - first["grown"] >= PATIENCE:
            self._begin_again()
            return None
        for group in self.param_groups:
            group.update({name: first[name] for name in self.GROUP_STATE})
            self._step_group(group, d=first["d"], step_size=step_size)
        return None

    def _begin_again(self) -> None:
        """Put the parameters back to their start and forget all but d and the number of steps."""
        first = self.param_groups[0]
        first.update(d_numerator=0.0, settled=first["k"])
        for group in self.param_groups:
            group.update({name: first[name] for name in self.GROUP_STATE})
            for parameter in group["params"]:
                state = self.state.get(parameter)
                if state:
                    parameter.copy_(state["p0"])
                    for key in ("exp_avg", "exp_avg_sq", "s"):
                        state[key].zero_()

    def _estimate(self, d: float, step_size: float) -> tuple[float, float]:
        """(what is added to the numerator, the denominator), both over d0. Updates the moments and the sums."""
        beta1, beta2 = BETAS
        numerator = denominator = 0.0
        for group in self.param_groups:
            parameters, gradients = _with_gradient(group["params"])
            if not parameters:
                continue
            states = [self._state_of(parameter) for parameter in parameters]
            moved: list[Tensor] = lists._foreach_sub([state["p0"] for state in states], parameters)
            numerator += (d / D0) * step_size * inner_product(gradients, moved)
            means, squares, sums = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "s"))
            lists._foreach_mul_(means, beta1)
            lists._foreach_add_(means, gradients, alpha=d * (1 - beta1))
            lists._foreach_mul_(squares, beta2)
            lists._foreach_addcmul_(squares, gradients, gradients, value=d * d * (1 - beta2))
            lists._foreach_mul_(sums, math.sqrt(beta2))
            lists._foreach_add_(sums, gradients, alpha=(d / D0) * d)
            denominator += group["ratio"] * sum_of_sizes(sums)
        return numerator, denominator

    def _step_group(self, group: dict[str, Any], d: float, step_size: float) -> None:
        parameters, _ = _with_gradient(group["params"])
        if not parameters:
            return
        states = [self.state[parameter] for parameter in parameters]
        sizes: list[Tensor] = lists._foreach_sqrt([state["exp_avg_sq"] for state in states])
        lists._foreach_add_(sizes, d * EPS)
        rate = -step_size * group["ratio"]
        lists._foreach_addcdiv_(parameters, [state["exp_avg"] for state in states], sizes, value=rate)

    def _state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state.update({key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq", "s")})
            state["p0"] = parameter.detach().clone()
        return state


def _with_gradient(parameters: Iterable[nn.Parameter]) -> tuple[list[nn.Parameter], list[Tensor]]:
    """The parameters that have a gradient, and the gradients."""
    found = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
    return [parameter for parameter, _ in found], [gradient for _, gradient in found]
