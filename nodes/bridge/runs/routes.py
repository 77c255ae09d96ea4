"""The page's way to the runs: list them, find the one of a node, read one, ask one to finish."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

from ....training.errors import InputError
from ....training.record import Run
from .index import PAGE, RunIndex
from .match import NodeRequest, find_run
from .store import RunStore, request_finish

RUNS = RunIndex()


def register(server) -> None:
    """Add the routes to ComfyUI's server."""
    from aiohttp import web

    async def answer(find: Callable[[Any], dict], question):
        def text() -> str:
            return json.dumps(find(question), separators=(",", ":"), allow_nan=False)

        try:
            return web.json_response(text=await asyncio.to_thread(text))  # many files, and the socket must not wait
        except InputError as error:
            return web.json_response({"error": str(error)}, status=400)

    @server.routes.get("/bespoke/runs")
    async def runs(request):
        return await answer(list_runs, request.query)

    @server.routes.post("/bespoke/runs/match")
    async def match(request):
        return await answer(match_run, await request.read())

    @server.routes.get("/bespoke/runs/{id}")
    async def run(request):
        text = await asyncio.to_thread(_record_for_page, request.match_info["id"])
        if text is None:
            return web.json_response({"error": "no such run"}, status=404)
        return web.json_response(text=text)

    @server.routes.get("/bespoke/runs/{id}/samples/{file}")
    async def sample(request):
        try:
            path = RunStore(request.match_info["id"]).sample_path(request.match_info["file"])
        except ValueError:
            path = None
        return web.FileResponse(path) if path else web.json_response({"error": "no such sample"}, status=404)

    @server.routes.post("/bespoke/runs/{id}/finish")
    async def finish(request):
        found = await asyncio.to_thread(_record, request.match_info["id"])
        if found is None:
            return web.json_response({"error": "no such run"}, status=404)
        if found.state != "running":
            return web.json_response({"error": f"the run is {found.state}, so there is nothing to finish"}, status=409)
        request_finish(found.id)
        return web.json_response({"id": found.id, "finish": "requested"})


def list_runs(query: Mapping[str, str]) -> dict:
    """A page of the summaries in which all words of `search` occur, newest first; `page` counts from 0.

    Answers {"runs", "total", "page", "pages", "stamp"}, or {"stamp", "unchanged"} where `stamp` is the present one.
    Raises `InputError` where `page` is no number.
    """
    page, listing = _page(query.get("page", "0")), RUNS.look()
    if query.get("stamp") == listing.stamp:
        return {"stamp": listing.stamp, "unchanged": True}
    found = listing.summaries(query.get("search", ""))
    runs = [vars(summary) for summary in found[page * PAGE : (page + 1) * PAGE]]
    return {"runs": runs, "total": len(found), "page": page, "pages": -(-len(found) // PAGE), "stamp": listing.stamp}


def _page(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise InputError(f"page is {text[:40]!r}; give a whole number from 0")
    return int(text)


def match_run(body: bytes) -> dict:
    """{"run": the summary of the run that a trainer node shows or None, "exact": whether that node made it}."""
    wanted = NodeRequest.from_json(body)
    found, exact = find_run(RUNS.look().summaries(), wanted)
    return {"run": None if found is None else vars(found), "exact": exact}


def _record_for_page(run_id: str) -> str | None:
    """A run's record as JSON, without the layer names, which the page does not read and which are most of it."""
    run = _record(run_id)
    try:
        return None if run is None else run.to_json(leave_out=("names",))
    except RecursionError:  # nested more deeply than it can be written
        return None


def _record(run_id: str) -> Run | None:
    try:
        return RunStore(run_id).record()
    except ValueError:
        return None
