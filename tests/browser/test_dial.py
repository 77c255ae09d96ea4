"""The dial on the node: its picture follows the slider, before anything is queued."""

from __future__ import annotations

import pytest
from chromium import PageError

NODE = (
    "app.rootGraph.nodes.find((n) => n.comfyClass === 'BespokePartialDenoise' && n.widgets.find((w) => w.name === "
    "'strength').value === 0.5)"
)
CANVAS = "window.dialNode.widgets.find((w) => w.name === 'schedule').element.querySelector('canvas')"
LABEL = f"{CANVAS}.getAttribute('aria-label') ?? ''"


def wait_for_label(page, words: str, seconds: float = 30) -> str:
    """Wait until the dial's label contains the text, or fail with the label."""
    try:
        page.tab.wait(f"({LABEL}).includes({words!r})", seconds)
    except PageError:
        pytest.fail(
            f"the dial says {page.tab.evaluate(LABEL)!r}, connected: {page.tab.evaluate(CANVAS + '.isConnected')}"
        )
    return page.tab.evaluate(LABEL)


def set_widget(page, name, value) -> None:
    page.tab.evaluate(
        f"(() => {{ const w = window.dialNode.widgets.find((w) => w.name === {name!r}); w.value = {value}; "
        f"w.callback?.(w.value); return true; }})()"
    )


def shares(page) -> tuple[int, int]:
    """(rows of picture, rows of noise) in the bar at the canvas's right edge, counted in its pixels."""
    return tuple(
        page.tab.evaluate(f"""(() => {{
          const canvas = {CANVAS}, x = canvas.width - Math.round(16 * canvas.width / canvas.clientWidth);
          const data = canvas.getContext("2d").getImageData(x, 0, 1, canvas.height).data;
          const count = (r, g, b) => [...Array(canvas.height).keys()].filter((y) =>
            Math.abs(data[4 * y] - r) + Math.abs(data[4 * y + 1] - g) + Math.abs(data[4 * y + 2] - b) < 12).length;
          return [count(0x4c, 0x8d, 0xce), count(0xff, 0xab, 0x40)]; }})()""")
    )


@pytest.mark.parametrize("look", ["classic", "nodes 2.0"])
def test_the_dial_moves_with_the_slider_before_anything_is_queued(open_page, workflow, server, screenshots, look):
    page = open_page(look=look)
    page.load(workflow("strength_ladder"))
    page.tab.wait("app.rootGraph.nodes.length > 5")
    page.tab.evaluate(f"(window.dialNode = {NODE}, true)")
    page.tab.evaluate(
        "(app.canvas.ds.scale = 0.9, app.canvas.ds.offset = [-dialNode.pos[0] + 100, -dialNode.pos[1] + 100], "
        "app.canvas.setDirty(true, true), true)"
    )
    set_widget(page, "steps", 25)
    set_widget(page, "scheduler", "'karras'")
    seen = wait_for_label(page, "runs 14 of 25 steps")  # noise level .5 on karras
    picture, noise = shares(page)
    assert picture > 0
    assert noise > 0
    # The text is the server's report for the same settings.
    assert "sigma 1.62 (t = 500), 72 % of the variance is noise" in seen
    assert noise / (picture + noise) == pytest.approx(0.72, abs=0.03)
    page.picture(screenshots / f"dial_{look.replace(' ', '_')}.png")

    for strength, words in ((0.2, "t = 200"), (0.9, "t = 899"), (0, "runs 0 of 25 steps")):
        set_widget(page, "strength", strength)
        wait_for_label(page, words)
        picture, noise = shares(page)
        assert (noise < 16) == (strength == 0)  # the text below the bar has its colour and crosses the column
    set_widget(page, "strength", 0.5)
    set_widget(page, "contract", "'a1111'")
    wait_for_label(page, "a1111: runs 13 of 25 steps")
    set_widget(page, "strength", 7)  # out of range: drawn as the highest, to which the widget is clamped
    wait_for_label(page, "runs 25 of 25 steps")
    queue = server.get("/queue")
    assert not queue["queue_running"]
    assert not queue["queue_pending"]
