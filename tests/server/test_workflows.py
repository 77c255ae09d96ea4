"""The example workflows run by the real server, and the routes of runs during a training."""

from __future__ import annotations

import asyncio
import io
import json
import re
import threading
import time
import urllib.error
import urllib.request

import build_workflows
import graph
import host
import numpy as np
import pytest
import run
from canvas import Workflow
from host import ROOT
from PIL import Image
from safetensors import safe_open
from small_values import for_small_model

FOLDER = ROOT / "example_workflows"
# Shorter, so that all run in seconds: tests/comfy measures what is learned.
SHORT = {
    "BespokeTrainLora": {"steps": 3, "warmup_steps": 0},
    "BespokeTrainSlider": {"steps": 2, "warmup_steps": 0},
    "BespokeTrainTextualInversion": {"steps": 2},
    "BespokeTrainWordAndLora": {"steps": 3, "warmup_steps": 0},
    "KSampler": {"steps": 3},
    "BespokePartialDenoise": {"steps": 4},
    "EmptyLatentImage": {"batch_size": 2},
    "RepeatLatentBatch": {"amount": 2},
}
# These save the files that the other workflows load.
FIRST = ("lora_train_and_use", "lora_subject", "textual_inversion")


def load(name, object_info, **changes):
    workflow = for_small_model(json.loads((FOLDER / f"{name}.json").read_text("utf-8")), object_info)
    for node in workflow["nodes"]:
        for widget, value in (SHORT.get(node["type"], {}) | changes.get(node["type"], {})).items():
            graph.set_widget(node, object_info[node["type"]], widget, value)
    return workflow


@pytest.fixture(scope="module")
def run_example(server, object_info):
    """run_example(name) -> {title: pictures}; each workflow is run once, after those whose files it loads."""
    done = {}

    def once(name):
        for before in (*FIRST, name) if name not in FIRST else (name,):
            if before not in done:
                done[before] = pictures(asyncio.run(run.run_workflow(server, load(before, object_info))))
        return done[name]

    return once


def pictures(results):
    return {
        r["title"]: [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in r["images"]]
        for r in results.values()
        if r["images"]
    }


def differ(*pictures):
    return len({picture.tobytes() for picture in pictures}) == len(pictures)


def test_each_has_a_section_and_values_for_the_small_model(object_info):
    assert {path.stem for path in FOLDER.glob("*.json")} == set(run.SECTIONS) == set(build_workflows.WORKFLOWS)
    for name in run.SECTIONS:
        real, small = json.loads((FOLDER / f"{name}.json").read_text("utf-8")), load(name, object_info)
        for one, other in zip(real["nodes"], small["nodes"], strict=True):
            assert {k: v for k, v in one.items() if k != "widgets_values"} == {
                k: v for k, v in other.items() if k != "widgets_values"
            }
        assert real["links"] == small["links"]


def test_the_files_match_the_script(server, object_info):
    """The files have all inputs of the nodes."""
    version = server.get("/system_stats")["system"]["comfyui_version"]
    newest = re.search(r'^NEWEST = "(.+)"', (ROOT / "dev.py").read_text("utf-8"), re.MULTILINE)[1]
    if version != newest:
        pytest.skip(
            f"core's nodes of ComfyUI {version} have other inputs than those of {newest}, for which the files are "
            "laid out"
        )
    for name, build in build_workflows.WORKFLOWS.items():
        w = Workflow(object_info)
        build(w)
        assert json.loads(json.dumps(w.document())) == json.loads((FOLDER / f"{name}.json").read_text("utf-8")), (
            f"run tests/demo/build_workflows.py ({name})"
        )


# What each list of files offers on a new host. A model has to be brought.
BROUGHT = {"ckpt_name", "unet_name", "clip_name", "clip_name1", "clip_name2", "vae_name"}
ALWAYS_THERE = {"lora_name": "none", "embedding_name": "none", "folder": "(no folder yet)", "image": "example.png"}


def test_none_opens_with_a_file_that_a_new_user_lacks(object_info):
    """The page marks a node red whose list has not the saved value."""
    for path in [*FOLDER.glob("*.json"), *(ROOT / "subgraphs").glob("*.json")]:
        flow = json.loads(path.read_text("utf-8"))
        inner = [node for part in flow.get("definitions", {}).get("subgraphs", []) for node in part["nodes"]]
        for node in [*flow["nodes"], *inner]:
            if node["type"] not in object_info:
                continue
            definition = object_info[node["type"]]
            specs = definition["input"].get("required", {}) | definition["input"].get("optional", {})
            for name, value in graph.widget_values(node, definition).items():
                where = f"{path.name}: {node.get('title', node['type'])}.{name} = {value!r}"
                if name in ALWAYS_THERE and specs[name][0] != "STRING":
                    assert value == ALWAYS_THERE[name], where
                elif isinstance(specs[name][0], list) and name not in BROUGHT:
                    assert value in specs[name][0], where
                elif specs[name][0] == "COMBO":
                    assert value in specs[name][1]["options"], where


def test_the_picture_of_the_examples_comes_with_comfyui():
    with Image.open(host.comfyui() / "input" / build_workflows.PICTURE) as picture:
        assert picture.size == (768, 768)


def test_an_unlisted_value_is_named(object_info):
    flow = json.loads((FOLDER / "strength_ladder.json").read_text("utf-8"))
    words = next(node for node in flow["nodes"] if node["type"] == "CLIPTextEncode")
    words["widgets_values"] = ["a prompt of one's own"]
    with pytest.raises(graph.GraphError, match='no value of the small model for text = "a prompt of one\'s own"'):
        for_small_model(flow, object_info)


def test_lora(server, run_example):
    shown = run_example("lora_train_and_use")
    base, lora = shown["without the LoRA"], shown["with the LoRA"]
    assert len(base) == len(lora) == 2
    assert any((a != b).any() for a, b in zip(base, lora, strict=True))
    file = server.base / "models" / "loras" / "bespoke" / "my-style_00001.safetensors"
    with safe_open(file, "pt") as opened:
        meta = opened.metadata()
    assert json.loads(meta["prompt"])
    assert any(node["type"] == "BespokeTrainLora" for node in json.loads(meta["workflow"])["nodes"])
    assert meta["ss_base_model_version"] == "sd_v1"
    assert meta["ss_sd_model_name"] == "bespoke-small.safetensors"
    assert "lora key not loaded" not in server.console.read_text(errors="replace")


def test_the_tour(server, run_example, object_info):
    """One number sets the size of training and pictures; the last part uses the file that the graph saved."""
    made = run_example("getting_started")
    assert len(made["without and with"]) == 1
    assert [picture.shape for picture in made["your picture"]] == [(128, 128, 3)] * 2
    assert (server.base / "models" / "loras" / "bespoke" / "first_00001.safetensors").is_file()
    prompt = graph.to_prompt(load("getting_started", object_info), object_info)
    (size,) = [key for key, node in prompt.items() if node["class_type"] == "PrimitiveInt"]
    sized = [
        (node["class_type"], name) for node in prompt.values() for name, v in node["inputs"].items() if v == [size, 0]
    ]
    assert sorted(sized) == [
        ("BespokeImageFolder", "resolution"),
        ("EmptyLatentImage", "height"),
        ("EmptyLatentImage", "width"),
    ]


@pytest.mark.slow
def test_subject(run_example):
    shown = run_example("lora_subject")
    assert differ(
        shown["the subject, without the LoRA"][0],
        shown["the subject, with the LoRA"][0],
        shown["its class, with the LoRA"][0],
    )


@pytest.mark.slow
def test_an_edit(server, run_example):
    """The sheet shows the pairs, and the file says that the training took them."""
    shown = run_example("edit_from_pairs")
    assert shown["The training set"][0].shape[1] == 12 + 3 * (2 * 192 + 24 + 12)
    assert differ(shown["without the LoRA"][0], shown["with the LoRA"][0])
    assert (server.base / "models" / "loras" / "bespoke" / "my-edit_00001.safetensors").is_file()


def test_two_loras_composed(server, run_example):
    shown = run_example("lora_compose")
    assert differ(shown["the style alone"][0], shown["the subject alone"][0], shown["both composed"][0])
    assert (server.base / "models" / "loras" / "bespoke" / "style-and-subject_00001.safetensors").is_file()


@pytest.mark.slow
def test_a_lora_in_a_checkpoint(server, run_example):
    shown = run_example("lora_into_checkpoint")
    assert differ(shown["the base"][0], shown["what the checkpoint draws"][0])
    assert (server.base / "output" / "checkpoints" / "with-my-style_00001_.safetensors").is_file()
    assert (server.base / "models" / "loras" / "bespoke" / "my-style-at-0.8_00001.safetensors").is_file()


@pytest.mark.slow
def test_a_lora_in_part(run_example):
    shown = run_example("lora_inspect_and_scope")
    parts = ("all of it", "value and out only", "the up blocks only", "from the middle of the denoising on")
    assert differ(*(shown[part][0] for part in parts))


def test_strength(server, run_example):
    shown = run_example("strength_ladder")
    source = np.asarray(Image.open(server.base / "input" / "bespoke_picture.png").convert("RGB"))
    assert np.abs(shown["strength 0"][0].astype(int) - source).max() <= 6  # the VAE's rounding
    assert len({image[0].tobytes() for image in shown.values()}) == len(shown) == 5


def test_few_steps(run_example):
    shown = {title: images[0] for title, images in run_example("img2img_few_steps").items()}
    assert (shown["diffusers, 0.6"] == shown["diffusers, 0.7"]).all()  # both start at the second of four steps
    assert differ(shown["noise level, 0.6"], shown["noise level, 0.7"])
    assert (shown["noise level, 0.7, by its sigmas"] == shown["noise level, 0.7"]).all()


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("inpaint_region", "repainted under the mask"),
        ("inpaint_soft", "repainted softly"),
        ("inpaint_two_stages", "repainted in two stages"),
    ],
)
def test_inpainting(server, run_example, name, title):
    result = run_example(name)[title][0]
    source = np.asarray(Image.open(server.base / "input" / "bespoke_picture.png").convert("RGB"))
    mask = np.asarray(Image.open(server.base / "input" / "bespoke_mask.png").convert("L")) > 0
    reach = 8 + (24 if name == "inpaint_soft" else 0)  # px: a latent's cell, and the feather
    allowed = mask.copy()
    for axis in (0, 1):
        allowed = np.any([np.roll(allowed, shift, axis) for shift in range(-reach, reach + 1)], axis=0)
    if name != "inpaint_soft":  # whose feather reaches the border of so small a picture
        assert not allowed.all()
    assert (result[~allowed] == source[~allowed]).all()
    assert (result[mask] != source[mask]).any()


@pytest.mark.parametrize(
    ("name", "title", "corners"),
    [
        ("inpaint_only_masked", "the place repainted", [(4, 4)]),
        ("fix_many_faces", "every place repainted", [(4, 4), (100, 4), (4, 100)]),
    ],
)
def test_repainting_crops(server, run_example, name, title, corners):
    """Each place of 24 px changes, and nothing beyond the latent cells of its crop and the blend's feather."""
    result = run_example(name)[title][0]
    source = np.asarray(Image.open(server.base / "input" / "bespoke_picture.png").convert("RGB"))
    allowed = np.zeros(source.shape[:2], bool)
    for x, y in corners:
        assert (result[y : y + 24, x : x + 24] != source[y : y + 24, x : x + 24]).any()
        allowed[max(y - 8, 0) : y + 32, max(x - 8, 0) : x + 32] = True
    assert (result[~allowed] == source[~allowed]).all()


def test_outpainting(server, run_example):
    """The old picture is bit for bit what it was, beside 32 px of new border."""
    shown = run_example("outpaint")
    (result,), (filled,) = shown["the wider picture"], shown["the filled border"]
    source = np.asarray(Image.open(server.base / "input" / "bespoke_picture.png").convert("RGB"))
    assert result.shape == filled.shape == (128, 160, 3)
    assert (result[:, :128] == source).all()
    assert (filled[:, :128] == source).all()
    assert (result[:, 136:] != filled[:, 136:]).any()


def test_textual_inversion(server, run_example):
    shown = run_example("textual_inversion")
    old, new = shown["the starting word"], shown["the new word"]
    assert len(old) == len(new) == 2
    assert differ(old[0], new[0])
    assert (server.base / "models" / "embeddings" / "my-word.safetensors").is_file()
    assert "embedding:my-word does not exist" not in server.console.read_text(errors="replace")


def test_word_and_lora(run_example, server):
    """The file that Save LoRA wrote brings the word by Inject LoRA: the embeddings folder has none."""
    shown = run_example("word_and_lora")
    assert differ(shown["the starting word"][0], shown["the new word and the LoRA"][0])
    assert list((server.base / "models" / "loras" / "bespoke").glob("my-word*.safetensors"))


@pytest.mark.slow
def test_three_techniques(run_example):
    (sheet,) = run_example("three_techniques")["the three techniques"]
    assert sheet.shape[0] > 4 * 128  # four rows and the table of the two runs
    assert sheet.shape[1] > 2 * 128 + 200


def post(server, path):
    request = urllib.request.Request(f"{server.url}{path}", b"{}", {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def test_finish_over_http_sends_the_result_downstream(server, object_info):
    flow = load(
        "lora_train_and_use",
        object_info,
        BespokeTrainLora={"steps": 5000, "seed": 77},
        BespokeSaveLora={"filename_prefix": "bespoke/finished"},
    )
    wanted = {"CheckpointLoaderSimple", "BespokeImageFolder", "BespokeTrainLora", "BespokeSaveLora"}
    flow["nodes"] = [node for node in flow["nodes"] if node["type"] in wanted]
    ids = {node["id"] for node in flow["nodes"]}
    flow["links"] = [link for link in flow["links"] if link[1] in ids and link[3] in ids]
    outcome = {}

    def run_flow():
        outcome["results"] = asyncio.run(run.run_workflow(server, flow))

    thread = threading.Thread(target=run_flow)
    thread.start()
    try:
        running = None
        for _ in range(600):
            running = next(
                (
                    r
                    for r in server.get("/bespoke/runs")["runs"]
                    if r["settings"].get("seed") == 77 and r["state"] == "running"
                ),
                None,
            )
            if running:
                break
            time.sleep(0.2)
        assert running, "the run is not in the list"
        time.sleep(2)
        assert post(server, f"/bespoke/runs/{running['id']}/finish")["finish"] == "requested"
    finally:
        thread.join(240)
    assert not thread.is_alive()
    record = server.get(f"/bespoke/runs/{running['id']}")
    assert record["state"] == "kept"
    assert 0 < len(record["losses"]) < 5000
    assert (server.base / "models" / "loras" / "bespoke" / "finished_00001.safetensors").is_file()
    with pytest.raises(urllib.error.HTTPError, match="409"):
        post(server, f"/bespoke/runs/{running['id']}/finish")


@pytest.mark.parametrize("name", ["nothing", "lora-000000000000", "..%2f..%2fsecret"])
def test_unknown_runs_are_404(server, name):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        server.get(f"/bespoke/runs/{name}")
