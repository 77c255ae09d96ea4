"""HTTP route for the thumbnails of a training folder."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web

from ....training.errors import InputError
from ...bridge.web import BAD_REQUEST, NOT_FOUND, HasRoutes, error_answer
from .made import picture_path, tag_of, thumbnail

THREADS = 2  # of their own: a browser asks for many at once, and other routes share the server's threads
NOT_MODIFIED = 304

_POOL = ThreadPoolExecutor(THREADS, "bespoke-thumbnails")


def register(server: HasRoutes) -> None:
    """Add the route to ComfyUI's server."""

    @server.routes.get("/bespoke/folder/thumbnail")
    async def show(request: web.Request) -> web.Response:
        query, known = request.query, request.headers.get("If-None-Match", "")
        make = asyncio.get_running_loop().run_in_executor(
            _POOL, _answer, query.get("folder", ""), query.get("file", ""), known
        )
        return await make


def _answer(folder: str, file: str, known: str) -> web.Response:
    """The thumbnail as a JPEG; without a body where the browser has it. known: the ETag of what the browser has."""
    try:
        path = picture_path(folder, file)
        tag = tag_of(path)
        # The browser asks each time whether its copy is still right.
        headers = {"Cache-Control": "no-cache"} | ({"ETag": tag} if tag else {})
        if tag and known == tag:
            return web.Response(status=NOT_MODIFIED, headers=headers)
        return web.Response(body=thumbnail(path), content_type="image/jpeg", headers=headers)
    except InputError as error:
        return error_answer(BAD_REQUEST, str(error))
    except OSError as error:  # its text has the server's path
        return error_answer(NOT_FOUND, (error.strerror or type(error).__name__).lower())
