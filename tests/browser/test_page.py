"""The page with the pack: no additional errors, hostile runs shown as text or dropped, a restart of the server."""

from __future__ import annotations

import json

import pytest
from comfy_page import RUNS_TAB, complaints, without_the_pack
from host import ROOT

EXAMPLES = sorted(path.stem for path in (ROOT / "example_workflows").glob("*.json"))
ID = "lora-0123456789ab"
MARKUP = "<img src=x onerror='window.harmed = true'><script>window.harmed = true</script>"


def load_examples(open_page, workflow, look, rewrite=None):
    """(page, its errors) after loading the examples."""
    page = open_page(look=look, rewrite=rewrite)
    for name in EXAMPLES:
        page.load(workflow(name))
        page.tab.wait("app.rootGraph.nodes.length > 5")
    page.tab.evaluate("new Promise((done) => setTimeout(done, 1500))")
    return page, complaints(page.tab)


@pytest.mark.parametrize("look", ["classic", "nodes 2.0"])
def test_the_pack_adds_no_error(open_page, workflow, look):
    page, without = load_examples(open_page, workflow, look, without_the_pack)
    assert not page.tab.evaluate(f"!!document.querySelector({RUNS_TAB!r})")
    page.close()
    page, with_pack = load_examples(open_page, workflow, look)
    assert page.tab.evaluate(f"!!document.querySelector({RUNS_TAB!r})")
    assert [error for error in with_pack if error not in without] == []


def send(page, kind, **values):
    """Dispatch an event as the socket does."""
    body = json.dumps({"node_id": "3", "run_id": ID} | values).replace('"NaN"', "NaN")
    page.tab.evaluate(f"app.api.dispatchCustomEvent('bespoke.run.{kind}', {body})")


def test_hostile_events_and_records(open_page, workflow):
    losses = [0.1] * 999_999 + [None]
    record = {
        "id": ID,
        "technique": MARKUP,
        "settings": {"steps": "many", "rank": MARKUP, MARKUP: 1},
        "base": MARKUP,
        "images": "x",
        "trigger": MARKUP,
        "losses": losses,
        "held_out": [[1, None], ["a", 2], 7, [5, 0.2]],
        "state": MARKUP,
        "started": 1e300,
        "samples": [[1, "../../secret.png"], [2, "javascript:alert(1)"], [3, "000003.png"]],
        "seconds": "NaN",
    }
    summary = {key: value for key, value in record.items() if key != "losses"} | {
        "steps_done": 1_000_000,
        "best": [MARKUP, "x"],
    }

    def rewrite(url, body):
        if url.endswith(f"/bespoke/runs/{ID}"):
            return json.dumps(record).encode()
        page = {"runs": [summary, {"id": "../x"}, 7, None], "total": "many", "page": None, "pages": 1e300, "stamp": [1]}
        return json.dumps(page).encode() if "/bespoke/runs?" in url else body

    page = open_page(rewrite=rewrite)
    page.load(workflow("lora_train_and_use"))
    node = page.tab.evaluate(f"String({page.node('BespokeTrainLora')}.id)")
    send(page, "start", node_id=node, steps=100)
    send(
        page, "step", node_id=node, step=1, steps=100, loss="NaN", loss_ema="NaN", images_per_second=MARKUP, eta_s="NaN"
    )
    send(page, "step", node_id=node, step="x", loss=MARKUP)
    send(page, "sample", node_id=node, step=1, image="https://example.invalid/x.png")
    send(page, "sample", node_id=node, step=1, image=MARKUP)
    send(page, "step", run_id=MARKUP, step=1, steps=2, loss=1)
    page.panel(state="running")
    # A run is read when it is opened; the list shows the same record as text.
    page.tab.click(RUNS_TAB)
    page.tab.wait("document.querySelectorAll('.bespoke-item').length === 1")
    assert "onerror" in page.tab.wait("document.querySelector('.bespoke-item').innerText")
    page.tab.click(".bespoke-card")
    page.tab.wait("document.querySelector('.bespoke-detail dl')?.innerText.includes('onerror')")
    pictures = page.tab.evaluate(
        "[...document.querySelectorAll('.bespoke-strip img, .bespoke-tab img')].map((i) => i.getAttribute('src'))"
    )
    assert all(source.endswith("000003.png") for source in pictures)
    assert page.tab.evaluate("window.harmed === undefined && !document.querySelector('.bespoke-tab script')")
    assert not [error for error in page.tab.errors if error.startswith("uncaught")]


def test_the_server_restarts_in_mid_run(open_page, server, workflow, screenshots):
    page = open_page()
    page.load(
        workflow("lora_train_and_use"),
        **{kind: {"mode": 2} for kind in ("BespokeInjectLora", "KSampler", "VAEDecode", "SaveImage")},
        BespokeImageFolder={"resolution": 64},
        BespokeTrainLora={"steps": 3000, "batch_size": 1, "seed": 601},
    )
    page.frame("BespokeTrainLora", 0.9)
    page.queue()
    page.panel(state="running", seconds=90)
    page.tab.wait("/step \\d/.test(document.querySelector('.bespoke-training .bespoke-head').innerText)")
    server.stop()
    page.panel(state="lost")
    assert "connection" in page.panel()
    page.picture(screenshots / "server_gone.png")
    server.start()
    # Interrupted where the server could save the state before it ended.
    state = "document.querySelector('.bespoke-training').dataset.state"
    assert "Queue again" in page.panel(state=page.tab.wait(f"/cut off|interrupted/.exec({state})?.[0]", 90))
    page.queue()
    page.panel(state="running", seconds=90)
    page.tab.evaluate("[...document.querySelectorAll('.bespoke-training .bespoke-button')].at(-1).click()")
    assert "Queue again" in page.panel(state="interrupted", seconds=60)
