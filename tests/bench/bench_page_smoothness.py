"""The cost of a running training for the page: 10 updates each second, run of 10,000 steps, graph of 60 nodes.

    python3 dev.py test tests/bench/bench_page_smoothness.py -m bench -s

Each update is timed in the page by wall time: receiving the event, the panel's part of the frame, the curve's pixels,
and style and layout of the changed texts. Putting a frame on the screen is not included, since ComfyUI draws one for
every step for its progress bar. Other work on the machine lengthens all of it, so the load and the least time are
printed too.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "browser"))
sys.path.insert(0, str(ROOT / "tests" / "server"))
sys.path.insert(0, str(ROOT / "tests" / "demo"))

MOST_MS = 4.0
SETUP = """(async () => {
  const path = String(%s.id), steps = 10000, id = "lora-0123456789ab";
  const send = (kind, values) => app.api.dispatchCustomEvent("bespoke.run." + kind, { node_id: path, run_id: id,
    ...values });
  const at = (step) => send("step", { step, steps, loss: 0.05 + 0.05 * Math.random(),
    loss_ema: 0.05 + 0.05 * Math.exp(-step / 3000), lr: 1e-3,
    images_per_second: 31, eta_s: (steps - step) / 8, memory_mb: 1500 });
  send("start", { steps, text: "16 layers, 110,592 numbers; about 20 min" });
  for (let step = 1; step <= 9800; step++) { at(step); if (step %% 100 === 0) send("validation", { step,
    loss: 0.06 + 0.01 * Math.random() }); }
  const frame = () => new Promise((done) => requestAnimationFrame(() => done(performance.now())));
  await frame(); await frame();
  const pause = () => new Promise((done) => setTimeout(done, 100));
  const panel = document.querySelector(".bespoke-training");
  const settle = () => { const began = performance.now(); panel.offsetHeight; document.body.offsetHeight;
    return performance.now() - began; };
  const costs = [];
  for (let step = 9801; step <= 10000; step++) {
    await frame();
    settle();  // what others have changed
    const before = frame();  // its turn comes before the panel's
    const began = performance.now();
    at(step);
    const taken = performance.now() - began;
    const after = frame();  // and this one's after it
    const drawn = (await after) - (await before);
    const pixels = performance.now();
    panel.querySelector("canvas").getContext("2d").getImageData(0, 0, 1, 1);  // which fills them
    costs.push(taken + drawn + performance.now() - pixels + settle());
    await pause();
  }
  costs.sort((a, b) => a - b);
  return { least: costs[0], median: costs[100], p95: costs[190], most: costs[199] };
})()"""


def measure(page) -> dict:
    """{"least", "median", "p95", "most"} of 200 updates, in milliseconds."""
    return page.tab.evaluate(SETUP % page.node("BespokeTrainLora"), seconds=300)


@pytest.mark.bench
@pytest.mark.parametrize("look", ["classic", "nodes 2.0"])
def test_cost_of_an_update(look, tmp_path, small_checkpoint):
    import chromium
    import host
    from comfy_page import ComfyPage
    from small_values import for_small_model

    if chromium.find() is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    base = host.prepare_base(tmp_path, small_checkpoint)
    with chromium.Chromium() as browser, host.Host(base) as server:
        page = ComfyPage(browser, server, look=look)
        workflow = json.loads((ROOT / "example_workflows" / "lora_train_and_use.json").read_text("utf-8"))
        page.load(for_small_model(workflow, server.get("/object_info")))
        page.tab.evaluate("""(() => { const G = app.rootGraph; for (let i = 0; G.nodes.length < 60; i++) {
          const n = LiteGraph.createNode("KSampler"); n.pos = [(i % 10) * 320, 1200 + Math.floor(i / 10) * 320];
            G.add(n); } })()""")
        page.frame("BespokeTrainLora", 0.8)
        cost = measure(page)
    print(
        f"\n{look}: ms an update: least {cost['least']:.2f}, median {cost['median']:.2f}, 95 % under "
        f"{cost['p95']:.2f}, "
        f"most {cost['most']:.2f} (limit {MOST_MS}; load of the machine {os.getloadavg()[0]:.1f} on "
        f"{os.cpu_count()} cores)"
    )
    assert cost["median"] < MOST_MS
