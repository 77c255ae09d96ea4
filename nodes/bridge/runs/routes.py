"""HTTP routes for runs: list them, find the run of a node, read one, its graph, its files, its card and its curve, ask
one to finish, rename or remove one."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from functools import partial
from typing import Any

from aiohttp import web

from ....training.errors import InputError
from ..web import CONFLICT, NOT_FOUND, HasRoutes, JsonText, RequestRefused, error_answer, json_answer, post_answer
from .graph import files_of, kept_graph
from .index import PAGE, RunIndex
from .lease import is_held_here, owner_of, request_finish_elsewhere
from .live import is_trained, trained_ids
from .manage import card_of_run, curve_of_run, found_run, no_such_run, picture_of_run, remove_run, rename_run
from .match import NodeRequest, find_run
from .store import RunStore, request_finish

RUNS = RunIndex()
Defaults = Mapping[str, Mapping[str, Any]]  # {technique: {setting: its default}}


def register(server: HasRoutes, defaults: Defaults) -> None:
    """Add the routes to ComfyUI's server. defaults: of the settings of each technique."""

    @server.routes.get("/bespoke/runs")
    async def runs(request: web.Request) -> web.Response:
        return await json_answer(list_runs, request.query)

    @server.routes.post("/bespoke/runs/match")
    async def match(request: web.Request) -> web.Response:
        return await post_answer(request, partial(match_run, defaults=defaults))

    @server.routes.get("/bespoke/runs/{id}")
    async def run(request: web.Request) -> web.Response:
        return await json_answer(record_for_page, request.match_info["id"])

    @server.routes.get("/bespoke/runs/{id}/graph")
    async def graph(request: web.Request) -> web.Response:
        return await json_answer(graph_of_run, request.match_info["id"])

    @server.routes.get("/bespoke/runs/{id}/files")
    async def files(request: web.Request) -> web.Response:
        return await json_answer(files_of_run, request.match_info["id"])

    @server.routes.get("/bespoke/runs/{id}/samples/{file}")
    async def sample(request: web.Request) -> web.StreamResponse:
        try:
            path = RunStore(request.match_info["id"]).sample_path(request.match_info["file"])
        except ValueError:
            path = None
        if path is None:
            return error_answer(NOT_FOUND, "no such sample")
        kind = f"image/{path.suffix[1:]}"  # a system's table of types may lack WebP
        return web.FileResponse(path, headers={"Content-Type": kind})

    @server.routes.get("/bespoke/runs/{id}/picture")
    async def picture(request: web.Request) -> web.StreamResponse:
        path = picture_of_run(request.match_info["id"])
        return web.FileResponse(path) if path else error_answer(NOT_FOUND, "no picture was kept of this run's set")

    @server.routes.get("/bespoke/runs/{id}/card")
    async def card(request: web.Request) -> web.StreamResponse:
        path = await asyncio.to_thread(card_of_run, request.match_info["id"])
        return web.FileResponse(path) if path else error_answer(NOT_FOUND, "this run has no evidence card")

    @server.routes.get("/bespoke/runs/{id}/curve")
    async def curve(request: web.Request) -> web.Response:
        return await json_answer(curve_of_run, request.match_info["id"])

    @server.routes.post("/bespoke/runs/{id}/finish")
    async def finish(request: web.Request) -> web.Response:
        return await post_answer(request, lambda _: finish_run(request.match_info["id"]))

    @server.routes.post("/bespoke/runs/{id}/rename")
    async def rename(request: web.Request) -> web.Response:
        return await post_answer(request, partial(rename_run, request.match_info["id"]))

    @server.routes.post("/bespoke/runs/{id}/remove")
    async def remove(request: web.Request) -> web.Response:
        return await post_answer(request, lambda _: remove_run(request.match_info["id"]))


def list_runs(query: Mapping[str, str]) -> dict:
    """A page of the summaries in which all words of `search` occur, newest first; `page` counts from 0.

    Answers {"runs", "total", "page", "pages", "stamp", "unread", "live"}, or {"stamp", "unchanged"} where `stamp` is
    the present one. unread: the ids of runs whose record cannot be read. live: those of the runs that are trained now;
    another one whose state is "running" was cut off. stamp: differs when anything but the page and the search does.
    Raises `InputError` where `page` is no number.
    """
    page, listing, live = _page(query.get("page", "0")), RUNS.look(), trained_ids()
    # A server that is killed leaves its record as it is, and only its lease tells that the run has ended.
    stamp = listing.stamp
    if live:
        stamp += f"-{hashlib.blake2b(' '.join(live).encode(), digest_size=8).hexdigest()}"
    if query.get("stamp") == stamp:
        return {"stamp": stamp, "unchanged": True}
    found = listing.summaries(query.get("search", ""))
    runs = [vars(summary) for summary in found[page * PAGE : (page + 1) * PAGE]]
    return {
        "runs": runs,
        "total": len(found),
        "page": page,
        "pages": -(-len(found) // PAGE),
        "stamp": stamp,
        "unread": list(listing.unread[:PAGE]),
        "live": live,
    }


def _page(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise InputError(f"page is {text[:40]!r}; give a whole number from 0")
    return int(text)


def match_run(body: bytes, defaults: Defaults) -> dict:
    """{"run": the summary of the run that a trainer node shows or None, "exact": whether that node made it}."""
    wanted = NodeRequest.from_json(body)
    found, exact = find_run(RUNS.look().summaries(), wanted, defaults.get(wanted.technique))
    return {"run": None if found is None else vars(found), "exact": exact}


def record_for_page(run_id: str) -> JsonText:
    """A run's record as JSON, with whether it is trained now ("live").

    The layer names, which are most of it, and the losses of single pictures are left out: the page reads neither.
    """
    try:
        return JsonText(found_run(run_id)[1].to_json(leave_out=("names", "pictures"), live=is_trained(run_id)))
    except RecursionError as error:  # nested more deeply than it can be written
        raise no_such_run() from error


def graph_of_run(run_id: str) -> dict:
    """The workflow that a run was queued with. Raises `RequestRefused` where there is none."""
    try:
        graph = kept_graph(run_id)
    except ValueError:
        graph = None
    if graph is None:
        raise RequestRefused(NOT_FOUND, "this run's graph was not kept, as it was queued without one")
    return graph


def files_of_run(run_id: str) -> dict[str, list[str]]:
    """{"loras": [...], "embeddings": [...]}: the files that a run made. Raises `RequestRefused` for what is no id."""
    try:
        RunStore(run_id)
        return files_of(run_id)
    except ValueError as error:
        raise no_such_run() from error


def finish_run(run_id: str) -> dict:
    """Ask a running training to finish: {"id", "finish"}. It does so after its present step, see `run_training`.

    One that another server trains is asked too, through a file. Raises `RequestRefused` where the record of this id
    does not say that it is running, and where no process trains it, as its server was ended.
    """
    _, run = found_run(run_id)
    if run.state != "running":
        raise RequestRefused(CONFLICT, f"the run is {run.state}, so there is nothing to finish")
    lease = RunStore(run.id).lease_path
    if is_held_here(lease):
        request_finish(run.id)
    else:
        if owner_of(lease) is None:
            raise RequestRefused(
                CONFLICT,
                "the run broke off, so there is nothing to finish; queue it again to go on from what was saved",
            )
        request_finish_elsewhere(lease)
    return {"id": run.id, "finish": "requested"}
