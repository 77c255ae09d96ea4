"""The demo: queues the example workflows over HTTP on a real ComfyUI server and draws a contact sheet.

    python tests/demo/run.py --base DIR --checkpoint FILE [--workflows FOLDER] [--all]

`python3 dev.py demo` calls it. The base directory is created anew each time, so that every run starts equally.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import shutil
import sys
import time
import urllib.error
import urllib.parse
import uuid
from pathlib import Path

import aiohttp
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "server"))

import graph
import host
import pictures
import sheet
from small_values import for_small_model

# {file name of a workflow: (technique, headline of five words, sentence) of its section}, in the order of the sheet.
# Later ones use files that earlier ones save. Only the first `ESSENTIAL` are run without --all.
ESSENTIAL = 4
SECTIONS = {
    "lora_train_and_use": (
        "LoRA",
        "A style from twelve pictures",
        "A colour that the model never saw. Each column is one seed, without and with the LoRA.",
    ),
    "strength_ladder": (
        "Strength",
        "One picture at five strengths",
        "0 gives it back untouched, 1 makes it anew. No pixel is edited.",
    ),
    "inpaint_region": (
        "Inpainting",
        "Repaint only under a mask",
        "Every pixel outside the mask is the original's, counted.",
    ),
    "textual_inversion": (
        "Textual inversion",
        "A new word, eight pictures",
        "The model itself stays as it is. Each column is one seed.",
    ),
    "three_techniques": (
        "Side by side",
        "Three techniques, the same seeds",
        "A LoRA, a word and a partial denoise on one set of pictures, and what each took.",
    ),
    "getting_started": (
        "Getting started",
        "Pictures in, a LoRA out",
        "The tour: your pictures, train, look at the same seeds, and use the saved file.",
    ),
    "lora_subject": (
        "A subject",
        "One subject, its class kept",
        "A shape that the model never saw, and its class kept by prior pictures.",
    ),
    "slider_from_words": (
        "A slider from words",
        "A dial made of words",
        "From blue to red, learned without a picture: the same seeds at -1, 0 and 1.",
    ),
    "slider_from_pairs": (
        "A slider from pairs",
        "A dial made of pairs",
        "From small to large, learned from eight pairs: the same seeds at -1, 0 and 1.",
    ),
    "edit_from_pairs": (
        "An edit",
        "One edit from twelve pairs",
        "A change learned from pairs of a source and a result.",
    ),
    "lora_compose": (
        "Two LoRAs composed",
        "Two LoRAs, one exact sum",
        "The colour and the shape, alone and as the exact sum of both.",
    ),
    "lora_into_checkpoint": (
        "A LoRA in a checkpoint",
        "Merged into a checkpoint file",
        "The base, and what the checkpoint with the LoRA draws.",
    ),
    "lora_inspect_and_scope": (
        "A LoRA in part",
        "Look inside, use a part",
        "What it changes by block and projection, and what only a part of it does.",
    ),
    "word_and_lora": (
        "Word plus LoRA",
        "Word and LoRA, one file",
        "One run learns both, and one file carries them.",
    ),
    "img2img_few_steps": (
        "Few steps",
        "Four steps at exact strengths",
        "Two strengths in two contracts, and the schedule.",
    ),
    "inpaint_only_masked": (
        "Only masked",
        "Small places at full size",
        "A small place cut out, repainted at the model's own resolution, and put back.",
    ),
    "fix_many_faces": (
        "Many places",
        "Many places in one batch",
        "Each separate part of a mask is a crop; all are repainted in one batch.",
    ),
    "inpaint_soft": ("Soft inpainting", "A mask with soft edges", "A grey mask is a strength for each place."),
    "inpaint_two_stages": (
        "Two stages",
        "Two samplers, one exact background",
        "The steps are split over two samplers; the background stays exact.",
    ),
    "outpaint": (
        "Outpainting",
        "The picture, made wider, exact",
        "A new border, filled from the edge and painted on; the old picture stays exact.",
    ),
}
NEED_EDIT_FORM = {"edit_from_pairs"}  # left out where the model has no instruct-pix2pix form
BEFORE, AFTER = "before", "after"
# {file name of a workflow: {title of a node with pictures: what its card calls them}}: one to three pictures that tell
# at 220 px what the workflow does. A label of three pictures has room for about nine letters.
CARDS = {
    "lora_train_and_use": {"without the LoRA": BEFORE, "with the LoRA": AFTER},
    "strength_ladder": {"strength 0": "0", "strength 0.7": "0.7", "strength 1": "1"},
    "inpaint_region": {"the original": BEFORE, "repainted under the mask": AFTER},
    "textual_inversion": {"the starting word": "a word", "the new word": "your word"},
    "three_techniques": {"the three techniques": ""},
    "getting_started": {"without and with": ""},
    "lora_subject": {"the subject, without the LoRA": BEFORE, "the subject, with the LoRA": AFTER},
    "slider_from_words": {"at -1": "-1", "without": "0", "at 1": "1"},
    "slider_from_pairs": {"at -1": "-1", "without": "0", "at 1": "1"},
    "edit_from_pairs": {"without the LoRA": BEFORE, "with the LoRA": AFTER},
    "lora_compose": {"the style alone": "style", "the subject alone": "subject", "both composed": "both"},
    "lora_into_checkpoint": {"the base": "base", "what the checkpoint draws": "merged"},
    "lora_inspect_and_scope": {"all of it": "all of it", "the up blocks only": "a part"},
    "word_and_lora": {"the starting word": BEFORE, "the new word and the LoRA": AFTER},
    "img2img_few_steps": {"noise level, 0.6": "0.6", "noise level, 0.7": "0.7"},
    "inpaint_only_masked": {"the original": BEFORE, "the place repainted": AFTER},
    "fix_many_faces": {"the original": BEFORE, "every place repainted": AFTER},
    "inpaint_soft": {"the original": BEFORE, "repainted softly": AFTER},
    "inpaint_two_stages": {"the original": BEFORE, "repainted in two stages": AFTER},
    "outpaint": {"the picture": BEFORE, "the wider picture": AFTER},
}


class DemoError(RuntimeError):
    """A workflow did not run. The message names the workflow, the node and the reason."""


# --- queueing -----------------------------------------------------------------------------------------------------


async def run_workflow(server: host.Host, workflow: dict, whole: Whole | None = None) -> dict[str, dict]:
    """Queue a workflow and wait for its end; returns {node id: {"title", "images": [bytes], "text": [str]}} of its
    outputs.

    A node that wants a file which another node of the same workflow writes is refused at first, as in the page. Then
    the rest runs and the workflow is queued once more, when the file is there; what ran already comes from the cache.
    """
    client = uuid.uuid4().hex
    results: dict[str, dict] = {}
    address = f"{server.url}/ws?clientId={client}"
    # Previews are messages too, so their size is not limited.
    async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as ws:
        for again in (False, True):
            object_info = await asyncio.to_thread(server.get, "/object_info")
            prompt = graph.to_prompt(workflow, object_info)
            prompt_id, refused = await asyncio.to_thread(_queue, server, prompt, workflow, client)
            if refused and again:
                raise DemoError(refused)
            await _follow(ws, prompt_id, prompt, whole)
            for node, output in (await _outputs(server, prompt_id)).items():
                images = [await asyncio.to_thread(_view, server, image) for image in output.get("images", [])]
                title = prompt[node]["_meta"]["title"]
                results[node] = {"title": title, "images": images, "text": list(output.get("text", []))}
            if not refused:
                break
    return results


def _queue(server: host.Host, prompt: dict, workflow: dict, client: str) -> tuple[str, str]:
    """(prompt id, the refused outputs as text). Raises `DemoError` if the server refuses the whole prompt."""
    body = {"prompt": prompt, "client_id": client, "extra_data": {"extra_pnginfo": {"workflow": workflow}}}
    try:
        answer = server.post("/prompt", body)
    except urllib.error.HTTPError as error:
        answer = json.loads(error.read())
        raise DemoError(f"the server refuses the workflow: {_refusals(answer, prompt)}") from None
    return answer["prompt_id"], _refusals(answer, prompt) if answer.get("node_errors") else ""


def _refusals(answer: dict, prompt: dict) -> str:
    lines = [
        f"{prompt[node]['_meta']['title']} (node {node}): {error['message']}: {error['details']}"
        for node, errors in (answer.get("node_errors") or {}).items()
        for error in errors["errors"]
    ]
    return "; ".join(lines) or str((answer.get("error") or {}).get("message", answer))


async def _outputs(server: host.Host, prompt_id: str) -> dict:
    """The outputs of the prompt's nodes. The server writes the history shortly after the prompt has ended."""
    for _ in range(100):
        history = await asyncio.to_thread(server.get, f"/history/{prompt_id}")
        if prompt_id in history:
            return history[prompt_id]["outputs"]
        await asyncio.sleep(0.1)
    raise DemoError("the server has no history of the prompt")


def _view(server: host.Host, image: dict) -> bytes:
    return server.get("/view?" + urllib.parse.urlencode({k: image[k] for k in ("filename", "subfolder", "type")}))


async def _follow(ws, prompt_id: str, prompt: dict, whole: Whole | None) -> None:
    """Read the socket until the prompt has ended, and show the progress."""
    shown = Progress(len(prompt), whole)
    try:
        async for message in ws:
            if message.type != aiohttp.WSMsgType.TEXT:
                continue
            event = json.loads(message.data)
            kind, data = event["type"], event.get("data") or {}
            if data.get("prompt_id") != prompt_id:
                continue
            node = str(data.get("node") or data.get("node_id") or "")
            title = prompt[node]["_meta"]["title"] if node in prompt else node
            if kind == "execution_cached":
                shown.done(len(data["nodes"]))
            elif kind == "executing" and node:
                shown.node(title, work_of(prompt[node], prompt))
            elif kind == "progress":
                shown.step(title, data["value"], data["max"])
            elif kind == "execution_error":
                raise DemoError(
                    f"{title} (node {node}) failed: {data['exception_type']}: {data['exception_message'].strip()}"
                )
            elif kind == "execution_interrupted":
                raise DemoError(f"interrupted at {title} (node {node})")
            elif kind == "execution_success":
                return
        raise DemoError("the server closed the connection, perhaps for want of memory")
    finally:
        shown.end()


# The work of a step of a trainer at batch 1, in model calls of one picture: a call, and twice its time for the
# gradient. A word's gradient goes through the text encoder too, about four times as long (README, seconds of a step).
TRAINERS = {
    "BespokeTrainLora": 3,
    "BespokeTrainTextualInversion": 12,
    "BespokeTrainWordAndLora": 12,
    "BespokeTrainSlider": 6,
}
SAMPLERS = {"KSampler", "KSamplerAdvanced", "BespokePartialDenoise", "SamplerCustomAdvanced"}
LATER = 5  # seconds, after which there is something to estimate the time left from


def work_of(node: dict, prompt: dict) -> float:
    """About how many model calls of one picture a node makes: what the time that is left is estimated from."""
    kind, inputs = node["class_type"], node["inputs"]
    steps = inputs.get("steps", 20) if not isinstance(inputs.get("steps"), list) else 20
    if kind in TRAINERS:
        return TRAINERS[kind] * steps * inputs.get("batch_size", 1)
    if kind not in SAMPLERS:
        return 0.0
    batches = (
        other["inputs"].get("batch_size") for other in prompt.values() if other["class_type"] == "EmptyLatentImage"
    )
    return 2.0 * steps * max((batch for batch in batches if isinstance(batch, int)), default=1)


class Whole:
    """How far the whole demo is. total: the work of all its workflows, see `work_of`."""

    def __init__(self, total: float):
        self.total, self.done, self.began = max(total, 1.0), 0.0, time.monotonic()

    def left(self, now_done: float = 0.0) -> str:
        """Words about the time left, "" as long as nothing is known. now_done: the work done of the running node."""
        seconds, done = time.monotonic() - self.began, self.done + now_done
        if seconds < LATER or done <= 0:
            return ""
        left = seconds / done * max(self.total - done, 0.0)
        return f", about {left / 60:.0f} min left in all" if left >= 90 else f", about {left:.0f} s left in all"


class Progress:
    """One line that is overwritten on a terminal; elsewhere a line every ten seconds."""

    def __init__(self, nodes: int, whole: Whole | None = None):
        self.nodes, self.count, self.title, self.whole, self.work = nodes, 0, "", whole, 0.0
        self.began = self.written = time.monotonic()
        self.terminal = sys.stdout.isatty()

    def done(self, nodes: int) -> None:
        self.count += nodes

    def node(self, title: str, work: float = 0.0) -> None:
        self._finish()
        self.count, self.work = self.count + 1, work
        self.title, self.began = title, time.monotonic()
        self._write(title)

    def step(self, title: str, value: float, largest: float) -> None:
        if title != self.title:
            self.title, self.began = title, time.monotonic()
        seconds = time.monotonic() - self.began
        left = f", {seconds / value * (largest - value):.0f} s left" if value and seconds > 2 else ""
        whole = self.whole.left(self.work * value / largest) if self.whole and largest else ""
        self._write(f"{title}: {value:.0f} of {largest:.0f}{left}{whole}")

    def _finish(self) -> None:
        """Count the work of the node that ran."""
        if self.whole:
            self.whole.done += self.work
        self.work = 0.0

    def _write(self, text: str) -> None:
        now = time.monotonic()
        text = f"  node {min(self.count, self.nodes)} of {self.nodes}  {text}"
        if self.terminal:
            print(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
        elif now - self.written >= 10:
            print(text, flush=True)
            self.written = now

    def end(self) -> None:
        self._finish()
        if self.terminal:
            print("\r\x1b[K", end="", flush=True)


# --- pictures -----------------------------------------------------------------------------------------------------


def section_of(name: str) -> tuple[int, str, str, str]:
    """(place, technique, headline, sentence) of a workflow's section; unknown ones come last under their own name."""
    if name not in SECTIONS:
        return len(SECTIONS), "", name.replace("_", " ").capitalize(), ""
    return list(SECTIONS).index(name), *SECTIONS[name]


def to_section(name: str, workflow: dict, results: dict[str, dict]) -> sheet.Section:
    """The pictures of one workflow, in reading order of the nodes that made them."""
    places = {str(node["id"]): node.get("pos") or (0, 0) for node in workflow["nodes"]}

    def corner(node: str) -> float:  # distance from the top left; `pos` is a pair or {"0": x, "1": y}
        pos = places[node]
        x, y = (pos["0"], pos["1"]) if isinstance(pos, dict) else pos
        return x + y

    _, technique, title, sentence = section_of(name)
    groups = []
    for node in sorted(results, key=corner):
        images = [Image.open(io.BytesIO(data)) for data in results[node]["images"]]
        if images:
            groups.append(sheet.Group(results[node]["title"], images))
    return sheet.Section(technique, title, sentence, groups)


def keep_pictures(folder: Path, name: str, results: dict[str, dict]) -> int:
    """Write every picture unchanged into folder/name/; returns the number of pictures."""
    count = 0
    for node, result in results.items():
        label = "".join(c if c.isalnum() else "_" for c in result["title"]).strip("_")
        for i, data in enumerate(result["images"], 1):
            path = folder / name / f"{node}_{label}_{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            count += 1
    return count


# --- the demo ----------------------------------------------------------------------------------------------------


def has_edit_form(checkpoint: Path | None) -> bool:
    """Whether the instruct-pix2pix form of the checkpoint lies beside it, where `host.prepare_base` finds it."""
    return checkpoint is None or checkpoint.with_name(f"{checkpoint.stem}-edit{checkpoint.suffix}").is_file()


def total_work(files: list[Path], object_info: dict, figures: bool = False) -> float:
    """The work of all workflows together. One that cannot be read counts nothing here and stops the demo later."""
    total = 0.0
    for path in files:
        with contextlib.suppress(graph.GraphError, KeyError, ValueError):
            workflow = for_small_model(json.loads(path.read_text("utf-8")), object_info, figures)
            prompt = graph.to_prompt(workflow, object_info)
            total += sum(work_of(node, prompt) for node in prompt.values())
    return total


def demo(base: Path, checkpoint: Path | None, workflows: Path, everything: bool = True) -> Path:
    """Run all workflows of a folder, or the essential ones, on the small model; returns the contact sheet's path."""
    began = time.monotonic()
    files = sorted(workflows.glob("*.json"), key=lambda path: (section_of(path.stem)[0], path.stem))
    files = files if everything else files[:ESSENTIAL]
    if not has_edit_form(checkpoint):
        files = [path for path in files if path.stem not in NEED_EDIT_FORM]
    if not files:
        raise DemoError(f"{workflows} has no workflows (*.json)")
    if base.exists() and not (base / "custom_nodes" / host.PACK).exists():
        raise DemoError(f"{base} is there and is not the base directory of an earlier demo: choose another --base")
    # Created anew, so that every run starts without trained files. rmtree does not follow the link to the pack.
    shutil.rmtree(base, ignore_errors=True)
    host.prepare_base(base, checkpoint)
    pictures.make(base / "input", checkpoint)
    print("Starting ComfyUI (about 10 s) ...", flush=True)
    sections, count = [], 0
    with host.Host(base) as server:
        stats = server.get("/system_stats")["system"]
        print(
            f"ComfyUI {stats['comfyui_version']} answers at {server.url} after {time.monotonic() - began:.0f} s",
            flush=True,
        )
        figures = pictures.are_figures(checkpoint)
        whole = Whole(total_work(files, server.get("/object_info"), figures))
        for place, path in enumerate(files, 1):
            start = time.monotonic()
            print(f"Workflow {place} of {len(files)}: {path.name}{whole.left()}", flush=True)
            try:
                workflow = for_small_model(json.loads(path.read_text("utf-8")), server.get("/object_info"), figures)
                results = asyncio.run(run_workflow(server, workflow, whole))
            except (DemoError, graph.GraphError, aiohttp.ClientError, OSError) as error:
                raise DemoError(f"{path.name}: {error}") from error
            made = keep_pictures(base / "pictures", path.stem, results)
            if not made:
                raise DemoError(f"{path.name} ran and made no picture: give it a SaveImage or PreviewImage node")
            sections.append(to_section(path.stem, workflow, results))
            (base / "thumbnails").mkdir(exist_ok=True)
            sheet.thumbnail(sections[-1], CARDS.get(path.stem)).save(
                base / "thumbnails" / f"{path.stem}.jpg", quality=88
            )
            count += made
            print(f"  {made} pictures, {time.monotonic() - start:.0f} s", flush=True)
    foot = (
        f"ComfyUI {stats['comfyui_version']}, PyTorch {stats['pytorch_version']}, CPU: {count} pictures in "
        f"{time.monotonic() - began:.0f} s"
    )
    under = (
        "Made by a real ComfyUI from the workflows in example_workflows, with a small model that comes with the pack."
    )
    page = sheet.save(sheet.contact_sheet(sections, "Bespoke", foot, under), base / "contact_sheet.png")
    print(f"\nPictures:      {base / 'pictures'}\nContact sheet: {page}", flush=True)
    return page


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--workflows", type=Path, default=host.ROOT / "example_workflows")
    parser.add_argument("--all", action="store_true", help="every workflow, not the four essential ones")
    args = parser.parse_args()
    host.end_on_terminate()
    try:
        demo(args.base.resolve(), args.checkpoint, args.workflows, args.all)
    except (DemoError, host.HostError) as error:
        print(
            f"\nThe demo stopped: {error}\nThe server's own words: {args.base.resolve() / 'console.log'}",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
