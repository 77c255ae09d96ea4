"""The blueprints, each a subgraph behind one node, run by the real server."""

from __future__ import annotations

import asyncio
import io
import json

import build_subgraphs
import graph
import host
import numpy as np
import pictures
import pytest
import recipes
import run
from host import ROOT
from PIL import Image
from safetensors import safe_open
from small_values import BLUEPRINT_VALUES
from test_graph import node

FOLDER = ROOT / "subgraphs"
SCHEMAS = json.loads((ROOT / "tests" / "comfy" / "schemas.json").read_text("utf-8"))
LISTS = {"folder"}  # of files
OPTIONAL = {
    *("validation_images", "lora", "prior_images", "training_adapter"),
    *("images", "loras.lora0", "folder_name", "embedding"),
}
SMALL = BLUEPRINT_VALUES | {"filename_prefix": "bespoke/blueprint", "name": "blueprint-word"}


def load(name) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


def values_of(one: dict) -> dict:
    """{input: value} of a node of the pack, by the order of its widgets in the schema."""
    if one["type"] not in SCHEMAS:
        return {}
    widgets = [slot["widget"]["name"] for slot in one["inputs"] if "widget" in slot]
    order = [item["id"] for item in SCHEMAS[one["type"]]["inputs"] if item["id"] in widgets]
    return dict(zip(order, one["widgets_values"], strict=True))


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


# --- the recipes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", build_subgraphs.RECIPES)
def test_a_recipe_fits_the_nodes(name):
    """Every value is in the range or among the choices of its widget, and every link joins one type to the same."""
    (part,) = load(f"{recipes.PREFIX}{name}")["definitions"]["subgraphs"]
    nodes = {one["id"]: one for one in part["nodes"]}
    for one in nodes.values():
        if one["type"] in graph.NOTES:
            continue
        specs = SCHEMAS.get(one["type"])
        for slot in one["inputs"]:
            assert slot.get("link") or slot["name"] in OPTIONAL or "widget" in slot, (one["type"], slot["name"])
        for item in specs["inputs"] if specs else ():
            value = values_of(one).get(item["id"])
            where = f"{one['type']}.{item['id']} = {value!r}"
            if "options" in item and item["id"] not in LISTS:
                assert value in item["options"], where
            elif "min" in item and value is not None:
                assert item["min"] <= value <= item["max"], where
    for link in part["links"]:
        if link["origin_id"] in nodes and link["target_id"] in nodes:
            given = nodes[link["origin_id"]]["outputs"][link["origin_slot"]]["type"]
            taken = nodes[link["target_id"]]["inputs"][link["target_slot"]]["type"]
            assert given in taken.split(","), link


@pytest.mark.parametrize("name", build_subgraphs.RECIPES)
def test_a_recipe_says_where_its_values_come_from(name):
    """The note has a source for each row, and says what was tried; only SD1.5 is run here."""
    family, goal = name.split(", ")
    (part,) = load(f"{recipes.PREFIX}{name}")["definitions"]["subgraphs"]
    (note,) = [one["widgets_values"][0] for one in part["nodes"] if one["type"] == "MarkdownNote"]
    rows = [line.strip("| ").split(" | ") for line in note.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 6
    assert all(len(row) == 2 and all(row) for row in rows)
    assert "published by" in note
    assert ("Not tried here" in note) == (family != "SD1.5") == ("Not tried here" in part["description"])
    trainer = values_of(next(one for one in part["nodes"] if one["type"] == "BespokeTrainLora"))
    table = recipes.FAMILIES[family].goals[goal]
    assert trainer["rank"] == trainer["alpha"] == table.rank
    assert f"| rank and alpha {table.rank} |" in note
    assert f"learning rate {table.rate:g}, {trainer['steps']} steps of {trainer['batch_size']}" in note
    assert trainer["save_every"] == trainer["sample_every"] == trainer["steps"] // 4


def test_there_is_a_recipe_for_each_family_and_goal():
    families = ("SD1.5", "SDXL", "Flux", "Z-Image", "Qwen-Image", "Wan")
    names = {f"{family}, {goal}" for family in families for goal in ("subject", "style", "concept")}
    assert set(build_subgraphs.RECIPES) == names | {"Wan, motion"}


@pytest.mark.slow
def test_a_recipe_runs_from_the_folder_to_the_sweep(server):
    """SD1.5 for a subject, on the small model: the sheet, the rate, the grid of two saves, the file and its thumbnail.

    The training goes on after its probe, so both nodes have the same wires and settings."""
    small = {"ckpt_name": host.CHECKPOINT, "prompt": "a teal circle on white", "steps": 140, "trigger": "teal"}
    name = f"{recipes.PREFIX}SD1.5, subject"
    flow = wired(name, **small, filename_prefix="bespoke/recipe", validation=0)
    (part,) = flow["definitions"]["subgraphs"]
    for one in part["nodes"]:
        for widget, value in {
            "BespokeTrainLora": {"save_every": 70, "sample_every": 70, "precision": "fp32"},
            "BespokeFindLearningRate": {"precision": "fp32"},
            "BespokeLoraSweep": {"steps": 2, "width": 64, "height": 64, "cfg": 2.0, "strengths": "1"},
            "BespokeImageFolder": {"resolution": 64},
        }.get(one["type"], {}).items():
            graph.set_widget(one, server.get("/object_info")[one["type"]], widget, value)
    results = asyncio.run(run.run_workflow(server, flow))
    shown = {each["title"]: each for each in results.values()}
    assert shown["grid"]["images"]
    assert shown["preview"]["images"]
    assert shown["rate_plot"]["images"]
    (told,), (report,) = shown["rate_report"]["text"], shown["report"]["text"]
    assert "OTHER SETTINGS" not in told
    assert "steps were done by Find Learning Rate" in report
    folder = server.base / "models" / "loras" / "bespoke"
    assert (folder / "recipe_00001.safetensors").is_file()
    assert (folder / "recipe_00001.preview.png").is_file()


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


def test_make_a_lora_smaller(server):
    run_blueprint(server, "Make a LoRA smaller", filename_prefix="bespoke/smaller", rank=8)
    with safe_open(server.base / "models" / "loras" / "bespoke" / "smaller_00001.safetensors", "np") as file:
        ranks = {file.get_slice(key).get_shape()[0] for key in file.keys() if key.endswith("lora_down.weight")}  # noqa: SIM118
    assert ranks == {8}


@pytest.mark.parametrize("number", range(len(build_subgraphs.BLUEPRINTS)))
def test_a_user_sees_one_node_with_named_inputs(number, object_info):
    document = build_subgraphs.BLUEPRINTS[number](object_info).document()
    (outer,) = document["nodes"]
    assert len({slot["name"] for slot in outer["inputs"]}) == len(outer["inputs"])
    (inner,) = document["definitions"]["subgraphs"]
    assert inner["description"]
    ids = {link["id"] for link in inner["links"]}
    for slot in inner["inputs"] + inner["outputs"]:
        assert slot["linkIds"]
        assert set(slot["linkIds"]) <= ids
