"""The source of an input by the page's link walker, compared with the prompt that ComfyUI's page makes."""

from __future__ import annotations

import json

import pytest

# Connects a checkpoint's model to Strength Sigmas in each possible way; returns the last node and slot.
BUILD = """(async (way) => {
  const graph = app.rootGraph;
  graph.clear();
  const add = (type, more = {}) => { const node = LiteGraph.createNode(type); Object.assign(node, more);
    graph.add(node); return node; };
  const loader = add("CheckpointLoaderSimple"), shift = add("ModelSamplingDiscrete"),
    sigmas = add("BespokeStrengthSigmas");
  loader.connect(0, shift, 0);
  const set = (node, name, value) => { node.widgets.find((w) => w.name === name).value = value; };
  set(shift, "sampling", "v_prediction");
  const into = () => sigmas.inputs.findIndex((input) => input.name === "model");
  if (way === "straight") shift.connect(0, sigmas, into());
  if (way === "reroute") { const r = add("Reroute"); shift.connect(0, r, 0); r.connect(0, sigmas, into()); }
  if (way === "two reroutes") { const r = add("Reroute"), q = add("Reroute"); shift.connect(0, r, 0); r.connect(0, q,
    0); q.connect(0, sigmas, into()); }
  if (way === "bypassed") { const b = add("FreeU", { mode: 4 }); shift.connect(0, b, 0); b.connect(0, sigmas, into()); }
  if (way === "muted") { const b = add("FreeU", { mode: 2 }); shift.connect(0, b, 0); b.connect(0, sigmas, into()); }
  if (way === "muted loader") { shift.connect(0, sigmas, into()); loader.mode = 2; }
  if (way === "bypassed shift") { shift.connect(0, sigmas, into()); shift.mode = 4; }
  if (way === "set and get" || way === "get without set") {
    // As KJNodes has them: virtual nodes that find each other by the name in their first widget.
    window.alerts ??= [];
    if (!LiteGraph.registered_node_types.GetNode) {
      class SetNode extends LiteGraph.LGraphNode {
        constructor() { super("Set"); this.isVirtualNode = true; this.addInput("*", "*"); this.addOutput("*", "*");
          this.addWidget("text", "Constant", "", () => {}); }
      }
      class GetNode extends LiteGraph.LGraphNode {
        constructor() { super("Get"); this.isVirtualNode = true; this.addOutput("*", "*"); this.addWidget("combo",
          "Constant", "", () => {}, { values: [] }); }
        setter() { return this.graph.nodes.find((n) => n.type === "SetNode" &&
          n.widgets[0].value === this.widgets[0].value); }
        getInputLink() { const setter = this.setter(); if (!setter) { window.alerts.push("No SetNode found");
          return null; } return LiteGraph.LGraphNode.prototype.getInputLink.call(setter, 0); }
      }
      LiteGraph.registerNodeType("SetNode", SetNode);
      LiteGraph.registerNodeType("GetNode", GetNode);
    }
    const get = add("GetNode");
    get.widgets[0].value = "the model";
    if (way === "set and get") { const s = add("SetNode"); s.widgets[0].value = "the model"; shift.connect(0, s, 0); }
    get.connect(0, sigmas, into());
  }
  if (way.endsWith("subgraph")) shift.connect(0, sigmas, into());
  const wrap = (...nodes) => graph.convertToSubgraph(new Set(nodes));
  if (way === "source in a subgraph") wrap(loader, shift);
  if (way === "target in a subgraph") wrap(sigmas);
  if (way === "both in a subgraph") { wrap(loader, shift); wrap(graph.nodes.find((n) =>
    n.comfyClass === "BespokeStrengthSigmas")); }
  return true;
})"""
FOUND = """(async () => {
  const { modelChain } = await import("/extensions/bespoke/comfy.js");
  const every = (graph) => graph.nodes.flatMap((node) => [node, ...(node.subgraph ? every(node.subgraph) : [])]);
  const sigmas = every(app.rootGraph).find((node) => node.comfyClass === "BespokeStrengthSigmas");
  return modelChain(sigmas).steps.map(({ node }) => node.comfyClass ?? node.type);
})()"""
# The same in the prompt: from the node's model input back to the loader.
PROMPT = """app.graphToPrompt().then(({ output }) => {
  const chain = [];
  let at = Object.values(output).find((node) => node.class_type === "BespokeStrengthSigmas");
  while (Array.isArray(at?.inputs.model)) { at = output[at.inputs.model[0]]; if (at) chain.unshift(at.class_type); }
  return chain;
})"""
BOTH, LOADER = ["CheckpointLoaderSimple", "ModelSamplingDiscrete"], ["CheckpointLoaderSimple"]
WAYS = {
    "straight": BOTH,
    "reroute": BOTH,
    "two reroutes": BOTH,
    "bypassed": BOTH,
    "muted": [],
    "muted loader": ["ModelSamplingDiscrete"],
    "bypassed shift": LOADER,
    "set and get": BOTH,
    "get without set": [],
    "source in a subgraph": BOTH,
    "target in a subgraph": BOTH,
    "both in a subgraph": BOTH,
}


@pytest.mark.parametrize("way", WAYS)
def test_the_model_found_equals_the_prompts(page, way):
    page.tab.evaluate(f"{BUILD}({json.dumps(way)})")
    assert page.tab.evaluate(FOUND) == WAYS[way]
    if way != "get without set":  # the page makes no prompt of it
        assert page.tab.evaluate(PROMPT) == WAYS[way]
    assert page.tab.evaluate("(window.alerts ?? []).length") == 0


def test_links_through_a_subgraph_used_twice(page):
    """A subgraph is used twice: the model goes through the second instance of the same definition."""
    page.tab.evaluate("""(() => {
      const graph = app.rootGraph; graph.clear();
      const add = (type) => { const node = LiteGraph.createNode(type); graph.add(node); return node; };
      const near = add("CheckpointLoaderSimple"), far = add("ModelSamplingDiscrete"), loader = add("UNETLoader"),
        sigmas = add("BespokeStrengthSigmas");
      const model = sigmas.inputs.findIndex(({ name }) => name === "model");
      near.connect(0, far, 0);
      far.connect(0, sigmas, model); // so that the subgraph has an output
      const { node: first } = graph.convertToSubgraph(new Set([far]));
      const second = LiteGraph.createNode(first.type); graph.add(second);
      loader.connect(0, second, second.inputs.findIndex(({ type }) => type === "MODEL"));
      second.connect(second.outputs.findIndex(({ type }) => type === "MODEL"), sigmas, model);
    })()""")
    assert page.tab.evaluate(FOUND) == page.tab.evaluate(PROMPT) == ["UNETLoader", "ModelSamplingDiscrete"]


def test_the_dial_follows_a_node_that_it_is_not_wired_to_directly(page):
    """A change of a distant node, of a link and of a primitive is drawn, without polling."""
    page.tab.evaluate("""(() => { window.requests = []; const { api } = app, fetchApi = api.fetchApi;
      api.fetchApi = function (path, ...rest) { if (path.startsWith("/bespoke/schedule?")) window.requests.push(path);
        return fetchApi.call(this, path, ...rest); }; })()""")
    page.tab.evaluate(f"{BUILD}('two reroutes')")
    page.tab.evaluate("(app.canvas.ds.scale = 0.7, app.canvas.ds.offset = [200, 200], app.canvas.setDirty(true, true))")
    label = "document.querySelector('.bespoke-dial canvas')?.getAttribute('aria-label') ?? ''"
    page.tab.wait(f"({label}).includes('runs ') && window.requests.at(-1).includes('v_prediction')")
    count = "window.requests.length"
    page.tab.evaluate("new Promise((done) => setTimeout(done, 300)).then(() => window.requests.splice(0).length)")
    page.tab.evaluate("new Promise((done) => setTimeout(done, 700))")
    assert page.tab.evaluate(count) == 0  # no request while nothing changes
    page.tab.evaluate("""(() => { const shift = app.rootGraph.nodes.find((n) =>
      n.comfyClass === "ModelSamplingDiscrete");
      shift.widgets.find((w) => w.name === "sampling").value = "lcm"; })()""")
    page.tab.click_at(1000, 780)  # on the background: the page notices the change, as after every change by a user
    page.tab.wait(count)
    last = "window.requests.at(-1)"
    assert "lcm" in page.tab.evaluate(last)
    page.tab.evaluate("""(() => { const p = LiteGraph.createNode("PrimitiveInt"); app.rootGraph.add(p);
      p.widgets[0].value = 31;
      const s = app.rootGraph.nodes.find((n) => n.comfyClass === "BespokeStrengthSigmas");
      p.connect(0, s, s.inputs.findIndex((i) => i.widget?.name === "steps")); })()""")
    page.tab.wait(f"({last}).includes('steps=31')")


def test_a_widget_on_a_subgraph_is_the_value(page):
    page.tab.evaluate(f"{BUILD}('straight')")
    got = page.tab.evaluate("""(async () => {
      const { linkedValue } = await import("/extensions/bespoke/comfy.js");
      const s = app.rootGraph.nodes.find((n) => n.comfyClass === "BespokeStrengthSigmas");
      const { subgraph, node } = app.rootGraph.convertToSubgraph(new Set([s]));
      const inner = subgraph.nodes.find((n) => n.comfyClass === "BespokeStrengthSigmas");
      const slot = inner.inputs.findIndex((i) => i.widget?.name === "steps");
      subgraph.addInput("steps", "INT").connect(inner.inputs[slot], inner);
      await new Promise((done) => setTimeout(done, 200));
      const shown = node.widgets?.find((w) => w.name === "steps");
      if (shown) { shown.value = 47; shown.callback?.(47); }
      return [!!shown, linkedValue(inner, "steps"), (await app.graphToPrompt()).output];
    })()""")
    shown, value, prompt = got
    assert shown
    sent = next(node for node in prompt.values() if node["class_type"] == "BespokeStrengthSigmas")["inputs"]["steps"]
    assert value == sent == 47
