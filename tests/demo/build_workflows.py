"""Lays out the example workflows as the page saves them, from the nodes' own definitions.

    python tests/demo/build_workflows.py

A workflow is written here as nodes by name with the inputs that differ from the defaults; positions, links and the
positional widget values come from ComfyUI's `/object_info`, so that a file never lags behind a node.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "server"))

import graph
import host

OUT = host.ROOT / "example_workflows"
WIDTH, GAP_X, GAP_Y, HEAD = 320, 60, 40, 90
COLOURS = {"plain": "#3f5159", "learn": "#8a6d3b", "use": "#3b6e8a"}


class Workflow:
    """Columns of nodes, left to right; groups around runs of columns."""

    def __init__(self, object_info: dict):
        self.info, self.nodes, self.links, self.groups = object_info, [], [], []
        self.x = self.y = 0
        self._group: tuple | None = None

    def column(self, width: int = WIDTH) -> None:
        """Begin a new column to the right of everything so far."""
        if self.nodes:
            self.x = max(n["pos"][0] + n["size"][0] for n in self.nodes) + GAP_X
        self.y, self.width = 0, width

    def group(self, title: str, colour: str = "plain") -> None:
        """All nodes from here on belong to this group."""
        self.end_group()
        self._group = (title, colour, len(self.nodes))

    def end_group(self) -> None:
        if self._group:
            title, colour, first = self._group
            inside = self.nodes[first:]
            left, top = min(n["pos"][0] for n in inside) - 20, min(n["pos"][1] for n in inside) - HEAD
            right = max(n["pos"][0] + n["size"][0] for n in inside) + 20
            bottom = max(n["pos"][1] + n["size"][1] for n in inside) + 20
            self.groups.append({
                "id": len(self.groups) + 1, "title": title, "bounding": [left, top, right - left, bottom - top],
                "color": COLOURS[colour], "font_size": 24, "flags": {},
            })  # fmt: skip
            self._group = None

    def note(self, text: str, height: int = 200) -> None:
        self._place({"type": "MarkdownNote", "inputs": [], "outputs": [], "widgets_values": [text], "title": "Note",
                     "color": "#432", "bgcolor": "#653"}, height)  # fmt: skip

    def node(self, kind: str, title: str | None = None, tall: int | None = None, **values):
        """Place a node. A value that is a pair (node, output name) becomes a link."""
        definition = self.info[kind]
        names = [n for part in ("required", "optional") for n in definition["input_order"].get(part, [])]
        unknown = set(values) - set(names)
        if unknown:
            raise ValueError(f"{kind} has no input {sorted(unknown)}")
        inputs, widgets = [], []
        for name in names:
            spec = definition["input"].get("required", {}).get(name) or definition["input"]["optional"][name]
            options = spec[1] if len(spec) > 1 else {}
            combo = isinstance(spec[0], list) or spec[0] == "COMBO"
            type_name = "COMBO" if combo else spec[0]
            is_widget = combo or (spec[0] in graph.WIDGETS and not options.get("forceInput"))
            value = values.get(name)
            linked = isinstance(value, tuple)
            if is_widget:
                choices = spec[0] if isinstance(spec[0], list) else options.get("options", [])
                empty = next(iter(choices), "") if combo else {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False}.get(spec[0], "")
                default = options.get("default", empty)
                widgets.append(default if linked or value is None else value)
                if name in graph.CONTROLLED and options.get("control_after_generate", True) is not False:
                    widgets.append("fixed")
            elif value is not None and not linked:
                raise ValueError(f"{kind}.{name} is no widget")
            slot = {"name": name, "type": type_name, "link": None}
            if is_widget:
                slot["widget"] = {"name": name}
            if options.get("tooltip"):
                slot["localized_name"] = name
            inputs.append(slot)
        # Sockets first, then the widgets' sockets, as the page lists them.
        inputs.sort(key=lambda slot: "widget" in slot)
        outputs = [
            {"name": name, "type": "COMBO" if isinstance(kind_, list) else kind_, "links": []}
            for name, kind_ in zip(definition["output_name"], definition["output"], strict=True)
        ]
        made = {"type": kind, "inputs": inputs, "outputs": outputs, "widgets_values": widgets}
        if title:
            made["title"] = title
        rows = max(sum("widget" not in s for s in inputs), len(outputs))
        needed = 40 + 22 * rows + 30 * len(widgets) + 70 * sum(isinstance(v, str) and len(v) > 40 for v in widgets)
        node = self._place(made, tall or needed)
        for name, value in values.items():
            if isinstance(value, tuple):
                self._link(value[0], value[1], node, name)
        return node

    def _place(self, made: dict, height: int) -> dict:
        node = {
            "id": len(self.nodes) + 1, "type": made.pop("type"), "pos": [self.x, self.y], "size": [self.width, height],
            "flags": {}, "order": len(self.nodes), "mode": 0, **made,
        }  # fmt: skip
        node["properties"] = {"Node name for S&R": node["type"]}
        self.y += height + GAP_Y
        self.nodes.append(node)
        return node

    def _link(self, source: dict, output: str, target: dict, name: str) -> None:
        at = next(i for i, slot in enumerate(source["outputs"]) if slot["name"] == output)
        to = next(i for i, slot in enumerate(target["inputs"]) if slot["name"] == name)
        link = len(self.links) + 1
        source["outputs"][at]["links"].append(link)
        target["inputs"][to]["link"] = link
        self.links.append([link, source["id"], at, target["id"], to, source["outputs"][at]["type"]])

    def save(self, name: str) -> None:
        self.end_group()
        document = {
            "revision": 0, "last_node_id": len(self.nodes), "last_link_id": len(self.links), "nodes": self.nodes,
            "links": self.links, "groups": self.groups, "config": {}, "extra": {"ds": {"scale": 0.7, "offset": [120, 180]}},
            "version": 0.4,
        }  # fmt: skip
        (OUT / f"{name}.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")


def sampler(w: Workflow, model, positive, negative, latent, **values):
    return w.node(
        "KSampler", model=model, positive=positive, negative=negative, latent_image=latent,
        **({"seed": 3, "steps": 20, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal"} | values),
    )  # fmt: skip


def lora(w: Workflow) -> None:
    w.column()
    w.group("1  Learn from pictures", "learn")
    w.note(
        "**Train a LoRA, then use it with ComfyUI's own loader.**\n\n"
        "Put 5 to 20 pictures with a .txt caption each into a folder under *input* and choose it below. "
        "Queue once: the training runs and the file lands in the loras folder. ComfyUI's *Load LoRA* (right) cannot know "
        "a file before it is there, so the first time it is marked red: choose the new file there and queue again. The "
        "training is not repeated."
    )
    base = w.node("CheckpointLoaderSimple", "Base model", ckpt_name=host.CHECKPOINT)
    folder = w.node("BespokeImageFolder", folder="bespoke_teal_style")
    w.column()
    train = w.node(
        "BespokeTrainLora", model=(base, "MODEL"), clip=(base, "CLIP"), vae=(base, "VAE"), images=(folder, "images"),
        steps=400, learning_rate=0.002,
    )  # fmt: skip
    w.column()
    w.node("PreviewImage", "The training set", 300, images=(folder, "preview"))
    w.node("BespokeSaveLora", lora=(train, "lora"), run=(train, "run"), filename_prefix="bespoke/teal")
    w.node("PreviewAny", "Report", 160, source=(train, "report"))
    w.column()
    w.group("2  Use it: the same seeds without and with the LoRA", "use")
    loaded = w.node(
        "LoraLoader", model=(base, "MODEL"), clip=(base, "CLIP"), lora_name="bespoke/teal_00001.safetensors"
    )
    words = w.node("CLIPTextEncode", "Prompt", 120, clip=(base, "CLIP"), text="a teal cross on white")
    nothing = w.node("CLIPTextEncode", "Negative prompt", 100, clip=(base, "CLIP"), text="")
    latent = w.node("EmptyLatentImage", width=128, height=128, batch_size=4)
    w.column()
    for model, title in (((base, "MODEL"), "without the LoRA"), ((loaded, "MODEL"), "with the LoRA")):
        made = sampler(w, model, (words, "CONDITIONING"), (nothing, "CONDITIONING"), (latent, "LATENT"))
        made["title"] = title
    low, high = w.nodes[-2:]
    w.column()
    for made, title, file in ((low, "without the LoRA", "base"), (high, "with the LoRA", "lora")):
        picture = w.node("VAEDecode", samples=(made, "LATENT"), vae=(base, "VAE"))
        w.node("SaveImage", title, 300, images=(picture, "IMAGE"), filename_prefix=f"bespoke/lora_{file}")
    w.save("lora_train_and_use")


def strength(w: Workflow) -> None:
    w.column()
    w.group("One picture, five strengths", "use")
    w.note(
        "**Partial denoise (img2img).** The picture is encoded, noised up to the strength, and denoised from there with "
        "the new prompt. No pixel is edited: at 0 it comes back as it was, at 1 nothing of it is left.\n\n"
        "Each node's report says how many steps run and how much of the start is noise.",
        170,
    )
    base = w.node("CheckpointLoaderSimple", "Base model", ckpt_name=host.CHECKPOINT)
    picture = w.node("LoadImage", "The picture", 330, image="bespoke_picture.png")
    w.column()
    latent = w.node("VAEEncode", pixels=(picture, "IMAGE"), vae=(base, "VAE"))
    words = w.node("CLIPTextEncode", "Prompt", 120, clip=(base, "CLIP"), text="a blue square on white")
    nothing = w.node("CLIPTextEncode", "Negative prompt", 100, clip=(base, "CLIP"), text="")
    for value in (0.0, 0.5, 0.7, 0.85, 1.0):
        w.column(280)
        made = w.node(
            "BespokePartialDenoise", f"strength {value:g}", model=(base, "MODEL"), positive=(words, "CONDITIONING"),
            negative=(nothing, "CONDITIONING"), latent_image=(latent, "LATENT"), strength=value, steps=20, cfg=2.0,
            sampler_name="euler", scheduler="normal", seed=3,
        )  # fmt: skip
        image = w.node("VAEDecode", samples=(made, "latent"), vae=(base, "VAE"))
        w.node("SaveImage", f"strength {value:g}", 300, images=(image, "IMAGE"), filename_prefix=f"bespoke/strength_{value:g}")
        w.node("PreviewAny", "Report", 120, source=(made, "report"))
    w.save("strength_ladder")


def inpaint(w: Workflow) -> None:
    w.column()
    w.group("Repaint one region with the same model", "use")
    w.note(
        "**Latent mask blend (inpainting).** No other model is needed: at every step the mask says which latents are "
        "repainted and which are kept from the original. White may change, black stays. *Restore Unmasked* then pastes "
        "the original's pixels back outside and counts what differs there: nothing.\n\nThe small model paints in cells of 8 "
        "pixels, so *feather* is 0 here; for photographs leave it at its default of 24, which hides the seam.",
        200,
    )
    base = w.node("CheckpointLoaderSimple", "Base model", ckpt_name=host.CHECKPOINT)
    picture = w.node("LoadImage", "The picture", 330, image="bespoke_picture.png")
    mask = w.node("LoadImageMask", "The mask: white may change", 330, image="bespoke_mask.png", channel="red")
    w.column()
    latent = w.node("VAEEncode", pixels=(picture, "IMAGE"), vae=(base, "VAE"))
    words = w.node("CLIPTextEncode", "Prompt", 120, clip=(base, "CLIP"), text="a green cross on white")
    nothing = w.node("CLIPTextEncode", "Negative prompt", 100, clip=(base, "CLIP"), text="")
    blend = w.node("BespokeLatentMaskBlend", model=(base, "MODEL"), latent=(latent, "LATENT"), mask=(mask, "MASK"), feather=0)
    w.column()
    made = sampler(w, (blend, "model"), (words, "CONDITIONING"), (nothing, "CONDITIONING"), (blend, "latent"))
    image = w.node("VAEDecode", samples=(made, "LATENT"), vae=(base, "VAE"))
    restored = w.node(
        "BespokeRestoreUnmasked", original=(picture, "IMAGE"), generated=(image, "IMAGE"), mask=(blend, "latent_mask")
    )
    w.node("PreviewAny", "Report", 140, source=(restored, "report"))
    w.column()
    w.node("SaveImage", "the original", 280, images=(picture, "IMAGE"), filename_prefix="bespoke/inpaint_original")
    w.node("SaveImage", "what the latent sees", 280, images=(blend, "preview"), filename_prefix="bespoke/inpaint_mask")
    w.node("SaveImage", "repainted under the mask", 280, images=(restored, "image"), filename_prefix="bespoke/inpaint_result")
    w.save("inpaint_region")


def inversion(w: Workflow) -> None:
    w.column()
    w.group("1  Learn a word", "learn")
    w.note(
        "**Textual inversion.** A new word is learned as a vector in the text encoder's space; no weight of any model "
        "changes. The captions say *{word}* where it stands. The search begins at the word *red*; the pictures are pink."
        "\n\nThe saved word is wired into the prompt, so that it is read after it is saved. Later, type "
        "*embedding:my-pink* into any prompt.",
    )
    base = w.node("CheckpointLoaderSimple", "Base model", ckpt_name=host.CHECKPOINT)
    folder = w.node("BespokeImageFolder", folder="bespoke_pink")
    w.column()
    train = w.node(
        "BespokeTrainTextualInversion", model=(base, "MODEL"), clip=(base, "CLIP"), vae=(base, "VAE"),
        images=(folder, "images"), name="my-pink", init_text="red", steps=120, learning_rate=0.02, template="captions",
    )  # fmt: skip
    w.column()
    w.node("PreviewImage", "The pictures", 300, images=(folder, "preview"))
    saved = w.node("BespokeSaveEmbedding", embedding=(train, "embedding"), run=(train, "run"), name="my-pink", overwrite=True)
    w.node("PreviewAny", "Report", 220, source=(train, "report"))
    w.column()
    w.group("2  Say it: the starting word beside the new one, same seeds", "use")
    a = w.node("StringConcatenate", string_a="a", string_b=(saved, "prompt_word"), delimiter=" ")
    text = w.node("StringConcatenate", string_a=(a, "STRING"), string_b="circle on white", delimiter=" ")
    new = w.node("CLIPTextEncode", "a embedding:my-pink circle on white", 120, clip=(base, "CLIP"), text=(text, "STRING"))
    old = w.node("CLIPTextEncode", "Starting word", 120, clip=(base, "CLIP"), text="a red circle on white")
    nothing = w.node("CLIPTextEncode", "Negative prompt", 100, clip=(base, "CLIP"), text="")
    latent = w.node("EmptyLatentImage", width=128, height=128, batch_size=4)
    w.column()
    made = [
        sampler(w, (base, "MODEL"), (words, "CONDITIONING"), (nothing, "CONDITIONING"), (latent, "LATENT"))
        for words in (old, new)
    ]
    w.column()
    for latents, title, file in zip(made, ("the starting word: red", "the new word: embedding:my-pink"), ("before", "after"), strict=True):
        picture = w.node("VAEDecode", samples=(latents, "LATENT"), vae=(base, "VAE"))
        w.node("SaveImage", title, 300, images=(picture, "IMAGE"), filename_prefix=f"bespoke/inversion_{file}")
    w.save("textual_inversion")


def main() -> None:
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as base, host.Host(host.prepare_base(Path(base))) as server:
        info = server.get("/object_info")
    for build in (lora, strength, inpaint, inversion):
        build(Workflow(info))
    print(*sorted(path.name for path in OUT.glob("*.json")), sep="\n")


if __name__ == "__main__":
    main()
