"""Every example workflow opened in the page and queued by the button's command, with the small model."""

from __future__ import annotations

import asyncio
import json
import shutil

import graph
import host
import pytest
import run

# These save the files that the other workflows load.
FIRST = ("lora_train_and_use", "lora_subject", "textual_inversion")
NAMES = sorted(path.stem for path in (host.ROOT / "example_workflows").glob("*.json"))
SHORT = {
    "BespokeTrainLora": {"steps": 2, "batch_size": 1, "warmup_steps": 0},
    "BespokeTrainTextualInversion": {"steps": 2},
    "BespokeTrainWordAndLora": {"steps": 2, "batch_size": 1},
    "BespokeTrainSlider": {"steps": 2, "batch_size": 1, "sample_every": 0},
    "KSampler": {"steps": 2},
    "BespokePartialDenoise": {"steps": 2},
    "EmptyLatentImage": {"batch_size": 1},
    "BespokeImageFolder": {"resolution": 64},
}


@pytest.fixture(scope="module")
def trained_files(server, workflow):
    """The files of the trainings in `FIRST` are on the server."""
    object_info = server.get("/object_info")
    for name in FIRST:
        flow = workflow(name)
        for node in flow["nodes"]:
            for widget, value in SHORT.get(node["type"], {}).items():
                graph.set_widget(node, object_info[node["type"]], widget, value)
        asyncio.run(run.run_workflow(server, flow))


@pytest.mark.parametrize("name", NAMES)
def test_an_example_runs_to_its_end(open_page, server, trained_files, workflow, screenshots, name):
    page = open_page()
    page.load(workflow(name))
    for kind, values in SHORT.items():
        page.change(kind, **values)
    page.run_to_end()
    page.picture(screenshots / f"example_{name}.png")
    assert page.tab.evaluate(OVERLAPS) == []  # previews make nodes taller
    assert not [error for error in page.tab.errors if error.startswith("uncaught")]


OVERLAPS = """(() => {
  const head = 30, box = (n) => [n.pos[0], n.pos[1] - head, n.pos[0] + n.size[0], n.pos[1] + n.size[1]];
  const found = [], nodes = app.graph._nodes;
  nodes.forEach((one, i) => nodes.slice(i + 1).forEach((other) => {
    const [a, b] = [box(one), box(other)];
    const [wide, high] = [Math.min(a[2], b[2]) - Math.max(a[0], b[0]), Math.min(a[3], b[3]) - Math.max(a[1], b[1])];
    if (wide <= 1 || high <= 1) return;
    const by = Math.round(high);
    found.push(`${one.title} (${Math.round(one.size[1])} high) and ${other.title} by ${by}`);
  }));
  return found;
})()"""


# Every trainer shows a run with a sample.
TRAIN = """(async () => {
  const send = (kind, values) => app.api.dispatchCustomEvent("bespoke.run." + kind, values);
  for (const n of app.rootGraph.nodes.filter((n) => n.type.startsWith("BespokeTrain"))) {
    const run = { node_id: String(n.id), run_id: "lora-" + String(n.id).padStart(12, "0") };
    send("start", { ...run, steps: 9, text: "16 layers, and as many words as those of a training have: two lines" });
    send("sample", { ...run, step: 0, image: "000000.png" });
    send("step", { ...run, step: 1, steps: 9, loss: 0.1, loss_ema: 0.1 });
  }
  for (let i = 0; i < 4; i++) await new Promise(requestAnimationFrame);
})()"""


@pytest.mark.parametrize("look", ["classic", "nodes 2.0"])
def test_no_node_covers_another(open_page, workflow, look):
    """With the folders' lists, before and during the trainings."""
    page = open_page(look=look)
    found = {}
    for name in NAMES:
        page.load(workflow(name))
        page.idle()
        overlaps = page.tab.evaluate(OVERLAPS)
        page.tab.evaluate(TRAIN)
        if overlaps := overlaps + page.tab.evaluate(OVERLAPS):
            found[name] = overlaps
    assert not found, json.dumps(found, indent=1)


# The lists whose value is none of their entries: the page marks the node as one that misses a file.
MISSING = """app.rootGraph.nodes.flatMap((n) => (n.widgets ?? []).filter((w) => w.type === "combo" &&
  Array.isArray(w.options?.values) && !w.options.values.includes(w.value)).map((w) => `${n.title}: ${w.name}`))"""


@pytest.mark.parametrize("look", ["classic", "nodes 2.0"])
def test_an_example_opens_with_no_file_missing_but_the_checkpoint(open_page, server, look):
    """As a new user opens it: with the values of the file, and the picture that comes with ComfyUI."""
    shutil.copy(host.comfyui() / "input" / "example.png", server.base / "input")
    page = open_page(look=look)
    found = {}
    for name in NAMES:
        page.load(json.loads((host.ROOT / "example_workflows" / f"{name}.json").read_text("utf-8")))
        missing = page.tab.evaluate(MISSING)
        assert any(each.endswith("ckpt_name") for each in missing)  # this host has the small model alone
        if others := [each for each in missing if not each.endswith("ckpt_name")]:
            found[name] = others
    assert not found, json.dumps(found, indent=1)
