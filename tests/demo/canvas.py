"""A workflow in the page's form, laid out from the definitions of the nodes.

Nodes are placed by name with the inputs that differ from the defaults. Positions, links and the positional widget
values come from ComfyUI's `/object_info`, so that a file always matches the nodes.
"""

from __future__ import annotations

import json
from pathlib import Path

import graph

WIDTH, GAP_X, GAP_Y, HEAD = 320, 60, 40, 90
COLOURS = {"plain": "#3f5159", "learn": "#8a6d3b", "use": "#3b6e8a"}
# The height of what the page draws on a node besides sockets and widgets, in the look that needs more, as long as no
# folder is chosen and nothing is trained.
BOXES = {
    "BespokeImageFolder": 50,
    "BespokeTrainLora": 80,
    "BespokeTrainSlider": 80,
    "BespokeTrainTextualInversion": 80,
    "BespokeTrainWordAndLora": 80,
    "BespokePartialDenoise": 80,
    "BespokeStrengthSigmas": 80,
    "BespokeInjectLora": 140,
    "BespokeLoadLora": 20,
    "BespokeComposeLoras": 30,
    # The preview that is drawn on the node once it has run; with less room it would cover the node below.
    "BespokeCropToMask": 240,
    "BespokeLatentMaskBlend": 240,
    "StringConcatenate": 60,
}
# By how much a node becomes taller later: the list of a chosen folder; the curve and the samples of a training. This
# room stays free below it.
GROWTH = {
    "BespokeImageFolder": 230,
    "BespokeTrainLora": 330,
    "BespokeTrainSlider": 330,
    "BespokeTrainTextualInversion": 330,
    "BespokeTrainWordAndLora": 330,
}
FOLDED_FROM = 4  # advanced inputs, as in js/advanced_inputs.js
AUTOGROW = "COMFY_AUTOGROW_V3"


class Workflow:
    """Columns of nodes, left to right; groups around runs of columns."""

    def __init__(self, object_info: dict):
        self.info, self.nodes, self.links, self.groups = object_info, [], [], []
        self.x = self.y = 0
        self._bottoms: dict[int, int] = {}  # by node id, with the room that the node may need later
        self._group: tuple | None = None

    def column(self, width: int = WIDTH) -> None:
        """Begin a new column to the right of everything so far."""
        if self.nodes:
            self.x = max(n["pos"][0] + n["size"][0] for n in self.nodes) + GAP_X
        self.y, self.width = 0, width

    def group(self, title: str, colour: str = "plain") -> None:
        """All nodes from here on belong to this group."""
        self.end_group()
        self._group = (title, colour, len(self.nodes))

    def end_group(self) -> None:
        if self._group:
            title, colour, first = self._group
            inside = self.nodes[first:]
            left, top = min(n["pos"][0] for n in inside) - 20, min(n["pos"][1] for n in inside) - HEAD
            right = max(n["pos"][0] + n["size"][0] for n in inside) + 20
            bottom = max(self._bottoms[n["id"]] for n in inside) + 20
            self.groups.append(
                {
                    "id": len(self.groups) + 1,
                    "title": title,
                    "bounding": [left, top, right - left, bottom - top],
                    "color": COLOURS[colour],
                    "font_size": 24,
                    "flags": {},
                }
            )
            self._group = None

    def note(self, text: str, height: int = 200) -> None:
        self._place(
            {
                "type": "MarkdownNote",
                "inputs": [],
                "outputs": [],
                "widgets_values": [text],
                "title": "Note",
                "color": "#432",
                "bgcolor": "#653",
            },
            height,
        )

    def node(self, kind: str, title: str | None = None, tall: int | None = None, **values):
        """Place a node. A value that is a pair (node, output name) becomes a link, a list of pairs a growing input's
        links."""
        definition = self.info[kind]
        names = [n for part in ("required", "optional") for n in definition["input_order"].get(part, [])]
        unknown = set(values) - set(names)
        if unknown:
            raise ValueError(f"{kind} has no input {sorted(unknown)}")
        inputs, widgets, growing = [], [], {}
        folded = 0  # advanced inputs at their defaults, which both looks hide behind one line
        for name in names:
            spec = definition["input"].get("required", {}).get(name) or definition["input"]["optional"][name]
            options = spec[1] if len(spec) > 1 else {}
            if spec[0] == AUTOGROW:
                grown = values.pop(name, [])
                inputs += _grown(name, options["template"], len(grown))
                growing.update({f"{name}.{options['template']['prefix']}{i}": pair for i, pair in enumerate(grown)})
                continue
            combo = isinstance(spec[0], list) or spec[0] == "COMBO"
            type_name = "COMBO" if combo else spec[0]
            is_widget = combo or (spec[0] in graph.WIDGETS and not options.get("forceInput"))
            value = values.get(name)
            linked = isinstance(value, tuple)
            if is_widget:
                choices = spec[0] if isinstance(spec[0], list) else options.get("options", [])
                empty = (
                    next(iter(choices), "") if combo else {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False}.get(spec[0], "")
                )
                default = options.get("default", empty)
                widgets.append(default if linked or value is None else value)
                folded += bool(options.get("advanced")) and not linked and widgets[-1] == default
                if name in graph.CONTROLLED and options.get("control_after_generate", True) is not False:
                    widgets.append("fixed")
            elif value is not None and not linked:
                raise ValueError(f"{kind}.{name} is no widget")
            slot = {"name": name, "type": type_name, "link": None}
            if is_widget:
                slot["widget"] = {"name": name}
            if options.get("tooltip"):
                slot["localized_name"] = name
            inputs.append(slot)
        # Sockets first, then the widgets' sockets, as the page lists them.
        inputs.sort(key=lambda slot: "widget" in slot)
        outputs = [
            {"name": name, "type": "COMBO" if isinstance(kind_, list) else kind_, "links": []}
            for name, kind_ in zip(definition["output_name"], definition["output"], strict=True)
        ]
        made = {"type": kind, "inputs": inputs, "outputs": outputs, "widgets_values": widgets}
        if title:
            made["title"] = title
        rows = max(sum("widget" not in s for s in inputs), len(outputs))
        needed = (
            40
            + 22 * rows
            + 30 * (len(widgets) - (folded if folded >= FOLDED_FROM else 0))
            + (34 if folded >= FOLDED_FROM else 0)
            + 70 * sum(isinstance(v, str) and len(v) > 40 for v in widgets)
            + BOXES.get(kind, 0)
        )
        node = self._place(made, tall or needed)
        for name, value in (values | growing).items():
            if isinstance(value, tuple):
                self._link(value[0], value[1], node, name)
        return node

    def _place(self, made: dict, height: int) -> dict:
        node = {
            "id": len(self.nodes) + 1,
            "type": made.pop("type"),
            "pos": [self.x, self.y],
            "size": [self.width, height],
            "flags": {},
            "order": len(self.nodes),
            "mode": 0,
            **made,
        }
        node["properties"] = {"Node name for S&R": node["type"]}
        self._bottoms[node["id"]] = self.y + height + GROWTH.get(node["type"], 0)
        self.y = self._bottoms[node["id"]] + GAP_Y
        self.nodes.append(node)
        return node

    def _link(self, source: dict, output: str, target: dict, name: str) -> None:
        at = next(i for i, slot in enumerate(source["outputs"]) if slot["name"] == output)
        to = next(i for i, slot in enumerate(target["inputs"]) if slot["name"] == name)
        link = len(self.links) + 1
        source["outputs"][at]["links"].append(link)
        target["inputs"][to]["link"] = link
        self.links.append([link, source["id"], at, target["id"], to, source["outputs"][at]["type"]])

    def document(self) -> dict:
        """The workflow as the page saves it."""
        self.end_group()
        return {
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": self.groups,
            "config": {},
            "extra": {"ds": {"scale": 0.7, "offset": [120, 180]}},
            "version": 0.4,
        }

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.document(), indent=1, ensure_ascii=False) + "\n", "utf-8")


def _grown(name: str, template: dict, count: int) -> list[dict]:
    """The sockets of a growing input with `count` links: as many, and an empty one to connect the next link."""
    kind = next(spec for part in template["input"].values() for spec in part.values())[0]
    names = [f"{template['prefix']}{i}" for i in range(count + 1)]
    return [{"label": one, "name": f"{name}.{one}", "shape": 7, "type": kind, "link": None} for one in names]
