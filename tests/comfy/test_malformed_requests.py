"""Requests that no page sends: each route answers them with a status below 500 and {"error": text}, without a path."""

from __future__ import annotations

import asyncio
import importlib
import json
import re
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from bespoke.nodes.bridge.files.names import LONGEST_NAME
from bespoke.nodes.bridge.web import LARGEST_BODY
from bespoke.nodes.images import places, routes
from bespoke.nodes.images.folder import FolderRequest, read_folder
from bespoke.nodes.jobs.techniques import setting_defaults
from PIL import Image

AS_JSON = {"Content-Type": "application/json"}
PACK = Path(routes.__file__).parents[2]
BODIES = {
    "empty": b"",
    "text": b"name=x",
    "half": b'{"name": "x"',
    "not UTF-8": b'{"name": "\xff\xfe"}',
    "UTF-16": '{"name": "x"}'.encode("utf-16"),
    "null": b"null",
    "a number": b"1e999",
    "a list": b'["name"]',
    "a text": b'"name"',
    "an empty object": b"{}",
    "deep": b"[" * 100_000,
    "huge": b'{"name": "' + b"x" * LARGEST_BODY + b'"}',
}
ODD_VALUES = [None, 1, 1.5, True, [], {}, ["x"], "\ud800", "x" * 5000, "é" * 200, "..", "../x", "/etc", "a\0b", ""]
FIELDS = ("name", "folder", "file", "caption", "technique", "workflow", "paths", "request", "id", "search", "page")
QUERY_VALUES = ["", "..", "../x", "/etc/passwd", "a\0b", "x" * 3000, "é" * 200, "\ufffd", "1e999", "nan", "-1", "[[[["]
QUERY_FIELDS = ("name", "page", "search", "stamp", "strength", "steps", "model", "contract", "scheduler")


@pytest.fixture(scope="module")
def all_routes(comfyui):
    class Server:
        routes = web.RouteTableDef()

    for path in sorted(PACK.glob("nodes/**/routes.py")):
        name = ".".join(path.relative_to(PACK).with_suffix("").parts)
        further = [setting_defaults()] if name == "nodes.bridge.runs.routes" else []
        importlib.import_module(f"bespoke.{name}").register(Server, *further)
    return Server.routes


def ask(routes, requests):
    """[(status, text)] of [(method, path, options of aiohttp)]."""

    async def run():
        app = web.Application(client_max_size=100 * 2**20)
        app.add_routes(routes)
        async with TestClient(TestServer(app)) as client:
            answers = []
            for method, path, options in requests:
                response = await client.request(method, path, **options)
                answers.append((response.status, await response.text()))
            return answers

    return asyncio.run(run())


def paths_of(routes, method):
    return [re.sub(r"\{[^}]+\}", "lora-00000000000f", route.path) for route in routes if route.method == method]


def check(answers, requests, base):
    for (status, text), request in zip(answers, requests, strict=True):
        shown = str(request)[:200]
        assert status < 500, shown
        answer = json.loads(text)
        if status != 200:
            assert list(answer) == ["error"], shown
        error = answer.get("error") if isinstance(answer, dict) else None
        assert error is None or isinstance(error, str), shown
        assert str(base) not in str(error), shown


def test_malformed_bodies(all_routes, comfyui):
    paths = paths_of(all_routes, "POST")
    assert {"/bespoke/folder", "/bespoke/folder/caption", "/bespoke/runs/match"} <= set(paths)
    requests = [("POST", path, {"data": body, "headers": AS_JSON}) for path in paths for body in BODIES.values()]
    check(ask(all_routes, requests), requests, comfyui)


def test_values_of_other_types(all_routes, comfyui):
    whole = {"folder": "x", "file": "x.png", "caption": "", "technique": "", "workflow": "", "paths": [], "request": {}}
    requests = [
        ("POST", path, {"data": json.dumps(whole | {field: value}), "headers": AS_JSON})
        for path in paths_of(all_routes, "POST")
        for field in FIELDS
        for value in ODD_VALUES
    ]
    check(ask(all_routes, requests), requests, comfyui)


@pytest.mark.parametrize(
    "headers",
    [
        {},  # as `fetch` without a body
        {"Content-Type": "text/plain"},  # the three that a form of another site can send
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/json-patch+json"},
        {"Content-Type": "text/plain; application/json"},
    ],
)
def test_a_form_of_another_site_cannot_post(all_routes, comfyui, headers, tmp_path, monkeypatch):
    """Every POST route, also one without a body, answers 415 unless the type is application/json (RFC 9110, 15.5.16),
    and does nothing.
    """
    monkeypatch.setattr(places.folder_paths, "get_input_directory", lambda: str(tmp_path))
    paths = paths_of(all_routes, "POST")
    assert "/bespoke/runs/lora-00000000000f/finish" in paths
    requests = [
        ("POST", path, {"data": data, "headers": headers, "skip_auto_headers": ["Content-Type"]})
        for path in paths
        for data in (b'{"name": "made", "=": ""}', b"")
    ]
    for status, text in ask(all_routes, requests):
        assert status == 415
        assert "send the header Content-Type: application/json" in json.loads(text)["error"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_body_that_is_not_compressed_as_its_header_says(all_routes, comfyui, encoding):
    """RFC 9110, 15.5.1: the client's fault is 400."""
    headers = AS_JSON | {"Content-Encoding": encoding}
    paths = paths_of(all_routes, "POST")
    answers = ask(all_routes, [("POST", path, {"data": b'{"name": "x"}', "headers": headers}) for path in paths])
    assert len(answers) >= 5
    for status, text in answers:
        assert status == 400
        assert "without Content-Encoding" in json.loads(text)["error"]


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON"])
def test_json_of_every_spelling_is_read(all_routes, comfyui, kind):
    requests = [
        ("POST", path, {"data": b"{}", "headers": {"Content-Type": kind}}) for path in paths_of(all_routes, "POST")
    ]
    assert {status for status, _ in ask(all_routes, requests)} == {400, 404}  # a name is missing; there is no such run


def test_odd_queries(all_routes, comfyui):
    requests = [
        ("GET", path, {"params": {field: value}})
        for path in paths_of(all_routes, "GET")
        for field in QUERY_FIELDS
        for value in QUERY_VALUES
    ]
    check(ask(all_routes, requests), requests, comfyui)


def test_errors_name_the_field_and_the_value(all_routes):
    answers = ask(
        all_routes,
        [
            ("POST", "/bespoke/folder", {"data": b"{}", "headers": AS_JSON}),
            ("POST", "/bespoke/folder", {"data": b'{"name": 3}', "headers": AS_JSON}),
            ("POST", "/bespoke/folder", {"data": b"[]", "headers": AS_JSON}),
            ("POST", "/bespoke/folder/caption", {"data": b"[]", "headers": AS_JSON}),
            ("POST", "/bespoke/folder/caption", {"data": b'{"folder": "x", "file": "y"}', "headers": AS_JSON}),
            ("POST", "/bespoke/folder", {"data": BODIES["huge"], "headers": AS_JSON}),
            ("GET", "/bespoke/folder", {"params": {"name": "x" * 300}}),
        ],
    )
    assert [(status, json.loads(text)["error"]) for status, text in answers] == [
        (400, "name is missing; give a text"),
        (400, "name is a number; give a text"),
        (400, "the body is a list; send an object with name"),
        (400, "the body is a list; send an object with folder, file and caption"),
        (400, "caption is missing; give a text"),
        (400, f"the body has {len(BODIES['huge']):,} bytes or more; send at most {LARGEST_BODY:,}"),
        (
            400,
            f"the name '{'x' * 40}...{'x' * 10}' has a part of 300 bytes in UTF-8; a file's or folder's name has at "
            "most 255: shorten it by 45 bytes",
        ),
    ]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(places.folder_paths, "get_input_directory", lambda: str(tmp_path))
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


@pytest.mark.parametrize("letter", ["a", "é", "猫", "𠀋"])
def test_a_folder_of_any_name_can_be_made(folder, letter):
    """The letters have 1 to 4 bytes in UTF-8, so 80 of the last are more than a folder's name may have."""
    made = routes.new_folder(letter * 300)["folder"]
    assert set(made) == {letter}
    assert routes.new_folder(letter * 300)["folder"] == f"{made}_2"
    assert (folder.parent / f"{made}_2").is_dir()


def test_a_caption_of_a_picture_with_the_longest_name_is_written(folder):
    """255 bytes: the temporary name of the caption file must not be longer."""
    name = "a" * (LONGEST_NAME - 4)
    Image.new("RGB", (64, 64)).save(folder / f"{name}.png")
    assert routes.write_caption("set", f"{name}.png", "a dog") == {"caption": "a dog"}
    assert sorted(path.name for path in folder.iterdir()) == [f"{name}.png", f"{name}.txt"]


def test_the_panel_reads_and_writes_the_same_files(folder):
    """The route decodes a folder's captions together too, and writes into the file that is read."""
    for name, text in (("a", "кот"), ("b", "рыжая кошка сидит на окне"), ("c", "девушка в красном платье")):
        Image.new("RGB", (96, 80), (200, 30, 40)).save(folder / f"{name}.png")
        (folder / f"{name}.TXT").write_bytes(text.encode("cp1251"))
    shown = {entry["file"]: entry["caption"] for entry in routes.contents("set")["pictures"]}
    assert shown == captions(folder)
    assert shown["a.png"] == "кот"
    routes.write_caption("set", "a.png", "пёс")
    assert (folder / "a.TXT").read_text(encoding="utf-8") == "пёс\n"
    assert not (folder / "a.txt").exists() or (folder / "a.txt").samefile(folder / "a.TXT")
    assert captions(folder)["a.png"] == "пёс"
    routes.write_caption("set", "a.png", "")
    assert captions(folder)["a.png"] == ""


def captions(folder):
    return {item.name: item.caption for item in read_folder(FolderRequest(folder)).items}
