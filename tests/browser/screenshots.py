"""Takes the pictures of the README and of the help pages from the real page: `docs/pictures/` and `js/docs/img/`.

    python3 dev.py shots [training runs ...] [--checkpoint FILE]

or, where `COMFYUI_PATH` is set, `python tests/browser/screenshots.py --checkpoint FILE [--base DIR] [scene ...]`.

A ComfyUI with this pack and the demo's inputs is started, its page is opened in Chromium, and every scene of `SCENES`
loads a graph, runs it and keeps a part of the page. The first scene trains, and the others use its file and its run.
Without `--checkpoint` it is the small model. A picture has at most `MOST` bytes, the moving one `MOST_MOVING`; one that
would be larger is written again with less quality, and refused where that does not help.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "server"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "demo"))

import chromium
import host
import pictures
from canvas import Workflow
from comfy_page import RUNS_TAB, ComfyPage
from small_values import for_small_model

OUT = host.ROOT / "docs" / "pictures"
HELP = host.ROOT / "js" / "docs" / "img"
WINDOW = (1600, 1000)  # px
EDGE_LEFT, EDGE_TOP, EDGE = 84, 96, 16  # px: the page's own bars, and the room around what is kept
MOST, MOST_MOVING, MOST_TOGETHER = 300_000, 1_000_000, 3_000_000  # bytes
FRAMES, FRAME_WIDTH, FRAME_MS, LAST_MS = 24, 960, 240, 2600
LORA = "bespoke/first_00001.safetensors"
# Enough that the curve turns and samples differ; the seed keeps the pictures the same.
TRAINING = {"steps": 240, "sample_every": 60, "save_every": 80, "validation": 2, "seed": 5}
AFTER = {"lora_name": LORA}


class ShotError(RuntimeError):
    """A picture could not be taken. The message says which."""


# --- files --------------------------------------------------------------------------------------------------------


def write(picture: Image.Image, path: Path, most: int = MOST) -> Path:
    """Write a WebP or JPEG of at most `most` bytes, with the best quality of 90 to 50 that has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {".webp": "WEBP", ".jpg": "JPEG"}[path.suffix]
    for quality in (90, 84, 78, 70, 60, 50):
        data = io.BytesIO()
        picture.convert("RGB").save(data, kind, quality=quality, **({"method": 6} if kind == "WEBP" else {}))
        if data.tell() <= most:
            path.write_bytes(data.getvalue())
            print(f"{path.relative_to(host.ROOT)}: {picture.width}x{picture.height}, {data.tell() / 1000:.0f} kB")
            return path
    raise ShotError(f"{path.name} has {data.tell()} bytes at quality 50, more than {most}: take a smaller part")


def write_moving(frames: list[Image.Image], path: Path) -> Path:
    """Write an animated WebP of at most `MOST_MOVING` bytes, whose last frame stays longer."""
    small = [
        frame.resize((FRAME_WIDTH, round(frame.height * FRAME_WIDTH / frame.width)), Image.Resampling.LANCZOS)
        for frame in frames
    ]
    durations = [FRAME_MS] * (len(small) - 1) + [LAST_MS]
    for quality in (75, 60, 45, 30):
        data = io.BytesIO()
        small[0].save(
            data, "WEBP", save_all=True, append_images=small[1:], duration=durations, loop=0, quality=quality, method=4
        )
        if data.tell() <= MOST_MOVING:
            path.write_bytes(data.getvalue())
            print(f"{path.relative_to(host.ROOT)}: {len(small)} frames, {data.tell() / 1000:.0f} kB")
            return path
    raise ShotError(f"{path.name} has {data.tell()} bytes at quality 30, more than {MOST_MOVING}: keep fewer frames")


# --- the page -------------------------------------------------------------------------------------------------------


class Stage:
    """One server and one browser, and the pages that scenes open on them."""

    def __init__(self, server: host.Host, browser: chromium.Chromium):
        self.server, self.browser, self.info = server, browser, server.get("/object_info")
        self.pages: list[ComfyPage] = []

    def open(self, look: str = "classic", palette: str = "dark") -> ComfyPage:
        """A page without what a first start shows."""
        quiet = {"Comfy.Workflow.Persist": False, "Comfy.Graph.CanvasInfo": False, "Comfy.EnableTooltips": False}
        self.pages.append(ComfyPage(self.browser, self.server, look=look, palette=palette, **quiet))
        return self.pages[-1]

    def close(self) -> None:
        """Close the pages of a scene."""
        while self.pages:
            self.pages.pop().close()

    def example(self, name: str) -> dict:
        """An example workflow with the demo's values."""
        text = (host.ROOT / "example_workflows" / f"{name}.json").read_text("utf-8")
        return for_small_model(json.loads(text), self.info)


def find(which: str) -> str:
    """A script: the nodes of a title, of a type, or of a group's title (from its beginning), as a list."""
    name = json.dumps(which)
    return (
        f"(() => {{ const named = app.rootGraph.nodes.filter((n) => n.title === {name} || n.type === {name}); "
        f"if (named.length) return named; const g = app.rootGraph.groups.find((g) => g.title.startsWith({name})); "
        "if (!g) return []; const [x, y, w, h] = g.bounding; return app.rootGraph.nodes.filter((n) => "
        "n.pos[0] >= x && n.pos[1] >= y && n.pos[0] < x + w && n.pos[1] < y + h); })()"
    )


def show(page: ComfyPage, *which: str, most: float = 1.0) -> dict:
    """Move the canvas so that these nodes fill the window, at scale `most` or smaller; gives their box in the window."""
    nodes = "[" + ", ".join(f"...{find(name)}" for name in which) + "]"
    box = page.tab.evaluate(f"""(() => {{ const nodes = {nodes}; if (!nodes.length) return null;
      const left = Math.min(...nodes.map((n) => n.pos[0])), top = Math.min(...nodes.map((n) => n.pos[1] - 34));
      const right = Math.max(...nodes.map((n) => n.pos[0] + n.size[0]));
      const bottom = Math.max(...nodes.map((n) => n.pos[1] + (n.flags.collapsed ? 0 : n.size[1])));
      const room = [window.innerWidth - {EDGE_LEFT} - {3 * EDGE}, window.innerHeight - {EDGE_TOP} - {3 * EDGE}];
      const scale = Math.min({most}, room[0] / (right - left), room[1] / (bottom - top));
      app.canvas.ds.scale = scale;
      app.canvas.ds.offset = [-left + {EDGE_LEFT + EDGE} / scale, -top + {EDGE_TOP + EDGE} / scale];
      app.canvas.setDirty(true, true);
      return {{ x: {EDGE_LEFT}, y: {EDGE_TOP}, width: Math.ceil((right - left) * scale) + {2 * EDGE},
        height: Math.ceil((bottom - top) * scale) + {2 * EDGE} }}; }})()""")
    if box is None:
        raise ShotError(f"the graph has none of {which}")
    settle(page)
    return box


def settle(page: ComfyPage, seconds: float = 0.6) -> None:
    """Wait until what has changed is drawn."""
    time.sleep(seconds)
    page.tab.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")


def keep(page: ComfyPage, box: dict | None = None) -> Image.Image:
    """The page, or a box of it."""
    page.tab.evaluate("document.querySelectorAll('.p-toast-message').forEach((e) => e.remove())")
    with tempfile.TemporaryDirectory() as folder:
        with Image.open(page.tab.screenshot(Path(folder) / "page.png", box)) as picture:
            return picture.convert("RGB")


def element(page: ComfyPage, selector: str, edge: int = 8) -> Image.Image:
    """The first element of a selector and a little around it."""
    box = page.tab.evaluate(
        f"(() => {{ const r = document.querySelector({json.dumps(selector)}).getBoundingClientRect(); return "
        f"{{ x: Math.max(0, r.x - {edge}), y: Math.max(0, r.y - {edge}), width: r.width + {2 * edge}, "
        f"height: r.height + {2 * edge} }}; }})()"
    )
    return keep(page, box)


def run(page: ComfyPage, seconds: float = 900) -> None:
    page.run_to_end(seconds)
    settle(page, 1.5)


def palette(page: ComfyPage, name: str) -> None:
    page.tab.evaluate(f"app.extensionManager.setting.set('Comfy.ColorPalette', {name!r}).then(() => true)")
    settle(page, 1.0)


STEP = (
    "(() => { const m = document.querySelector('.bespoke-training .bespoke-head')?.innerText.match(/step ([\\d,]+)/); "
    "return m ? Number(m[1].replaceAll(',', '')) : 0; })()"
)
ENDED = "(window.ended ?? []).length"


# --- scenes ---------------------------------------------------------------------------------------------------------


def training(stage: Stage) -> None:
    """The tour's graph: a training from Run to picture, dark and light, its panel, and the file for the other scenes."""
    page = stage.open()
    page.load(stage.example("getting_started"), BespokeTrainLora=TRAINING)
    page.panel()
    page.tab.evaluate("""(() => { window.ended = [];
      for (const kind of ["execution_success", "execution_error", "execution_interrupted"])
        app.api.addEventListener(kind, ({ detail }) => window.ended.push([kind, detail?.exception_message ?? ""]));
        })()""")
    wide = ("1  ", "2  ", "3  ")
    frames = [keep(page, show(page, *wide))]
    page.queue()
    taken = 0
    while not page.tab.evaluate(ENDED):
        step = page.tab.evaluate(STEP)
        if step * (FRAMES - 6) >= taken * TRAINING["steps"]:
            frames.append(keep(page, show(page, *wide)))
            taken += 1
        if step >= 0.7 * TRAINING["steps"] and taken >= 0:
            _both(page, wide)
            taken = FRAMES if step >= TRAINING["steps"] else max(taken, -1)
            break
        time.sleep(0.3)
    while not page.tab.evaluate(ENDED):
        frames.append(keep(page, show(page, *wide)))
        time.sleep(max(1.0, TRAINING["steps"] / 60))
    ended = page.tab.evaluate("window.ended[0]")
    if ended[0] != "execution_success":
        raise ShotError(f"the training ended with {ended}")
    page.panel(state="finished")
    settle(page, 2.0)
    frames.append(keep(page, show(page, *wide)))
    step = max(1, -(-len(frames) // FRAMES))
    write_moving([*frames[:-1:step], frames[-1]], OUT / "training.webp")
    write(keep(page, show(page, "BespokeTrainLora", most=1.4)), OUT / "panel.webp")


def _both(page: ComfyPage, wide: tuple[str, ...]) -> None:
    """The running training in both palettes."""
    write(keep(page, show(page, *wide)), OUT / "training_dark.webp")
    palette(page, "light")
    write(keep(page, show(page, *wide)), OUT / "training_light.webp")
    palette(page, "dark")


SCENES: dict[str, Callable[[Stage], None]] = {"training": training}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, default=host.ROOT / ".dev" / "shots")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("scenes", nargs="*", metavar="scene", help=f"of {', '.join(SCENES)}; all without one")
    args = parser.parse_args()
    unknown = set(args.scenes) - set(SCENES)
    if unknown:
        parser.error(f"there is no scene {', '.join(sorted(unknown))}: choose among {', '.join(SCENES)}")
    if chromium.find() is None:
        parser.error("no Chromium is installed (Debian: apt-get install chromium)")
    host.end_on_terminate()
    base = host.prepare_base(args.base, args.checkpoint)
    pictures.make(base / "input")
    with host.Host(base) as server, chromium.Chromium(WINDOW) as browser:
        stage = Stage(server, browser)
        for name in args.scenes or SCENES:
            print(f"Scene {name}", flush=True)
            SCENES[name](stage)
            stage.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
