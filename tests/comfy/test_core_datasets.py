"""ComfyUI's dataset loaders, which give lists, into Image Batch and a trainer: one training, Image Folder's LoRA."""

from __future__ import annotations

import shutil
from pathlib import Path

import comfy_extras.nodes_dataset as core_dataset
import folder_paths
import numpy as np
import pytest
import torch
from bespoke.training.images import apart, first_equal
from PIL import Image

MODELS = {"model": ["models", 0], "clip": ["models", 1], "vae": ["models", 2]}
TRAIN = MODELS | dict(
    targets="cross-attention", rank=2, alpha=2.0, learning_rate=1e-2, steps=2, batch_size=2, seed=5, precision="fp32"
)
FOLDER = dict(captions="text files", template="", trigger="zor", resolution=128)


@pytest.fixture
def folder(comfyui, monkeypatch):
    """A folder under input. Core's loaders read in the order of the disk, which is sorted here."""
    listdir = core_dataset.os.listdir
    monkeypatch.setattr(core_dataset.os, "listdir", lambda path: sorted(listdir(path)))
    path = Path(folder_paths.get_input_directory()) / "core_set"
    path.mkdir(parents=True)
    yield path
    shutil.rmtree(path)


def noise(width=64, height=64, seed=0, mode="RGB"):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 4), np.uint8)
    return Image.fromarray(values).convert(mode) if mode != "RGBA" else Image.fromarray(values)


def keep(link: list, name: str) -> tuple[str, dict]:
    return "TestKeep", {"value": link, "name": name}


def test_pictures_of_one_loader_and_captions_of_text_nodes_are_one_training(queue, folder, runs):
    """Oracle: Image Folder on the same files, with the captions that core's text nodes make written into them."""
    for i, size in enumerate([(64, 64), (96, 64), (64, 64)]):
        noise(*size, seed=i).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"thing {i}")
    (folder / "by_hand").mkdir()
    for i in range(3):
        shutil.copy(folder / f"{i}.png", folder / "by_hand")
        (folder / "by_hand" / f"{i}.txt").write_text(f"thing {i}, in the snow")
    other = folder / "loaded"
    other.mkdir()
    for path in folder.glob("?.*"):
        path.rename(other / path.name)
    loaded = f"{folder.name}/{other.name}"
    batch = {"images": ["pictures", 0], "captions": ["texts", 0], "trigger": "zor", "resolution": 128}
    kept = queue.run(
        models=("TestModels", {}),
        pictures=("LoadImageDataSetFromFolder", {"folder": loaded}),
        pairs=("LoadImageTextDataSetFromFolder", {"folder": loaded}),
        texts=("AddTextSuffix", {"texts": ["pairs", 1], "suffix": ", in the snow"}),
        batch=("BespokeImageBatch", batch),
        images=("BespokeImageFolder", FOLDER | {"folder": f"{folder.name}/by_hand"}),
        one=("BespokeTrainLora", TRAIN | {"images": ["batch", 0]}),
        other=("BespokeTrainLora", TRAIN | {"images": ["images", 0], "resume": False}),
        a=keep(["one", 1], "lora"),
        b=keep(["other", 1], "lora"),
        c=keep(["batch", 0], "set"),
        d=keep(["one", 3], "run"),
    )
    (one,), (other,) = kept["lora"]  # each a list of one: one training came out
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    ((images,),) = kept["set"]
    assert [item.caption for item in images.items] == [f"zor, thing {i}, in the snow" for i in range(3)]
    assert len(kept["run"][0]) == 1


# {kind: how its file is written, and whether core's loader gives the pixels of Image Folder}
KINDS = {
    "RGB": ("png", {}, True),
    "RGB jpeg": ("jpg", {"quality": 90}, True),
    "L": ("png", {}, True),
    "palette": ("png", {}, True),
    "CMYK jpeg": ("jpg", {"quality": 90}, True),
    "turned jpeg": ("jpg", {"quality": 90}, False),  # core leaves the EXIF rotation aside
    "RGBA": ("png", {}, False),  # core drops the alpha channel; Image Folder lays the picture on white
    "16 bits": ("png", {}, False),  # core clips what is above 255
}


@pytest.mark.parametrize("kind", KINDS)
def test_which_kinds_of_picture_core_reads_as_image_folder_does(queue, folder, kind):
    """The help page of Image Batch says where the two differ. 130x100 px are scaled, by the same rule in both."""
    ending, options, same = KINDS[kind]
    mode = kind.split()[0]
    picture = noise(130, 100, mode=mode if mode in ("RGB", "L", "CMYK", "RGBA") else "RGB")
    if kind == "palette":
        picture = picture.quantize(40)
    if kind == "16 bits":
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (100, 130), np.uint16))
    if kind == "turned jpeg":
        options = options | {"exif": picture.getexif()}
        options["exif"][0x0112] = 6
    picture.save(folder / f"a.{ending}", **options)
    (folder / "a.txt").write_text("a thing")
    kept = queue.run(
        loader=("LoadImageTextDataSetFromFolder", {"folder": folder.name}),
        batch=(
            "BespokeImageBatch",
            {"images": ["loader", 0], "captions": ["loader", 1], "trigger": "zor", "resolution": 96},
        ),
        images=("BespokeImageFolder", FOLDER | {"folder": folder.name, "resolution": 96}),
        a=keep(["batch", 0], "set"),
        b=keep(["images", 0], "set"),
    )
    (one,), (other,) = kept["set"]
    assert (one.fingerprint == other.fingerprint) == same


def test_kohyas_repeats_by_core_are_those_of_image_folder(queue, folder):
    """kohya's "3_cats": three times each. Core's list has every repeat as a picture of its own."""
    (folder / "3_cats").mkdir()
    for i in range(2):
        noise(seed=i).save(folder / "3_cats" / f"{i}.png")
        (folder / "3_cats" / f"{i}.txt").write_text(f"cat {i}")
    kept = queue.run(
        loader=("LoadImageTextDataSetFromFolder", {"folder": folder.name}),
        batch=("BespokeImageBatch", {"images": ["loader", 0], "captions": ["loader", 1], "trigger": "zor"}),
        images=("BespokeImageFolder", FOLDER | {"folder": f"{folder.name}/3_cats", "repeats": 3}),
        a=keep(["batch", 0], "core"),
        b=keep(["images", 0], "folder"),
    )
    ((one,),), ((other,),) = kept["core"], kept["folder"]
    assert sorted(item.caption for item in one.items) == sorted(item.caption for item in other.items)
    assert len(one.items) == len(other.items) == 6
    assert any("The same picture twice" in note for note in one.notes)
    assert (len(one.copies()), len(other.copies())) == (6, 2)


def test_captions_by_core_are_those_of_image_folder(queue, folder):
    """A mark before the text, ai-toolkit's [trigger], several lines and a separator of Unicode: core hands the text on
    as it is, and the captions are those that Image Folder reads from the same files. The repeats of a held-out picture
    are held out with it.
    """
    texts = ["\ufeff[trigger], sitting", "[trigger]\u2028on a mat", "a hat\n\nof [trigger]", "a hat"]
    (folder / "3_cats").mkdir()
    for i, text in enumerate(texts):
        noise(seed=i).save(folder / "3_cats" / f"{i}.png")
        (folder / "3_cats" / f"{i}.txt").write_text(text, "utf-8")
    kept = queue.run(
        loader=("LoadImageTextDataSetFromFolder", {"folder": folder.name}),
        batch=("BespokeImageBatch", {"images": ["loader", 0], "captions": ["loader", 1], "trigger": "zor"}),
        images=("BespokeImageFolder", FOLDER | {"folder": folder.name}),
        a=keep(["batch", 0], "core"),
        b=keep(["images", 0], "folder"),
    )
    ((one,),), ((other,),) = kept["core"], kept["folder"]
    assert [item.caption for item in other.items] == ["zor, sitting", "zor on a mat", "a hat of zor", "zor, a hat"]
    assert [item.caption for item in one.items] == [item.caption for item in other.items] * 3
    assert apart(one.items, first_equal(one.items)) == [[i, i + 4, i + 8] for i in range(4)]
