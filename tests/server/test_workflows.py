"""The example workflows, as the page opens them, through the real server; and the runs' routes while one trains."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
import urllib.error
import urllib.request

import graph
import numpy as np
import pytest
import run
from host import ROOT
from PIL import Image
from safetensors import safe_open

WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))
# Only the lengths are cut, so that the whole runs in seconds: what is learned is measured in tests/comfy.
SHORT = {"BespokeTrainLora": {"steps": 3}, "BespokeTrainTextualInversion": {"steps": 2}, "KSampler": {"steps": 3},
         "BespokePartialDenoise": {"steps": 4}}  # fmt: skip


def load(path, object_info, **changes):
    workflow = json.loads(path.read_text("utf-8"))
    for node in workflow["nodes"]:
        for name, value in (SHORT.get(node["type"], {}) | changes.get(node["type"], {})).items():
            set_widget(node, object_info[node["type"]], name, value)
    return workflow


def set_widget(node, definition, name, value):
    """Put a value into the positional list where the page would."""
    for i in range(len(node["widgets_values"])):
        tried = dict(node, widgets_values=[*node["widgets_values"][:i], "?", *node["widgets_values"][i + 1 :]])
        try:
            found = graph.widget_values(tried, definition).get(name) == "?"
        except graph.GraphError:
            continue
        if found:
            node["widgets_values"][i] = value
            return
    raise AssertionError(f"{node['type']} has no widget {name}")


def pictures(results):
    return {r["title"]: [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in r["images"]] for r in results.values() if r["images"]}


def test_there_is_one_for_each_of_the_four():
    assert [path.stem for path in WORKFLOWS] == ["inpaint_region", "lora_train_and_use", "strength_ladder", "textual_inversion"]


def test_lora(server, object_info):
    shown = pictures(asyncio.run(run.run_workflow(server, load(ROOT / "example_workflows" / "lora_train_and_use.json", object_info))))
    base, lora = shown["without the LoRA"], shown["with the LoRA"]
    assert len(base) == len(lora) == 4
    assert any((a != b).any() for a, b in zip(base, lora, strict=True))
    file = server.base / "models" / "loras" / "bespoke" / "teal_00001.safetensors"
    with safe_open(file, "pt") as opened:
        meta = opened.metadata()
    assert json.loads(meta["prompt"])
    assert any(node["type"] == "BespokeTrainLora" for node in json.loads(meta["workflow"])["nodes"])
    assert meta["ss_base_model_version"] == "sd_v1"
    assert meta["ss_sd_model_name"] == "bespoke-small.safetensors"
    assert "lora key not loaded" not in server.console.read_text(errors='replace')


def test_strength(server, object_info):
    shown = pictures(asyncio.run(run.run_workflow(server, load(ROOT / "example_workflows" / "strength_ladder.json", object_info))))
    source = np.asarray(Image.open(server.base / "input" / "bespoke_picture.png").convert("RGB"))
    assert np.abs(shown["strength 0"][0].astype(int) - source).max() <= 6  # the VAE's rounding, no more
    assert len({image[0].tobytes() for image in shown.values()}) == len(shown) == 5


def test_inpainting(server, object_info):
    shown = pictures(asyncio.run(run.run_workflow(server, load(ROOT / "example_workflows" / "inpaint_region.json", object_info))))
    source = np.asarray(Image.open(server.base / "input" / "bespoke_picture.png").convert("RGB"))
    mask = np.asarray(Image.open(server.base / "input" / "bespoke_mask.png").convert("L")) > 0
    result = shown["repainted under the mask"][0]
    reach = 8  # px: a latent's cell; the workflow has no feather
    allowed = mask.copy()
    for axis in (0, 1):
        allowed = np.any([np.roll(allowed, shift, axis) for shift in range(-reach, reach + 1)], axis=0)
    assert not allowed.all()
    assert (result[~allowed] == source[~allowed]).all()
    assert (result[mask] != source[mask]).any()


def test_textual_inversion(server, object_info):
    shown = pictures(asyncio.run(run.run_workflow(server, load(ROOT / "example_workflows" / "textual_inversion.json", object_info))))
    old, new = shown["the starting word: red"], shown["the new word: embedding:my-pink"]
    assert len(old) == len(new) == 4
    assert (server.base / "models" / "embeddings" / "my-pink.safetensors").is_file()
    assert "embedding:my-pink does not exist" not in server.console.read_text(errors='replace')


def post(server, path):
    request = urllib.request.Request(f"{server.url}{path}", data=b"", method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def test_finish_over_http_sends_the_result_downstream(server, object_info):
    flow = load(ROOT / "example_workflows" / "lora_train_and_use.json", object_info, BespokeTrainLora={"steps": 5000, "seed": 77},
                BespokeSaveLora={"filename_prefix": "bespoke/finished"})  # fmt: skip
    wanted = {"CheckpointLoaderSimple", "BespokeImageFolder", "BespokeTrainLora", "BespokeSaveLora"}
    flow["nodes"] = [node for node in flow["nodes"] if node["type"] in wanted]
    ids = {node["id"] for node in flow["nodes"]}
    flow["links"] = [link for link in flow["links"] if link[1] in ids and link[3] in ids]
    outcome = {}

    def play():
        outcome["results"] = asyncio.run(run.run_workflow(server, flow))

    thread = threading.Thread(target=play)
    thread.start()
    try:
        running = None
        for _ in range(600):
            running = next((r for r in server.get("/bespoke/runs") if r["settings"].get("seed") == 77 and r["state"] == "running"), None)
            if running:
                break
            time.sleep(0.2)
        assert running, "the run never showed up"
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
