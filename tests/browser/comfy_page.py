"""ComfyUI's page as a user operates it: open it, load a graph, queue, show a node."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

from chromium import Chromium, Page, PageError

# The splash screen covers the page for a while after the graph is loaded, and takes the clicks.
READY = (
    "!!window.LiteGraph?.registered_node_types?.BespokeTrainLora && !!window.app?.vueAppReady && !!app.rootGraph"
    " && !document.getElementById('splash-loader')"
)
# The sidebar's button: a class up to page 1.49, an attribute from 1.50 on.
RUNS_TAB = ":is(.bespoke-runs-tab-button, [data-testid='bespoke-runs-tab-button'])"
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "Comfy.Workflow.WarnBeforeExecute": False}


class ComfyPage:
    """A tab with ComfyUI in it. look: "classic" or "nodes 2.0"; palette: "dark" or "light"."""

    def __init__(
        self,
        browser: Chromium,
        server,
        look: str = "classic",
        palette: str = "dark",
        rewrite: Callable | None = None,
        **settings,
    ):
        server.post(
            "/settings",
            SETTINGS | {"Comfy.VueNodes.Enabled": look == "nodes 2.0", "Comfy.ColorPalette": palette} | settings,
        )
        self.server, self.tab = server, browser.open(rewrite=rewrite)
        self.tab.go(server.url)
        self.ready()

    def ready(self) -> None:
        self.tab.wait(READY, 90)
        # By default only the first use of a deprecated function is reported.
        self.tab.evaluate("(LiteGraph.alwaysRepeatWarnings = true, 1)")

    def version(self) -> str:
        """The version of the page."""
        return self.tab.evaluate("window.__COMFYUI_FRONTEND_VERSION__")

    def reload(self) -> None:
        self.tab.reload()
        self.ready()

    def look(self, look: str) -> None:
        """Switch between the classic canvas and Nodes 2.0 by the setting, for the next graph that is loaded."""
        on = json.dumps(look == "nodes 2.0")
        self.tab.evaluate(f"app.extensionManager.setting.set('Comfy.VueNodes.Enabled', {on})")
        self.tab.wait(f"LiteGraph.vueNodesMode === {on}")

    def load(self, workflow: dict, **changes: dict) -> None:
        """Open a graph. changes: widget values by node type, as BespokeTrainLora={"steps": 3}; mode=2 mutes."""
        self.tab.evaluate(f"app.loadGraphData({json.dumps(workflow)}).then(() => true)")
        for kind, values in changes.items():
            assert self.change(kind, **values), f"the graph has no {kind}"

    def change(self, kind: str, **values) -> int:
        """Set widgets (or the mode) of every node of a type, as a user does; returns the number of nodes."""
        return self.tab.evaluate(f"""(() => {{
          const found = app.rootGraph.nodes.filter((n) => (n.comfyClass ?? n.type) === {json.dumps(kind)});
          for (const n of found) for (const [name, value] of Object.entries({json.dumps(values)})) {{
            if (name === "mode") n.mode = value;
            else {{ const w = n.widgets.find((w) => w.name === name); if (!w) throw Error("no widget " + name);
              w.value = value; w.callback?.(value); }}
          }}
          return found.length; }})()""")

    def node(self, kind: str) -> str:
        """A script that finds the first node of a type."""
        return f"app.rootGraph.nodes.find((n) => (n.comfyClass ?? n.type) === {json.dumps(kind)})"

    def queue(self) -> None:
        self.tab.evaluate("app.queuePrompt(0).then(() => true)")

    def run_to_end(self, seconds: float = 300) -> None:
        """Queue the graph and wait until it has ended. Fails where it ends with an error."""
        self.tab.evaluate("""(() => { window.ended = [];
          for (const kind of ["execution_success", "execution_error", "execution_interrupted"])
            app.api.addEventListener(kind, ({ detail }) => window.ended.push([kind, detail?.exception_message ?? ""]));
            })()""")
        self.queue()
        ended = self.tab.wait("window.ended.length && window.ended", seconds)
        assert ended[0][0] == "execution_success", ended
        self.idle()

    def idle(self, seconds: float = 120) -> None:
        """Wait until the server has nothing to do."""
        self.tab.wait(
            "fetch('/queue').then((a) => a.json()).then((q) => !q.queue_running.length && !q.queue_pending.length)",
            seconds,
        )

    def panel(self, seconds: float = 30, **wanted: str) -> str:
        """The training panel's text, once it has the wanted state: panel(state="kept")."""
        state = wanted.get("state")
        test = (
            f"document.querySelector('.bespoke-training')?.dataset.state === {json.dumps(state)}" if state else "true"
        )
        return self.tab.wait(f"{test} && document.querySelector('.bespoke-training')?.innerText", seconds)

    def frame(self, kind: str, scale: float = 1.0) -> None:
        """Scroll and zoom to a node, at `scale` or smaller, so that all of it is visible."""
        self.tab.evaluate(f"""(() => {{ const n = {self.node(kind)};
          const scale = app.canvas.ds.scale = Math.min({scale}, (window.innerHeight - 150) / n.size[1]);
          app.canvas.ds.offset = [-n.pos[0] + 120 / scale, -n.pos[1] + 90 / scale]; app.canvas.setDirty(true, true);
            }})()""")

    def saved(self) -> str:
        """The graph as the page would save it."""
        return self.tab.evaluate("JSON.stringify(app.rootGraph.serialize())")

    def picture(self, path: Path) -> None:
        """Save a screenshot."""
        self.tab.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")
        self.tab.screenshot(path)

    def close(self) -> None:
        with contextlib.suppress(PageError):
            self.tab.close()


def without_the_pack(url: str, body: bytes) -> bytes:
    """For `rewrite`: the page without the pack's scripts."""
    if not url.split("?")[0].endswith("/extensions"):
        return body
    return json.dumps([path for path in json.loads(body) if "/bespoke/" not in path]).encode()


def complaints(page: Page) -> list[str]:
    """The page's errors without the parts that differ from one load to the next."""
    return sorted({error.split("?")[0] for error in page.errors})
