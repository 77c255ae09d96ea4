"""The dial among nodes of other packs: it shows a schedule only where that is certain, and what ran afterwards.

The oracle is arithmetic. The small model has Stable Diffusion's noise levels, linear betas from .00085 to .012:
strength .5 starts at t = 499.5 with sigma 1.6156 (`sigma_by_hand` in tests/comfy/test_schedule_route.py). As a flow
with shift s, strength k starts at sigma s k / (1 + (s - 1) k): .75 for s = 3 and k = .5, .5 for s = 1 and k = .5, and
.9 for s = 3 and k = .75.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import host
import pytest
from chromium import PageError
from comfy_page import ComfyPage

PACK = Path(__file__).resolve().parent / "wire_packs"

UNKNOWN = "Unknown until queued"
MUTED = "A node before this one is muted or bypassed"
OPEN = "No model arrives here"
SEVERAL = "This subgraph is used several times"
PLAIN, FLOW, FLOW_1, FLOW_75 = "from sigma 1.62 ", "from sigma 0.75 ", "from sigma 0.5 ", "from sigma 0.9 "

# A graph by its name: loader -> core's shift node -> what the way says -> Strength Sigmas -> Preview Image.
BUILD = """(async (way) => {
  const graph = app.rootGraph;
  app.canvas.setGraph(graph);
  graph.clear();
  const add = (type, more = {}) => { const node = LiteGraph.createNode(type); if (!node) throw Error(type);
    Object.assign(node, more); graph.add(node); return node; };
  const set = (node, name, value) => { node.widgets.find((w) => w.name === name).value = value; };
  const into = (node, name) => { const slot = node.inputs.findIndex((i) => (i.widget?.name ?? i.name) === name);
    if (slot < 0) throw Error(name); return slot; };
  const join = (from, to, name, output = 0) => from.connect(output, to, into(to, name));
  const loader = add("CheckpointLoaderSimple"), shift = add("ModelSamplingSD3"), dial = add("BespokeStrengthSigmas"),
    preview = add("PreviewImage");
  set(shift, "shift", 3); set(dial, "strength", 0.5); set(dial, "scheduler", "simple");
  join(loader, shift, "model");
  dial.connect(2, preview, 0);
  const through = (type, input, output = 0) => { const node = add(type); join(shift, node, input);
    join(node, dial, "model", output); return node; };
  const pair = (setType, getType) => { const s = add(setType), g = add(getType); s.widgets[0].value = "the model";
    g.widgets[0].value = "the model"; shift.connect(0, s, 0); join(g, dial, "model"); return [s, g]; };
  const sum = (a, b) => { const node = add("WireSum"); set(node, "a", a); set(node, "b", b); return node; };
  const wrap = (...nodes) => graph.convertToSubgraph(new Set(nodes)).node;
  const ways = {
    "no shift": () => join(loader, dial, "model"),
    "shift": () => join(shift, dial, "model"),
    "bypassed shift": () => { join(shift, dial, "model"); shift.mode = 4; },
    "core's reroute": () => through("Reroute", ""),
    "a pack's reroute": () => through("Reroute (rgthree)", ""),
    "set and get": () => pair("SetNode", "GetNode"),
    "a pack's set and get": () => pair("easy setNode", "easy getNode"),
    "get in a subgraph": () => wrap(pair("SetNode", "GetNode")[1], dial),
    "source in a subgraph": () => { join(shift, dial, "model"); wrap(loader, shift); },
    "nested subgraphs": () => { join(shift, dial, "model"); const one = wrap(loader, shift); wrap(one); },
    "merged": () => { const merge = through("ModelMergeSimple", "model1"); join(loader, merge, "model2"); },
    "merged the other way": () => { const merge = add("ModelMergeSimple"); join(loader, merge, "model1");
      join(shift, merge, "model2"); join(merge, dial, "model"); },
    "primitives": () => { join(shift, dial, "model"); const p = add("PrimitiveFloat"); set(p, "value", 0.75);
      join(p, dial, "strength"); },
    "a primitive into the shift": () => { join(shift, dial, "model"); const p = add("PrimitiveFloat");
      set(p, "value", 1); join(p, shift, "shift"); },

    "a pack's loader": () => { const other = add("WireLoader"); join(other, dial, "model"); },
    "a pack's shift": () => { const other = add("WireShift"); join(loader, other, "model");
      join(other, dial, "model"); },
    "a bypassed pack's shift": () => { const other = add("WireShift"); join(loader, other, "model");
      join(other, dial, "model"); other.mode = 4; },
    "a pipe": () => { const from = add("FromBasicPipe"), to = add("ToBasicPipe"); join(shift, to, "model");
      join(to, from, "basic_pipe"); join(from, dial, "model"); },
    "a context": () => { const first = add("Context (rgthree)"), second = add("Context (rgthree)");
      join(shift, first, "model"); join(first, second, "base_ctx"); join(second, dial, "model", 1); },
    "a context that overrides": () => { const first = add("Context (rgthree)"), second = add("Context (rgthree)");
      join(loader, first, "model"); join(first, second, "base_ctx"); join(shift, second, "model");
      join(second, dial, "model", 1); },
    "a switch": () => { through("Any Switch (rgthree)", "any_01"); },
    "a switch with a muted input": () => { const other = through("Any Switch (rgthree)", "any_02"),
      muted = add("FreeU", { mode: 2 }); join(loader, muted, "model"); join(muted, other, "any_01"); },
    "everywhere": () => { const every = add("Anything Everywhere"); join(shift, every, "anything"); },
    "arithmetic into strength": () => { join(shift, dial, "model"); set(dial, "strength", 0.1);
      join(sum(0.25, 0.25), dial, "strength", 1); },
    "arithmetic into steps": () => { join(shift, dial, "model"); join(sum(13, 7), dial, "steps"); },
    "arithmetic into the shift": () => { join(shift, dial, "model"); join(sum(1, 2), shift, "shift", 1); },
    "arithmetic in a subgraph": () => { join(shift, dial, "model"); const s = sum(1, 2); join(s, shift, "shift", 1);
      wrap(s, shift); },

    "muted shift": () => { join(shift, dial, "model"); shift.mode = 2; },
    "muted loader": () => { join(shift, dial, "model"); loader.mode = 2; },
    "bypassed loader": () => { join(shift, dial, "model"); loader.mode = 4; },
    "muted behind a set": () => { pair("SetNode", "GetNode"); shift.mode = 2; },
    "muted subgraph": () => { join(shift, dial, "model"); wrap(loader, shift).mode = 2; },
    "muted arithmetic": () => { join(shift, dial, "model"); const s = sum(1, 2); s.mode = 2;
      join(s, dial, "strength", 1); },
    "muted primitive of the shift": () => { join(shift, dial, "model"); const p = add("PrimitiveFloat", { mode: 2 });
      join(p, shift, "shift"); },
    "no loader": () => { join(shift, dial, "model"); graph.remove(loader); },
    "get without set": () => { const g = add("GetNode"); g.widgets[0].value = "nobody"; join(g, dial, "model"); },
    "two sets": () => { pair("SetNode", "GetNode"); const s = add("SetNode"); s.widgets[0].value = "the model"; },
    "a bus": () => { const b = add("BusReader"); join(b, dial, "model"); },
  };
  ways[way]();
  const every = (g) => g.nodes.flatMap((node) => [node, ...(node.subgraph ? every(node.subgraph) : [])]);
  const shown = window.dialNode = every(graph).find((node) => node.comfyClass === "BespokeStrengthSigmas");
  app.canvas.setGraph(shown.graph);
  graph.nodes.forEach((node, i) => { if (node !== shown) node.pos = [2000 + 300 * (i % 5), 600 * Math.floor(i / 5)]; });
  shown.pos = [100, 100];
  app.canvas.ds.scale = 1; app.canvas.ds.offset = [100, 100]; app.canvas.setDirty(true, true);
  await app.api.dispatchEvent(new CustomEvent("graphChanged"));
  return true;
})"""
LABEL = (
    "(window.dialNode.widgets.find((w) => w.name === 'schedule').element.querySelector('canvas')"
    ".getAttribute('aria-label') ?? '')"
)
MODEL = """app.graphToPrompt().then(({ output }) =>
  Object.values(output).find((node) => node.class_type === "BespokeStrengthSigmas").inputs)"""

KNOWN = {
    "no shift": PLAIN,
    "shift": FLOW,
    "bypassed shift": PLAIN,
    "core's reroute": FLOW,
    "a pack's reroute": FLOW,
    "set and get": FLOW,
    "a pack's set and get": FLOW,
    "get in a subgraph": FLOW,
    "source in a subgraph": FLOW,
    "nested subgraphs": FLOW,
    "merged": FLOW,
    "merged the other way": PLAIN,
    "primitives": FLOW_75,
    "a primitive into the shift": FLOW_1,
    "a bypassed pack's shift": PLAIN,
    # The page sends the widget's own value where its link leads to a muted node.
    "muted arithmetic": FLOW,
    "muted primitive of the shift": FLOW,
}
UNTIL_QUEUED = {
    "a pack's loader": FLOW,
    "a pack's shift": FLOW,
    "a pipe": FLOW,
    "a context": FLOW,
    "a context that overrides": FLOW,
    "a switch": FLOW,
    "a switch with a muted input": FLOW,
    "everywhere": FLOW,
    "arithmetic into strength": FLOW,
    "arithmetic into steps": FLOW,
    "arithmetic into the shift": FLOW,
    "arithmetic in a subgraph": FLOW,
}
FAILING = {
    "muted shift": MUTED,
    "muted loader": MUTED,
    "bypassed loader": MUTED,
    "muted behind a set": MUTED,
    "muted subgraph": MUTED,
    "no loader": OPEN,
    "get without set": OPEN,
    "two sets": UNKNOWN,
    "a bus": UNKNOWN,
}


@pytest.fixture(scope="module")
def server(browser, tmp_path_factory, small_checkpoint):
    """A server with this pack and the stand-ins for other packs."""
    host.end_on_terminate()
    base = host.prepare_base(tmp_path_factory.mktemp("wires"), small_checkpoint)
    shutil.copytree(PACK, base / "custom_nodes" / PACK.name)
    options = ("--cpu", "--disable-api-nodes", "--whitelist-custom-nodes", host.PACK, PACK.name)
    with host.Host(base, options=options) as running:
        yield running


@pytest.fixture(params=["classic", "nodes 2.0"], scope="module")
def wires(request, browser, server):
    page = ComfyPage(browser, server, look=request.param)
    yield page
    page.close()


def build(page, way: str) -> None:
    page.tab.evaluate(f"{BUILD}({json.dumps(way)})")


def wait_for(page, words: str, way: str = "", seconds: float = 15) -> str:
    try:
        page.tab.wait(f"{LABEL}.includes({words!r})", seconds)
    except PageError:
        pytest.fail(f"{way}: the dial says {page.tab.evaluate(LABEL)!r}, not {words!r}")
    return page.tab.evaluate(LABEL)


def change(page, kind: str, name: str, value) -> None:
    """Set a widget of a node of the root graph, as a user does."""
    page.tab.evaluate(f"""(() => {{ const n = app.rootGraph.nodes.find((n) => n.comfyClass === {kind!r});
      const w = n.widgets.find((w) => w.name === {name!r}); w.value = {json.dumps(value)}; w.callback?.(w.value);
      app.api.dispatchEvent(new CustomEvent("graphChanged")); return true; }})()""")


def test_the_dial_shows_what_is_certain_and_no_more(wires):
    for way, words in (KNOWN | dict.fromkeys(UNTIL_QUEUED, UNKNOWN) | FAILING).items():
        build(wires, way)
        wait_for(wires, words, way)
    assert wires.tab.evaluate("wireAlerts") == []


@pytest.mark.parametrize("way", ["muted shift", "bypassed loader", "muted subgraph"])
def test_what_is_muted_makes_the_queue_fail(wires, way):
    """The page's own prompt has no such input, or the node that gives it has none."""
    build(wires, way)
    assert ("model" in wires.tab.evaluate(MODEL)) == (way == "bypassed loader")
    status = wires.tab.evaluate("""app.graphToPrompt().then(({ output }) => fetch("/prompt", { method: "POST",
      headers: { "Content-Type": "application/json" }, body: JSON.stringify({ prompt: output }) }))
      .then((a) => a.status)""")
    assert status == 400


@pytest.mark.parametrize("way", UNTIL_QUEUED)
def test_the_true_schedule_is_shown_after_the_queue(wires, way):
    build(wires, way)
    wait_for(wires, UNKNOWN, way)
    wires.run_to_end()
    wait_for(wires, UNTIL_QUEUED[way], way)


def test_the_true_schedule_stays_until_something_before_the_node_changes(wires):
    build(wires, "a pack's shift")
    wires.run_to_end()
    wait_for(wires, FLOW)
    wires.tab.evaluate("(app.rootGraph.add(LiteGraph.createNode('CLIPTextEncode')), true)")
    change(wires, "CLIPTextEncode", "text", "another prompt")
    wait_for(wires, FLOW)
    change(wires, "WireShift", "amount", 2)
    wait_for(wires, UNKNOWN)
    change(wires, "WireShift", "amount", 1)
    wait_for(wires, FLOW)  # that one ran
    change(wires, "BespokeStrengthSigmas", "strength", 0.75)
    wait_for(wires, UNKNOWN)
    wires.run_to_end()
    wait_for(wires, FLOW_75)
    wires.tab.evaluate("(app.rootGraph.nodes.find((n) => n.comfyClass === 'WireShift').mode = 4, true)")
    change(wires, "BespokeStrengthSigmas", "strength", 0.5)
    wait_for(wires, PLAIN)


def test_the_true_schedule_comes_from_the_servers_cache_too(wires):
    """A page that was loaded again knows nothing, and nothing of the prompt has to run again."""
    build(wires, "arithmetic into the shift")
    wires.run_to_end()
    wires.reload()
    build(wires, "arithmetic in a subgraph")
    wait_for(wires, UNKNOWN)
    wires.run_to_end()
    wait_for(wires, FLOW)


def test_a_run_is_not_taken_for_another_one(wires):
    """Two prompts with other arithmetic are queued before the first ran: the schedule that is shown is that of the
    widgets as they are now, .9 by hand for k = .75, or none."""
    build(wires, "arithmetic into strength")
    change(wires, "BespokeStrengthSigmas", "steps", 23)  # so that nothing is in the server's cache
    wires.tab.evaluate("""(async () => { const s = app.rootGraph.nodes.find((n) => n.comfyClass === "WireSum");
      const first = app.queuePrompt(0); await first; s.widgets[0].value = 0.5; await app.queuePrompt(0); })()""")
    wires.idle()
    wires.tab.evaluate("(app.api.dispatchEvent(new CustomEvent('graphChanged')), true)")
    assert wires.tab.wait(f"{LABEL}.includes({FLOW_75!r}) || {LABEL}.includes({UNKNOWN!r})")


def test_a_subgraph_that_is_used_twice_with_other_models(wires):
    build(wires, "shift")
    wires.tab.evaluate("""(() => { const g = app.rootGraph, by = (type) => g.nodes.find((n) => n.comfyClass === type);
      const one = g.convertToSubgraph(new Set([by("BespokeStrengthSigmas"), by("PreviewImage")])).node;
      const two = LiteGraph.createNode(one.type); g.add(two); by("CheckpointLoaderSimple").connect(0, two, 0);
      window.dialNode = one.subgraph.nodes.find((n) => n.comfyClass === "BespokeStrengthSigmas");
      app.canvas.setGraph(one.subgraph); dialNode.pos = [100, 100]; app.canvas.ds.offset = [100, 100];
      return true; })()""")
    wait_for(wires, UNKNOWN)
    wires.run_to_end()
    wait_for(wires, SEVERAL)


def test_other_panels_take_no_arithmetic_for_a_value(wires):
    """A strength from a primitive is .5; from a sum of .25 and .25 it is not known, and neither is a folder."""
    got = wires.tab.evaluate("""(async () => {
      const { linkedValue } = await import("/extensions/bespoke/comfy.js");
      const graph = app.rootGraph; app.canvas.setGraph(graph); graph.clear();
      const add = (type) => { const node = LiteGraph.createNode(type); graph.add(node); return node; };
      const into = (node, name) => node.inputs.findIndex((i) => i.widget?.name === name);
      const inject = add("BespokeInjectLora"), sum = add("WireSum"), plain = add("PrimitiveFloat"),
        folder = window.folderNode = add("BespokeImageFolder"), other = add("Any Switch (rgthree)");
      folder.pos = [100, 100]; app.canvas.ds.offset = [100, 100]; app.canvas.setDirty(true, true);
      for (const w of sum.widgets) w.value = 0.25;
      plain.widgets[0].value = 0.5;
      plain.connect(0, inject, into(inject, "query"));
      sum.connect(1, inject, into(inject, "key"));
      other.connect(0, folder, into(folder, "folder"));
      return [linkedValue(inject, "query"), linkedValue(inject, "key") ?? null, linkedValue(inject, "value")]; })()""")
    assert got == [0.5, None, 1]
    note = "folderNode.widgets.find((w) => w.name === 'pictures').element.querySelector('.bespoke-note').textContent"
    wires.tab.wait(f"{note}.includes('The folder comes by wire')")


@pytest.mark.parametrize("palette", ["dark", "light"])
@pytest.mark.parametrize("look", ["classic", "nodes 2.0"])
def test_the_sentence_fits(open_page, screenshots, look, palette):
    """Every word is inside the canvas: the lines are as wide as they are measured, and fewer than fit the height."""
    page = open_page(look=look, palette=palette)
    page.tab.evaluate("""(() => { const { fillText } = CanvasRenderingContext2D.prototype; window.lines = [];
      CanvasRenderingContext2D.prototype.fillText = function (text, x, y, ...rest) {
        const own = this.textAlign === "right" ? 0 : this.measureText(text).width;
        if (this.canvas.closest?.(".bespoke-dial")) lines.push([text, x + own, y,
          this.canvas.clientWidth, this.canvas.clientHeight]);
        return fillText.call(this, text, x, y, ...rest); }; return true; })()""")
    for way, words in (("a pipe", UNKNOWN), ("muted shift", MUTED), ("a pipe", None)):
        build(page, way)
        page.tab.evaluate("(lines.length = 0, true)")
        if words is None:
            page.run_to_end()
        wait_for(page, words or FLOW)
        page.tab.evaluate("new Promise((done) => setTimeout(done, 300)).then(() => true)")
        seen = page.tab.evaluate("lines")
        bad = [one for one in seen if not (one[1] <= one[3] and 8 < one[2] < one[4])]
        assert bad == []
        if words:
            last = " ".join(text for text, *_ in seen[-8:])
            assert "…" not in last
            assert last.endswith(page.tab.evaluate(LABEL).split()[-1])
        name = f"dial_{way.split()[-1]}{'' if words else '_ran'}_{look}_{palette}".replace(" ", "_")
        page.picture(screenshots / f"{name}.png")
