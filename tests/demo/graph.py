"""Converts a workflow in the page's form (nodes, links, widgets_values) to the prompt that the server runs.

The page has its own code for this (`graphToPrompt` in ComfyUI_frontend's executionUtil.ts). Here it uses the server's
`/object_info`, so that the demo can queue the files that a user opens. The rules:

* Widget values are positional: one for each widget in the order of the node's definition. A seed that the page changes
  after each run has one more behind it (a COMBO of that kind has two), which is no input.
* A link overrides the widget of the same name.
* Reroute passes on its input, PrimitiveNode its value; Note and MarkdownNote are left out.
* A muted node (mode 2) and its links are left out. A bypassed one (mode 4) passes on an input of the same type.
* V3's inputs: COMBO with options, DynamicCombo (`combo` and `combo.input`), Autogrow (`images.image0`), widgetType.
* A subgraph's nodes replace the node outside, with ids like `3:7`; the widgets of the outer node override theirs.

Choices in braces (`{a|b}`), which the page makes, are refused.
"""

from __future__ import annotations

import copy

MUTED, BYPASSED = 2, 4
NOTES = ("Note", "MarkdownNote")
VIRTUAL = (*NOTES, "Reroute", "PrimitiveNode")
WIDGETS = {
    "INT",
    "FLOAT",
    "BOOLEAN",
    "STRING",
    "MARKDOWN",
    "TEXTAREA",
    "COMBO",
    "COLOR",
    "COLORS",
    "CURVE",
    "RANGE",
    "BOUNDING_BOX",
    "BOUNDING_BOXES",
    "IMAGECOMPARE",
    "CHART",
    "GALLERIA",
    "PAINTER",
}
CONTROLLED = ("seed", "noise_seed")  # the page controls INTs of these names, unless the definition has another value


class GraphError(ValueError):
    """The workflow cannot be turned into a prompt. The message names the file's node and what is wrong."""


def to_prompt(workflow: dict, object_info: dict) -> dict[str, dict]:
    """{node id: {"class_type", "inputs", "_meta"}} for the server's `/prompt`."""
    graph = _Graph(unpack(workflow, object_info))
    prompt = {}
    for node in graph.nodes.values():
        if node["type"] in VIRTUAL or node.get("mode", 0) in (MUTED, BYPASSED):
            continue
        if node["type"] not in object_info:
            raise GraphError(f"{_named(node)}: the server has no node of this type")
        inputs = widget_values(node, object_info[node["type"]])
        for slot in node.get("inputs") or []:
            if slot.get("link") is None:
                continue
            kind, source = graph.source(slot["link"], slot["type"])
            if kind == "link":
                inputs[slot["name"]] = source
            elif kind == "value":
                inputs[slot["name"]] = _boxed(source)
        title = node.get("title") or object_info[node["type"]].get("display_name") or node["type"]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}
    return prompt


# --- widgets ------------------------------------------------------------------------------------------------------


def widget_values(node: dict, definition: dict) -> dict:
    """{input name: value} of a node's widgets, from its `widgets_values`."""
    values = node.get("widgets_values") or []
    if isinstance(values, dict):  # some nodes save by name
        return {name: _boxed(values[name]) for name, *_ in _specs(definition) if name in values}
    rest, out = list(values), {}
    for name, spec in _specs(definition):
        _take(name, spec, rest, out)
    if rest and rest != ["image"]:  # the upload button's value in files of older pages
        raise GraphError(f"{_named(node)}: {len(rest)} widget values too many, from {rest[0]!r} on: {values}")
    return out


def set_widget(node: dict, definition: dict, name: str, value) -> None:
    """Set a value in the positional list, at the page's position."""
    for i in range(len(node["widgets_values"])):
        tried = dict(node, widgets_values=[*node["widgets_values"][:i], "?", *node["widgets_values"][i + 1 :]])
        try:
            found = widget_values(tried, definition).get(name) == "?"
        except GraphError:
            continue
        if found:
            node["widgets_values"][i] = value
            return
    raise GraphError(f"{_named(node)} has no widget {name}")


def _take(name: str, spec: list, rest: list, out: dict) -> None:
    """Move one input's value, where it has a widget, from the front of `rest` into `out`."""
    kind, options = _kind(spec)
    if options.get("forceInput") or not rest:  # a file saved before a widget existed has fewer values
        return
    if kind == "COMFY_DYNAMICCOMBO_V3":
        out[name] = chosen = rest.pop(0)
        for option in options["options"]:
            if option["key"] == chosen:
                for inner, inner_spec in _specs({"input": option["inputs"]}):
                    _take(f"{name}.{inner}", inner_spec, rest, out)
        return
    if kind not in WIDGETS:
        return
    out[name] = _boxed(rest.pop(0))
    if options.get("dynamicPrompts") and "{" in str(out[name]):
        raise GraphError(f"{name} has a choice in braces, which the page makes at random: write it out ({out[name]!r})")
    controlled = options.get("control_after_generate")
    if controlled is None:
        controlled = kind == "INT" and name in CONTROLLED
    if controlled:
        del rest[: 2 if kind == "COMBO" else 1]


def _specs(definition: dict):
    """(name, spec) of the inputs, required ones first, in the order of the definition."""
    order = definition.get("input_order") or {}
    for group in ("required", "optional"):
        inputs = definition["input"].get(group) or {}
        for name in order.get(group) or inputs:
            yield name, inputs[name]


def _kind(spec: list) -> tuple[str, dict]:
    kind, options = spec[0], (spec[1] if len(spec) > 1 else {})
    return "COMBO" if isinstance(kind, list) else options.get("widgetType") or kind, options


def choices(definition: dict, name: str) -> list | None:
    """The values that a COMBO input takes, or None where `name` is no COMBO."""
    spec = dict(_specs(definition)).get(name)
    if spec is None or _kind(spec)[0] != "COMBO":
        return None
    return spec[0] if isinstance(spec[0], list) else spec[1].get("options", [])


def _boxed(value):
    return {"__value__": value} if isinstance(value, list) else value  # a bare list would be a link


# --- subgraphs ----------------------------------------------------------------------------------------------------

_INSIDE, _OUTSIDE = -10, -20  # where links inside a subgraph come from its inputs and go to its outputs


def unpack(workflow: dict, object_info: dict) -> dict:
    """A copy in which the nodes of subgraphs replace their outer nodes."""
    definitions = {one["id"]: one for one in (workflow.get("definitions") or {}).get("subgraphs", [])}
    if not definitions:
        return workflow
    flat = copy.deepcopy({key: value for key, value in workflow.items() if key != "definitions"})
    flat["links"] = [_as_list(link) for link in flat.get("links") or []]
    while any(node["type"] in definitions for node in flat["nodes"]):
        outer = next(node for node in flat["nodes"] if node["type"] in definitions)
        _flatten(flat, outer, copy.deepcopy(definitions[outer["type"]]), object_info)
    return flat


def _as_list(link) -> list:
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return [link[key] for key in keys] if isinstance(link, dict) else list(link)


def _flatten(flat: dict, outer: dict, inner: dict, object_info: dict) -> None:
    """Replace `outer` by the nodes of `inner`."""
    flat["nodes"].remove(outer)
    nodes = {node["id"]: node for node in inner["nodes"]}
    slots = {slot["name"]: slot for slot in outer.get("inputs") or []}
    shown = [slot["name"] for slot in outer.get("inputs") or [] if "widget" in slot]
    values = dict(zip(shown, outer.get("widgets_values") or [], strict=False))
    sources = {link[0]: link[1:3] for link in flat["links"]}
    for link in map(_as_list, inner["links"]):
        number, origin, origin_slot, target, target_slot, kind = link
        if target == _OUTSIDE:
            if origin == _INSIDE:
                raise GraphError(f"{_named(outer)}: a subgraph that passes an input straight on is not read here")
            for other in flat["links"]:
                if other[1] == outer["id"] and other[2] == target_slot:
                    other[1:3] = [f"{outer['id']}:{origin}", origin_slot]
            continue
        slot = nodes[target]["inputs"][target_slot]
        if origin == _INSIDE:
            name = inner["inputs"][origin_slot]["name"]
            source = sources.get(slots.get(name, {}).get("link"))
            if source is None:
                slot["link"] = None
                if name in values and "widget" in slot:
                    set_widget(nodes[target], object_info[nodes[target]["type"]], slot["widget"]["name"], values[name])
                continue
        else:
            source = [f"{outer['id']}:{origin}", origin_slot]
        slot["link"] = f"{outer['id']}:{number}"
        flat["links"].append([slot["link"], *source, f"{outer['id']}:{target}", target_slot, kind])
    for node in inner["nodes"]:
        flat["nodes"].append(node | {"id": f"{outer['id']}:{node['id']}"})


# --- links --------------------------------------------------------------------------------------------------------


class _Graph:
    def __init__(self, workflow: dict):
        if "nodes" not in workflow:
            raise GraphError("this is no workflow that the page saved: it has no list of nodes (an API prompt?)")
        self.nodes = {node["id"]: node for node in workflow["nodes"]}
        self.links = {}
        for link in workflow.get("links") or []:
            if isinstance(link, dict):
                link = [link["id"], link["origin_id"], link["origin_slot"]]
            self.links[link[0]] = (link[1], link[2])

    def source(self, link: int, kind: str) -> tuple[str, object]:
        """Where a link of type `kind` comes from: ("link", [id, slot]), ("value", v) or ("nothing", None)."""
        seen = set()
        while link not in seen:
            seen.add(link)
            if link not in self.links:
                raise GraphError(f"link {link} is not in the list of links")
            origin, slot = self.links[link]
            node = self.nodes.get(origin)
            if node is None:
                raise GraphError(f"link {link} comes from node {origin}, which is not there")
            mode = node.get("mode", 0)
            if mode == MUTED:
                return "nothing", None
            if node["type"] == "PrimitiveNode":
                return "value", node["widgets_values"][0]
            if node["type"] == "Reroute":
                through = (node.get("inputs") or [{}])[0]
            elif mode == BYPASSED:
                through = _bypass(node, slot, kind)
                kind = through.get("type", kind)
            else:
                return "link", [str(origin), slot]
            link = through.get("link")
            if link is None:
                return "nothing", None
        raise GraphError(f"link {link} leads back to itself")


def _bypass(node: dict, slot: int, kind: str) -> dict:
    """The input that a bypassed node passes on for its output `slot`: at the same place, else of the very type, else
    fitting."""
    inputs = node.get("inputs") or []
    if kind == "*":
        return inputs[slot] if slot < len(inputs) else (inputs or [{}])[0]
    output = node["outputs"][slot]["type"]
    fitting = [one for one in inputs if _fits(one["type"], kind) and _fits(one["type"], output)]
    same_place = [one for one in inputs[slot : slot + 1] if one in fitting]
    exact = [one for one in inputs if one["type"] == kind]
    return next(iter([*same_place, *exact, *fitting]), {})


def _fits(one: str, other: str) -> bool:
    return "*" in (one, other) or bool(set(one.split(",")) & set(other.split(",")))


def _named(node: dict) -> str:
    return f"node {node['id']} ({node['type']})"
