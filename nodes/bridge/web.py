"""How every HTTP route of the pack answers: JSON, made in a thread, and errors as {"error": message}.

A route's function takes plain values and returns what `json` can write. What it raises decides the status:

* `RequestRefused`: its own status, such as `NOT_FOUND`.
* `InputError`, and other errors that the route names: 400, or the status that the route gives.
* anything else: 500, by aiohttp.

A POST request goes through `post_answer`, which asks for JSON; `read_object` checks its body, so that none can cause a
500.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from aiohttp import web

from ...training.errors import InputError
from ...training.plain_json import read_json

OK, BAD_REQUEST, NOT_FOUND, CONFLICT, UNSUPPORTED_MEDIA_TYPE = 200, 400, 404, 409, 415
JSON = "application/json"  # the content type of every POST request
LARGEST_BODY = 1_000_000  # bytes
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
        # The text of an `OSError` has the server's path.
        message = error.strerror if isinstance(error, OSError) else None
        return error_answer(error_status, message or str(error))


async def post_answer(
    request: web.Request, function: Callable[[bytes], object], errors: tuple[type[Exception], ...] = ()
) -> web.Response:
    """`json_answer` of a function of the request's body. A body of more than `LARGEST_BODY` bytes is refused.

    The content type must be `JSON`, whether there is a body or not. A form or a script of another site can send other
    types without the server's consent (the Fetch standard, "CORS-safelisted request-header"); for this
    one the browser asks first, and ComfyUI consents only with `--enable-cors-header`. By itself, ComfyUI refuses what
    the header `Sec-Fetch-Site` calls cross-site, and a foreign `Origin` where `Host` is this computer's own (server.py,
    `create_origin_only_middleware`). Neither stops a browser without that header, on a server that has a name.
    """
    if request.content_type != JSON:
        given = request.headers.get("Content-Type", "")
        return error_answer(
            UNSUPPORTED_MEDIA_TYPE,
            f"the request's content type is {given[:100] or 'missing'!r}; send the header Content-Type: {JSON}",
        )
    size = request.content_length or 0
    if size <= LARGEST_BODY:
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:  # one without a length, beyond the server's own limit
            size = LARGEST_BODY + 1
        except web.RequestPayloadError:  # compressed in another way than the header says, or cut off
            refused = error_answer(BAD_REQUEST, "the body cannot be read; send it whole, and without Content-Encoding")
            refused.force_close()  # where the next request begins is not known
            return refused
        else:
            return await json_answer(function, body, errors=errors)
    return error_answer(BAD_REQUEST, f"the body has {size:,} bytes or more; send at most {LARGEST_BODY:,}")


def read_object(body: bytes, kinds: Mapping[str, type]) -> dict[str, Any]:
    """The JSON object of a body, with a value of the given type for each of the names; others are kept.

    Raises `InputError` for everything else: another encoding than UTF-8, no JSON, no object, a name that is missing, a
    value of another type, text with half of a surrogate pair.
    """
    if len(body) > LARGEST_BODY:
        raise InputError(f"the body has {len(body):,} bytes; send at most {LARGEST_BODY:,}")
    try:
        values = read_json(body.decode("utf-8"))
    except ValueError as error:
        raise InputError(f"the body is no JSON ({error}); send an object") from error
    if not isinstance(values, dict):
        *most, last = kinds
        names = f"{', '.join(most)} and {last}" if most else last
        raise InputError(f"the body is {kind_of(values)}; send an object with {names}")
    for name, kind in kinds.items():
        value = values.get(name)
        if not isinstance(value, kind):
            raise InputError(f"{name} is {kind_of(value)}; give {_KINDS[kind]}")
        if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            raise InputError(f"{name} holds half of a surrogate pair, which is no character; give text")
    return values


_KINDS = {
    type(None): "missing",
    str: "a text",
    list: "a list",
    dict: "an object",
    bool: "a boolean",
    int: "a number",
    float: "a number",
}


def kind_of(value: Any) -> str:
    """The kind of a JSON value in words."""
    return _KINDS[type(value)]


def error_answer(status: int, message: str) -> web.Response:
    """{"error": message} with an HTTP status."""
    return web.json_response({"error": message}, status=status)


def _json_text(function: Callable[..., object], args: tuple[object, ...]) -> str:
    value = function(*args)
    return value if isinstance(value, JsonText) else json.dumps(value, separators=(",", ":"))
