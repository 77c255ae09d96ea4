"""A plan in words."""

from __future__ import annotations

from ..bridge.sampling import noise_share, timestep_at
from .strength import Plan


def describe(plan: Plan, sampling) -> str:
    """ "noise level: runs 11 of 20 steps, from sigma 1.48 (t = 473), 69 % of the variance is noise." and the notes."""
    if plan.run == 0:
        first = f"{plan.request.contract}: runs 0 of {plan.total} steps, the picture comes back as it is."
    else:
        sigma = float(plan.sigmas[0])
        first = (
            f"{plan.request.contract}: runs {plan.run} of {plan.total} steps, from sigma {number(sigma)} "
            f"(t = {number(timestep_at(sampling, sigma), whole=True)}), {percent(noise_share(sampling, sigma))} of "
            "the variance is noise."
        )
    return "\n".join([first, *plan.notes])


def number(value: float, whole: bool = False) -> str:
    """Three digits: 14.6, 1.48, 0.0292; with `whole`, large ones as whole numbers: 473."""
    return f"{value:.0f}" if abs(value) >= (10 if whole else 100) or value == 0 else f"{value:.3g}"


def percent(share: float) -> str:
    """69 %; near the ends with the digits it takes not to say 0 or 100: 99.53 %, 0.085 %."""
    value = 100 * share
    if share == 1.0 or share == 0.0 or 1 <= value <= 99:
        return f"{value:.0f} %"
    return f"{value:.2g} %" if value < 1 else f"{min(value, 99.99):.2f} %"
