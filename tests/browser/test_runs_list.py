"""The list of runs, their details and the panel's phases on one page, without a training.

Records are files in the server's folder of runs, and what happens is sent as events, as from the socket. test_phases.py
watches a real training.
"""

from __future__ import annotations

import json

import pytest
from comfy_page import RUNS_TAB, ComfyPage
from PIL import Image

TRAINER = "BespokeTrainLora"
PANEL = "document.querySelector('.bespoke-training')"
ITEM = "document.querySelector('[data-id=\"%s\"]')"
# Two runs of one base without a trigger, and one with a trigger and samples.
PLAIN, OTHER, WORDED = (f"lora-0000000000{end}" for end in ("a1", "a2", "b1"))
SWEPT = "lora-0000000005a1", "lora-0000000005a2"
NEW = "lora-0000000000c1"
FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))"
SETTINGS = {"steps": 400, "rank": 8, "learning_rate": 1e-4, "batch_size": 4, "seed": 7, "targets": "attention"}


def record(run_id: str, started: float, **changes) -> dict:
    return {
        "id": run_id,
        "technique": "lora",
        "settings": SETTINGS,
        "base": "house.safetensors",
        "images": 5,
        "started": started,
        "state": "finished",
        "losses": [0.5, 0.25, 0.125, 0.125] * 5,
        "held_out": [[0, 0.9], [20, 0.4]],
        "seconds": 65,
        "start_line": "16 layers, about 40 s",
    } | changes


def write(server, run_id: str, started: float, **changes) -> None:
    folder = server.base / "user" / "bespoke" / "runs" / run_id
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    (folder / "record.json").write_text(json.dumps(record(run_id, started, **changes)))


@pytest.fixture(scope="module")
def page(browser, server):
    write(server, PLAIN, 1000)
    write(server, OTHER, 2000, settings=SETTINGS | {"rank": 16, "steps": 20})
    write(server, WORDED, 3000, trigger="ohwx cat", samples=[[0, "000000.png"], [10, "000010.png"], [20, "000020.png"]])
    for run_id in SWEPT:
        write(server, run_id, 2500, trigger="zwx dog", resolution="380x768")
    folder = server.base / "user" / "bespoke" / "runs" / WORDED
    for i, step in enumerate((0, 10, 20)):
        Image.new("RGB", (64, 64), (80 * i, 160, 200)).save(folder / "samples" / f"{step:06}.png")
    Image.new("RGB", (64, 64), "orange").save(folder / "picture.png")
    opened = ComfyPage(browser, server)
    opened.tab.click(RUNS_TAB)
    opened.tab.wait(f"!!{ITEM % WORDED}")
    yield opened
    opened.close()


def graph_of(kind: str, workflow_id: str) -> dict:
    """A workflow with one node, of the id 7."""
    node = {"id": 7, "type": kind, "pos": [80, 80], "size": [340, 200], "mode": 0}
    empty = {"last_link_id": 0, "links": [], "groups": [], "config": {}, "extra": {}, "version": 0.4}
    return empty | {"id": workflow_id, "last_node_id": 7, "nodes": [node]}


def send(page, kind: str, **values) -> None:
    page.tab.evaluate(f"app.api.dispatchCustomEvent('bespoke.run.{kind}', {json.dumps(values)})")


def detail(page, run_id: str) -> str:
    """Open the details of a run; gives the script that finds them."""
    page.tab.evaluate(
        f"((e) => (e.querySelector('.bespoke-detail') ?? e.querySelector('.bespoke-card').click(), 1))({ITEM % run_id})"
    )
    found = f"{ITEM % run_id}.querySelector('.bespoke-detail')"
    page.tab.wait(f"{found}?.querySelector('dl').innerText.includes('steps')")
    return found


def click(page, found: str, text: str) -> None:
    page.tab.evaluate(
        f"[...{found}.querySelectorAll('button')].find((b) => b.innerText.trim() === {json.dumps(text)}).click()"
    )


def answer(page, text: str | None = None) -> None:
    """Confirm the question that is open, with a text."""
    page.tab.wait("!!document.querySelector('dialog.bespoke-question')")
    if text is not None:
        page.tab.evaluate(f"document.querySelector('dialog.bespoke-question input').value = {json.dumps(text)}")
    page.tab.evaluate("document.querySelector('dialog.bespoke-question [type=submit]').click()")
    page.tab.wait("!document.querySelector('dialog.bespoke-question')")


def names(page) -> list[str]:
    return page.tab.evaluate("[...document.querySelectorAll('.bespoke-item .bespoke-name')].map((n) => n.innerText)")


def test_runs_have_different_names_in_the_list_and_in_the_comparison(page, screenshots):
    page.tab.wait("document.querySelectorAll('.bespoke-item').length >= 3")
    assert [name for name in names(page) if "house" in name or "ohwx" in name] == [
        "LoRA: ohwx cat",
        "LoRA: house · 2",
        "LoRA: house · 1",
    ]
    for run_id in (PLAIN, OTHER):
        page.tab.evaluate(f"{ITEM % run_id}.querySelector('input').click()")
    page.tab.wait("document.querySelectorAll('.bespoke-compare thead th').length === 3")
    heads = page.tab.evaluate(
        "[...document.querySelectorAll('.bespoke-compare thead th')].slice(1).map((h) => h.innerText)"
    )
    assert heads == ["LoRA: house · 1", "LoRA: house · 2"]
    steps = (
        "[...document.querySelectorAll('.bespoke-compare tbody tr')].find((row) => row.cells[0].innerText === 'steps')"
    )
    assert page.tab.evaluate(f"[...{steps}.cells].map((c) => c.innerText)") == ["steps", "20 of 400", "20"]
    page.picture(screenshots / "runs_compare.png")
    # Any two runs are called in the comparison what they are called in the list.
    page.tab.evaluate(f"{ITEM % WORDED}.querySelector('input').click()")
    page.tab.wait(
        "[...document.querySelectorAll('.bespoke-compare thead th')].slice(1).map((h) => h.innerText).join()"
        " === 'LoRA: house · 2,LoRA: ohwx cat'"
    )
    for run_id in (OTHER, WORDED):
        page.tab.evaluate(f"{ITEM % run_id}.querySelector('input').click()")


def test_details_say_what_was_trained_and_put_what_differs_first(page, screenshots):
    """Oracle: the defaults that the server's description of the node gives (rank 8, targets cross-attention)."""
    found = detail(page, WORDED)
    assert "20 of 400" in page.tab.evaluate(f"{ITEM % WORDED}.querySelector('.bespoke-under').innerText")
    facts = page.tab.wait(f"""(() => {{ const cells = [...{found}.querySelectorAll('.bespoke-settings > div')],
      all = Object.fromEntries(cells.map((d) => [...d.children].map((e) => e.innerText)));
      return all.steps && all; }})()""")
    assert facts["steps"] == "20 of 400"
    assert facts["time"] == "1:05"
    page.tab.wait(f"{found}.querySelectorAll('.bespoke-settings')[1].innerText.includes('targets')")
    shown = page.tab.evaluate(
        f"[...{found}.querySelectorAll('.bespoke-settings')[1].querySelectorAll('dt')].map((d) => d.innerText)"
    )
    folded = page.tab.evaluate(f"[...{found}.querySelectorAll('details dt')].map((d) => d.textContent)")
    assert "targets" in shown
    assert "rank" in folded
    assert not set(shown) & set(folded)
    page.picture(screenshots / "runs_detail.png")


def test_the_trigger_is_copied_and_the_curve_saved(page, tmp_path):
    found = detail(page, WORDED)
    page.tab.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.tab.evaluate(f"{found}.querySelector('.bespoke-trigger').click()")
    page.tab.wait("window.copied === 'ohwx cat'")
    page.tab.evaluate("""(() => { const made = URL.createObjectURL; URL.createObjectURL = (blob) => {
      blob.text().then((text) => { window.csv = text; }); return made(blob); }; })()""")
    click(page, found, "Save the curve")
    lines = page.tab.wait("window.csv").splitlines()
    assert lines[0] == "step,loss,validation_loss,lr"
    assert lines[1] == "0,,0.9,"
    assert lines[2].split(",")[:3] == ["1", "0.5", ""]
    assert lines[21].split(",")[:3] == ["20", "0.125", "0.4"]
    assert len(lines) == 22


def test_a_sample_opens_beside_its_training_picture(page, screenshots):
    found = detail(page, WORDED)
    page.tab.wait(f"{found}.querySelectorAll('.bespoke-strip button').length === 3")
    page.tab.evaluate(f"{found}.querySelectorAll('.bespoke-strip button')[1].focus()")
    page.tab.press("Enter")
    dialog = "document.querySelector('dialog.bespoke-large')"
    page.tab.wait(
        f"((all) => all.length === 2 && all.every((i) => i.naturalWidth))([...{dialog}.querySelectorAll('img')])"
    )
    words = f"{dialog}.querySelector('[role=status]').innerText"
    assert page.tab.evaluate(words) == "Step 10 (2 of 3)"
    page.picture(screenshots / "sample_viewer.png")
    for key, expected in (
        ("ArrowRight", "Step 20 (3 of 3)"),
        ("ArrowRight", "Step 20 (3 of 3)"),
        ("ArrowLeft", "Step 10 (2 of 3)"),
    ):
        page.tab.press(key)
        assert page.tab.evaluate(words) == expected
    assert page.tab.evaluate(f"{dialog}.querySelector('img').src.endsWith('000010.png')")
    nameless = page.tab.evaluate(
        f"[...{dialog}.querySelectorAll('button, img')].filter((e) => !(e.innerText || e.ariaLabel || e.alt)).length"
    )
    assert nameless == 0
    page.tab.press("Escape")
    page.tab.wait(f"!{dialog}")
    assert page.tab.evaluate(f"document.activeElement === {found}.querySelectorAll('.bespoke-strip button')[1]")


def test_a_run_is_renamed_and_removed(page, server, screenshots):
    gone = "lora-0000000000d1"
    write(server, gone, 500)
    page.tab.evaluate("document.querySelector('.bespoke-tab header button').click()")
    page.tab.wait(f"!!{ITEM % gone}")
    click(page, detail(page, gone), "Remove")  # of several runs of one base, the question names this one
    assert "“LoRA: house · 1”" in page.tab.wait("document.querySelector('dialog.bespoke-question')?.innerText")
    page.tab.press("Escape")
    page.tab.wait("!document.querySelector('dialog.bespoke-question')")
    click(page, detail(page, gone), "Rename")
    answer(page, "  the <b>first</b>  try ")
    page.tab.wait(f"{ITEM % gone}.querySelector('.bespoke-name').innerText === 'the <b>first</b> try'")
    click(page, detail(page, gone), "Remove")
    page.tab.wait("!!document.querySelector('dialog.bespoke-question')")
    page.picture(screenshots / "runs_remove.png")
    page.tab.press("Escape")  # which means no
    page.tab.wait("!document.querySelector('dialog.bespoke-question')")
    assert page.tab.evaluate(f"!!{ITEM % gone}")
    click(page, detail(page, gone), "Remove")
    answer(page)
    page.tab.wait(f"!{ITEM % gone}")
    (moved,) = (server.base / "user" / "bespoke" / "removed").glob(f"{gone}.*")
    assert json.loads((moved / "record.json").read_text())["label"] == "the <b>first</b> try"
    assert not (server.base / "user" / "bespoke" / "runs" / gone).exists()


def test_a_run_that_begins_is_listed_and_its_details_follow_it(page, server):
    """The record is there before the first event, as the server writes it."""
    write(server, NEW, 9000, state="running", losses=[], held_out=[], seconds=0)
    send(page, "start", node_id="3", run_id=NEW, steps=400, text="16 layers")
    page.tab.wait(f"!!{ITEM % NEW}")
    step = {"node_id": "3", "run_id": NEW, "steps": 400, "loss": 0.2, "loss_ema": 0.2, "seconds": 5}
    send(page, "step", step=1, **step)
    page.tab.wait(f"{ITEM % NEW}.querySelector('.bespoke-under').innerText.includes('step 1 / 400')")
    found = detail(page, NEW)
    for step["seconds"], number in ((9, 10), (61, 20)):
        send(page, "step", step=number, **step)
        page.tab.wait(f"{ITEM % NEW}.querySelector('.bespoke-under').innerText.includes('step {number} / 400')")
        page.tab.wait(
            f"['{number} of 400', '{'1:01' if number > 10 else '0:09'}'].every((w) => {found}.innerText.includes(w))"
        )
    remove = f"[...{found}.querySelectorAll('button')].find((b) => b.innerText === 'Remove')"
    assert page.tab.evaluate(f"{remove}.disabled")
    put = f"[...{found}.querySelectorAll('button')].find((b) => b.innerText === 'Put the LoRA into the graph')"
    assert page.tab.evaluate(f"{put}.hidden")
    # A LoRA of this run is saved: a file whose metadata names it.
    (server.base / "models" / "loras" / "listed.safetensors").write_bytes(safetensors(**{"bespoke.run": NEW}))
    write(server, NEW, 9000, losses=[0.2] * 20, seconds=62)
    page.tab.evaluate(
        "app.api.dispatchCustomEvent('executed', {node: '4', output: {text: ['saved as listed.safetensors']}})"
    )
    page.tab.wait(f"!{put}.hidden")
    send(page, "end", node_id="3", run_id=NEW, state="finished", files=[])
    page.tab.wait(
        f"{ITEM % NEW}.dataset.state === 'finished' && {found}.innerText.includes('1:02') && !{remove}.disabled"
    )


def safetensors(**metadata: str) -> bytes:
    """A file with one tensor of one number."""
    head = {"__metadata__": metadata, "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + b"\0\0\0\0"


@pytest.mark.parametrize("look", ["classic", "nodes 2.0"])
def test_the_panel_shows_what_comes_before_the_first_step(page, screenshots, look):
    """Queue, encoding, measuring, sample, step; and each end of a prompt ends it."""
    page.look(look)
    page.load(graph_of(TRAINER, f"a {look}"))
    node = page.tab.evaluate(f"String({page.node(TRAINER)}.id)")
    page.tab.wait(f"!!{PANEL}")
    text = f"{PANEL}.innerText"
    for ending in ("execution_error", "execution_interrupted", "execution_success"):
        for values, words in (
            ({"phase": "pictures", "done": 2, "total": 12}, "Encoding picture 3 of 12"),
            ({"phase": "captions", "done": 0, "total": 3}, "Encoding caption 1 of 3"),
            ({"phase": "loading"}, "Loading the model"),
            ({"phase": "measuring"}, "Measuring a step"),
        ):
            send(page, "phase", node_id=node, **values)
            page.tab.wait(f"{text}.includes({json.dumps(words)})")
        page.tab.evaluate(f"app.api.dispatchCustomEvent('{ending}', {{ prompt_id: 'x', node_id: '0' }})")
        page.tab.wait(f"!{text}.includes('Measuring')")
    run_id = f"lora-0000000000e{int(look == 'classic')}"
    send(page, "phase", node_id=node, phase="nonsense")
    send(page, "start", node_id=node, run_id=run_id, steps=9, text="16 layers, about 40 s")
    page.tab.wait(f"{PANEL}.dataset.state === 'running' && {text}.includes('about 40 s')")
    for kind, words in (("validation", "Scoring held-out pictures"), ("sample", "Drawing a sample")):
        send(page, "phase", node_id=node, run_id=run_id, phase=kind)
        page.tab.wait(f"{text}.includes({json.dumps(words)})")
        assert page.tab.evaluate(f"{PANEL}.dataset.state") == "running"
        send(page, "step", node_id=node, run_id=run_id, step=1, steps=9, loss=0.1, loss_ema=0.1)
        page.tab.wait(f"!{text}.includes({json.dumps(words)}) && {text}.includes('step 1 / 9')")
    send(page, "end", node_id=node, run_id=run_id, state="interrupted", files=[])
    page.tab.wait(f"{PANEL}.dataset.state === 'interrupted'")
    # The same prompt again: the note of the run before is not shown while it is prepared, and a failure ends that.
    send(page, "phase", node_id=node, phase="measuring")
    page.tab.wait(f"{text}.includes('Measuring a step') && !{text}.includes('Queue again')")
    send(page, "start", node_id=node, run_id=run_id, steps=9, text="")
    send(page, "phase", node_id=node, run_id=run_id, phase="validation")
    page.tab.wait(f"{PANEL}.dataset.phase === 'validation'")
    send(page, "end", node_id=node, run_id=run_id, state="failed", files=[])
    error = {"node_id": node, "exception_message": "Bespoke Train LoRA: the loss at step 4 is nan"}
    page.tab.evaluate(f"app.api.dispatchCustomEvent('execution_error', {json.dumps(error)})")
    page.tab.wait(f"{PANEL}.dataset.state === 'failed' && {text}.includes('the loss at step 4 is nan')")
    assert page.tab.evaluate(f"{PANEL}.dataset.phase") == ""
    page.frame(TRAINER, 0.9)
    page.picture(screenshots / f"panel_failed_{look.replace(' ', '')}.png")


@pytest.mark.parametrize("look", ["classic", "nodes 2.0"])
def test_a_panel_shows_nothing_of_a_node_with_its_number_in_another_workflow(page, look):
    page.look(look)
    page.load(graph_of(TRAINER, f"b {look}"))
    node, own = page.tab.evaluate(f"[String({page.node(TRAINER)}.id), app.rootGraph.id]")
    run_id = f"lora-0000000000e{2 + int(look == 'classic')}"
    before = page.tab.wait(f"{PANEL}?.innerText.startsWith('Queue the prompt') && {PANEL}.innerText")
    for workflow_id in ("00000000-0000-4000-8000-000000000001", own):
        where = {"node_id": node, "workflow": workflow_id}
        send(page, "phase", phase="measuring", **where)
        page.tab.evaluate(FRAMES)
        assert page.tab.evaluate(f"{PANEL}.innerText.includes('Measuring')") == (workflow_id == own)
        where["run_id"] = run_id[:-1] + ("9" if workflow_id != own else run_id[-1])
        send(page, "start", steps=9, text="", **where)
        send(page, "step", step=1, steps=9, loss=0.1, loss_ema=0.1, **where)
        page.tab.evaluate(FRAMES)
        shown = page.tab.evaluate(f"{PANEL}.innerText")
        assert (shown != before) == (workflow_id == own)
    assert "step 1 / 9" in shown


@pytest.mark.parametrize(("saved", "shown"), [("interrupted", "interrupted"), ("running", "cut off")])
def test_a_run_that_ended_while_the_server_was_away_is_shown_as_its_record_says(page, server, saved, shown):
    """A server that is shut down in order saves the state; one that is killed leaves a record that says "running"."""
    node = page.tab.evaluate(f"String({page.node(TRAINER)}.id)")
    run = {"node_id": node, "run_id": f"lora-0000000000{'a5' if shown == saved else 'a6'}"}
    write(server, run["run_id"], 9500, state="running", losses=[])
    send(page, "start", steps=400, text="", **run)
    send(page, "step", step=1, steps=400, loss=0.1, loss_ema=0.1, **run)
    page.tab.wait(f"{PANEL}.dataset.state === 'running'")
    write(server, run["run_id"], 9500, state=saved, losses=[0.1])
    page.tab.evaluate("app.api.dispatchCustomEvent('reconnecting')")
    page.tab.wait(f"{PANEL}.dataset.state === 'lost'")
    page.tab.evaluate("app.api.dispatchCustomEvent('reconnected')")
    page.tab.wait(f"{PANEL}.dataset.state === {shown!r} && {PANEL}.innerText.includes('Queue again')", 10)


def test_the_score_of_the_base_model_is_no_best_step(page):
    """The score of step 0 is there before a step was trained. Oracle: the lowest of the scores that follow."""
    node = page.tab.evaluate(f"String({page.node(TRAINER)}.id)")
    run = {"node_id": node, "run_id": "lora-0000000000f4"}
    legend = f"{PANEL}.querySelector('.bespoke-held-out').innerText"
    send(page, "start", steps=40, text="", **run)
    for step, loss, words in ((0, 0.5, "0.5"), (10, 0.6, "0.6 (no step below the start, 0.5)")):
        send(page, "validation", step=step, loss=loss, **run)
        send(page, "step", step=step + 1, steps=40, loss=0.1, loss_ema=0.1, **run)
        page.tab.wait(f"{legend} === {'held-out' + words!r}")
    send(page, "validation", step=20, loss=0.4, **run)
    page.tab.wait(f"{legend} === 'held-out0.4 (best 0.4 at step 20)'")


def test_samples_are_in_the_order_of_their_steps(page):
    """After a reload the event of a new sample may come before the record with the earlier ones."""
    node = page.tab.evaluate(f"String({page.node(TRAINER)}.id)")
    run_id = "lora-0000000000f2"
    send(page, "start", node_id=node, run_id=run_id, steps=40, text="")
    shown = f"[...{PANEL}.querySelectorAll('.bespoke-strip [role=listitem]')].map((e) => Number(e.dataset.step))"
    # The pictures do not exist, and what cannot be loaded is removed: nothing is loaded here.
    page.tab.evaluate("""(() => {
      const blank = 'data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==';
      window.stall = new MutationObserver((all) => all.forEach(({ addedNodes }) => addedNodes.forEach((n) =>
        n.querySelectorAll?.('img').forEach((i) => { i.src = blank; }))));
      window.stall.observe(document.body, { subtree: true, childList: true }); })()""")
    try:
        for step in (20, 0, 10):
            send(page, "sample", node_id=node, run_id=run_id, step=step, image=f"{step:06}.png")
            page.tab.wait(f"{shown}.includes({step})")
        assert page.tab.evaluate(shown) == [0, 10, 20]
    finally:
        page.tab.evaluate("(window.stall.disconnect(), 1)")


def test_a_short_sample_is_not_shown_at_all(page):
    """A sample that takes less than a quarter of a second would only flicker."""
    node = page.tab.evaluate(f"String({page.node(TRAINER)}.id)")
    run_id = "lora-0000000000f1"
    send(page, "start", node_id=node, run_id=run_id, steps=9, text="")
    page.tab.wait(f"{PANEL}.dataset.state === 'running'")
    send(page, "phase", node_id=node, run_id=run_id, phase="sample")
    send(page, "step", node_id=node, run_id=run_id, step=2, steps=9, loss=0.1, loss_ema=0.1)
    page.tab.evaluate("new Promise((done) => setTimeout(done, 400))")
    assert page.tab.evaluate(f"{PANEL}.dataset.phase") == ""


def test_an_error_of_a_button_stays_its_time(page):
    """The timer of an earlier error must not end a later one. The run is known to no server."""
    page.tab.evaluate("""(() => { window.timers = [];
      window.setTimeout_ = setTimeout; window.clearTimeout_ = clearTimeout;
      window.setTimeout = (f, ms, ...a) => (ms === 6000 ? (window.timers.push(f), -window.timers.length)
        : window.setTimeout_(f, ms, ...a));
      window.clearTimeout = (id) => (id < 0 ? delete window.timers[-id - 1] : window.clearTimeout_(id)); })()""")
    for _ in range(2):
        page.tab.evaluate(f"{PANEL}.querySelector('.bespoke-main').click()")
        page.tab.wait(f"{PANEL}.querySelector('.bespoke-note').innerText.includes('no such run')")
    page.tab.wait("window.timers.length === 2")
    page.tab.evaluate("(window.timers[0]?.(), 1)")
    page.tab.evaluate(FRAMES)
    assert "no such run" in page.tab.evaluate(f"{PANEL}.innerText")
    page.tab.evaluate("(window.timers[1](), 1)")
    page.tab.wait(f"!{PANEL}.innerText.includes('no such run')")
    page.tab.evaluate("(window.setTimeout = window.setTimeout_, window.clearTimeout = window.clearTimeout_, 1)")


def test_the_list_follows_the_language(page):
    try:
        page.tab.evaluate("app.extensionManager.setting.set('Comfy.Locale', 'fr').then(() => true)")
        page.tab.wait("document.querySelector('.bespoke-tab h2')?.innerText === 'Entraînements'")
        page.tab.wait(f"{ITEM % WORDED}?.querySelector('.bespoke-under').innerText.includes('1 janv. 1970')")
        page.tab.wait(f"document.querySelector({RUNS_TAB!r}).ariaLabel.startsWith('Entraînements')")
    finally:
        page.tab.evaluate("app.extensionManager.setting.set('Comfy.Locale', 'en').then(() => true)")
    page.tab.wait(f"document.querySelector({RUNS_TAB!r}).ariaLabel.startsWith('Training runs')")


@pytest.mark.parametrize("look", ["classic", "nodes 2.0"])
def test_what_a_node_showed_is_there_after_a_reload(page, look):
    """The server's history has it; the page gives it to the node as when it ran."""
    words = [{"key": "clip_l", "place": 0, "length": 3.0, "median": 0.5, "words": [["red", 0.5]]}]
    kind = "BespokeInspectEmbedding"
    prompt = [0, "p", {"7": {"class_type": kind}}, {"extra_pnginfo": {"workflow": {"id": f"w1 {look}"}}}, []]
    history = {"p": {"prompt": prompt, "outputs": {"7": {"bespoke_words": words}}}}
    page.tab.evaluate(
        "(() => { const own = app.api.fetchApi.bind(app.api); app.api.fetchApi = (path, options) =>"
        " path.startsWith('/history') ? Promise.resolve(new Response(JSON.stringify("
        f"{json.dumps(history)}))) : own(path, options); return 1; }})()"
    )
    near = "document.querySelectorAll('.bespoke-near [role=listitem]')"
    page.look(look)
    try:
        page.load(graph_of(kind, f"w1 {look}"))
        assert "red" in page.tab.wait(f"{near}[0]?.innerText")
        page.load(graph_of(kind, "w2"))  # another workflow
        page.tab.evaluate("new Promise((done) => setTimeout(done, 300))")
        assert page.tab.evaluate(f"{near}.length") == 0
    finally:
        page.tab.evaluate("delete app.api.fetchApi")


@pytest.mark.parametrize(("look", "run_id"), [("classic", SWEPT[0]), ("nodes 2.0", SWEPT[1])])
def test_a_runs_files_become_a_sweep(page, look, run_id):
    """One click: a loader for each file by its step, the sweep, a preview, the graph's loader and how its sampler is
    set."""
    files = {"loras": [f"bespoke/runs/{run_id}-step{step:06}.safetensors" for step in (20, 10)], "embeddings": []}
    page.tab.evaluate(
        "(() => { const own = app.api.fetchApi.bind(app.api); app.api.fetchApi = (path, options) =>"
        f" path.endsWith('/{run_id}/files') ? Promise.resolve(new Response(JSON.stringify({json.dumps(files)})))"
        " : own(path, options); return 1; })()"
    )
    page.look(look)
    try:
        page.load(graph_of("CheckpointLoaderSimple", f"sweep {look}"))
        page.tab.evaluate("""(() => { const n = LiteGraph.createNode("KSampler"); app.rootGraph.add(n);
          n.pos = [480, 80]; for (const [name, value] of Object.entries({ steps: 7, cfg: 3, scheduler: "karras" }))
            n.widgets.find((w) => w.name === name).value = value; return 1; })()""")
        found = detail(page, run_id)
        page.tab.wait(
            f"[...{found}.querySelectorAll('button')].some((b) => b.innerText.startsWith('Sweep') && !b.hidden)"
        )
        click(page, found, "Sweep its steps and strengths")
        page.tab.wait("app.rootGraph.nodes.some((n) => n.type === 'PreviewImage' && n.inputs[0].link != null)")
        links = page.tab.wait(
            """((n) => n && n.inputs.filter((i) => i.link != null).map((i) => {
              const link = app.rootGraph.getLink(i.link); const from = app.rootGraph.getNodeById(link.origin_id);
              return [i.name, from.type, from.widgets?.find((w) => w.name === "lora_name")?.value ?? ""]; }))
            (app.rootGraph.nodes.find((n) => n.type === "BespokeLoraSweep"))"""
        )
        loader = "CheckpointLoaderSimple"
        assert sorted(links) == [
            ["clip", loader, ""],
            ["loras.lora0", "BespokeLoadLora", files["loras"][1]],
            ["loras.lora1", "BespokeLoadLora", files["loras"][0]],
            ["model", loader, ""],
            ["vae", loader, ""],
        ]
        values = page.tab.evaluate("""Object.fromEntries(app.rootGraph.nodes.find((n) => n.type === "BespokeLoraSweep")
          .widgets.map((w) => [w.name, w.value]))""")
        assert values["prompts"] == "zwx dog"
        # The sampler of the graph, and the size of the pictures in multiples of 8.
        assert [values[name] for name in ("steps", "cfg", "scheduler", "width", "height")] == [7, 3, "karras", 384, 768]
        size = page.tab.evaluate("[...app.rootGraph.nodes.find((n) => n.type === 'PreviewImage').size]")
        assert size[0] >= 700  # a grid can be read there
        assert size[1] >= 500
        # [left, top, right, bottom] with the title, which is above a node's position: no two boxes overlap.
        boxes = page.tab.wait(
            """(() => { const drawn = (n) => document.querySelector(`[data-node-id='${n.id}']`)?.offsetHeight ?? 0;
            const all = app.rootGraph.nodes.map((n) => [n.pos[0], n.pos[1] - 30, n.pos[0] + n.size[0],
              n.pos[1] + Math.max(n.size[1], drawn(n) - 30)]);
            return !LiteGraph.vueNodesMode || app.rootGraph.nodes.every(drawn) ? all : null; })()"""
        )
        assert len(boxes) == 6
        for i, (left, top, right, bottom) in enumerate(boxes):
            for other in boxes[:i]:
                apart = left >= other[2] or other[0] >= right or top >= other[3] or other[1] >= bottom
                assert apart, boxes
    finally:
        page.tab.evaluate("delete app.api.fetchApi")


def test_a_film_plays_beside_stills_on_the_panel(page, server, tmp_path):
    """An animated WebP of a red and a blue frame, by the server's route: large it shows one, then the other."""
    page.look("classic")  # where the node is in view: pictures load when they are
    page.load(graph_of(TRAINER, "00000000-0000-4000-8000-0000000000f3"))
    node = page.tab.evaluate(f"String({page.node(TRAINER)}.id)")
    run_id = "lora-0000000000f3"
    write(server, run_id, 500)
    samples = server.base / "user" / "bespoke" / "runs" / run_id / "samples"
    red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    red.save(samples / "000010.webp", "WEBP", save_all=True, append_images=[blue], duration=400, loop=0, lossless=True)
    Image.new("RGB", (64, 64), "lime").save(samples / "000010_02.png")
    send(page, "start", node_id=node, run_id=run_id, steps=40, text="")
    for name in ("000010.webp", "000010_02.png"):
        send(page, "sample", node_id=node, run_id=run_id, step=10, image=name)
    found = f"[...{PANEL}.querySelectorAll('.bespoke-strip img')]"
    page.tab.wait(f"{found}.length === 2 && {found}.every((i) => i.complete && i.naturalWidth === 64)")
    source = page.tab.evaluate(f"{found}[0].src")
    assert source.endswith(f"/bespoke/runs/{run_id}/samples/000010.webp")
    kind = page.tab.evaluate(f"fetch({source!r}).then((answer) => answer.headers.get('content-type'))")
    assert kind == "image/webp"
    page.tab.evaluate(f"({found}[0].closest('button').click(), 1)")
    large = "document.querySelector('dialog.bespoke-large img')"
    page.tab.wait(f"{large}?.complete && {large}.naturalWidth === 64")
    corner = "((b) => ({ x: b.x + b.width / 4, y: b.y + b.height / 4, width: 4, height: 4 }))"
    box = page.tab.evaluate(f"{corner}({large}.getBoundingClientRect())")
    seen = set()
    for number in range(12):
        shot = Image.open(page.tab.screenshot(tmp_path / f"{number}.png", box)).convert("RGB").getpixel((1, 1))
        seen.add("red" if shot[0] > 200 > 60 > shot[2] else "blue" if shot[2] > 200 > 60 > shot[0] else str(shot))
        page.tab.evaluate("new Promise((done) => setTimeout(done, 150))")
    page.tab.press("Escape")
    assert seen == {"red", "blue"}
