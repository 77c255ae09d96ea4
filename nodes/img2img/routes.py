"""GET /bespoke/schedule: what the strength dial on a node draws before a prompt is queued."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from ...training.errors import InputError
from ...training.plain_json import read_json
from ..bridge.models.schedule_probe import probe_model
from ..bridge.web import SHOWN_ON_THE_NODE, HasRoutes, json_answer
from .node import plan_for
from .shown import shown_schedule
from .strength import Strength

PROBLEMS = ("", "open", "muted", "unknown")  # why the page found no loader: see `Problem` in js/comfy.js
LONGEST = 20_000  # steps of a schedule that is computed for a drawing


def register(server: HasRoutes) -> None:
    """Add the route to ComfyUI's server."""

    @server.routes.get("/bespoke/schedule")
    async def schedule(request: web.Request) -> web.Response:
        errors = (ValueError, KeyError, TypeError)
        return await json_answer(answer_to, request.query, errors=errors, error_status=SHOWN_ON_THE_NODE)


def answer_to(query: Mapping[str, str]) -> dict:
    """The schedule for a query of strings.

    strength, steps, contract, exact_steps, scheduler, sampler_name: the node's widgets. model: the nodes that lead to
    the model as JSON, see `probe_model`. problem: one of `PROBLEMS`, why the page found no loader. Answers "model",
    the file's name, and what `shown_schedule` gives. Where the schedule is not known for certain before the prompt has
    run, answers {"problem": "open", "muted" or "unknown"}. Raises `InputError` and `ValueError` for values that are no
    request.
    """
    request = Strength(
        float(query.get("strength", "0.75")),
        int(query.get("steps", "20")),
        query.get("contract", "noise level"),
        query.get("exact_steps", "false") == "true",
    )
    if request.strength > 0 and request.steps / request.strength > LONGEST:
        raise InputError(
            f"{request.steps} steps at strength {request.strength:g} make a schedule too long to draw; lower the "
            "steps, or raise the strength"
        )
    chain = read_json(query.get("model", "[]"))
    if not isinstance(chain, list) or not all(isinstance(step, dict) for step in chain):
        raise InputError("model is a list of nodes, each with its type and values")
    problem = query.get("problem", "")
    if problem not in PROBLEMS:
        raise InputError(f"problem is {problem!r}; give one of {', '.join(map(repr, PROBLEMS))}")
    found = probe_model(chain, is_whole=not problem)
    if found is None or problem:
        return {"problem": "unknown" if found is None else problem}
    model, name = found
    chosen = plan_for(model, request, query.get("scheduler", "normal"), query.get("sampler_name", "euler"))
    return {"model": name, **shown_schedule(chosen, model.get_model_object("model_sampling"))}
