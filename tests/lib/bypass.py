"""What the page passes on where a node is bypassed (Ctrl-B), and whether a person means it.

The page's rule, as 1.44.19 to 1.58.1 have it (`ExecutableNodeDTO._getBypassSlotIndex`): an output takes the input of
its own number where the types fit, else the first input of its type, else the first whose type fits. Inputs are
numbered as the node shows them: sockets first, then widgets, each required before optional. A widget passes on
what is wired into it, and nothing where it is typed.
"""

from __future__ import annotations

from collections.abc import Mapping

WIDGETS = ("INT", "FLOAT", "STRING", "COMBO", "BOOLEAN")
MEANT = "meant"  # the input is what the output is where the node does nothing
EMPTY = "empty"  # nothing is passed on: what needs it is refused by the server when it is queued
TOLD = "told"  # what is wired into a widget of another meaning: saved graphs keep its place, so the help page says it

# The first input that the page makes of one that grows, and its type.
GROWS = {
    ("BespokeCombineImageSets", "sets"): ("sets.set0", "BESPOKE_IMAGES"),
    ("BespokeCompare", "images"): ("images.image0", "IMAGE"),
    ("BespokeCompare", "runs"): ("runs.run0", "BESPOKE_RUN"),
    ("BespokeComposeLoras", "loras"): ("loras.lora0", "LORA_MODEL"),
    ("BespokeLoraSweep", "loras"): ("loras.lora0", "LORA_MODEL"),
}


def is_widget(item: Mapping) -> bool:
    """Whether the page shows an input as a widget. item: an input in `schemas.json`."""
    return item["type"] in WIDGETS and "socket" not in item


def page_inputs(name: str, schema: Mapping) -> list[tuple[str, str]]:
    """(name, type) of a node's inputs in the page's order. schema: an entry of `tests/comfy/schemas.json`."""
    inputs = sorted(schema["inputs"], key=lambda item: (is_widget(item), item["optional"]))
    return [GROWS.get((name, item["id"]), (item["id"], item["type"])) for item in inputs]


def fits(one: str, other: str) -> bool:
    return "*" in (one, other) or bool(set(one.lower().split(",")) & set(other.lower().split(",")))


def passed_on(inputs: list[tuple[str, str]], number: int, kind: str) -> str | None:
    """The name of the input that a bypassed node passes to its output `number` of the type `kind`; None for none."""
    if number < len(inputs) and fits(inputs[number][1], kind):
        return inputs[number][0]
    same = [name for name, found in inputs if found == kind]
    fitting = [name for name, found in inputs if fits(found, kind)]
    return (same or fitting or [None])[0]
