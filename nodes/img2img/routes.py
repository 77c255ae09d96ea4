"""GET /bespoke/schedule: what the dial on a node draws before anything is queued."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping

from ...training.plain_json import read_json
from ..bridge import sampling as bridge
from ..bridge.errors import InputError
from ..bridge.models.schedule_probe import model_of
from .node import plan_for
from .plot import places
from .report import describe
from .strength import Strength

MOST_POINTS = 200  # of a schedule, to draw
LONGEST = 20_000  # steps of a schedule that is computed for a drawing


def register(server) -> None:
    """Add the route to ComfyUI's server. server: PromptServer.instance, or None where there is none."""
    if server is None:
        return
    from aiohttp import web

    @server.routes.get("/bespoke/schedule")
    async def schedule(request):
        try:
            answer = await asyncio.to_thread(answer_to, request.query)
        except (InputError, ValueError, KeyError, TypeError) as error:
            return web.json_response(
                {"error": str(error)}
            )  # drawn on the node; a status would be an error in the console
        return web.json_response(answer)


def answer_to(query: Mapping[str, str]) -> dict:
    """The schedule for a query of strings: strength, steps, contract, exact_steps, scheduler, sampler_name and model.

    model: the nodes that lead to the model as JSON, see `model_of`. Raises InputError and ValueError for what is not
    a request. Sigmas come with the place on the whole schedule, in steps; long schedules are thinned for drawing.
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
    model, name = model_of(chain)
    chosen = plan_for(model, request, query.get("scheduler", "normal"), query.get("sampler_name", "euler"))
    sampling = model.get_model_object("model_sampling")
    whole, sigmas = chosen.whole.tolist(), chosen.sigmas.tolist()
    first = sigmas[0] if chosen.run else 0.0
    return {
        "model": name,
        "report": describe(chosen, sampling),
        "run": chosen.run,
        "total": chosen.total,
        "sigma": first,
        "timestep": bridge.timestep_at(sampling, first) if chosen.run else 0.0,
        "noise": bridge.noise_share(sampling, first) if chosen.run else 0.0,
        "whole": thinned(list(enumerate(whole))),
        "sigmas": thinned(list(zip(places(whole, sigmas), sigmas, strict=True))),
    }


def thinned(points: list[tuple[float, float]]) -> list[list[float]]:
    """At most MOST_POINTS of the points, both ends among them, as [place, sigma]."""
    every = max(1, math.ceil(len(points) / MOST_POINTS))
    kept = points[::every] if (len(points) - 1) % every == 0 else [*points[::every], points[-1]]
    return [[round(place, 4), float(f"{sigma:.6g}")] for place, sigma in kept]
