"""The contract of the nodes that saved workflows depend on.

`tests/comfy/schemas.json` holds it. After an intended change, write it again:
`BESPOKE_WRITE_SCHEMAS=1 python3 dev.py test tests/comfy/test_schema.py`
"""

import json
import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SNAPSHOT = HERE / "schemas.json"
ROOT = HERE.parent.parent


@pytest.fixture(scope="module")
def ours(comfyui):
    import nodes

    return {name: cls for name, cls in nodes.NODE_CLASS_MAPPINGS.items() if name.startswith("Bespoke")}


def contract(cls) -> dict:
    """Ids, types, defaults, choices and order: what a saved workflow depends on."""
    schema = cls.GET_SCHEMA()
    inputs = []
    for item in schema.inputs:
        entry = {"id": item.id, "type": item.get_io_type(), "optional": bool(item.optional)}
        if getattr(item, "default", None) is not None:
            entry["default"] = item.default
        if getattr(item, "force_input", False):
            entry["socket"] = True  # the page puts it among the wires
        if entry["type"] == "COMBO" and item.id not in (
            "folder",
            "lora_name",
            "embedding_name",
            "sampler_name",
            "scheduler",
        ):
            entry["options"] = list(item.options)
        inputs.append(entry)
    return {"inputs": inputs, "outputs": [[o.id, o.get_io_type(), o.display_name] for o in schema.outputs]}


def test_schemas_are_as_released(ours):
    now = {name: contract(cls) for name, cls in sorted(ours.items())}
    if os.environ.get("BESPOKE_WRITE_SCHEMAS"):
        SNAPSHOT.write_text(json.dumps(now, indent=1) + "\n")
    assert now == json.loads(SNAPSHOT.read_text())


def test_every_node_explains_itself(ours):
    for name, cls in ours.items():
        schema = cls.GET_SCHEMA()
        assert schema.description, name
        assert schema.search_aliases, name
        assert schema.category.startswith("Bespoke/"), name
        assert schema.display_name.startswith("Bespoke "), name
        for item in [*schema.inputs, *schema.outputs]:
            assert item.tooltip, f"{name}.{item.id} has no tooltip"
        page = ROOT / "js" / "docs" / f"{name}.md"
        assert page.is_file(), f"{name} has no help page"
        text = page.read_text("utf-8")
        for item in schema.inputs:
            if item.optional is False and item.get_io_type() in ("INT", "FLOAT", "STRING", "COMBO"):
                assert item.id in text or item.id in ("cfg", "sampler_name", "scheduler", "seed"), (
                    f"{page.name} does not say what {item.id} is"
                )


def test_the_help_of_train_lora_says_when_each_advanced_input_is_needed(ours):
    """There are about forty in the order of their release; the help page's table groups them by purpose."""
    text = (ROOT / "js" / "docs" / "BespokeTrainLora.md").read_text("utf-8")
    table = text.split("## Which input for what")[1].split("\n## ")[0]
    inputs = ours["BespokeTrainLora"].GET_SCHEMA().inputs
    missing = [item.id for item in inputs if item.optional and f"**{item.id}**" not in table]
    assert not missing


def test_defaults_agree_with_execute(ours):
    """An older prompt lacks later inputs, so `execute` needs the default that the widget shows."""
    import inspect

    for name, cls in ours.items():
        parameters = inspect.signature(cls.execute).parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            continue
        for item in cls.GET_SCHEMA().inputs:
            assert item.id in parameters, f"{name}.execute does not take {item.id}"
            if item.optional:
                default = parameters[item.id].default
                assert default is not inspect.Parameter.empty, (
                    f"{name}.{item.id} is optional and execute has no default"
                )
                shown = getattr(item, "default", None)
                assert shown is None or shown == default, (
                    f"{name}.{item.id}: the widget shows {shown!r}, execute takes {default!r}"
                )
