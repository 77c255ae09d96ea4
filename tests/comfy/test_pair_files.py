"""Sets of pairs in files: the list on the node, and a set that is saved and read back.

The oracle is the grey of each picture.
"""

import pytest
import torch
from bespoke.nodes.images.folder import FolderRequest, read_folder
from bespoke.nodes.images.pairing.pair import pair_sets
from bespoke.nodes.images.saving.save import save_set
from bespoke.training.errors import InputError
from bespoke.training.images import TrainingImage
from helpers import image_set
from PIL import Image


def one(path, level, size=(96, 80)):
    """A picture of one grey; size: (width, height) px."""
    Image.new("RGB", size, (level, level, level)).save(path)


def grey_set(names, first):
    pixels = [torch.full((64, 64, 3), first + i, dtype=torch.uint8) for i in range(len(names))]
    return image_set([TrainingImage(name, own, name, source="s") for name, own in zip(names, pixels, strict=True)])


def levels(images):
    return sorted((int(item.pixels[0, 0, 0]), int(item.control[0, 0, 0])) for item in images.items)


def test_the_list_on_the_node_has_no_second_pictures(comfyui, tmp_path, monkeypatch):
    from bespoke.nodes.images import routes

    one(tmp_path / "a.png", 10)
    one(tmp_path / "a-control.png", 1)
    monkeypatch.setattr(routes, "find_folder", lambda name: tmp_path)
    assert [each["file"] for each in routes.contents("set", pairs=True)["pictures"]] == ["a.png"]
    assert len(routes.contents("set")["pictures"]) == 2


def test_a_saved_set_of_pairs_reads_back(comfyui, tmp_path):
    result = grey_set(["a.png", "x-control.png"], 1)
    images = pair_sets(grey_set(["a.png", "x.png"], 100), result)
    saved = save_set(images, tmp_path, "set", lambda done, of: None)
    back = read_folder(FolderRequest(tmp_path / "set", pairs=True))
    assert levels(back) == [(1, 100), (2, 101)]
    assert save_set(images, tmp_path, "set", lambda done, of: None).was_there
    one(tmp_path / "set" / "a-control.png", 7, (64, 64))
    with pytest.raises(InputError, match=r"a-control\.png"):
        save_set(images, tmp_path, "set", lambda done, of: None)
    assert saved.folder == "set"
