"""The core of the page's scripts in one page: panel, runs, dials, settings, commands, opened workflows.

Runs are simulated by events, as from the socket; test_training.py watches real trainings. The tests take less than a
minute.
"""

from __future__ import annotations

import json

import pytest
import torch
from comfy_page import RUNS_TAB, ComfyPage
from safetensors.torch import save_file

LOOKS = ("classic", "nodes 2.0")
TRAINER = "BespokeTrainLora"
ID = "lora-00000000c0de"
PANEL = "document.querySelector('.bespoke-training')"


@pytest.fixture(scope="module")
def page(browser, server):
    # Written before the page is opened, so that the lists have them.
    for name, blocks in LORAS.items():
        save_file(lora(blocks), server.base / "models" / "loras" / name)
    opened = ComfyPage(browser, server)
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def no_errors(page):
    """Fails the test in which the page throws an error or a script of the pack causes a warning.

    Failed loads do not count: the server has no record of the simulated runs.
    """
    page.tab.errors.clear()
    page.tab.notices.clear()
    yield
    assert [error for error in page.tab.errors if error.startswith("uncaught")] == []
    assert [text for text in page.tab.notices_of("/bespoke/") if not text.startswith("network: ")] == []


LORAS = {
    "core-two.safetensors": {"input_blocks.4": 1.0, "middle_block": 2.0},
    "core-one.safetensors": {"middle_block": 1.0},
}
PROJECTIONS = {"to_q": 1.0, "to_k": 2.0, "to_v": 3.0, "to_out.0": 4.0}


def lora(blocks: dict[str, float]) -> dict[str, torch.Tensor]:
    """Rank 1, 4 x 4: every element of a change is one number, so its norm is 4 times that number."""
    out = {}
    for block, strength in blocks.items():
        for name, factor in PROJECTIONS.items():
            layer = f"lora_unet_{block}.1.transformer_blocks.0.attn2.{name}".replace(".", "_")
            out |= {
                f"{layer}.lora_up.weight": torch.full((4, 1), strength * factor),
                f"{layer}.lora_down.weight": torch.ones(1, 4),
                f"{layer}.alpha": torch.tensor(1.0),
            }
    return out


def only(kind: str, **values) -> dict:
    """A graph of one node."""
    node = {
        "id": 1,
        "type": kind,
        "pos": [80, 80],
        "size": [340, 200],
        "flags": {},
        "order": 0,
        "mode": 0,
        "properties": {},
    }
    return {
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [node | values],
        "links": [],
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def send(page, kind: str, node: str, **values) -> None:
    """Dispatch an event as the socket does."""
    page.tab.evaluate(
        f"app.api.dispatchCustomEvent('bespoke.run.{kind}', {json.dumps({'node_id': node, 'run_id': ID} | values)})"
    )


def run_to(page, node: str, step: int, **more) -> None:
    send(
        page,
        "step",
        node,
        **{
            "step": step,
            "steps": 100,
            "loss": 0.1,
            "loss_ema": 0.1,
            "lr": 1e-3,
            "images_per_second": 4,
            "eta_s": 20,
            "memory_mb": 900,
        }
        | more,
    )


def value(page, kind: str, widget: str):
    return page.tab.evaluate(f"{page.node(kind)}.widgets.find((w) => w.name === {widget!r}).value")


@pytest.mark.parametrize("look", LOOKS)
def test_the_panel_is_below_the_inputs_and_nothing_of_it_is_saved(page, workflow, screenshots, look):
    page.look(look)
    opened = workflow("lora_train_and_use")
    page.load(opened)
    node = page.tab.evaluate(f"String({page.node(TRAINER)}.id)")
    page.frame(TRAINER)
    send(page, "start", node, steps=100, text="16 layers, about 40 s")
    for step in range(1, 31):
        run_to(page, node, step, loss=0.1 + 0.01 * (step % 5))
    send(page, "validation", node, step=30, loss=0.0777)
    send(page, "sample", node, step=30, image="000030.png")
    assert "16 layers, about 40 s" in page.panel(state="running")
    page.tab.wait(f"['step 30 / 100', '4 images/s', '0.0777'].every((words) => {PANEL}.innerText.includes(words))")
    assert page.tab.evaluate(f"{page.node(TRAINER)}.widgets.at(-1).name") == "training"
    if look == "classic":
        assert page.tab.evaluate(
            f"(({{ widgets }}) => widgets.every((w) => w.y <= widgets.at(-1).y))({page.node(TRAINER)})"
        )
    else:  # the element is below the fields
        assert page.tab.evaluate(f"""(() => {{ const box = {PANEL}.getBoundingClientRect(),
          node = {PANEL}.closest('[data-node-id]');
          return [...node.querySelectorAll('input')].every((field) =>
            field.getBoundingClientRect().bottom <= box.top + 1); }})()""")
    page.picture(screenshots / f"core_panel_{look.replace(' ', '')}.png")

    saved = page.saved()
    for secret in (ID, "000030.png", "0.0777", "16 layers"):
        assert secret not in saved
    after = {n["id"]: n.get("widgets_values") for n in json.loads(saved)["nodes"] if n["type"].startswith("Bespoke")}
    before = {n["id"]: n.get("widgets_values") for n in opened["nodes"] if n["type"].startswith("Bespoke")}
    assert after == before
    page.load(json.loads(saved))  # opened again, every value is restored
    again = {
        n["id"]: n.get("widgets_values") for n in json.loads(page.saved())["nodes"] if n["type"].startswith("Bespoke")
    }
    assert again == before


def test_copies_keep_their_values(page):
    page.look("classic")
    page.load(only(TRAINER), BespokeTrainLora={"rank": 3, "steps": 77, "keep": "last"})
    page.tab.evaluate(
        f"(() => {{ const copy = {page.node(TRAINER)}.clone(); copy.pos = [600, 80]; app.rootGraph.add(copy); }})()"
    )
    values = page.tab.evaluate(
        "app.rootGraph.nodes.map((n) => ['rank', 'steps', 'keep'].map((name) => n.widgets.find((w) => w.name === "
        "name).value))"
    )
    assert values == [[3, 77, "last"]] * 2


@pytest.mark.parametrize("look", LOOKS)
def test_the_panel_in_a_subgraph(page, workflow, screenshots, look):
    page.look(look)
    page.load(workflow("lora_train_and_use"))
    path = page.tab.evaluate(f"""(() => {{ const n = {page.node(TRAINER)};
      const {{ subgraph, node }} = app.rootGraph.convertToSubgraph(new Set([n]));
      app.canvas.setGraph(subgraph); return node.id + ":" + subgraph.nodes.find((one) =>
        one.comfyClass === "{TRAINER}").id; }})()""")
    assert page.tab.evaluate("app.canvas.graph !== app.rootGraph")
    page.tab.evaluate(f"""(() => {{ const n = app.canvas.graph.nodes.find((n) => n.comfyClass === "{TRAINER}");
      app.canvas.ds.scale = 0.8; app.canvas.ds.offset = [-n.pos[0] + 160, -n.pos[1] + 110]; app.canvas.setDirty(true,
        true); }})()""")
    send(page, "start", path, steps=100, text="")
    run_to(page, path, 7)
    page.tab.wait(f"{PANEL}?.innerText.includes('step 7 / 100')")
    page.picture(screenshots / f"core_subgraph_{look.replace(' ', '')}.png")
    assert ID not in page.saved()
    page.tab.evaluate("app.canvas.setGraph(app.rootGraph)")
    # The command opens the subgraph.
    page.tab.evaluate("app.extensionManager.command.execute('Bespoke.GoToTraining')")
    page.tab.wait("app.canvas.graph !== app.rootGraph")
    page.tab.evaluate("app.canvas.setGraph(app.rootGraph)")


@pytest.mark.parametrize("look", LOOKS)
def test_the_panel_survives_undo(page, look):
    """Nodes 2.0 keeps the element of the removed node; the panel of the new node replaces it."""
    page.look(look)
    page.load(only(TRAINER))
    page.tab.wait(f"!!{PANEL}")
    page.frame(TRAINER, 0.8)
    background = (1300, 700)
    page.tab.click_at(*background)
    page.tab.evaluate("(app.rootGraph.nodes[0].title = 'renamed', 1)")
    page.tab.click_at(*background)
    page.tab.evaluate("new Promise((done) => setTimeout(done, 200))")
    page.tab.evaluate("app.extensionManager.command.execute('Comfy.Undo')")
    page.tab.wait("app.rootGraph.nodes[0].title !== 'renamed'")
    page.frame(TRAINER, 0.8)
    send(page, "start", "1", steps=100, text="")
    run_to(page, "1", 8)
    page.tab.wait(f"{PANEL}?.innerText.includes('step 8 / 100')")
    assert page.tab.evaluate("document.querySelectorAll('.bespoke-training').length") == 1


def test_the_runs_tab_opens_on_the_first_click_and_by_its_key(page, screenshots):
    page.tab.click(RUNS_TAB)
    page.tab.wait("document.querySelector('.bespoke-tab h2')?.innerText")
    page.picture(screenshots / "core_runs.png")
    page.tab.click(RUNS_TAB)
    page.tab.wait("!document.querySelector('.bespoke-tab')")
    page.tab.evaluate("document.activeElement.blur()")
    page.tab.letter("b")
    page.tab.wait("!!document.querySelector('.bespoke-tab')")
    page.tab.letter("b")
    page.tab.wait("!document.querySelector('.bespoke-tab')")


@pytest.mark.parametrize("look", LOOKS)
def test_the_heatmap_sets_strengths(page, screenshots, look):
    page.look(look)
    page.load(only("BespokeInjectLora"), BespokeInjectLora={"lora_name": "core-two.safetensors"})
    page.frame("BespokeInjectLora")
    rows = "[...document.querySelectorAll('.bespoke-heat tbody tr')]"
    page.tab.wait(f"{rows}.length === 2")
    assert page.tab.evaluate(f"{rows}.map((row) => row.cells[0].innerText.trim())") == ["down.1", "mid"]
    # By hand: rows 1 and 2, q k v out 1 to 4; the norm of a 4 x 4 matrix of x is 4 x.
    norms = page.tab.evaluate(
        f"{rows}.map((row) => [...row.cells].slice(1).map((cell) => Number(cell.title.match(/change ([\\d.]+)/)[1])))"
    )
    assert norms == [[4, 8, 12, 16], [8, 16, 24, 32]]
    heat = (
        "Number(document.querySelectorAll('.bespoke-heat tbody "
        "tr')[%d].cells[%d].style.getPropertyValue('--bespoke-heat'))"
    )
    assert page.tab.evaluate(heat % (1, 4)) == 1
    assert page.tab.evaluate(heat % (0, 2)) == 0.25

    press = "document.querySelectorAll('.bespoke-heat {} th button')[{}].click()"
    page.tab.evaluate(press.format("thead", 1))
    assert value(page, "BespokeInjectLora", "key") == 0
    page.tab.evaluate(press.format("tbody", 1))
    assert value(page, "BespokeInjectLora", "blocks") == "*, mid:0"
    assert page.tab.evaluate(heat % (1, 4)) == 0
    page.tab.evaluate(
        """(() => { const f = document.querySelectorAll('.bespoke-heat tbody th input')[0]; f.value = "0.5";
        f.dispatchEvent(new Event("change")); })()"""
    )
    assert value(page, "BespokeInjectLora", "blocks") == "*, mid:0, down.1:0.5"
    page.picture(screenshots / f"core_heatmap_{look.replace(' ', '')}.png")
    page.tab.evaluate(press.format("tbody", 1))
    # A cell: its block off.
    page.tab.evaluate("document.querySelectorAll('.bespoke-heat tbody tr')[0].cells[1].querySelector('button').click()")
    assert value(page, "BespokeInjectLora", "blocks") == "*, mid, down.1:0"
    # A custom pattern is parsed as the server parses it, and a missing file is named.
    page.change("BespokeInjectLora", blocks="m*:0.25", key=1)
    page.tab.wait("document.querySelectorAll('.bespoke-heat tbody th input')[1].value === '0.25'")
    assert page.tab.evaluate("document.querySelectorAll('.bespoke-heat tbody th input')[0].value") == "0"
    # A linked strength is drawn with the prompt's value and cannot be set here.
    page.tab.evaluate(f"""(() => {{ const p = LiteGraph.createNode("PrimitiveFloat"),
      n = {page.node("BespokeInjectLora")}; app.rootGraph.add(p); p.widgets[0].value = 0.5;
      p.connect(0, n, n.inputs.findIndex((input) => input.widget?.name === "value")); }})()""")
    page.tab.wait(
        "(({ value, disabled }) => value === '0.5' && disabled)(document.querySelectorAll('.bespoke-heat thead "
        "input')[2])"
    )
    assert page.tab.evaluate("document.querySelectorAll('.bespoke-heat thead input')[1].disabled") is False
    page.change("BespokeInjectLora", lora_name="gone.safetensors")
    page.tab.wait("document.querySelector('.bespoke-heat').closest('section').innerText.includes('gone.safetensors')")


def test_a_damaged_and_a_strange_lora_are_refused_in_words(page, server):
    (server.base / "models" / "loras" / "core-damaged.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0notjson!")
    page.change("BespokeInjectLora", lora_name="core-damaged.safetensors")
    page.tab.wait("document.querySelector('.bespoke-heat').closest('section').innerText.includes('core-damaged')")
    page.change("BespokeInjectLora", lora_name="../../../etc/passwd")
    page.tab.wait("document.querySelector('.bespoke-heat').closest('section').innerText.includes('not in ComfyUI')")


def test_the_nearest_words_are_text(page):
    page.load(only("BespokeInspectEmbedding"))
    markup = "<img src=x onerror='window.harmed = true'>"
    words = [
        {
            "key": "clip_l",
            "place": 0,
            "length": 3.0,
            "median": 0.5,
            "words": [[markup, 0.9], ["red", 0.5], ["bad", "x"]],
        },
        {"key": "y"},
        None,
    ]
    page.tab.evaluate(f"{page.node('BespokeInspectEmbedding')}.onExecuted({{ bespoke_words: {json.dumps(words)} }})")
    text = page.tab.wait("document.querySelector('.bespoke-near [role=listitem]')?.innerText")
    assert "onerror" in text
    assert "6.0 ×" in text
    assert "red" in text
    assert "bad" not in text
    assert page.tab.evaluate(
        "window.harmed === undefined && document.querySelectorAll('.bespoke-near [role=listitem]').length === 1"
    )


def test_settings_take_effect(page, workflow):
    page.look("classic")
    assert page.tab.evaluate("app.extensionManager.setting.get('Bespoke.CurveHeight')") == 120
    page.load(only(TRAINER))
    send(page, "start", "1", steps=100, text="")
    run_to(page, "1", 5)
    height = "document.querySelector('.bespoke-training').getBoundingClientRect().height / app.canvas.ds.scale"
    page.panel(state="running")
    small = page.tab.wait(height)
    try:
        page.tab.evaluate("app.extensionManager.setting.set('Bespoke.CurveHeight', 300).then(() => true)")
        run_to(page, "1", 6)
        page.tab.wait(f"{height} > {small} + 150")
    finally:
        page.tab.evaluate("app.extensionManager.setting.set('Bespoke.CurveHeight', 120).then(() => true)")
    named = page.tab.evaluate(
        "app.extensionManager.command.commands.filter(({ id }) => id.startsWith('Bespoke.')).map(({ id, label }) "
        "=> [id, typeof label === 'function' ? label() : label])"
    )
    assert {name for name, label in named if label} == {"Bespoke.GoToTraining", "Bespoke.FinishTraining"}


def test_every_control_has_an_accessible_name(page):
    """Each control of the panel and of the heatmap has a name for screen readers."""
    page.load(only("BespokeInjectLora"), BespokeInjectLora={"lora_name": "core-two.safetensors"})
    page.tab.wait("document.querySelectorAll('.bespoke-heat tbody tr').length === 2")
    page.tab.click(RUNS_TAB)
    page.tab.wait("!!document.querySelector('.bespoke-tab')")
    nameless = page.tab.evaluate("""[
        ...document.querySelectorAll('.bespoke-panel :is(button, input, canvas, img)'),
        ...document.querySelectorAll('.bespoke-tab :is(button, input)'),
      ]
      .filter((e) => !e.closest('[aria-hidden=true]') && !(e.innerText?.trim() || e.getAttribute('aria-label') ||
        e.alt)).map((e) => e.outerHTML)""")
    page.tab.click(RUNS_TAB)
    assert nameless == []


def test_a_node_id_and_an_input_that_were_renamed_since(page, workflow):
    """The rest of the graph is loaded, and unknown parts are kept as in the file."""
    opened = workflow("lora_train_and_use")
    trainer = next(n for n in opened["nodes"] if n["type"] == TRAINER)
    saver = next(n for n in opened["nodes"] if n["type"] == "BespokeSaveLora")
    saver["type"] = "BespokeSaveLoraOld"
    renamed = next(i for i in trainer["inputs"] if i["name"] == "vae")
    renamed["name"] = "autoencoder"
    page.load(opened)
    page.tab.wait(f"app.rootGraph.nodes.length === {len(opened['nodes'])}")
    again = {n["id"]: n for n in json.loads(page.saved())["nodes"]}
    assert again[saver["id"]]["type"] == "BespokeSaveLoraOld"
    assert again[saver["id"]]["widgets_values"] == saver["widgets_values"]
    assert again[trainer["id"]]["widgets_values"] == trainer["widgets_values"]
    names = [i["name"] for i in again[trainer["id"]]["inputs"]]
    assert "vae" in names
    wired = {i["name"] for i in again[trainer["id"]]["inputs"] if i.get("link") is not None}
    assert {"model", "clip", "images"} <= wired
    page.tab.evaluate("document.querySelectorAll('.p-dialog-close-button').forEach((button) => button.click())")


def test_undo_inside_a_subgraph_leaves_each_node_its_own_panel(page):
    """Page 1.47 does not notify the nodes of the previous graph that they are removed."""
    page.look("nodes 2.0")
    page.load(only("BespokeInjectLora"), BespokeInjectLora={"lora_name": "core-two.safetensors"})
    page.tab.evaluate("""(() => { const s = LiteGraph.createNode("BespokeStrengthSigmas"); s.pos = [600, 80];
      app.rootGraph.add(s);
      app.canvas.setGraph(app.rootGraph.convertToSubgraph(new Set(app.rootGraph.nodes)).subgraph); })()""")
    mine = (
        "app.canvas.graph.nodes.filter((n) => n.widgets?.at(-1).element?.dataset.panel).map((n) => "
        "n.widgets.at(-1).element)"
    )
    undo_steps = "app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length"
    for turn in range(3):
        page.tab.click_at(1300, 700)
        page.tab.evaluate("new Promise((done) => setTimeout(done, 200))")
        changes = page.tab.evaluate(undo_steps)
        page.tab.evaluate(f"(app.canvas.graph.nodes[0].title = 'renamed {turn}', 1)")
        page.tab.click_at(1300, 700)
        page.tab.wait(f"{undo_steps} > {changes}")  # else the undo would take back the step before
        page.tab.evaluate("app.extensionManager.command.execute('Comfy.Undo')")
        page.tab.wait(
            f"app.canvas.graph !== app.rootGraph && {mine}.length === 2 && {mine}.every((frame) => "
            "frame.isConnected && frame.firstChild)"
        )
    page.tab.evaluate("(app.canvas.setGraph(app.rootGraph), 1)")
