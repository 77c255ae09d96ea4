"""The page's way to the runs: list them, read one, ask one to finish."""

from __future__ import annotations

import asyncio
import json

from .store import RunStore, list_runs, request_finish


def register(server) -> None:
    """Add the routes to ComfyUI's server."""
    from aiohttp import web

    @server.routes.get("/bespoke/runs")
    async def runs(_request):
        return web.json_response(await asyncio.to_thread(_summaries))  # many files, and the socket must not wait

    @server.routes.get("/bespoke/runs/{id}")
    async def run(request):
        found = await asyncio.to_thread(_record, request.match_info["id"])
        if found is None:
            return web.json_response({"error": "no such run"}, status=404)
        return web.Response(text=found.to_json(), content_type="application/json")

    @server.routes.get("/bespoke/runs/{id}/samples/{file}")
    async def sample(request):
        try:
            path = RunStore(request.match_info["id"]).sample_path(request.match_info["file"])
        except ValueError:
            path = None
        return web.FileResponse(path) if path else web.json_response({"error": "no such sample"}, status=404)

    @server.routes.post("/bespoke/runs/{id}/finish")
    async def finish(request):
        found = _record(request.match_info["id"])
        if found is None:
            return web.json_response({"error": "no such run"}, status=404)
        if found.state != "running":
            return web.json_response({"error": f"the run is {found.state}, so there is nothing to finish"}, status=409)
        request_finish(found.id)
        return web.json_response({"id": found.id, "finish": "requested"})


def _summaries() -> list[dict]:
    summaries = []
    for run in list_runs():
        summary = json.loads(run.to_json())
        summary["steps_done"] = len(summary.pop("losses"))
        summaries.append(summary)
    return summaries


def _record(run_id: str):
    try:
        return RunStore(run_id).record()
    except ValueError:
        return None
