"""The page's way to training folders: make one, see what is in it, write a caption. Pictures go by ComfyUI's upload."""

from __future__ import annotations

import re
from pathlib import Path

import folder_paths

from ...training.errors import InputError
from ..bridge.files import writing as storage
from .folder import pictures_in, read_caption

MOST_PICTURES = 2000  # in one answer
LONGEST_CAPTION = 20_000  # characters


def register(server) -> None:
    """Add the routes to ComfyUI's server."""
    import asyncio

    from aiohttp import web

    async def answer(work, *arguments):
        try:
            return web.json_response(await asyncio.to_thread(work, *arguments))
        except (InputError, OSError, TypeError, KeyError) as error:
            return web.json_response({"error": str(error)}, status=400)

    @server.routes.get("/bespoke/folder")
    async def see(request):
        return await answer(contents, request.query.get("name", ""))

    @server.routes.post("/bespoke/folder")
    async def make(request):
        return await answer(new_folder, str((await request.json())["name"]))

    @server.routes.post("/bespoke/folder/caption")
    async def caption(request):
        asked = await request.json()
        return await answer(write_caption, str(asked["folder"]), str(asked["file"]), str(asked["caption"]))


def contents(name: str) -> dict:
    """{"folder", "pictures": [{"file", "caption"}]}: the pictures of a folder under input, a caption where one is.

    A folder that is not there has none and a "missing" that says so: a workflow from elsewhere names such a one, which
    is
    no error of the page's.
    """
    folder = _folder(name)
    if not folder.is_dir():
        return {"folder": name, "pictures": [], "missing": f"the folder {name!r} is not there; choose another"}
    pictures = [
        {"file": path.name, "caption": _read(path.with_suffix(".txt"))} for path in pictures_in(folder)[:MOST_PICTURES]
    ]
    return {"folder": name, "pictures": pictures}


def new_folder(wish: str) -> dict:
    """Make an empty folder under input, named as wished or with a number behind where that is taken: {"folder"}."""
    name = re.sub(r"[^\w -]+", "_", wish, flags=re.UNICODE).strip(" ._")[:80] or "pictures"
    for number in range(1, 1000):
        tried = name if number == 1 else f"{name}_{number}"
        try:
            _folder(tried).mkdir()
        except FileExistsError:
            continue
        return {"folder": tried}
    raise InputError(f"there are too many folders named {name!r}; rename yours")


def write_caption(folder: str, file: str, caption: str) -> dict:
    """Write the .txt beside a picture; an empty caption removes it, so that the node says it is missing."""
    if len(caption) > LONGEST_CAPTION:
        raise InputError(f"the caption has {len(caption):,} characters; write at most {LONGEST_CAPTION:,}")
    picture = storage.inside(_folder(folder), file)
    if picture.parent != _folder(folder) or not picture.is_file() or picture.suffix.lower() == ".txt":
        raise InputError(f"{file!r} is no picture in {folder!r}")
    path, text = picture.with_suffix(".txt"), " ".join(caption.split())
    if not text:
        path.unlink(missing_ok=True)
        return {"caption": ""}
    storage.write_text(path, text + "\n")
    return {"caption": text}


def _folder(name: str) -> Path:
    return storage.inside(Path(folder_paths.get_input_directory()), name)


def _read(path: Path) -> str | None:
    try:
        return read_caption(path)[:LONGEST_CAPTION]
    except OSError:
        return None
