"""The route of thumbnails: small answers, made once, for files of the training folder alone."""

from __future__ import annotations

import asyncio
import io
import json
import os
import threading

import folder_paths
import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from bespoke.nodes.images.reading import stamps
from bespoke.nodes.images.thumbnails import made
from bespoke.nodes.images.thumbnails import routes as thumbnail_routes
from PIL import Image


@pytest.fixture
def folder(comfyui, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path / "input"))
    monkeypatch.setattr(stamps, "SETTLED", 0)
    made.KEPT.clear()
    path = tmp_path / "input" / "set"
    path.mkdir(parents=True)
    return path


def noise(path, width=1600, height=1200, seed=0, **options):
    small = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    Image.fromarray(small).resize((width, height)).save(path, **options)


def ask(*requests):
    """[(status, headers, body)] of [({query}, {headers})]."""

    class Server:
        routes = web.RouteTableDef()

    thumbnail_routes.register(Server)

    async def run():
        app = web.Application()
        app.add_routes(Server.routes)
        async with TestClient(TestServer(app)) as client:
            answers = []
            for query, headers in requests:
                response = await client.get("/bespoke/folder/thumbnail", params=query, headers=headers)
                answers.append((response.status, response.headers, await response.read()))
            return answers

    return asyncio.run(run())


def test_a_picture_of_megabytes_is_a_few_kilobytes(folder):
    noise(folder / "a.png")
    assert (folder / "a.png").stat().st_size > 1_000_000
    ((status, headers, data),) = ask(({"folder": "set", "file": "a.png"}, {}))
    assert (status, headers["Content-Type"], headers["Cache-Control"]) == (200, "image/jpeg", "no-cache")
    assert len(data) < 20_000
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.size == (128, 96)


def test_it_is_made_once_and_made_anew_after_a_change(folder, monkeypatch):
    """A browser that has it gets 304 without a body (RFC 9110, 15.4.5)."""
    noise(folder / "a.jpg")
    read = []
    real = made.read_thumbnail
    monkeypatch.setattr(made, "read_thumbnail", lambda path, *more: read.append(path.name) or real(path, *more))
    query = {"folder": "set", "file": "a.jpg"}
    (_, headers, first), (_, _, second) = ask((query, {}), (query, {}))
    assert first == second
    assert read == ["a.jpg"]
    ((status, _, data),) = ask((query, {"If-None-Match": headers["ETag"]}))
    assert (status, data) == (304, b"")
    noise(folder / "a.jpg", seed=1)
    ((status, _, data),) = ask((query, {"If-None-Match": headers["ETag"]}))
    assert status == 200
    assert data != first
    assert read == ["a.jpg", "a.jpg"]


def test_a_file_that_was_written_just_now_has_no_tag(folder, monkeypatch):
    """It may change once more within the resolution of the file system's times."""
    monkeypatch.setattr(stamps, "SETTLED", 10**12)
    noise(folder / "a.jpg")
    ((status, headers, _),) = ask(({"folder": "set", "file": "a.jpg"}, {}))
    assert status == 200
    assert "ETag" not in headers
    assert made.KEPT.nbytes == 0


def test_memory_is_bounded(folder, monkeypatch):
    monkeypatch.setattr(made.KEPT, "most_bytes", 10_000)
    for i in range(6):
        noise(folder / f"{i}.jpg", 400, 300, seed=i)
        assert 500 < len(made.thumbnail(folder / f"{i}.jpg")) < 10_000
    assert 0 < made.KEPT.nbytes <= 10_000


def test_no_more_than_two_pictures_are_decoded_at_once(folder, monkeypatch):
    noise(folder / "a.jpg", 400, 300)
    busy, most, lock = 0, 0, threading.Lock()
    real = made.read_thumbnail

    def counting(*given):
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        try:
            return real(*given)
        finally:
            with lock:
                busy -= 1

    monkeypatch.setattr(made, "read_thumbnail", counting)
    monkeypatch.setattr(stamps, "SETTLED", 10**12)  # nothing is kept

    async def run():
        loop = asyncio.get_running_loop()
        ask_once = (thumbnail_routes._answer, "set", "a.jpg", "")
        await asyncio.gather(*(loop.run_in_executor(thumbnail_routes._POOL, *ask_once) for _ in range(20)))

    asyncio.run(run())
    assert most == 2


@pytest.mark.parametrize(
    ("where", "file"),
    [
        ("set", "../secret.png"),
        ("set", "..\\secret.png"),
        ("..", "secret.png"),
        ("set", "/etc/passwd"),
        ("set", ".hidden.png"),
        ("set", "a.txt"),
        ("set", "settings.json"),
        ("set", "none.png"),
        ("set", "sub"),
        ("set", ""),
        ("set", "a\0.png"),
        ("", "secret.png"),
        ("set", "x" * 3000),
        ("set", "outside/secret.png"),
        ("set", "inside/a.png"),
    ],
)
def test_nothing_but_pictures_of_the_folder_is_answered(folder, tmp_path, where, file):
    noise(tmp_path / "secret.png", 64, 64)
    noise(tmp_path / "input" / "secret.png", 64, 64)
    noise(folder / ".hidden.png", 64, 64)
    (folder / "sub").mkdir()
    noise(folder / "sub" / "a.png", 64, 64)
    for name in ("a.txt", "settings.json"):
        (folder / name).write_text("{}")
    if hasattr(os, "symlink"):
        (folder / "outside").symlink_to(tmp_path)
        (folder / "inside").symlink_to(folder / "sub")
    ((status, _, data),) = ask(({"folder": where, "file": file}, {}))
    assert status == 400
    error = json.loads(data)["error"]
    assert str(tmp_path) not in error


def test_what_is_no_picture_is_an_error_and_no_fault(folder):
    (folder / "a.png").write_bytes(b"no picture")
    ((status, _, data),) = ask(({"folder": "set", "file": "a.png"}, {}))
    assert status == 400
    assert "is no picture that can be read" in json.loads(data)["error"]


def test_a_picture_in_a_subfolder_and_a_link_to_a_file(folder, tmp_path):
    """As Image Folder reads them."""
    (folder / "5_cats").mkdir()
    noise(folder / "5_cats" / "a.png", 64, 64)
    noise(tmp_path / "elsewhere.png", 64, 64)
    (folder / "b.png").symlink_to(tmp_path / "elsewhere.png")
    statuses = [
        status for status, _, _ in ask(*(({"folder": "set", "file": f}, {}) for f in ("5_cats/a.png", "b.png")))
    ]
    assert statuses == [200, 200]
