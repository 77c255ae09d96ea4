"""How every HTTP route of the pack answers: JSON, made in a thread, and errors as {"error": message}.

A route's function takes plain values and returns what `json` can write. What it raises decides the status:

* `RequestRefused`: its own status, such as `NOT_FOUND`.
* `InputError`, and other errors that the route names: 400, or the status that the route gives.
* anything else: 500, by aiohttp.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Protocol

from aiohttp import web

from ...training.errors import InputError

OK, BAD_REQUEST, NOT_FOUND, CONFLICT = 200, 400, 404, 409
# For a route whose error is drawn on the node: the browser's console reports every other status as an error of the
# page, and a workflow that names a missing file, or a value out of range while it is typed, is none.
SHOWN_ON_THE_NODE = OK


class HasRoutes(Protocol):
    """ComfyUI's `PromptServer`, as far as routes need it."""

    routes: web.RouteTableDef


class RequestRefused(Exception):
    """The request cannot be answered. status: HTTP's; message: the answer's "error"."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class JsonText(str):
    """JSON that is written already; it is answered as it is."""


async def json_answer(
    function: Callable[..., object],
    *args: object,
    errors: tuple[type[Exception], ...] = (),
    error_status: int = BAD_REQUEST,
) -> web.Response:
    """Answer `function(*args)` as JSON. It runs in a thread, since it may read many files.

    errors: exceptions besides `InputError` that mean a bad request. error_status: the status of both.
    """
    try:
        return web.json_response(text=await asyncio.to_thread(_json_text, function, args))
    except RequestRefused as refused:
        return error_answer(refused.status, str(refused))
    except (InputError, *errors) as error:
        return error_answer(error_status, str(error))


def error_answer(status: int, message: str) -> web.Response:
    """{"error": message} with an HTTP status."""
    return web.json_response({"error": message}, status=status)


def _json_text(function: Callable[..., object], args: tuple[object, ...]) -> str:
    value = function(*args)
    return value if isinstance(value, JsonText) else json.dumps(value, separators=(",", ":"))
