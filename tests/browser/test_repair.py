"""Graphs that version 0.1 saved wrongly: repaired where the file has the right values, reported where it has not.

`moved_values/` was made by that version (commit 79958d2) on page 1.53.6: a graph of every node with no value at its
default (`values.json`), saved once, saved twice, in a subgraph and as a blueprint. Its LoRA files are not on the server
of the tests, as in a workflow of another user.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_round_trip import INSIDE, ROOT_NODES, VALUES

FILES = Path(__file__).parent / "moved_values"
RIGHT = json.loads((FILES / "values.json").read_text("utf-8"))
# Widgets that came after the last one of version 0.1, at their defaults, in the order of the node: the list of a saved
# node's values has no names.
LATER_TRAINING = {
    "score_pictures": "auto",
    "min_timestep": 0.0,
    "max_timestep": 1.0,
    "loss_type": "mse",
    "huber_c": 0.1,
    "multires_noise": 0,
    "ip_noise_gamma": 0,
    "compile": False,
    "stop": "after 5 without a gain",
}
LATER_WORD = LATER_TRAINING | {"encoders": "all"}
LATER_LORA = {
    "adapter": "LoRA",
    "lokr_factor": -1,
    "rslora": False,
    "score_pictures": "auto",
    "conv_rank": 0,
    "rank_dropout": 0.0,
    "module_dropout": 0.0,
    "max_norm": 0.0,
    "min_timestep": 0.0,
    "max_timestep": 1.0,
    "loss_type": "mse",
    "huber_c": 0.1,
    "multires_noise": 0,
    "ip_noise_gamma": 0,
    "training_adapter_strength": 1.0,
    "preserve": "",
    "preserve_weight": 1.0,
    "compile": False,
    "stop": "all steps",
    "source_encoding": "auto",
}
CLIPS_OF_BATCH = {"clips": False, "fps": 24.0, "frame_step": 4}
LATER = {
    "BespokeImageFolder": {"bucket_step": 64, "caption_syntax": "literal", "subfolders": False, "pairs": False},
    "BespokeImageBatch": {"caption_syntax": "literal", "resolution": 0, "bucket": True} | CLIPS_OF_BATCH,
    "BespokeSaveLora": {"preview": True, "embedding_name": ""},
    "BespokeInjectLora": {"partial": False, "use_range": True},
    "BespokePartialDenoise": {"variation_seed": 0, "variation_strength": 0.0},
    "BespokeLatentMaskBlend": {"ramp": 0},
    "BespokeComposeLoras": {"method": "sum", "density": 0.5, "energy": 0.0, "energy_kind": "energy"},
    "BespokeTrainLora": LATER_LORA,
    "BespokeExportLoraJob": LATER_LORA,
    "BespokeTrainTextualInversion": LATER_WORD,
    "BespokeExportTextualInversionJob": LATER_WORD,
}
RIGHT_NOW = {kind: values | LATER.get(kind, {}) for kind, values in RIGHT}
MOVED = {
    "BespokeTrainLora",
    "BespokeTrainTextualInversion",
    "BespokePartialDenoise",
    "BespokeStrengthSigmas",
    "BespokeInjectLora",
    "BespokeInspectLora",
}
LOST = ("Train LoRA", "Train Textual Inversion", "Partial Denoise", "Strength Sigmas", "Inject LoRA")
TOASTS = """(() => { window.toasts = []; const { toast } = app.extensionManager, add = toast.add;
  toast.add = (message) => { window.toasts.push([message.severity, message.detail]); return add.call(toast, message);
    }; return true; })()"""


def read(name: str) -> dict:
    return json.loads((FILES / f"{name}.json").read_text("utf-8"))


@pytest.fixture(scope="module", params=["classic", "nodes 2.0"])
def page(request, browser, server):
    from comfy_page import ComfyPage

    opened = ComfyPage(browser, server, look=request.param)
    opened.tab.evaluate(TOASTS)
    yield opened
    opened.close()


def notices(page) -> list:
    """The notices of the pack since the last call, after a short wait."""
    page.tab.evaluate("new Promise((done) => setTimeout(done, 300))")
    return [
        [severity, words] for severity, words in page.tab.evaluate("window.toasts.splice(0)") if "Bespoke" in str(words)
    ]


def wrong_types(page, nodes: str = ROOT_NODES) -> set[str]:
    """The types of nodes whose values differ from `values.json`."""
    return {kind for kind, values in page.tab.evaluate(VALUES % nodes) if values != RIGHT_NOW[kind]}


def test_the_saved_files_hold_wrong_values():
    """They hold the values that the page shows without the repair."""
    for name, nodes in (
        ("saved_once", read("saved_once")["nodes"]),
        ("blueprint", read("saved_once_as_blueprint")["definitions"]["subgraphs"][0]["nodes"]),
    ):
        right = {kind: list(values.values()) for kind, values in RIGHT}
        assert {n["type"] for n in nodes if n["widgets_values"] != right[n["type"]]} == MOVED, name


def test_saved_once(page):
    page.load(read("saved_once"))
    assert wrong_types(page) == set()
    ((severity, words),) = notices(page)
    assert severity == "warn"
    assert all(title in words for title in (*LOST, "Inspect LoRA"))
    assert "Mask Blend" not in words
    page.tab.wait("document.body.innerText.includes('Save the workflow to keep them')")
    # The same file again gives no notice; a save now is right in both lists.
    page.load(read("saved_once"))
    assert wrong_types(page) == set()
    assert notices(page) == []
    for node in json.loads(page.saved())["nodes"]:
        values = RIGHT_NOW[node["type"]]
        assert node["widgets_values"] == list(values.values())
        assert node.get("widgets_values_named", values) == values


def test_saved_twice_is_reported_and_not_changed(page):
    saved = read("saved_twice")
    page.load(saved)
    ((severity, words),) = notices(page)
    assert severity == "error"
    lost, check = words.split("\n\n")
    assert all(title in lost for title in LOST)
    assert "Inspect" not in lost
    assert check.endswith("Inspect LoRA.")  # its one value is empty in the list and "none" by name, whatever it was
    assert "Save the workflow" not in words
    # The values are those that the page reads without the pack: the list from its first to its last fitting
    # value.
    lora = page.tab.evaluate(f"{page.node('BespokeTrainLora')}.widgets.slice(0, 3).map((w) => w.value)")
    assert lora == next(n for n in saved["nodes"] if n["type"] == "BespokeTrainLora")["widgets_values"][:3]
    # No notice when the page loads the same graph again.
    page.load(json.loads(page.saved()))
    page.tab.evaluate("app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    page.tab.evaluate("app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')")
    page.tab.wait("app.rootGraph.nodes.length > 10")
    change_language(page, "fr")
    change_language(page, "en")
    assert notices(page) == []


def change_language(page, language: str) -> None:
    page.tab.evaluate(
        "(app.rootGraph.nodes[0].before = true, app.extensionManager.setting.set('Comfy.Locale', "
        f"{language!r}).then(() => 1))"
    )
    page.tab.wait("app.rootGraph.nodes.length && !app.rootGraph.nodes[0].before")


def test_the_panels_speak_the_language_that_is_set(page):
    page.load(read("saved_once"))
    try:
        change_language(page, "fr")
        page.tab.wait(f"{page.node('BespokeTrainLora')}.widgets.at(-1).element.textContent.includes('Lancez')")
    finally:
        change_language(page, "en")


def test_in_a_subgraph_and_as_a_blueprint(page):
    page.load(read("saved_once_in_subgraph"))
    page.tab.wait("!!app.rootGraph.nodes[0]?.subgraph")
    assert wrong_types(page, INSIDE) == set()
    assert [severity for severity, _ in notices(page)] == ["warn"]
    page.tab.evaluate("(app.rootGraph.clear(), 1)")
    blueprint = read("saved_once_as_blueprint")
    items = {"nodes": blueprint["nodes"], "subgraphs": blueprint["definitions"]["subgraphs"]}
    page.tab.evaluate(f"!!app.canvas._deserializeItems({json.dumps(items)}, {{ position: [0, 0] }})")
    page.tab.wait("!!app.rootGraph.nodes[0]?.subgraph")
    assert wrong_types(page, INSIDE) == set()
    assert [severity for severity, _ in notices(page)] == ["warn"]


def test_a_fitting_list_is_not_changed(page):
    graph = read("saved_once")
    values = dict(RIGHT)
    for node in graph["nodes"]:
        node["widgets_values"] = list(values[node["type"]].values())
    sigmas = next(n for n in graph["nodes"] if n["type"] == "BespokeStrengthSigmas")
    inject = next(n for n in graph["nodes"] if n["type"] == "BespokeInjectLora")
    sigmas["widgets_values"][1] = 33
    lora = next(n for n in graph["nodes"] if n["type"] == "BespokeTrainLora")
    lora["widgets_values"][1] = "16"  # one value of the wrong kind does not make it a moved list
    inject["widgets_values"][0] = "a-file-that-is-elsewhere.safetensors"
    page.load(graph)
    assert notices(page) == []
    # If both the list and the names fit, the page decides; the pack changes nothing.
    named = page.tab.evaluate("!!LiteGraph.namedValuesRestore")
    steps = page.tab.evaluate(f"{page.node('BespokeStrengthSigmas')}.widgets.find((w) => w.name === 'steps').value")
    assert steps == (21 if named else 33)
    assert wrong_types(page) == (set() if named else {"BespokeStrengthSigmas", "BespokeInjectLora", "BespokeTrainLora"})


WIDGETS = [
    {"name": "mode", "kind": "string", "choices": ["a", "b"]},
    {"name": "rank", "kind": "number", "choices": None},
    {"name": "on", "kind": "boolean", "choices": None},
    {"name": "lora_name", "kind": "string", "choices": ["none", "x"]},
    {"name": "other", "kind": None, "choices": None},
]
FIT = {"mode": "b", "rank": 3, "on": True, "lora_name": "gone", "other": {"k": 1}}


@pytest.mark.parametrize(
    ("listed", "named", "verdict"),
    [
        (["a", 3, False, "x", 1], FIT, "right"),  # it fits, whatever the names are
        (["a", 3, False, "gone"], FIT, "right"),  # shorter, and a file that is not here
        ([3, True, "gone", {"k": 1}, None], FIT, "moved"),
        (["c", 3, True, "x", 1], FIT, "right"),  # one invalid choice: a script may have written it
        (["c", "16", True, "x", 1], FIT, "moved"),  # two values that do not fit
        (["b", "16", True, "x", 1], FIT, "right"),
        (["b", "16", True, "x", 1], None, "lost"),
        (["b", True, "gone", {"k": 1}, None], FIT, "moved"),  # as the fault leaves it, from the second place on
        (["b", 3, "gone", {"k": 1}], FIT, "moved"),
        (["a", 3, None, "x", None], FIT | {"mode": False, "rank": "b"}, "lost"),
        (["c", 3, True, "x", 1], FIT | {"mode": "c"}, "right"),  # both lists have it: of a later version
        (["c", 3, True, "x", 1], None, "right"),
        (["a", None, True, "x", 1], FIT, "right"),
        (["a", None, True, "x", 1], None, "right"),
        (["a", None, True, "x", 1], FIT | {"rank": None}, "right"),
        ([3, True, "gone", {"k": 1}, None], None, "lost"),
        ([3, True, "gone", {"k": 1}, None], FIT | {"mode": 3}, "lost"),
        ([3, True, "gone", {"k": 1}, None], "not an object", "lost"),
        ([], FIT, "right"),
        ([3, True, "gone", {"k": 1}, None], {"unknown": 1}, "lost"),
        ([3, True, "gone", {"k": 1}, None, None], FIT, "moved"),
    ],
)
def test_verdicts(page, listed, named, verdict):
    script = (
        f"import('/extensions/bespoke/saved_values.js').then(({{ judge }}) => "
        f"judge(...{json.dumps([WIDGETS, listed, named])}))"
    )
    assert page.tab.evaluate(script) == verdict
