"""The blueprints in the page: found by name in the search, inserted as one node, connected and queued."""

from __future__ import annotations

import json

import host
import pictures
import pytest
from host import ROOT
from small_values import BLUEPRINT_VALUES

# The recipes are built alike: tests/server/test_subgraphs.py holds each against the nodes.
NAMES = sorted(path.stem for path in (ROOT / "subgraphs").glob("*.json") if not path.stem.startswith("LoRA recipe"))
SMALL = BLUEPRINT_VALUES | {"filename_prefix": "bespoke/from-the-page", "name": "from-the-page"}
EMPTY = {
    "last_node_id": 0,
    "last_link_id": 0,
    "nodes": [],
    "links": [],
    "groups": [],
    "config": {},
    "extra": {},
    "version": 0.4,
}
BLUEPRINT = "app.rootGraph.nodes.find((n) => n.isSubgraphNode?.())"


def insert(page, name: str) -> None:
    """Insert the first result of the page's node search, as after a double click on the canvas."""
    page.load(EMPTY)
    page.tab.evaluate("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    page.tab.wait("document.activeElement?.getAttribute('role') === 'combobox'")
    page.tab.type(name)
    page.tab.wait(f"document.getElementById('results-list')?.innerText.includes({json.dumps(name)})")
    page.tab.press("Enter")
    page.tab.wait(f"!!{BLUEPRINT}")


def wire(page) -> None:
    """Connect a checkpoint, a picture, a mask and output nodes, and set the small model's values."""
    page.tab.evaluate(f"""(() => {{
      const graph = app.rootGraph, blueprint = {BLUEPRINT};
      const add = (type, values) => {{
        const node = LiteGraph.createNode(type);
        graph.add(node);
        for (const [name, value] of Object.entries(values)) node.widgets.find((w) => w.name === name).value = value;
        return node;
      }};
      const base = add("CheckpointLoaderSimple", {{ ckpt_name: {json.dumps(host.CHECKPOINT)} }});
      const sources = {{
        model: [base, 0], clip: [base, 1], vae: [base, 2], image: [add("LoadImage", {{
          image: {json.dumps(pictures.PICTURE)} }}), 0],
        mask: [add("LoadImageMask", {{ image: {json.dumps(pictures.MASK)}, channel: "red" }}), 0],
      }};
      blueprint.inputs.forEach((slot, i) => {{
        const source = sources[slot.name];
        if (source) source[0].connect(source[1], blueprint, i);
      }});
      blueprint.outputs.forEach((slot, i) => {{
        const shower = {{ IMAGE: "SaveImage", STRING: "PreviewAny" }}[slot.type];
        if (shower) blueprint.connect(i, add(shower, {{}}), 0);
      }});
      for (const [name, value] of Object.entries({json.dumps(SMALL)})) {{
        const widget = blueprint.widgets.find((w) => w.name === name);
        if (widget) widget.value = value;
      }}
    }})()""")


@pytest.mark.parametrize("name", NAMES)
def test_a_blueprint_is_found_inserted_and_queued(open_page, server, screenshots, name):
    page = open_page()
    insert(page, name)
    document = json.loads((ROOT / "subgraphs" / f"{name}.json").read_text("utf-8"))
    (outer,) = document["nodes"]
    assert page.tab.evaluate(f"{BLUEPRINT}.title") == name
    assert page.tab.evaluate("app.rootGraph.nodes.length") == 1
    assert page.tab.evaluate(f"{BLUEPRINT}.inputs.map((slot) => slot.name)") == [
        slot["name"] for slot in outer["inputs"]
    ]
    shown = dict(page.tab.evaluate(f"{BLUEPRINT}.widgets.map((w) => [w.name, w.value])"))
    named = [slot["name"] for slot in outer["inputs"] if "widget" in slot]
    assert [shown[widget] for widget in named] == outer["widgets_values"]
    wire(page)
    page.tab.evaluate("""(() => { window.executed = [];
      app.api.addEventListener("executed", ({ detail }) => window.executed.push(...Object.keys(detail?.output ?? {})));
        })()""")
    page.run_to_end()
    executed = page.tab.evaluate("window.executed")
    assert ("images" in executed) == any(slot["type"] == "IMAGE" for slot in outer["outputs"])
    assert "text" in executed
    page.picture(screenshots / f"blueprint_{name.replace(' ', '_')}.png")
    assert not [error for error in page.tab.errors if error.startswith("uncaught")]
