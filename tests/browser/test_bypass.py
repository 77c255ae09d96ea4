"""Nodes that are bypassed (Ctrl-B), and graphs that were saved before Restore Unmasked's inputs changed places.

The oracle is the prompt that the page sends.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bypass import is_widget, page_inputs, passed_on
from host import ROOT

EXAMPLES = ROOT / "example_workflows"
FILES = Path(__file__).parent / "swapped_inputs"  # as version 0.1 saved them: original, generated, mask
SCHEMAS = json.loads((Path(__file__).parent.parent / "comfy" / "schemas.json").read_text("utf-8"))
PROMPT = "app.graphToPrompt().then(({ output }) => output)"

# One of each node, bypassed, with a source of its own on each socket and one sink an output.
EVERY = """(async () => {
  const graph = app.rootGraph;
  graph.clear();
  const plain = (name) => { class Plain extends LiteGraph.LGraphNode { constructor() { super(name); } }
    Plain.title = name; if (!LiteGraph.registered_node_types[name]) LiteGraph.registerNodeType(name, Plain);
    const node = LiteGraph.createNode(name); graph.add(node); return node; };
  const sources = new Map(), sinks = [], orders = {};
  for (const kind of Object.keys(LiteGraph.registered_node_types).filter((k) => k.startsWith("Bespoke")).sort()) {
    const node = LiteGraph.createNode(kind);
    graph.add(node);
    orders[kind] = node.inputs.map((input) => [input.name, String(input.type)]);
    for (const input of node.inputs.filter((i) => !i.widget)) {
      const source = plain("Source");
      source.addOutput("out", input.type);
      source.connect(0, node, node.inputs.findIndex((i) => i.name === input.name));
      sources.set(String(source.id), input.name);
    }
    for (const [slot, output] of node.outputs.entries()) {
      const sink = plain("Sink");
      sink.addInput("in", output.type);
      node.connect(slot, sink, 0);
      sinks.push([kind, output.name, sink.id]);
    }
    node.mode = 4;
  }
  const { output } = await app.graphToPrompt();
  const read = (found) => Array.isArray(found) ? sources.get(String(found[0])) : found ?? null;
  return { orders, found: sinks.map(([kind, name, id]) => [kind, name, read(output[id]?.inputs.in)]) };
})()"""


def test_every_bypassed_node_passes_on_what_the_table_says(page):
    """The page's own resolution of each output, and the order of its inputs, equal the rule of `bypass`.

    Nothing is wired into a widget, which then passes nothing on.
    """
    answer = page.tab.evaluate(EVERY)
    inputs = {name: page_inputs(name, schema) for name, schema in SCHEMAS.items()}
    for name, order in answer["orders"].items():
        known = {one for one, _ in inputs[name]}
        assert [one for one, _ in order if one in known] == [one for one, _ in inputs[name]], name
    widgets = {name: {item["id"] for item in schema["inputs"] if is_widget(item)} for name, schema in SCHEMAS.items()}

    def wired(name, number, kind):
        found = passed_on(inputs[name], number, kind)
        return None if found in widgets[name] else found

    expected = [
        [name, shown, wired(name, number, kind)]
        for name, schema in sorted(SCHEMAS.items())
        for number, (_, kind, shown) in enumerate(schema["outputs"])
    ]
    assert answer["found"] == expected


def read(name: str) -> dict:
    return json.loads((FILES / f"{name}.json").read_text("utf-8"))


def sources(prompt: dict, kind: str) -> dict[str, str]:
    """input -> the class of the node that it comes from, for the one node of a class in a prompt."""
    (node,) = [node for node in prompt.values() if node["class_type"] == kind]
    return {name: prompt[value[0]]["class_type"] for name, value in node["inputs"].items() if isinstance(value, list)}


RESTORED = {"original": "LoadImage", "generated": "VAEDecode", "mask": "BespokeLatentMaskBlend"}
# Every link ends at the input that holds it, by its number.
STRAY = """(() => { const every = (g) => g.nodes.flatMap((n) => [n, ...(n.subgraph ? every(n.subgraph) : [])]);
  return every(app.rootGraph).flatMap((n) => n.inputs.map((input, i) => [n.graph.getLink(input.link), i])
    .filter(([link, i]) => link && link.target_slot !== i).map(([, i]) => `${n.type} ${i}`)); })()"""


def test_a_graph_of_version_0_1_runs_as_it_did(page):
    """The file holds the inputs in their old order: 14 from LoadImage on place 0, 15 from VAEDecode on place 1."""
    saved = read("workflow")
    (node,) = [node for node in saved["nodes"] if node["type"] == "BespokeRestoreUnmasked"]
    assert [one["name"] for one in node["inputs"][:3]] == ["original", "generated", "mask"]
    page.load(saved)
    prompts = [page.tab.evaluate(PROMPT)]
    assert sources(prompts[0], "BespokeRestoreUnmasked") == RESTORED
    assert page.tab.evaluate(STRAY) == []
    for _ in range(2):  # what the page saves now is read the same
        page.load(json.loads(page.saved()))
        prompts.append(page.tab.evaluate(PROMPT))
    assert prompts[1] == prompts[2] == prompts[0]
    # A copy of the node with its wires, and a new wire on the first place.
    page.tab.evaluate("""(() => { const graph = app.rootGraph;
      const node = graph.nodes.find((n) => n.comfyClass === "BespokeRestoreUnmasked");
      const decode = graph.nodes.find((n) => n.comfyClass === "VAEDecode");
      node.disconnectInput(0); decode.connect(0, node, 0); })()""")
    assert page.tab.evaluate(PROMPT) == prompts[0]


def test_a_blueprint_of_version_0_1_runs_as_it_did(page):
    blueprint = read("blueprint")
    items = {"nodes": blueprint["nodes"], "subgraphs": blueprint["definitions"]["subgraphs"]}
    page.tab.evaluate("(app.rootGraph.clear(), 1)")
    page.tab.evaluate(f"!!app.canvas._deserializeItems({json.dumps(items)}, {{ position: [0, 0] }})")
    page.tab.wait("!!app.rootGraph.nodes[0]?.subgraph")
    page.tab.evaluate("""(() => { const graph = app.rootGraph, host = graph.nodes[0];
      const picture = LiteGraph.createNode("LoadImage"); graph.add(picture);
      picture.connect(0, host, host.inputs.findIndex((i) => i.name === "image"));
      const show = LiteGraph.createNode("PreviewImage"); graph.add(show);
      host.connect(host.outputs.findIndex((o) => o.name === "image"), show, 0); })()""")
    for _ in range(2):
        assert sources(page.tab.evaluate(PROMPT), "BespokeRestoreUnmasked") == RESTORED
        page.load(json.loads(page.saved()))
        page.tab.wait("app.rootGraph.nodes.some((n) => n.subgraph)")


BYPASSED = {
    # workflow, class -> {(class, input) of the prompt: where it comes from while the node is bypassed}
    ("inpaint_soft", "BespokeRestoreUnmasked"): {("SaveImage", "images"): {"VAEDecode", "LoadImage"}},
    ("inpaint_soft", "BespokeLatentMaskBlend"): {
        ("KSampler", "model"): {"CheckpointLoaderSimple"},
        ("KSampler", "latent_image"): {"VAEEncode"},
    },
    ("lora_compose", "BespokeInjectLora"): {("KSampler", "model"): {"CheckpointLoaderSimple"}},
    ("img2img_few_steps", "BespokePartialDenoise"): {("VAEDecode", "samples"): {"VAEEncode", "SamplerCustomAdvanced"}},
}


@pytest.mark.parametrize(("name", "kind"), BYPASSED)
def test_bypassed_in_the_examples(page, name, kind):
    example = json.loads((EXAMPLES / f"{name}.json").read_text("utf-8"))
    page.load(example)
    count = page.tab.evaluate(
        f"""(() => {{ const found = app.rootGraph.nodes.filter((n) => n.comfyClass === {json.dumps(kind)});
          app.canvas.selectItems(found); return found.length; }})()"""
    )
    assert count
    page.tab.evaluate("app.extensionManager.command.execute('Comfy.Canvas.ToggleSelectedNodes.Bypass')")
    prompt = page.tab.evaluate(PROMPT)
    assert all(node["class_type"] != kind for node in prompt.values())
    for (target, entry), expected in BYPASSED[name, kind].items():
        nodes = [node for node in prompt.values() if node["class_type"] == target]
        assert nodes
        assert {prompt[node["inputs"][entry][0]]["class_type"] for node in nodes} == expected
