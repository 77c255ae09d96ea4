"""A real training from the click on Run: the panel says what is done before and between the steps, in both looks."""

from __future__ import annotations

import pytest
from comfy_page import RUNS_TAB

AFTER_TRAINING = ("BespokeInjectLora", "KSampler", "VAEDecode", "SaveImage", "PreviewImage", "PreviewAny")
MUTED = {kind: {"mode": 2} for kind in AFTER_TRAINING}
# Every text that the panel begins with, and its state, from now on.
WATCH = """(() => { window.said = []; const look = () => {
  const box = document.querySelector('.bespoke-training');
  const words = box && (box.dataset.phase || box.dataset.state || '');
  if (box && window.said.at(-1) !== words) window.said.push(words); requestAnimationFrame(look); }; look(); })()"""


@pytest.fixture(autouse=True)
def nothing_goes_on(server):
    """A test that fails leaves no training behind, which the next one would wait for."""
    yield
    server.post("/queue", {"clear": True})
    server.post("/interrupt", {})


# Each look has pictures of its own size: those that were encoded before are not encoded again, and no phase says so.
@pytest.mark.parametrize(
    ("look", "palette", "seed", "resolution"), [("classic", "light", 701, 64), ("nodes 2.0", "dark", 702, 72)]
)
def test_what_the_panel_says_from_run_to_interrupt(
    open_page, server, workflow, screenshots, look, palette, seed, resolution
):
    page = open_page(look=look, palette=palette)
    page.load(
        workflow("lora_train_and_use"),
        **MUTED,
        BespokeImageFolder={"resolution": resolution},
        BespokeTrainLora={"steps": 3000, "batch_size": 2, "seed": seed, "sample_every": 10, "validation": 1},
    )
    page.frame("BespokeTrainLora", 0.9)
    page.panel()
    page.tab.evaluate(WATCH)
    page.queue()
    page.queue()  # a second prompt of the same graph, which waits
    wanted = ["pictures", "loading", "measuring", "running", "sample"]
    name = look.replace(" ", "")
    for phase in ("pictures", "sample", "running"):
        page.tab.wait(f"window.said.includes('{phase}')", 300)
        page.picture(screenshots / f"phase_{phase}_{name}_{palette}.png")
    said = page.tab.evaluate("window.said")
    positions = [said.index(phase) for phase in wanted if phase in said]
    assert positions == sorted(positions), said
    assert {"pictures", "sample", "running"} <= set(said)

    page.tab.click(RUNS_TAB)
    page.tab.wait("/step [1-9]/.test(document.querySelector('.bespoke-item .bespoke-under')?.innerText)", 300)
    line = page.tab.evaluate("document.querySelector('.bespoke-training .bespoke-note').innerText")
    assert "16 layers" in line
    page.reload()
    page.panel(state="running", seconds=300)
    page.tab.wait(f"document.querySelector('.bespoke-training .bespoke-note').innerText === {line!r}")

    # Both prompts are cancelled: the one that waits, then the one that trains.
    server.post("/queue", {"clear": True})
    page.tab.evaluate("[...document.querySelectorAll('.bespoke-training .bespoke-button')].at(-1).click()")
    page.panel(state="interrupted", seconds=300)
    assert page.tab.evaluate("document.querySelector('.bespoke-training').dataset.phase") == ""
    page.picture(screenshots / f"phase_interrupted_{name}_{palette}.png")


def test_a_prompt_that_waits_has_its_number_in_the_queue(open_page, server, workflow, screenshots):
    """A training goes on in another workflow meanwhile."""
    page = open_page()
    training = workflow("lora_train_and_use")
    values = {"steps": 3000, "batch_size": 2, "seed": 703, "sample_every": 0}
    page.load(training, **MUTED, BespokeImageFolder={"resolution": 64}, BespokeTrainLora=values)
    page.queue()
    page.panel(state="running", seconds=300)
    other = training | {"id": "00000000-0000-4000-8000-000000000704"}
    page.load(other, **MUTED, BespokeTrainLora=values | {"seed": 704})
    page.queue()
    page.frame("BespokeTrainLora", 0.9)
    page.tab.wait("document.querySelector('.bespoke-training').innerText.includes('number 1 in the queue')", 300)
    page.picture(screenshots / "phase_waiting.png")
    server.post("/queue", {"clear": True})
    page.tab.wait("!document.querySelector('.bespoke-training').innerText.includes('in the queue')", 300)
    server.post("/interrupt", {})
    page.idle()


@pytest.mark.parametrize("look", ["classic", "nodes 2.0"])
def test_the_panel_says_why_a_training_was_refused(open_page, workflow, look):
    """Page 1.58 itself says only that the node failed; the reason goes when the next prompt begins."""
    page = open_page(look=look)
    page.load(
        workflow("lora_train_and_use"),
        **MUTED,
        BespokeTrainLora={"targets": "custom", "custom_targets": "no_such_layer", "seed": 7301},
    )
    page.panel()
    page.queue()
    page.tab.wait("document.querySelector('.bespoke-training .bespoke-note').innerText.includes('no_such_layer')", 60)
    page.change("BespokeTrainLora", targets="cross-attention", steps=3000)
    page.queue()
    page.tab.wait("document.querySelector('.bespoke-training').dataset.state === 'running'", 300)
    page.tab.wait("!document.querySelector('.bespoke-training .bespoke-note').innerText.includes('no_such_layer')")
