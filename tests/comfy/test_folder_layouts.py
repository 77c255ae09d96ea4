"""Image Folder's layouts through ComfyUI: the node, its fingerprint, the routes of the panel, folders for data sets."""

import asyncio
import io
import json

import folder_paths
import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from bespoke.nodes.images import inputs, node, places, routes
from bespoke.nodes.images.thumbnails import routes as thumbnail_routes
from bespoke.nodes.images.thumbnails.made import picture_path
from bespoke.training.errors import InputError
from PIL import Image

LINES = "text files, one caption a line"
GIVEN = {"captions": "text files", "template": "", "trigger": "", "resolution": 64}


@pytest.fixture
def base(tmp_path, monkeypatch):
    (tmp_path / "input" / "set").mkdir(parents=True)
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda *_: str(tmp_path / "input"))
    return tmp_path


@pytest.fixture
def folder(base):
    return base / "input" / "set"


@pytest.fixture
def datasets(base, monkeypatch):
    """The kind of newer versions of ComfyUI, with two folders."""
    roots = [str(base / "datasets"), str(base / "more")]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "datasets", (roots, set()))
    return base / "datasets"


def draw(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (72, 120, 3), np.uint8)).save(path)


def shown(name="set", **settings):
    return {entry.pop("file"): entry for entry in routes.contents(name, **settings)["pictures"]}


def read(**changes):
    return node.ImageFolder.execute(**{"folder": "set", **GIVEN, **changes}).result[0].items


def test_the_new_input_and_the_new_choice_reach_the_set(folder):
    draw(folder / "a.png")
    draw(folder / "3_cat" / "b.png", 1)
    (folder / "a.txt").write_text("one\ntwo")
    assert [item.path for item in read()] == ["set/a.png"]
    items = read(subfolders=True, captions=LINES)
    assert [(item.path, item.captions, item.weight) for item in items] == [
        ("set/a.png", ("one", "two"), 1),
        ("set/3_cat/b.png", ("cat",), 3),
    ]


def test_the_fingerprint_follows_what_the_node_reads(folder):
    """ComfyUI asks it before each queue: a file that is read counts, one that is not does not."""
    draw(folder / "a.png")
    draw(folder / "below" / "b.png", 1)

    def fingerprints():
        return [
            node.ImageFolder.fingerprint_inputs(**{"folder": "set", **GIVEN}, **more)
            for more in ({}, {"subfolders": True})
        ]

    flat, deep = fingerprints()
    (folder / "below" / "b.caption").write_text("x")
    assert fingerprints()[0] == flat
    assert fingerprints()[1] != deep
    flat, deep = fingerprints()
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "x"}))
    assert fingerprints()[0] != flat
    assert fingerprints()[1] != deep


def test_the_panel_shows_the_pictures_that_the_node_reads(folder):
    """Every picture and caption of the list is the node's: kohya's folders, subfolders, a table."""
    draw(folder / "2_cat" / "a.png")
    draw(folder / "2_cat" / "b.png", 1)
    draw(folder / "other" / "c.png", 2)
    (folder / "2_cat" / "a.caption").write_text("a cat\nasleep")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "other/c.png", "text": "from the table"}))
    for settings in ({}, {"subfolders": True}, {"captions": LINES}, {"captions": LINES, "subfolders": True}):
        panel, items = shown(**settings), {item.name: item for item in read(**settings)}
        assert panel.keys() == items.keys() == {"2_cat/a.png", "2_cat/b.png", "other/c.png"}
        for name, entry in panel.items():
            captions = tuple((entry["caption"] or entry.get("otherwise")).split("\n"))
            assert captions == items[name].captions, (settings, name)
    assert shown()["2_cat/b.png"] == {"caption": None, "otherwise": "cat"}
    assert "unused" not in routes.contents("set")
    assert routes.contents("set", "file names")["unused"] is True


def test_the_panel_names_the_folders_and_their_repeats(folder):
    """kohya's rule: N of a folder N_name is how often its pictures are drawn, 1 elsewhere."""
    draw(folder / "10_cat" / "a.png")
    draw(folder / "10_cat" / "b.png", 1)
    draw(folder / "5_dog" / "c.png", 2)
    assert routes.contents("set")["folders"] == [
        {"place": "10_cat", "pictures": 2, "repeats": 10},
        {"place": "5_dog", "pictures": 1, "repeats": 5},
    ]
    draw(folder / "d.png", 3)
    assert "folders" not in routes.contents("set")  # the chosen folder alone is read
    together = routes.contents("set", subfolders=True)["folders"]
    assert [(one["place"], one["repeats"]) for one in together] == [("", 1), ("10_cat", 10), ("5_dog", 5)]


def test_captions_are_written_where_the_node_reads_them(folder):
    draw(folder / "2_cat" / "a.png")
    draw(folder / "2_cat" / "b.png", 1)
    draw(folder / "2_cat" / "c.png", 2)
    (folder / "2_cat" / "a.caption").write_text("a cat")
    table = json.dumps({"file_name": "2_cat/c.png", "text": "from the table"})
    (folder / "metadata.jsonl").write_text(table)
    assert routes.write_caption("set", "2_cat/a.png", "a\n big cat") == {"caption": "a big cat"}
    assert (folder / "2_cat" / "a.caption").read_text() == "a big cat\n"
    assert routes.write_caption("set", "2_cat/b.png", " one \n\n two", lines=True) == {"caption": "one\ntwo"}
    assert (folder / "2_cat" / "b.txt").read_text() == "one\ntwo\n"
    routes.write_caption("set", "2_cat/c.png", "mine")
    assert [item.captions for item in read(captions=LINES)] == [("a big cat",), ("one", "two"), ("mine",)]
    for name in "abc":
        routes.write_caption("set", f"2_cat/{name}.png", "")
    assert [item.caption for item in read()] == ["cat", "cat", ""]  # kohya: the name where no file is
    assert (folder / "metadata.jsonl").read_text() == table
    assert shown()["2_cat/c.png"] == {"caption": ""}


@pytest.mark.parametrize(
    "file", ["../a.png", "2_cat/../../a.png", "link/a.png", "metadata.jsonl", "2_cat", "2_cat/a.txt", ".a.png"]
)
def test_a_caption_is_written_beside_a_picture_of_the_set_alone(folder, file):
    draw(folder.parent / "a.png")
    draw(folder / "2_cat" / "a.png", 1)
    draw(folder / ".a.png", 2)
    (folder / "2_cat" / "a.txt").write_text("x")
    (folder / "metadata.jsonl").write_text("")
    (folder / "link").symlink_to(folder / "2_cat")
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(InputError):
        routes.write_caption("set", file, "a caption")
    with pytest.raises(InputError):
        picture_path("set", file)
    assert sorted(folder.parent.rglob("*")) == before
    assert (folder / "2_cat" / "a.txt").read_text() == "x"


def test_folders_for_data_sets_are_offered_and_read(folder, datasets):
    draw(datasets / "mine" / "a.png")
    draw(datasets / "mine" / "3_cat" / "b.png", 1)
    draw(datasets.parent / "more" / "second" / "c.png", 2)
    names = inputs.folder_options()
    assert names == ["set", "mine [datasets]", "mine/3_cat [datasets]", "second [datasets]", "(no folder yet)"]
    items = read(folder="mine [datasets]", subfolders=True, captions="file names")
    assert [item.path for item in items] == ["mine [datasets]/a.png", "mine [datasets]/3_cat/b.png"]
    assert [item.name for item in read(folder="set", folder_name="second [datasets]")] == ["c.png"]
    before = node.ImageFolder.fingerprint_inputs(folder="mine [datasets]", **GIVEN)
    routes.write_caption("mine [datasets]", "a.png", "a cat")
    assert (datasets / "mine" / "a.txt").read_text() == "a cat\n"
    assert node.ImageFolder.fingerprint_inputs(folder="mine [datasets]", **GIVEN) != before
    assert shown("mine [datasets]") == {"a.png": {"caption": "a cat"}}
    with pytest.raises(InputError, match="leads out of"):
        read(folder="../input/set [datasets]")


def test_a_comfyui_without_folders_for_data_sets(folder, monkeypatch):
    """Version 0.24.1 has no such kind: none is offered, and a graph that names one is told."""
    monkeypatch.delitem(folder_paths.folder_names_and_paths, "datasets", raising=False)
    assert places.data_set_folders() == []
    assert inputs.folder_options() == ["set", "(no folder yet)"]
    with pytest.raises(
        InputError, match=r"'mine \[datasets\]' lies in the folder 'datasets' of a newer ComfyUI.*under input"
    ):
        read(folder="mine [datasets]")
    assert "newer ComfyUI" in node.ImageFolder.fingerprint_inputs(folder="mine [datasets]", **GIVEN)


def test_the_picture_route_gives_small_copies(folder, datasets):
    """ComfyUI's /view reaches input, output and temp alone. A page in the folder is never sent as one."""
    draw(datasets / "mine" / "3_cat" / "a.png")
    (datasets / "mine" / "page.html").write_text("<script>")

    class Server:
        routes = web.RouteTableDef()

    thumbnail_routes.register(Server)

    async def ask():
        app = web.Application()
        app.add_routes(Server.routes)
        async with TestClient(TestServer(app)) as client:
            answers = []
            for file in ("3_cat/a.png", "page.html", "gone.png"):
                answer = await client.get(
                    "/bespoke/folder/thumbnail", params={"folder": "mine [datasets]", "file": file}
                )
                answers.append((answer.status, answer.content_type, await answer.read()))
            return answers

    good, html, gone = asyncio.run(ask())
    assert good[:2] == (200, "image/jpeg")
    assert Image.open(io.BytesIO(good[2])).size == (120, 72)
    assert html[:2] == (400, "application/json")
    assert "is no picture that can be read" in json.loads(html[2])["error"]
    assert gone[0] == 400
