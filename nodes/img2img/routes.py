"""GET /bespoke/schedule: what the strength dial on a node draws before a prompt is queued."""

from __future__ import annotations

import math
from collections.abc import Mapping

from aiohttp import web

from ...training.errors import InputError
from ...training.plain_json import read_json
from ..bridge.models.schedule_probe import probe_model
from ..bridge.sampling import noise_share, timestep_at
from ..bridge.web import SHOWN_ON_THE_NODE, HasRoutes, json_answer
from .node import plan_for
from .plot import schedule_positions
from .report import describe
from .strength import Strength

MOST_POINTS = 200  # of a schedule, to draw
LONGEST = 20_000  # steps of a schedule that is computed for a drawing


def register(server: HasRoutes) -> None:
    """Add the route to ComfyUI's server."""

    @server.routes.get("/bespoke/schedule")
    async def schedule(request: web.Request) -> web.Response:
        errors = (ValueError, KeyError, TypeError)
        return await json_answer(answer_to, request.query, errors=errors, error_status=SHOWN_ON_THE_NODE)


def answer_to(query: Mapping[str, str]) -> dict:
    """The schedule for a query of strings: strength, steps, contract, exact_steps, scheduler, sampler_name and model.

    model: the nodes that lead to the model as JSON, see `probe_model`. Answers {"model", "report", "run", "total",
    "sigma", "timestep", "noise", "whole", "sigmas"}; the last two are lists of [position in steps, sigma], thinned for
    drawing. Raises `InputError` and `ValueError` for values that are no request.
    """
    request = Strength(
        float(query.get("strength", "0.75")),
        int(query.get("steps", "20")),
        query.get("contract", "noise level"),
        query.get("exact_steps", "false") == "true",
    )
    if request.strength > 0 and request.steps / request.strength > LONGEST:
        raise InputError(f"{request.steps} steps at strength {request.strength:g} make a schedule too long to draw")
    chain = read_json(query.get("model", "[]"))
    if not isinstance(chain, list) or not all(isinstance(step, dict) for step in chain):
        raise InputError("model is a list of nodes, each with its type and values")
    model, name = probe_model(chain)
    chosen = plan_for(model, request, query.get("scheduler", "normal"), query.get("sampler_name", "euler"))
    model_sampling = model.get_model_object("model_sampling")
    whole, sigmas = chosen.whole.tolist(), chosen.sigmas.tolist()
    first = sigmas[0] if chosen.run else 0.0
    return {
        "model": name,
        "report": describe(chosen, model_sampling),
        "run": chosen.run,
        "total": chosen.total,
        "sigma": first,
        "timestep": timestep_at(model_sampling, first) if chosen.run else 0.0,
        "noise": noise_share(model_sampling, first) if chosen.run else 0.0,
        "whole": thinned(list(enumerate(whole))),
        "sigmas": thinned(list(zip(schedule_positions(whole, sigmas), sigmas, strict=True))),
    }


def thinned(points: list[tuple[float, float]]) -> list[list[float]]:
    """About `MOST_POINTS` of the points (position, sigma) at most, both ends among them, rounded."""
    every = max(1, math.ceil(len(points) / MOST_POINTS))
    kept = points[::every] if (len(points) - 1) % every == 0 else [*points[::every], points[-1]]
    return [[round(position, 4), float(f"{sigma:.6g}")] for position, sigma in kept]
