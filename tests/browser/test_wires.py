"""Wires that people try: which the page lets them connect, by dragging, in both looks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FILES = Path(__file__).parent / "moved_values"
# (from, its output, to, its input): whether the page connects them.
WIRES = {
    ("BespokeSaveLora", "lora_name", "BespokeInjectLora", "name"): True,
    ("BespokeSaveLora", "lora_name", "BespokeLoadLora", "name"): True,
    ("BespokeSaveLora", "lora_name", "BespokeInspectLora", "name"): True,
    ("PrimitiveString", "STRING", "BespokeInjectLora", "name"): True,
    ("BespokeSaveLora", "for_lists", "LoraLoader", "lora_name"): True,
    ("BespokeSaveLora", "for_lists", "LoraLoaderModelOnly", "lora_name"): True,
    ("BespokeSaveLora", "for_lists", "BespokeInjectLora", "lora_name"): True,
    ("BespokeSaveLora", "for_lists", "BespokeLoadLora", "lora_name"): True,
    ("BespokeSaveLora", "for_lists", "TrainLoraNode", "existing_lora"): True,
    ("BespokeSaveLora", "lora_name", "LoraLoader", "lora_name"): False,  # a list takes no text
    ("BespokeSaveEmbedding", "prompt_word", "CLIPTextEncode", "text"): True,
    ("BespokeSaveEmbedding", "prompt_word", "BespokeInspectEmbedding", "name"): True,
    ("PrimitiveString", "STRING", "BespokeImageFolder", "folder_name"): True,
    ("LoadImage", "IMAGE", "BespokeTrainLora", "images"): True,
    ("LoadImage", "IMAGE", "BespokeTrainTextualInversion", "images"): True,
    ("LoadImage", "IMAGE", "BespokeExportLoraJob", "images"): True,
    ("BespokeImageFolder", "images", "BespokeTrainLora", "images"): True,
    ("BespokeImageFolder", "images", "PreviewImage", "images"): False,
    ("BespokeImageFolder", "pictures", "PreviewImage", "images"): True,
    ("LoadImage", "MASK", "BespokeImageBatch", "masks"): True,
    ("LoadImageTextDataSetFromFolder", "images", "BespokeImageBatch", "images"): True,
    ("LoadImageTextDataSetFromFolder", "texts", "BespokeImageBatch", "captions"): True,
    ("EmptyLatentImage", "LATENT", "BespokeTrainLora", "images"): False,
    ("MakeTrainingDataset", "latents", "BespokeTrainLora", "images"): False,
    ("BespokeTrainLora", "lora", "SaveLoRA", "lora"): True,
    ("TrainLoraNode", "lora", "BespokeSaveLora", "lora"): True,
    ("BespokeTrainLora", "loss", "LossGraphNode", "loss"): True,
    ("BespokeTrainLora", "run", "PreviewAny", "source"): True,
}
# Two nodes in a fresh graph, and where the slots are on the screen.
PLACE = """(async ([from, output, to, input]) => {
  const graph = app.rootGraph;
  graph.clear();
  const add = (type, x) => { const node = LiteGraph.createNode(type); node.pos = [x, 60]; graph.add(node);
    return node; };
  const a = add(from, 40), b = add(to, 760);
  app.canvas.ds.scale = 0.7; app.canvas.ds.offset = [0, 60]; app.canvas.setDirty(true, true);
  const slot = (slots, name) => slots.findIndex((s) => s.name === name);
  const [i, j] = [slot(a.outputs, output), slot(b.inputs, input)];
  if (i < 0 || j < 0) throw Error(JSON.stringify([a.outputs.map((s) => s.name), b.inputs.map((s) => s.name)]));
  const dot = (node, kind, at, slot) => {
    const found = document.querySelector(`[data-slot-key="${node.id}-${kind}-${at}"]`) ??
      document.querySelector(`[data-node-id="${node.id}"] [data-slot-key$="-${kind}-${at}"]`);
    if (found) { const r = found.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }
    return LiteGraph.vueNodesMode ? null : app.canvasPosToClientPos(slot);
  };
  window.pair = [a, b, j];
  // Nodes 2.0 places its slots some frames later: they are where they were for twelve frames.
  let dots = [], before = "";
  for (let frames = 0, still = 0; still < 12; frames++) {
    if (frames > 400) throw Error(`the slots do not come to rest: ${before}`);
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 30)));
    dots = [dot(a, "out", i, a.getOutputPos(i)), dot(b, "in", j, b.getInputPos(j))];
    const now = JSON.stringify(dots);
    still = dots.every(Boolean) && now === before ? still + 1 : 0;
    before = now;
  }
  return dots;
})"""
LINKED = "(([a, b, j]) => b.inputs[j].link != null)(window.pair)"


@pytest.fixture(scope="module", params=["classic", "nodes 2.0"])
def page(request, browser, server):
    from comfy_page import ComfyPage

    opened = ComfyPage(browser, server, look=request.param)
    yield opened
    opened.close()


def drag(page, start: list[float], end: list[float]) -> None:
    """Press at `start`, move to `end` and release there, px of the window."""

    def mouse(kind, at, buttons):
        page.tab.send(
            "Input.dispatchMouseEvent",
            type=kind,
            x=at[0],
            y=at[1],
            button="left",
            buttons=buttons,
            clickCount=1,
            pointerType="mouse",
        )

    mouse("mouseMoved", start, 0)
    mouse("mousePressed", start, 1)
    for part in (0.1, 0.5, 0.9, 1.0, 1.0):
        mouse("mouseMoved", [s + (e - s) * part for s, e in zip(start, end, strict=True)], 1)
    mouse("mouseReleased", end, 0)


@pytest.mark.parametrize("wire", WIRES, ids=lambda w: f"{w[0]}.{w[1]} to {w[2]}.{w[3]}")
def test_drag(page, wire):
    start, end = page.tab.evaluate(f"{PLACE}({json.dumps(wire)})")
    drag(page, start, end)
    if WIRES[wire]:
        page.tab.wait(LINKED, 10)
    else:
        page.tab.evaluate("new Promise((done) => setTimeout(done, 300))")
        assert not page.tab.evaluate(LINKED)
    page.tab.press("Escape")  # the search that opens where a wire ends nowhere


def test_a_graph_of_an_older_version_takes_images_too(page):
    """Its file says BESPOKE_IMAGES for the trainer's images, and has neither `name` nor `for_lists`."""
    saved = json.loads((FILES / "saved_once.json").read_text("utf-8"))
    trainer = next(node for node in saved["nodes"] if node["type"] == "BespokeTrainLora")
    assert next(slot["type"] for slot in trainer["inputs"] if slot["name"] == "images") == "BESPOKE_IMAGES"
    page.load(saved)
    types = page.tab.evaluate("""(() => { const of = (kind) => app.rootGraph.nodes.find((n) => n.comfyClass === kind);
      const slot = (slots, name) => slots.find((s) => s.name === name)?.type ?? null;
      return [slot(of("BespokeTrainLora").inputs, "images"), slot(of("BespokeInjectLora").inputs, "name"),
        slot(of("BespokeSaveLora").outputs, "for_lists"), slot(of("BespokeImageFolder").outputs, "pictures")]; })()""")
    assert types == ["BESPOKE_IMAGES,IMAGE", "STRING", "*", "IMAGE"]
