"""The prompt that ComfyUI executes now: which outputs are wired, and which inputs get a list."""

from __future__ import annotations

import sys
from typing import Any

from comfy_execution.graph_utils import is_link
from comfy_execution.utils import get_executing_context

from ...training.record import DEFAULT, SET


def prompt_server() -> Any | None:
    """ComfyUI's server, or None in a process without one: a job under torchrun, a test.

    It is looked up and never imported from here: a job has none, and must not make one.
    """
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def running_item() -> tuple | None:
    """The queue's item (number, prompt id, prompt, extra data, ...) that is executed now, or None outside of one."""
    server, context = prompt_server(), get_executing_context()
    if server is None or context is None:
        return None
    running, _ = server.prompt_queue.get_current_queue_volatile()
    return next((item for item in running if item[1] == context.prompt_id), None)


def running_workflow() -> dict | None:
    """The workflow of the prompt that is executed now, as the page sent it; None for a prompt without one."""
    item = running_item()
    if item is None:
        return None
    workflow = ((item[3] or {}).get("extra_pnginfo") or {}).get("workflow")
    return workflow if isinstance(workflow, dict) else None


def workflow_id(workflow: dict | None) -> str:
    """The id that the page gave a workflow, "" where it has none."""
    return str((workflow or {}).get("id") or "")


def is_wired(slot: int) -> bool:
    """Whether a link leaves the output `slot` of the node that is executed now.

    True where this cannot be known: outside of a queue, and for a node that another node put into the prompt.
    """
    here = _here()
    if here is None:
        return True
    prompt, node_id = here
    return any(
        is_link(value) and str(value[0]) == node_id and value[1] == slot
        for node in prompt.values()
        for value in node.get("inputs", {}).values()
    )


def source_of_list(name: str) -> str:
    """The class of the node that makes a list of what the input `name` of the executed node gets, "" where none does.

    ComfyUI runs a node once for each item of a list, and so all nodes behind it up to one that takes lists.
    """
    here = _here()
    if here is None:
        return ""
    prompt, node_id = here
    value = prompt[node_id].get("inputs", {}).get(name)
    return _source(prompt, value, set()) if is_link(value) else ""


def origin_of(name: str) -> str:
    """Where the input `name` of the executed node gets its value: the class of the node that is wired in, `DEFAULT`
    where the widget has its default, `SET` where it has another value, "" where this cannot be known.
    """
    here = _here()
    if here is None:
        return ""
    import nodes  # not in a job, which has no server

    prompt, node_id = here
    value, kind = prompt[node_id].get("inputs", {}).get(name), prompt[node_id].get("class_type", "")
    if is_link(value):
        return str(prompt.get(str(value[0]), {}).get("class_type", ""))
    node = nodes.NODE_CLASS_MAPPINGS.get(kind)
    if node is None:
        return ""
    inputs = node.INPUT_TYPES()
    spec = {**inputs.get("optional", {}), **inputs.get("required", {})}.get(name)
    if spec is None or len(spec) < 2 or "default" not in spec[1]:
        return ""
    return DEFAULT if value is None or value == spec[1]["default"] else SET


def _source(prompt: dict[str, Any], link: list, seen: set[str]) -> str:
    """See `source_of_list`. link: [node id, slot]. seen: the nodes that were visited."""
    import nodes

    node_id = str(link[0])
    if node_id in seen or node_id not in prompt:
        return ""
    seen.add(node_id)
    kind = prompt[node_id].get("class_type", "")
    node = nodes.NODE_CLASS_MAPPINGS.get(kind)
    outputs = getattr(node, "OUTPUT_IS_LIST", None) or ()
    if link[1] < len(outputs) and outputs[link[1]]:
        return kind
    if getattr(node, "INPUT_IS_LIST", False):
        return ""  # it runs once
    links = [value for value in prompt[node_id].get("inputs", {}).values() if is_link(value)]
    return next((found for value in links if (found := _source(prompt, value, seen))), "")


def _here() -> tuple[dict[str, Any], str] | None:
    """(the prompt, the id of the node in it that is executed now), or None."""
    item, context = running_item(), get_executing_context()
    if item is None or context is None or str(context.node_id) not in item[2]:
        return None
    return item[2], str(context.node_id)


def differing_inputs(kind: str, slot: int) -> list[str]:
    """The inputs that the executed node shares with a node of class `kind` at its output `slot`, and that differ.

    Each as "rank 16 instead of 8", or as its name where a wire is different. Empty where nothing can be known.
    """
    here = _here()
    own = {} if here is None else here[0][here[1]].get("inputs", {})
    differing = list[str]()
    for theirs in inputs_behind(kind, slot):
        for name in own:
            if name in theirs and theirs[name] != own[name]:
                wired = is_link(own[name]) or is_link(theirs[name])
                differing.append(name if wired else f"{name} {theirs[name]} instead of {own[name]}")
    return differing


def inputs_behind(kind: str, slot: int) -> list[dict[str, Any]]:
    """The inputs of each node of class `kind` that output `slot` of the executed node is wired into.

    {name: a value, or a link as [node id, slot]}. Empty where nothing can be known.
    """
    here = _here()
    if here is None:
        return []
    prompt, node_id = here
    of_kind = [node.get("inputs", {}) for node in prompt.values() if node.get("class_type") == kind]
    return [
        inputs
        for inputs in of_kind
        if any(is_link(value) and [str(value[0]), value[1]] == [node_id, slot] for value in inputs.values())
    ]
