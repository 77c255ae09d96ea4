"""A schedule as the page's strength dial draws it: what the route answers and what a node sends when it ran."""

from __future__ import annotations

import json
import math

from ..bridge.sampling import noise_share, timestep_at
from .plot import schedule_positions
from .report import describe
from .strength import Plan, Strength

MOST_POINTS = 200  # of a schedule, to draw


def shown_schedule(plan: Plan, model_sampling) -> dict:
    """{"report", "run", "total", "sigma", "timestep", "noise", "whole", "sigmas"} of a plan, for JSON.

    sigma, timestep and noise (share of the variance, 0 to 1) are those of the start, 0 where nothing runs. whole and
    sigmas are lists of [position in steps, sigma], thinned for drawing.
    """
    whole, sigmas = plan.whole.tolist(), plan.sigmas.tolist()
    first = sigmas[0] if plan.run else 0.0
    return {
        "report": describe(plan, model_sampling),
        "run": plan.run,
        "total": plan.total,
        "sigma": first,
        "timestep": timestep_at(model_sampling, first) if plan.run else 0.0,
        "noise": noise_share(model_sampling, first) if plan.run else 0.0,
        "whole": thinned(list(enumerate(whole))),
        "sigmas": thinned(list(zip(schedule_positions(whole, sigmas), sigmas, strict=True))),
    }


def thinned(points: list[tuple[float, float]]) -> list[list[float]]:
    """About `MOST_POINTS` of the points (position, sigma) at most, both ends among them, rounded."""
    every = max(1, math.ceil(len(points) / MOST_POINTS))
    kept = points[::every] if (len(points) - 1) % every == 0 else [*points[::every], points[-1]]
    return [[round(position, 4), float(f"{sigma:.6g}")] for position, sigma in kept]


def sent_schedule(plan: Plan, model_sampling, request: Strength, scheduler: str, sampler_name: str) -> dict:
    """The `ui` of a node that ran: {"bespoke_schedule": [JSON of `shown_schedule` and "values"]}.

    values: the widgets as the node got them, by which the page finds out which of its prompts ran. It is a text, since
    ComfyUI's list of jobs counts each dict as one output of the prompt.
    """
    values = {
        "strength": request.strength,
        "steps": request.steps,
        "contract": request.contract,
        "exact_steps": request.exact_steps,
        "scheduler": scheduler,
        "sampler_name": sampler_name,
    }
    return {"bespoke_schedule": [json.dumps({**shown_schedule(plan, model_sampling), "values": values})]}
