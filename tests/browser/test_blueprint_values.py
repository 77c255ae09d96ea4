"""Values set on a blueprint's node survive saving and loading, also in graphs of the earlier blueprints."""

from __future__ import annotations

import json

import pytest
from host import ROOT

# The recipes are built alike: tests/server/test_subgraphs.py holds each against the nodes.
NAMES = sorted(path.stem for path in (ROOT / "subgraphs").glob("*.json") if not path.stem.startswith("LoRA recipe"))
# Sets every widget of the node except lists of choices, as a user does.
SET = """(() => { const { widgets } = app.rootGraph.nodes[0];
  for (const w of widgets) {
    if (w.type === "combo") continue;
    if (typeof w.value === "number") w.value = Math.round(1e6 * (w.value + 3 * (w.options?.step2 ?? 1))) / 1e6;
    else if (typeof w.value === "boolean") w.value = !w.value;
    else w.value = "mine";
    w.callback?.(w.value);
  }
  return widgets.length; })()"""
SHOWN = "app.rootGraph.nodes[0].widgets.map((w) => [w.name, w.value])"
PROMPT = "app.graphToPrompt().then(({ output }) => Object.values(output).map((n) => [n.class_type, n.inputs]))"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("version", ["this", "earlier"])
def test_values_set_on_a_blueprint_stay(page, name, version):
    blueprint = json.loads((ROOT / "subgraphs" / f"{name}.json").read_text("utf-8"))
    assert "proxyWidgets" not in json.dumps(blueprint)
    host = blueprint["nodes"][0]
    if version == "earlier":
        host["properties"]["proxyWidgets"] = [["-1", entry["name"]] for entry in host["inputs"] if "widget" in entry]
    items = {"nodes": blueprint["nodes"], "subgraphs": blueprint["definitions"]["subgraphs"]}
    page.tab.evaluate("(app.rootGraph.clear(), 1)")
    page.tab.evaluate(f"!!app.canvas._deserializeItems({json.dumps(items)}, {{ position: [0, 0] }})")
    page.tab.wait("!!app.rootGraph.nodes[0]?.subgraph")
    assert page.tab.evaluate(SET) == len(host["widgets_values"])
    shown, prompt = page.tab.evaluate(SHOWN), page.tab.evaluate(PROMPT)
    assert dict(shown).values() != host["widgets_values"]
    for _ in range(2):
        page.load(json.loads(page.saved()))
        page.tab.wait("!!app.rootGraph.nodes[0]?.subgraph")
        assert page.tab.evaluate(SHOWN) == shown
        assert page.tab.evaluate(PROMPT) == prompt
