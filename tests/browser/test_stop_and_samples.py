"""The panel of a run that stopped where its held-out loss had turned, and that draws two prompts."""

from __future__ import annotations

import json
import math

import pytest
from comfy_page import RUNS_TAB
from PIL import Image, ImageDraw

TRAINER = "BespokeTrainLora"
PANEL = "document.querySelector('.bespoke-training')"
RUN = "lora-00000000d0a1"
PROMPTS = "a teal circle\na teal ring on black --n blurry --w 96 --d 7"
STEPS = range(0, 161, 40)
# Lowest at step 120; 140 and 160 are 0.006 and 0.011 above it. The standard error is 0.001.
HELD_OUT = [(0, 0.09), (20, 0.075), (40, 0.064), (60, 0.058), (80, 0.053), (100, 0.0512), (120, 0.0504), (140, 0.0564)]
HELD_OUT += [(160, 0.0614)]


def comparisons():
    rows, lowest = [], HELD_OUT[0]
    for step, loss in HELD_OUT[1:]:
        rows.append([step, lowest[0], round(loss - lowest[1], 6), 0.001, step])
        lowest = min(lowest, (step, loss), key=lambda point: point[1])
    return rows


@pytest.fixture(scope="module")
def run(server):
    folder = server.base / "user" / "bespoke" / "runs" / RUN
    (folder / "samples").mkdir(parents=True)
    samples = []
    for step in STEPS:
        for row, (name, wide) in enumerate(((f"{step:06}.png", 64), (f"{step:06}_02.png", 96))):
            made = Image.new("RGB", (wide, 64), "#dddddd" if not row else "#222222")
            colour = (160 - step, 60 + step // 2, 60 + step // 2)
            ImageDraw.Draw(made).ellipse((8, 8, 56, 56), None if row else colour, colour, 8)
            made.save(folder / "samples" / name)
            samples.append([step, name])
    losses = [0.06 + 0.05 * math.exp(-i / 40) + 0.012 * math.sin(i * 2.1) for i in range(160)]
    record = {
        "id": RUN,
        "technique": "lora",
        "settings": {"steps": 400, "rank": 8, "seed": 11, "stop": "when validation turns", "sample_prompt": PROMPTS},
        "base": "house.safetensors",
        "images": 12,
        "started": 5000,
        "state": "kept",
        "losses": losses,
        "held_out": HELD_OUT,
        "comparisons": comparisons(),
        "samples": samples,
        "seconds": 65,
        "start_line": "16 layers, about 40 s",
    }
    (folder / "record.json").write_text(json.dumps(record))
    return RUN


def send(page, kind: str, **values) -> None:
    page.tab.evaluate(f"app.api.dispatchCustomEvent('bespoke.run.{kind}', {json.dumps(values)})")


@pytest.mark.parametrize(("look", "palette"), [("classic", "dark"), ("nodes 2.0", "light")])
def test_the_panel_shows_noise_turn_and_a_row_for_each_prompt(open_page, workflow, run, screenshots, look, palette):
    page = open_page(look=look, palette=palette)
    page.load(workflow("lora_train_and_use"))
    node = page.tab.evaluate(f"String({page.node(TRAINER)}.id)")
    known = {"node_id": node, "run_id": run}
    send(page, "start", steps=400, text="16 layers, about 40 s", **known)
    page.tab.wait(f"{PANEL}.innerText.includes('turned 0.0504 at step 120')")
    send(page, "end", state="kept", **known)
    page.tab.wait(f"{PANEL}.dataset.state === 'kept'")
    page.frame(TRAINER)
    assert "noise" in page.panel(state="kept")
    assert page.tab.evaluate(f"{PANEL}.querySelector('.bespoke-noise b').innerText") == "±0.002"
    strip = f"{PANEL}.querySelector('.bespoke-strip')"
    page.tab.wait(f"[...{strip}.querySelectorAll('img')].filter((i) => i.naturalWidth).length === 10")
    places = page.tab.evaluate(
        f"[...{strip}.children].map((e) => [Number(e.dataset.step), e.style.gridColumn, e.style.gridRow])"
    )
    assert places == [[step, str(i + 1), str(row)] for i, step in enumerate(STEPS) for row in (1, 2)]
    tops = page.tab.evaluate(f"[...{strip}.children].map((e) => Math.round(e.getBoundingClientRect().top))")
    assert len(set(tops)) == 2  # two rows, one below the other
    assert len(set(tops[::2])) == 1
    titles = page.tab.evaluate(f"[...{strip}.querySelectorAll('button')].slice(0, 2).map((e) => e.title)")
    assert titles == ["a teal circle", "a teal ring on black"]
    page.picture(screenshots / f"stop_and_samples_{look.replace(' ', '')}.png")

    page.tab.evaluate(f"{strip}.querySelectorAll('button')[3].click()")
    dialog = "document.querySelector('dialog.bespoke-large')"
    page.tab.wait(f"!!{dialog}?.querySelector('img')?.naturalWidth")
    assert page.tab.evaluate(f"{dialog}.querySelector('[role=status]').innerText") == "Step 40 (2 of 5)"
    page.tab.press("ArrowRight")  # the same prompt at the next step
    assert page.tab.evaluate(f"{dialog}.querySelector('img').src.endsWith('000080_02.png')")
    assert page.tab.evaluate(f"{dialog}.querySelector('figcaption').innerText") == "a teal ring on black"
    page.tab.press("Escape")

    page.tab.click(RUNS_TAB)
    item = f"document.querySelector('[data-id=\"{run}\"]')"
    page.tab.wait(f"!!{item}")
