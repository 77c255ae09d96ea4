"""The blueprints, each a subgraph behind one node, run by the real server."""

from __future__ import annotations

import asyncio
import io
import json

import build_subgraphs
import host
import numpy as np
import pictures
import pytest
import run
from host import ROOT
from PIL import Image
from small_values import BLUEPRINT_VALUES
from test_graph import node

FOLDER = ROOT / "subgraphs"
SMALL = BLUEPRINT_VALUES | {"filename_prefix": "bespoke/blueprint", "name": "blueprint-word"}


def load(name) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


def wired(name, **values) -> dict:
    """The blueprint's node with a checkpoint, a picture and a mask as inputs and nodes for its outputs."""
    flow = load(name)
    (outer,) = flow["nodes"]
    outer["id"] = 50
    shown = [slot["name"] for slot in outer["inputs"] if "widget" in slot]
    outer["widgets_values"] = [
        (SMALL | values).get(name, value) for name, value in zip(shown, outer["widgets_values"], strict=True)
    ]
    sources = {
        "model": (1, 0, "MODEL"),
        "clip": (1, 1, "CLIP"),
        "vae": (1, 2, "VAE"),
        "image": (2, 0, "IMAGE"),
        "mask": (3, 0, "MASK"),
    }
    flow["nodes"] += [
        node(1, "CheckpointLoaderSimple", [host.CHECKPOINT], outputs=["MODEL", "CLIP", "VAE"]),
        node(2, "LoadImage", [pictures.PICTURE, "image"], outputs=["IMAGE", "MASK"]),
        node(3, "LoadImageMask", [pictures.MASK, "red", "image"], outputs=["MASK"]),
    ]
    for place, slot in enumerate(outer["inputs"]):
        if slot["name"] in sources:
            origin, output, kind = sources[slot["name"]]
            slot["link"] = len(flow["links"]) + 1
            flow["links"].append([slot["link"], origin, output, 50, place, kind])
    for place, slot in enumerate(outer["outputs"]):
        link = len(flow["links"]) + 1
        if slot["type"] == "IMAGE":
            flow["nodes"].append(
                node(60 + place, "SaveImage", ["blueprint"], [("images", "IMAGE", link)], title=slot["name"])
            )
        elif slot["type"] == "STRING":
            flow["nodes"].append(node(60 + place, "PreviewAny", [], [("source", "*", link)], title=slot["name"]))
        else:
            continue
        flow["links"].append([link, 50, place, 60 + place, 0, slot["type"]])
    return flow


def run_blueprint(server, name, **values) -> dict[str, list[np.ndarray]]:
    results = asyncio.run(run.run_workflow(server, wired(name, **values)))
    return {
        r["title"]: [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in r["images"]]
        for r in results.values()
    }


def test_the_files_match_the_script(object_info):
    made = {blueprint.name: blueprint for blueprint in (build(object_info) for build in build_subgraphs.BLUEPRINTS)}
    assert {path.stem for path in FOLDER.glob("*.json")} == set(made)
    for name, blueprint in made.items():
        assert json.loads(json.dumps(blueprint.document())) == load(name), f"run tests/demo/build_subgraphs.py ({name})"


def test_comfyui_lists_them(server):
    listed = [entry["name"] for entry in server.get("/global_subgraphs").values() if entry["source"] == "custom_node"]
    assert set(listed) == {path.stem for path in FOLDER.glob("*.json")}


def test_change_a_picture(server):
    source = np.asarray(Image.open(server.base / "input" / pictures.PICTURE).convert("RGB")).astype(int)
    kept, changed = (
        run_blueprint(server, "Change a picture by strength", strength=value)["image"][0].astype(int)
        for value in (0.0, 0.9)
    )
    assert np.abs(kept - source).max() <= 6  # the VAE's rounding
    assert np.abs(changed - source).max() > 60


def test_repaint(server):
    shown = run_blueprint(server, "Repaint under a mask")
    source = np.asarray(Image.open(server.base / "input" / pictures.PICTURE).convert("RGB"))
    corner = shown["image"][0][:4, :4]
    assert (corner == source[:4, :4]).all()
    assert (shown["image"][0] != source).any()
    assert shown["preview"]


def test_train_a_lora(server):
    assert run_blueprint(server, "Train a LoRA from a folder")["preview"]
    assert (server.base / "models" / "loras" / "bespoke" / "blueprint_00001.safetensors").is_file()


def test_teach_a_word(server):
    run_blueprint(server, "Teach a word")
    assert (server.base / "models" / "embeddings" / "blueprint-word.safetensors").is_file()


@pytest.mark.parametrize("name", [build.__name__ for build in build_subgraphs.BLUEPRINTS])
def test_a_user_sees_one_node_with_named_inputs(name, object_info):
    blueprint = next(build for build in build_subgraphs.BLUEPRINTS if build.__name__ == name)(object_info)
    document = blueprint.document()
    (outer,) = document["nodes"]
    assert len({slot["name"] for slot in outer["inputs"]}) == len(outer["inputs"])
    (inner,) = document["definitions"]["subgraphs"]
    assert inner["description"]
    ids = {link["id"] for link in inner["links"]}
    for slot in inner["inputs"] + inner["outputs"]:
        assert slot["linkIds"]
        assert set(slot["linkIds"]) <= ids
