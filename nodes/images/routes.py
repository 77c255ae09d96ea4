"""HTTP routes for training folders: show one, make one, write a caption.

Pictures come through ComfyUI's own upload; `thumbnails.routes` shows them.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from aiohttp import web

from ...training.errors import InputError
from ..bridge.files.writing import resolve_inside, write_text
from ..bridge.web import HasRoutes, json_answer, post_answer, read_object
from .captions.sources import CAPTIONS, EVERY_LINE, WRITTEN
from .captions.tables import read_tables
from .captions.text_files import lines_in, match_captions
from .captions.written import read_written
from .clips.layout import FilmPart
from .controls import FolderControls
from .layout import Layout, Part, layout_of
from .listing import entries_of
from .places import find_folder, input_folder

MOST_PICTURES = 2000  # in one answer
LONGEST_CAPTION = 20_000  # characters
LONGEST_FOLDER = 80, 240  # characters, and bytes of UTF-8, of the name of a folder that is made here


def register(server: HasRoutes) -> None:
    """Add the routes to ComfyUI's server."""

    @server.routes.get("/bespoke/folder")
    async def show(request: web.Request) -> web.Response:
        query = request.query
        on = (query.get(name) == "true" for name in ("subfolders", "pairs", "films"))
        request_values = query.get("name", ""), query.get("captions", CAPTIONS[0]), *on
        return await json_answer(contents, *request_values, errors=(OSError,))

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
    return write_caption(values["folder"], values["file"], values["caption"], values.get("lines") is True)


def contents(
    name: str, captions: str = CAPTIONS[0], subfolders: bool = False, pairs: bool = False, films: bool = False
) -> dict:
    """{"folder", "pictures": [{"file", "caption"}]} of a training folder: the pictures that the node reads.

    captions, subfolders, pairs: as the node has them. films: of the node that reads films, which stand for pictures
    here; folders of frames are not listed. file: the path below the folder, with "/". caption: what is
    written for the picture, None without anything. "lines" is True where each line of it is a caption, "unused" where
    captions come from elsewhere. A picture whose caption would be the name of its folder has that as "otherwise". Where
    pictures lie in subfolders, "folders" is [{"place", "pictures", "repeats"}]: the folder's path, "" for the chosen
    one, the number of its pictures, and how often each is drawn in proportion to those of other folders.

    A folder that does not exist has no pictures and a text "missing". This is no error: a workflow from another
    computer may name it. Raises `InputError` for a name that leads out of where such folders lie.
    """
    folder = find_folder(name)
    if not folder.is_dir():
        return {"folder": name, "pictures": [], "missing": f"the folder {name!r} is not there; choose another"}
    layout = layout_of(folder, subfolders, pairs, FilmPart if films else Part)
    lines = captions == EVERY_LINE
    answer: dict = {"folder": name, "pictures": _shown_pictures(layout, lines)}
    if any(part.place for part in layout.parts if part.pictures):
        answer["folders"] = [
            {"place": part.place, "pictures": len(part.pictures), "repeats": part.repeats}
            for part in layout.parts
            if part.pictures
        ]
    return answer | ({"lines": True} if lines else {}) | ({} if captions in WRITTEN else {"unused": True})


def _shown_pictures(layout: Layout, every_line: bool) -> list[dict]:
    tables = [part.table for part in layout.parts if part.table]
    written = read_written(layout.pictures, layout.captions, tables, layout.shown)
    shown = []
    for path in FolderControls(layout).pictures[:MOST_PICTURES]:
        picture: dict[str, str | None] = {"file": layout.shown(path), "caption": None}
        if written.has(path):
            with contextlib.suppress(OSError):  # the node says why its file cannot be read
                lines = written.lines_of(path, every_line)
                picture["caption"] = ("\n" if every_line else " ").join(lines)[:LONGEST_CAPTION]
        elif layout.part_of(path).concept:
            picture["otherwise"] = layout.part_of(path).concept
        shown.append(picture)
    return shown


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


def write_caption(folder: str, file: str, caption: str, lines: bool = False) -> dict:
    """Write the caption file of a picture: {"caption": as written}. An empty caption removes the file.

    file: the path below the folder. lines: each line that is not empty is a caption of its own; else all is one line.
    A picture that a table names gets a file of its own, which wins over the table, and keeps an empty one.
    Raises `InputError` for a picture that is not in the folder or a caption that is too long.
    """
    if len(caption) > LONGEST_CAPTION:
        raise InputError(f"the caption has {len(caption):,} characters; write at most {LONGEST_CAPTION:,}")
    base = find_folder(folder)
    picture, part = _picture(base, folder, file)
    path = match_captions([picture], part.captions).get(picture, picture.with_suffix(".txt"))
    text = "\n".join(lines_in(caption)) if lines else " ".join(caption.split())
    if not text and not _in_a_table(base, picture):
        path.unlink(missing_ok=True)
    else:
        write_text(path, text + "\n")
    return {"caption": text}


def _picture(base: Path, folder: str, file: str) -> tuple[Path, Part]:
    """(the path of a picture below `base`, the folder that it lies in). Raises `InputError` for anything else."""
    picture = resolve_inside(base, file)
    part = Part(picture.parent, tuple(entries_of(picture.parent)) if picture.is_file() else ())
    if picture.parent != (base / file).parent or picture not in part.media:
        raise InputError(f"{file!r} is no picture in {folder!r}")
    return picture, part


def _in_a_table(base: Path, picture: Path) -> bool:
    """Whether a table of captions in the picture's folder, or in one above it up to `base`, names the picture."""
    folders = [parent for parent in picture.parents if parent == base or base in parent.parents]
    tables = filter(None, (Part(folder, tuple(entries_of(folder))).table for folder in reversed(folders)))
    return picture in read_tables(tables, [picture], lambda path: path.name).texts


def _folder(name: str) -> Path:
    return resolve_inside(input_folder(), name)
