"""HTTP routes for training folders: show one, make one, write a caption. Pictures go through ComfyUI's own upload."""

from __future__ import annotations

import re
from pathlib import Path

import folder_paths
from aiohttp import web

from ...training.errors import InputError
from ..bridge.files.writing import resolve_inside, write_text
from ..bridge.web import HasRoutes, json_answer, post_answer, read_object
from .captions.text_files import is_caption, match_captions, read_caption_files
from .folder import pictures_in
from .listing import entries_of

MOST_PICTURES = 2000  # in one answer
LONGEST_CAPTION = 20_000  # characters
LONGEST_FOLDER = 80, 240  # characters, and bytes of UTF-8, of the name of a folder that is made here


def register(server: HasRoutes) -> None:
    """Add the routes to ComfyUI's server."""

    @server.routes.get("/bespoke/folder")
    async def show(request: web.Request) -> web.Response:
        return await json_answer(contents, request.query.get("name", ""), errors=(OSError,))

    @server.routes.post("/bespoke/folder")
    async def make(request: web.Request) -> web.Response:
        return await post_answer(request, _make_folder, errors=(OSError,))

    @server.routes.post("/bespoke/folder/caption")
    async def caption(request: web.Request) -> web.Response:
        return await post_answer(request, _write_caption, errors=(OSError,))


def _make_folder(body: bytes) -> dict:
    return new_folder(read_object(body, {"name": str})["name"])


def _write_caption(body: bytes) -> dict:
    values = read_object(body, {"folder": str, "file": str, "caption": str})
    return write_caption(values["folder"], values["file"], values["caption"])


def contents(name: str) -> dict:
    """{"folder", "pictures": [{"file", "caption"}]} of a folder under ComfyUI's input; caption is None without a file.

    A folder that does not exist has no pictures and a text "missing". This is no error: a workflow from another
    computer may name it. Raises `InputError` for a name that leads out of the input folder.
    """
    folder = _folder(name)
    if not folder.is_dir():
        return {"folder": name, "pictures": [], "missing": f"the folder {name!r} is not there; choose another"}
    paths = pictures_in(folder)
    captions = read_caption_files(paths, filter(is_caption, entries_of(folder)))
    pictures = [
        {"file": path.name, "caption": captions.texts[path][:LONGEST_CAPTION] if path in captions.texts else None}
        for path in paths[:MOST_PICTURES]
    ]
    return {"folder": name, "pictures": pictures}


def new_folder(wanted_name: str) -> dict:
    """Make an empty folder under input: {"folder": its name}.

    Letters that are not for file names become "_"; a number is added to a name that is taken.
    """
    name = re.sub(r"[^\w -]+", "_", wanted_name, flags=re.UNICODE).strip(" ._")
    # Room for the number, and no character cut in two.
    characters, size = LONGEST_FOLDER
    name = name[:characters].encode()[:size].decode("utf-8", "ignore").strip(" ._") or "pictures"
    for number in range(1, 1000):
        candidate = name if number == 1 else f"{name}_{number}"
        try:
            _folder(candidate).mkdir()
        except FileExistsError:
            continue
        return {"folder": candidate}
    raise InputError(f"there are too many folders named {name!r}; rename yours")


def write_caption(folder: str, file: str, caption: str) -> dict:
    """Write the .txt file of a picture: {"caption": as written, in one line}. An empty caption removes the file.

    Raises `InputError` for a picture that is not in the folder or a caption that is too long.
    """
    if len(caption) > LONGEST_CAPTION:
        raise InputError(f"the caption has {len(caption):,} characters; write at most {LONGEST_CAPTION:,}")
    picture = resolve_inside(_folder(folder), file)
    if picture.parent != _folder(folder) or not picture.is_file() or picture.suffix.lower() == ".txt":
        raise InputError(f"{file!r} is no picture in {folder!r}")
    captions = filter(is_caption, entries_of(picture.parent))
    path = match_captions([picture], captions).get(picture, picture.with_suffix(".txt"))
    text = " ".join(caption.split())
    if not text:
        path.unlink(missing_ok=True)
        return {"caption": ""}
    write_text(path, text + "\n")
    return {"caption": text}


def _folder(name: str) -> Path:
    return resolve_inside(Path(folder_paths.get_input_directory()), name)
