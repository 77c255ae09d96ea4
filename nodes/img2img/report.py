"""The report of a plan, and how it writes numbers."""

from __future__ import annotations

from ..bridge.sampling import noise_share, timestep_at
from .strength import Plan


def describe(plan: Plan, model_sampling) -> str:
    """The report: which steps run, from which noise level, and the plan's notes.

    For example "noise level: runs 11 of 20 steps, from sigma 1.48 (t = 473), 69 % of the variance is noise."
    """
    if plan.run == 0:
        first = f"{plan.request.contract}: runs 0 of {plan.total} steps, the picture comes back as it is."
    else:
        sigma = float(plan.sigmas[0])
        timestep, share = timestep_at(model_sampling, sigma), noise_share(model_sampling, sigma)
        first = (
            f"{plan.request.contract}: runs {plan.run} of {plan.total} steps, from sigma {number(sigma)} "
            f"(t = {number(timestep, whole=True)}), {percent(share)} of the variance is noise."
        )
    return "\n".join([first, *plan.notes])


def number(value: float, whole: bool = False) -> str:
    """Three digits: 14.6, 1.48, 0.0292; with `whole`, numbers from 10 as whole numbers: 473."""
    return f"{value:.0f}" if abs(value) >= (10 if whole else 100) or value == 0 else f"{value:.3g}"


def percent(share: float) -> str:
    """A share in 0..1 as a percentage: 69 %. Near 0 and 1 with more digits, as 99.53 % and 0.085 %."""
    value = 100 * share
    if share == 1.0 or share == 0.0 or 1 <= value <= 99:
        return f"{value:.0f} %"
    return f"{value:.2g} %" if value < 1 else f"{min(value, 99.99):.2f} %"
