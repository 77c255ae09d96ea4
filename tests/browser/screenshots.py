"""Takes the pictures of the README and of the help pages from the real page: `docs/pictures/` and `js/docs/img/`.

    python3 dev.py pictures [--checkpoint FILE] [training dials ...]

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
from build_workflows import NO_FOLDER, STYLE_TRAINING, Base
from canvas import Workflow
from comfy_page import RUNS_TAB, ComfyPage
from small_values import figure_text, for_small_model

OUT = host.ROOT / "docs" / "pictures"
HELP = host.ROOT / "js" / "docs" / "img"
WINDOW = (1920, 1180)  # px
EDGE_LEFT, EDGE_TOP, EDGE = 84, 96, 16  # px: the page's own bars, and the room around what is kept
WIDEST = 1600  # px of a picture that is kept
MOST, MOST_HELP, MOST_MOVING = 300_000, 150_000, 1_000_000  # bytes
FRAMES, FRAME_WIDTH, FRAME_MS, LAST_MS = 26, 960, 260, 2600
LORA, SECOND = "bespoke/first_00001.safetensors", "bespoke/second_00001.safetensors"
STEPS = 160  # of the training that is shown, by default


class ShotError(RuntimeError):
    """A picture could not be taken. The message says which."""


# --- files --------------------------------------------------------------------------------------------------------


def write(picture: Image.Image, path: Path) -> Path:
    """Write a WebP or JPEG of at most `WIDEST` px, with the best quality of 90 to 50 that has few enough bytes."""
    most = MOST_HELP if path.parent == HELP else MOST
    if picture.width > WIDEST:
        picture = picture.resize((WIDEST, round(picture.height * WIDEST / picture.width)), Image.Resampling.LANCZOS)
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

    def __init__(self, server: host.Host, browser: chromium.Chromium, figures: bool, steps: int):
        # Four samples and two saved files on the way; the seed keeps the pictures the same.
        self.training = {
            "steps": steps,
            "sample_every": steps // 4,
            "save_every": steps // 2,
            "validation": 2,
            "seed": 5,
        }
        self.server, self.browser, self.info = server, browser, server.get("/object_info")
        self.pages: list[ComfyPage] = []
        self.figures = figures
        self.prompt = "a teal cross on white"  # what the training has taught
        if figures:
            self.prompt = figure_text(self.prompt)

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
        return self.with_values(json.loads(text))

    def with_values(self, workflow: dict) -> dict:
        """A workflow with the values of the model that is served."""
        return for_small_model(workflow, self.info, self.figures)


def boxes(which: str) -> str:
    """A script: the boxes [x, y, width, height] of the nodes of a title or a type, or of a group by its title's
    beginning: those of its nodes and of its heading."""
    name = json.dumps(which)
    return (
        "(() => { const box = (n) => [n.pos[0], n.pos[1] - 34, n.size[0], n.size[1] + 34]; "
        f"const named = app.rootGraph.nodes.filter((n) => n.title === {name} || n.type === {name}); "
        f"if (named.length) return named.map(box); "
        f"const g = app.rootGraph.groups.find((g) => g.title.startsWith({name})); if (!g) return []; "
        "const x = g.pos?.[0] ?? g._bounding[0], y = g.pos?.[1] ?? g._bounding[1], "
        "w = g.size?.[0] ?? g._bounding[2], h = g.size?.[1] ?? g._bounding[3]; "
        "const inside = app.rootGraph.nodes.filter((n) => n.pos[0] >= x && n.pos[1] >= y && n.pos[0] < x + w "
        "&& n.pos[1] < y + h); return [[x, y, w, 40], ...inside.map(box)]; })()"
    )


def show(page: ComfyPage, *which: str, most: float = 1.0) -> dict:
    """Move the canvas so that these nodes fill the window, at scale `most` or smaller; gives their box in it."""
    found = "[" + ", ".join(f"...{boxes(name)}" for name in which) + "]"
    box = page.tab.evaluate(f"""(() => {{ const boxes = {found}; if (!boxes.length) return null;
      const left = Math.min(...boxes.map((b) => b[0])), top = Math.min(...boxes.map((b) => b[1]));
      const right = Math.max(...boxes.map((b) => b[0] + b[2])), bottom = Math.max(...boxes.map((b) => b[1] + b[3]));
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
        taken = page.tab.screenshot(Path(folder) / "page.png", box)
        with Image.open(taken) as picture:
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
# The panel shows a run that has ended, whose card can be opened.
DONE = "document.querySelector('.bespoke-training .bespoke-card-button:not([hidden])')?.offsetWidth > 0"
LISTEN = """(() => { window.ended = [];
  for (const kind of ["execution_success", "execution_error", "execution_interrupted"])
    app.api.addEventListener(kind, ({ detail }) => window.ended.push([kind, detail?.exception_message ?? ""])); })()"""


# --- scenes ---------------------------------------------------------------------------------------------------------


def training(stage: Stage) -> None:
    """The tour's graph: a training from Run to picture, dark and light, its panel and card."""
    page = stage.open()
    page.load(stage.example("getting_started"), BespokeTrainLora=stage.training)
    page.panel()
    wide = ("1  ", "2  ", "3  ")
    box = show(page, *wide)
    frames, both = [keep(page, box)], False
    page.tab.evaluate(LISTEN)
    page.queue()
    while not page.tab.evaluate("window.ended.length"):
        frames.append(keep(page, box))
        if not both and page.tab.evaluate(STEP) >= 0.62 * stage.training["steps"]:
            for name in ("light", "dark"):  # ends as it began
                palette(page, name)
                write(keep(page, box), OUT / f"training_{name}.webp")
            both = True
        time.sleep(0.4)
    ended = page.tab.evaluate("window.ended[0]")
    if ended[0] != "execution_success" or not both:
        raise ShotError(f"the training ended with {ended}, {'after' if both else 'before'} its pictures were taken")
    page.tab.wait(DONE)
    settle(page, 2.0)
    frames.append(keep(page, box))
    write_moving([*frames[: -1 : max(1, -(-len(frames) // FRAMES))], frames[-1]], OUT / "training.webp")
    write(keep(page, show(page, "BespokeTrainLora", most=1.5)), HELP / "train_lora.jpg")
    write(keep(page, show(page, "without and with", most=1.5)), HELP / "train_lora_made.jpg")
    write(keep(page, show(page, "Your pictures", most=1.5)), HELP / "image_folder.jpg")
    card(page)


def card(page: ComfyPage) -> None:
    """The evidence card of the run on the panel, as it is opened in the page."""
    page.tab.click(".bespoke-training .bespoke-card-button")
    picture = "document.querySelector('.bespoke-evidence-large img')"
    page.tab.wait(f"{picture}?.naturalWidth === 1440")
    address = page.tab.evaluate(f"new URL({picture}.src).pathname + new URL({picture}.src).search")
    with Image.open(io.BytesIO(page.server.get(address))) as drawn:
        write(drawn.convert("RGB"), OUT / "card.webp")
    page.tab.press("Escape")


def nodes2(stage: Stage) -> None:
    """The panel of the same run in Nodes 2.0, light."""
    page = stage.open("nodes 2.0", "light")
    page.load(stage.example("getting_started"), BespokeTrainLora=stage.training)
    show(page, "2  ")
    page.tab.wait(DONE)
    settle(page, 2.0)
    write(keep(page, show(page, "BespokeTrainLora", most=1.4)), OUT / "panel_nodes2.webp")


def dials(stage: Stage) -> None:
    """The dials of Inject LoRA on the trained file, some of them turned."""
    page = stage.open()
    w = Workflow(stage.server.get("/object_info"))
    w.column(460)
    base = Base(w)
    turned = {"query": 0.5, "blocks": "up.*, mid:0.4, down.*:0.2"}
    w.node("BespokeInjectLora", "Inject LoRA", 440, model=base.model, lora_name=LORA, **turned)
    page.load(stage.with_values(w.document()))
    page.tab.wait("document.querySelectorAll('.bespoke-heat tbody tr').length > 2")
    settle(page, 1.5)
    write(keep(page, show(page, "Inject LoRA", most=1.5)), HELP / "inject_lora.jpg")


def runs(stage: Stage) -> None:
    """The tab of runs with two of them compared and one opened; a second training of another rank is run for it."""
    page = stage.open()
    steps = max(8, stage.training["steps"] // 3)
    short = stage.training | {"steps": steps, "rank": 4, "save_every": 0, "sample_every": steps // 2}
    graph = stage.example("getting_started")
    kept = ("PreviewAny", "BespokeTrainLora", "BespokeImageFolder", "CheckpointLoaderSimple", "PrimitiveInt")
    page.load(graph, BespokeTrainLora=short)
    mute = f"app.rootGraph.nodes.forEach((n) => {{ if (!{json.dumps(kept)}.includes(n.type)) n.mode = 2; }})"
    page.tab.evaluate(f"({mute}, 1)")
    run(page)
    page.tab.click(RUNS_TAB)
    page.tab.wait("document.querySelectorAll('.bespoke-item').length >= 2")
    page.tab.evaluate("[...document.querySelectorAll('.bespoke-item input')].slice(0, 2).forEach((box) => box.click())")
    page.tab.wait("document.querySelectorAll('.bespoke-compare tbody tr').length > 2")
    page.tab.evaluate("[...document.querySelectorAll('.bespoke-item .bespoke-card')].at(-1).click()")
    page.tab.wait("!!document.querySelector('.bespoke-detail dl')")
    page.tab.evaluate("(document.querySelector('.bespoke-detail').scrollIntoView({ block: 'end' }), 1)")
    settle(page, 2.0)
    write(element(page, ".bespoke-tab"), OUT / "runs.webp")


def sweep(stage: Stage) -> None:
    """The trained LoRA after several numbers of steps and at several strengths."""
    page = stage.open()
    w = Workflow(stage.server.get("/object_info"))
    w.column()
    base = Base(w)
    pictures_of = w.node("BespokeImageFolder", "Your pictures", folder=NO_FOLDER, trigger="my style", resolution=128)
    w.column()
    wires = {"model": base.model, "clip": base.clip, "vae": base.vae}
    trainer = w.node("BespokeTrainLora", **wires, images=(pictures_of, "images"), **STYLE_TRAINING)
    w.column()
    wanted = {"strengths": "0.5, 1", "prompts": stage.prompt, "width": 128, "height": 128, "cfg": 2.0, "steps": 16}
    swept = w.node("BespokeLoraSweep", "LoRA Sweep", **wires, run=(trainer, "run"), **wanted)
    w.column(720)
    w.node("PreviewImage", "The sweep", 620, images=(swept, "grid"))
    page.load(stage.with_values(w.document()), BespokeTrainLora=stage.training)
    run(page)
    settle(page, 1.5)
    write(keep(page, show(page, "LoRA Sweep", "The sweep")), HELP / "lora_sweep.jpg")


def mask_blend(stage: Stage) -> None:
    """What Latent Mask Blend sees, and the picture before and after."""
    page = stage.open()
    page.load(stage.example("inpaint_region"))
    run(page)
    write(
        keep(page, show(page, "Blend: what it sees", "Repaint", "the original", "repainted under the mask")),
        HELP / "latent_mask_blend.jpg",
    )


def strength(stage: Stage) -> None:
    """One picture at five strengths, each node with its dial."""
    page = stage.open()
    page.load(stage.example("strength_ladder"))
    run(page)
    titles = [f"strength {value}" for value in ("0", "0.5", "0.7", "0.85", "1")]
    write(keep(page, show(page, *titles)), HELP / "partial_denoise.jpg")


def word(stage: Stage) -> None:
    """A word's training: its panel, and the starting word beside the new one."""
    page = stage.open()
    page.load(stage.example("textual_inversion"), BespokeTrainTextualInversion={"sample_every": 30, "validation": 2})
    run(page)
    settle(page, 1.5)
    write(keep(page, show(page, "BespokeTrainTextualInversion", most=1.5)), HELP / "textual_inversion.jpg")
    write(keep(page, show(page, "the starting word", "the new word")), HELP / "textual_inversion_made.jpg")


SCENES: dict[str, Callable[[Stage], None]] = {
    "training": training,
    "dials": dials,
    "mask_blend": mask_blend,
    "strength": strength,
    "nodes2": nodes2,
    "sweep": sweep,
    "runs": runs,
    "word": word,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, default=host.ROOT / ".dev" / "shots")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of the training that is shown ({STEPS})")
    parser.add_argument("scenes", nargs="*", metavar="scene", help=f"of {', '.join(SCENES)}; all without one")
    args = parser.parse_args()
    unknown = set(args.scenes) - set(SCENES)
    if unknown:
        parser.error(f"there is no scene {', '.join(sorted(unknown))}: choose among {', '.join(SCENES)}")
    if chromium.find() is None:
        parser.error("no Chromium is installed (Debian: apt-get install chromium)")
    host.end_on_terminate()
    base = host.prepare_base(args.base, args.checkpoint)
    pictures.make(base / "input", args.checkpoint)
    failed = []
    with host.Host(base) as server, chromium.Chromium(WINDOW) as browser:
        stage = Stage(server, browser, pictures.are_figures(args.checkpoint), args.steps)
        for name in args.scenes or SCENES:
            print(f"Scene {name}", flush=True)
            try:
                SCENES[name](stage)
            except (ShotError, chromium.PageError, AssertionError, OSError) as error:  # the others do not need it
                print(f"{name}: {error}", file=sys.stderr, flush=True)
                failed.append(name)
            stage.close()
    if failed:
        print(f"Not taken: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
