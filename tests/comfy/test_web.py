"""Responses of the routes: statuses and bodies."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from bespoke.nodes.bridge.runs import routes as run_routes
from bespoke.nodes.bridge.web import CONFLICT, SHOWN_ON_THE_NODE, JsonText, RequestRefused, json_answer
from bespoke.nodes.lora.injection import routes as lora_routes
from bespoke.training.errors import InputError


def answer(function, *args, **options):
    """(status, content type, body) of `json_answer`."""
    response = asyncio.run(json_answer(function, *args, **options))
    return response.status, response.content_type, json.loads(response.text)


def raise_error(error):
    raise error


def test_a_value_is_answered_as_json():
    assert answer(lambda a, b: {"sum": a + b}, 1, 2) == (200, "application/json", {"sum": 3})
    assert answer(lambda: JsonText('{"written": true}')) == (200, "application/json", {"written": True})
    assert answer(lambda: "a text") == (200, "application/json", "a text")


def test_errors_have_the_status_of_their_kind():
    assert answer(raise_error, InputError("x is 3; give 2"))[::2] == (400, {"error": "x is 3; give 2"})
    assert answer(raise_error, RequestRefused(CONFLICT, "not now"))[::2] == (409, {"error": "not now"})
    shown = {"errors": (OSError,), "error_status": SHOWN_ON_THE_NODE}
    for error in (InputError("no"), OSError("no")):
        assert answer(raise_error, error, **shown)[::2] == (200, {"error": "no"})
    assert answer(raise_error, RequestRefused(CONFLICT, "not now"), **shown)[::2] == (409, {"error": "not now"})


def test_an_error_that_no_route_expects_is_not_hidden():
    with pytest.raises(OSError, match="disk"):
        answer(raise_error, OSError("disk"))


def test_unknown_resources_are_404():
    class Server:
        routes = web.RouteTableDef()

    async def request_all():
        run_routes.register(Server, {})
        lora_routes.register(Server)
        app = web.Application()
        app.add_routes(Server.routes)
        async with TestClient(TestServer(app)) as client:
            answers = {}
            for path in ("runs/lora-00000000000f", "runs/x", "runs/..%2Fx"):
                for kind in ("", "/graph", "/files", "/samples/000001.png"):
                    response = await client.get(f"/bespoke/{path}{kind}")
                    answers[path, kind] = response.status, (await response.json()).get("error")
            response = await client.get("/bespoke/lora", params={"name": "gone.safetensors"})
            return answers, response.status, await response.json()

    answers, status, lora = asyncio.run(request_all())
    graph = "this run's graph was not kept, as it was queued without one"
    for path in ("runs/lora-00000000000f", "runs/x", "runs/..%2Fx"):
        assert answers[path, ""] == (404, "no such run")
        assert answers[path, "/graph"] == (404, graph)
        assert answers[path, "/samples/000001.png"] == (404, "no such sample")
    assert answers["runs/lora-00000000000f", "/files"] == (200, None)  # a valid id, whose run may have been deleted
    assert answers["runs/x", "/files"] == answers["runs/..%2Fx", "/files"] == (404, "no such run")
    assert status == 200
    assert lora == {"error": "'gone.safetensors' is not in ComfyUI's loras folder; choose another one"}
