"""A training watched in the page, from queueing to the LoRA in the lists: in the classic canvas and in Nodes 2.0."""

from __future__ import annotations

import json
import re

import pytest
from comfy_page import RUNS_TAB

AFTER_TRAINING = ("BespokeInjectLora", "KSampler", "VAEDecode", "SaveImage", "PreviewImage", "PreviewAny")
MUTED = {kind: {"mode": 2} for kind in AFTER_TRAINING}
# More steps than the test waits for. Samples are drawn before the first step and of what is kept.
LONG = {"steps": 4000, "batch_size": 1, "sample_every": 4000}
STEP = (
    "Number(document.querySelector('.bespoke-training .bespoke-head')?.innerText.match(/step "
    "([\\d,]+)/)?.[1].replaceAll(',', ''))"
)
INK = """(() => { const c = document.querySelector('.bespoke-training canvas'); if (!c?.width) return 0;
  const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let n = 0;
  // the average's blue
  for (let i = 0; i < d.length; i += 4) if (d[i + 3] > 60 && d[i + 2] > 200 && d[i] < 120) n++; return n; })()"""


def runs(server, **settings):
    return [run for run in server.get("/bespoke/runs")["runs"] if settings.items() <= run["settings"].items()]


@pytest.mark.parametrize(("look", "palette", "seed"), [("classic", "dark", 501), ("nodes 2.0", "light", 502)])
def test_train_reload_finish_and_find_the_lora(open_page, server, workflow, screenshots, look, palette, seed):
    page = open_page(look=look, palette=palette)
    page.load(
        workflow("lora_train_and_use"),
        **MUTED,
        BespokeImageFolder={"resolution": 64},
        BespokeTrainLora=LONG | {"seed": seed},
        BespokeSaveLora={"filename_prefix": f"page/{seed}"},
    )
    page.frame("BespokeTrainLora", 0.9)
    page.panel()
    graph = page.tab.evaluate("app.rootGraph.id")
    page.queue()
    page.panel(state="running", seconds=90)
    first = page.tab.wait(STEP)
    ink = page.tab.wait(INK)
    page.tab.wait(f"{STEP} > {first} + 5")
    page.tab.wait(f"{INK} > {ink}")
    assert re.search(r"images/s.*left", page.panel(), re.DOTALL)

    page.reload()
    page.tab.wait(f"app.rootGraph.id === {graph!r}")
    page.panel(state="running")
    page.tab.wait(f"{STEP} > {first}")
    assert page.tab.wait(INK) > 0
    page.frame("BespokeTrainLora", 0.9)
    page.picture(screenshots / f"training_{look.replace(' ', '')}_{palette}.png")

    page.tab.click(".bespoke-training .bespoke-main")
    page.panel(state="kept", seconds=60)
    name = f"page/{seed}_00001.safetensors"
    lists = f"{page.node('BespokeInjectLora')}.widgets.find((w) => w.name === 'lora_name').options.values"
    page.tab.wait(f"{lists}.includes('{name}')")
    page.idle()
    page.picture(screenshots / f"kept_{look.replace(' ', '')}_{palette}.png")
    page.tab.click(".bespoke-training .bespoke-card-button")
    page.tab.wait("document.querySelector('.bespoke-evidence-large img')?.naturalWidth === 1440")
    page.picture(screenshots / f"card_{look.replace(' ', '')}_{palette}.png")
    page.tab.press("Escape")
    page.tab.wait("!document.querySelector('.bespoke-evidence-large')")
    (run,) = runs(server, seed=seed)
    assert run["state"] == "kept"
    assert first < run["steps_done"] < LONG["steps"]
    drawn = "[...document.querySelectorAll('.bespoke-training [role=listitem]')].map((e) => Number(e.dataset.step))"
    assert page.tab.evaluate(drawn) == [0, run["steps_done"]]

    saved = page.saved()
    assert run["id"] not in saved
    flow = json.loads(saved)
    flow["nodes"] = [node for node in flow["nodes"] if node["type"] != "MarkdownNote"]  # it speaks of the loss
    names = r'"(name|type|label|localized_name)":\s*"[^"]*"'
    nodes = re.sub(names, "", re.sub('"LOSS_MAP"|"loss_weighting":', "", json.dumps(flow)))
    assert not re.search(r"loss|held.?out|curve", nodes)
    trainer = next(node for node in flow["nodes"] if node["type"] == "BespokeTrainLora")
    assert len(trainer["widgets_values"]) == len(
        next(node for node in workflow("lora_train_and_use")["nodes"] if node["type"] == "BespokeTrainLora")[
            "widgets_values"
        ]
    )

    # Dropped on the canvas, the file opens the graph that made it, and the panel finds the run again.
    page.tab.evaluate("app.rootGraph.clear()")
    page.tab.wait("app.rootGraph.nodes.length === 0")
    page.tab.drop([server.base / "models" / "loras" / name], 700, 600)
    page.tab.wait(f"!!{page.node('BespokeTrainLora')}")
    page.panel(state="kept")
    assert page.tab.evaluate(f"{page.node('BespokeTrainLora')}.widgets.find((w) => w.name === 'seed').value") == seed


def test_the_list_of_runs(open_page, server, workflow, screenshots):
    runs = [run for run in server.get("/bespoke/runs")["runs"] if run["settings"].get("seed") in (501, 502)]
    if len(runs) < 2:
        pytest.skip("this looks at the runs of the other tests: run the whole file")
    page = open_page()
    page.tab.click(RUNS_TAB)
    page.tab.wait(f"document.querySelectorAll('.bespoke-item').length >= {len(runs)}")
    page.tab.evaluate("[...document.querySelectorAll('.bespoke-item input')].slice(0, 2).forEach((box) => box.click())")
    page.tab.wait("document.querySelector('.bespoke-compare tbody')?.innerText.includes('seed')")
    kept = next(run["id"] for run in runs if run["state"] == "kept")
    page.tab.evaluate(f"document.querySelector('[data-id=\"{kept}\"] .bespoke-card').click()")
    page.tab.wait(f"!!document.querySelector('[data-id=\"{kept}\"] .bespoke-detail .bespoke-main:not([hidden])')")
    page.tab.wait(
        f"document.querySelector('[data-id=\"{kept}\"] .bespoke-evidence:not([hidden]) img')?.naturalWidth > 0"
    )
    page.picture(screenshots / "runs.png")
    before = page.tab.evaluate("app.rootGraph.nodes.length")
    page.tab.evaluate(
        f"document.querySelector('[data-id=\"{kept}\"] .bespoke-detail .bespoke-main:not([hidden])').click()"
    )
    page.tab.wait(f"app.rootGraph.nodes.length === {before} + 1")
    assert page.tab.evaluate(
        f"{page.node('BespokeInjectLora')}.widgets.find((w) => w.name === 'lora_name').value"
    ).startswith("page/50")
    page.tab.evaluate(
        f"[...document.querySelectorAll('[data-id=\"{kept}\"] .bespoke-detail button')]"
        ".find((b) => b.innerText === 'Open its graph').click()"
    )
    page.tab.wait(f"!!{page.node('BespokeTrainLora')}")
