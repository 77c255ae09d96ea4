"""Folders that are no usual ones, for the route and the node: very many files, deep trees, loops of links."""

import json
import os
from pathlib import Path

import comfy.model_management
import comfy.utils
import numpy as np
import pytest
from bespoke.nodes.images import hashing, left_out, listing, node, places, routes
from bespoke.nodes.images.folder import FolderRequest, read_folder
from bespoke.nodes.images.hashing import hash_files
from bespoke.nodes.images.reading import pictures as reading
from bespoke.nodes.images.reading import stamps
from bespoke.training.errors import InputError
from PIL import Image


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(places.folder_paths, "get_input_directory", lambda: str(tmp_path))
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def draw(path, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(values).save(path)


@pytest.mark.parametrize("count", [2_100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_folder_of_very_many_files(folder, count):
    """Pictures by their names, each with a caption: the route answers with 2,000, and the hash is the same twice."""
    for i in range(count):
        (folder / f"{i:05}.png").touch()
        (folder / f"{i:05}.txt").write_text(f"caption {i}")
    answer = routes.contents("set")
    assert len(answer["pictures"]) == routes.MOST_PICTURES
    assert answer["pictures"][7] == {"file": "00007.png", "caption": "caption 7"}
    assert len(json.dumps(answer)) < 200_000
    assert hash_files(folder) == hash_files(folder)


def test_too_many_files_are_refused_with_the_mend(folder, monkeypatch):
    monkeypatch.setattr(listing, "MOST_ENTRIES", 10)
    for i in range(10):
        draw(folder / f"{i}.png", i)
    assert len(read_folder(FolderRequest(folder)).items) == 10
    draw(folder / "more.png")
    for read in (
        lambda: read_folder(FolderRequest(folder)),
        lambda: routes.contents("set"),
        lambda: hash_files(folder),
    ):
        with pytest.raises(
            InputError, match="'set' holds more than 10 files; move those of one training into a folder"
        ):
            read()


def test_a_deep_tree_and_a_wide_one(folder, monkeypatch):
    """No more than `MOST_SEEN` entries of all subfolders together are looked at, and the report says so."""
    draw(folder / "a.png")
    path = folder
    for _ in range(600):  # deeper than half of Python's limit of calls; a path has at most 4096 bytes
        path = path / "d"
        path.mkdir()
    draw(path / "deep.png")
    (note,) = [note for note in read_folder(FolderRequest(folder)).notes if note.startswith("NOT READ")]
    assert "1 picture in subfolders: d (1)" in note
    monkeypatch.setattr(left_out, "MOST_SEEN", 50)
    for i in range(100):
        (folder / f"e{i:03}").mkdir()
        draw(folder / f"e{i:03}" / "x.png", i)
    scanned = []
    real = os.scandir
    monkeypatch.setattr(left_out.os, "scandir", lambda path: scanned.append(path) or real(path))
    notes = read_folder(FolderRequest(folder)).notes
    below = [path for path in scanned if Path(path) != folder]
    assert len(below) <= 51
    assert not any("without pictures" in note for note in notes)  # most of them were not looked at


def test_loops_of_links_have_an_end(folder):
    draw(folder / "a.png")
    (folder / "up").symlink_to(folder)
    (folder / "self.png").symlink_to(folder / "self.png")
    (folder / "self.txt").symlink_to(folder / "self.txt")
    (folder / "x").mkdir()
    (folder / "x" / "back").symlink_to(folder)
    (folder.parent / "loop").symlink_to(folder.parent / "loop")
    images = read_folder(FolderRequest(folder))
    assert [item.name for item in images.items] == ["a.png"]
    assert any("broken links or no files: self.png, self.txt" in note for note in images.notes)
    assert [each["file"] for each in routes.contents("set")["pictures"]] == ["a.png"]
    assert hash_files(folder)
    try:
        assert "missing" in routes.contents("loop")  # Python 3.13 and newer leave the link as it is
    except InputError as error:
        assert "'loop' is a link that leads in a circle" in str(error)  # noqa: PT017 (either is right)


def test_a_caption_of_more_than_a_megabyte_is_refused_unread(folder, monkeypatch):
    """The file is sparse, of 1 TB: reading it would end the process."""
    draw(folder / "a.png")
    with (folder / "a.txt").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match="a.png has a caption file that cannot be read .*has 1,099,511,627,776 bytes"):
        read_folder(FolderRequest(folder))
    assert routes.contents("set")["pictures"] == [{"file": "a.png", "caption": None}]
    assert hash_files(folder)


def test_the_node_shows_progress_and_stops_when_the_prompt_is_cancelled(folder, monkeypatch):
    """ComfyUI's own bar and its own exception."""
    for i in range(12):
        draw(folder / f"{i:02}.png", i)
    shown = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda done, of, *_, **__: shown.append((done, of)))
    given = {"folder": "set", "captions": "file names", "template": "", "trigger": "", "resolution": 64}
    node.ImageFolder.execute(**given)
    assert shown[-1] == (12, 12)
    assert shown[0][0] == 0
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        node.ImageFolder.execute(**given)
    comfy.model_management.interrupt_current_processing(True)
    try:
        fingerprint = node.ImageFolder.fingerprint_inputs(**given)
        assert fingerprint != fingerprint
        assert comfy.model_management.processing_interrupted()  # left for ComfyUI to see
    finally:
        comfy.model_management.interrupt_current_processing(False)
    assert node.ImageFolder.fingerprint_inputs(**given) == node.ImageFolder.fingerprint_inputs(**given)


def test_a_second_queue_opens_no_file(folder, monkeypatch):
    """What is not opened takes no time: only names and stamps are looked at."""
    monkeypatch.setattr(stamps, "SETTLED", 0)
    for i in range(12):
        draw(folder / f"{i:02}.png", i)
    given = {"folder": "set", "captions": "file names", "template": "", "trigger": "", "resolution": 64}
    first = node.ImageFolder.fingerprint_inputs(**given)
    node.ImageFolder.execute(**given)

    def refuse(*_):
        raise AssertionError("a file was opened")

    monkeypatch.setattr(hashing, "open_regular", refuse)
    monkeypatch.setattr(reading, "read_picture", refuse)
    assert node.ImageFolder.fingerprint_inputs(**given) == first
    assert len(node.ImageFolder.execute(**given).result[0].items) == 12
