"""Writes the blueprints in `subgraphs/`: common tasks and the recipes, each a single node for the user.

python tests/demo/build_subgraphs.py
"""

from __future__ import annotations

import sys
import tempfile
import uuid
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "server"))

import graph
import host
import recipes
from canvas import WIDTH, Workflow

OUT = host.ROOT / "subgraphs"
INPUT, OUTPUT = -10, -20  # the page's ids of a subgraph's input and output side
# Ids depend on the names alone, so that files change only where they have to.
NO_FOLDER = "(no folder yet)"  # a choice that every host has
NAMESPACE = uuid.UUID("5e5ab1de-0000-4000-8000-000000000000")


class Blueprint(Workflow):
    """A subgraph: nodes as in a workflow, and their inputs, widgets and outputs on the node outside."""

    def __init__(self, object_info: dict, name: str, description: str, category: str = "Bespoke"):
        super().__init__(object_info)
        self.name, self.description, self.category = name, description, category
        self.entries, self.exits = [], []  # inputs as (name, type, widget value or None, link ids); outputs alike
        self.boxes = 0  # widgets of several lines

    def _id(self, what: str) -> str:
        return str(uuid.uuid5(NAMESPACE, f"{self.name}/{what}"))

    def entry(self, name: str, *targets: tuple[dict, str]) -> None:
        """An input or widget of the outer node that feeds (node, input name), one or more of one type."""
        kind, value, made = None, None, []
        for node, slot_name in targets:
            place, slot = next((i, s) for i, s in enumerate(node["inputs"]) if s["name"] == slot_name)
            kind = kind or slot["type"]
            if "widget" in slot:
                value = self._widget(node, slot_name)
                spec = {
                    **self.info[node["type"]]["input"].get("optional", {}),
                    **self.info[node["type"]]["input"].get("required", {}),
                }[slot_name]
                self.boxes += bool(spec[1:] and spec[1].get("multiline"))
            link = len(self.links) + 1
            slot["link"] = link
            self.links.append([link, INPUT, len(self.entries), node["id"], place, slot["type"]])
            made.append(link)
        self.entries.append((name, kind, value, made))

    def _widget(self, node: dict, name: str):
        return graph.widget_values(node, self.info[node["type"]])[name]

    def exit(self, name: str, node: dict, output: str) -> None:
        """An output of the outer node."""
        place, slot = next((i, s) for i, s in enumerate(node["outputs"]) if s["name"] == output)
        link = len(self.links) + 1
        slot["links"].append(link)
        self.links.append([link, node["id"], place, OUTPUT, len(self.exits), slot["type"]])
        self.exits.append((name, slot["type"], link))

    def document(self) -> dict:
        inner, key = super().document(), self._id("subgraph")
        right = max(node["pos"][0] + node["size"][0] for node in self.nodes)
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        subgraph = {
            "id": key,
            "version": 1,
            "revision": 0,
            "config": {},
            "name": self.name,
            "widgets": [],
            "state": {
                "lastGroupId": 0,
                "lastNodeId": len(self.nodes),
                "lastLinkId": len(self.links),
                "lastRerouteId": 0,
            },
            "inputNode": {"id": INPUT, "bounding": [-220, 0, 140, 40 + 20 * len(self.entries)]},
            "outputNode": {"id": OUTPUT, "bounding": [right + 80, 0, 140, 40 + 20 * len(self.exits)]},
            "inputs": [
                {"id": self._id(f"in/{name}"), "name": name, "type": kind, "linkIds": links, "pos": [-100, 20 + 20 * i]}
                for i, (name, kind, _, links) in enumerate(self.entries)
            ],
            "outputs": [
                {
                    "id": self._id(f"out/{name}"),
                    "name": name,
                    "type": kind,
                    "linkIds": [link],
                    "pos": [right + 100, 20 + 20 * i],
                }
                for i, (name, kind, link) in enumerate(self.exits)
            ],
            "nodes": inner["nodes"],
            "groups": inner["groups"],
            "links": [dict(zip(names, link, strict=True)) for link in self.links],
            "extra": {},
            "category": self.category,
            "description": self.description,
        }
        widgets = [(name, value) for name, _, value, _ in self.entries if value is not None]
        sockets = max(len(self.entries) - len(widgets), len(self.exits))
        outer = {
            "id": 1,
            "type": key,
            "pos": [0, 0],
            "size": [WIDTH, 20 + 20 * sockets + 24 * len(widgets) + 100 * self.boxes],
            "flags": {},
            "order": 0,
            "mode": 0,
            "title": self.name,
            "inputs": [
                {"name": name, "type": kind, "link": None} | ({"widget": {"name": name}} if value is not None else {})
                for name, kind, value, _ in self.entries
            ],
            "outputs": [{"name": name, "type": kind, "links": []} for name, kind, _ in self.exits],
            "properties": {},
            "widgets_values": [value for _, value in widgets],
        }
        return inner | {
            "last_node_id": 1,
            "last_link_id": 0,
            "nodes": [outer],
            "links": [],
            "groups": [],
            "extra": {},
            "definitions": {"subgraphs": [subgraph]},
        }


def wires(b: Blueprint, node: dict) -> None:
    for name in ("model", "clip", "vae"):
        b.entry(name, (node, name))


def train_lora(info: dict) -> Blueprint:
    b = Blueprint(
        info,
        "Train a LoRA from a folder",
        "A folder of pictures in; the adapted model, and a file in the loras folder, out.",
    )
    b.column()
    folder = b.node("BespokeImageFolder", folder=NO_FOLDER)
    b.column()
    trainer = b.node("BespokeTrainLora", images=(folder, "images"), learning_rate=1e-4)
    b.column()
    saved = b.node("BespokeSaveLora", lora=(trainer, "lora"), run=(trainer, "run"))
    wires(b, trainer)
    b.entry("folder", (folder, "folder"))
    b.entry("trigger", (folder, "trigger"))
    for name in ("rank", "learning_rate", "steps", "seed"):
        b.entry(name, (trainer, name))
    b.entry("filename_prefix", (saved, "filename_prefix"))
    b.exit("model", trainer, "model")
    b.exit("clip", trainer, "clip")
    b.exit("lora_name", saved, "lora_name")
    b.exit("preview", folder, "preview")
    b.exit("report", trainer, "report")
    b.exit("run", trainer, "run")
    return b


def prompts(b: Blueprint) -> tuple[dict, dict]:
    return b.node("CLIPTextEncode", "Prompt", 120, text=""), b.node("CLIPTextEncode", "Negative prompt", 120, text="")


def change(info: dict) -> Blueprint:
    b = Blueprint(
        info,
        "Change a picture by strength",
        "A picture in, the same picture changed by a prompt out: 0 gives it back, 1 makes it anew.",
    )
    b.column()
    latent = b.node("VAEEncode")
    words, nothing = prompts(b)
    b.column()
    made = b.node(
        "BespokePartialDenoise",
        positive=(words, "CONDITIONING"),
        negative=(nothing, "CONDITIONING"),
        latent_image=(latent, "LATENT"),
        scheduler="normal",
    )
    b.column()
    image = b.node("VAEDecode", samples=(made, "latent"))
    b.entry("model", (made, "model"))
    b.entry("clip", (words, "clip"), (nothing, "clip"))
    b.entry("vae", (latent, "vae"), (image, "vae"))
    b.entry("image", (latent, "pixels"))
    b.entry("prompt", (words, "text"))
    b.entry("negative", (nothing, "text"))
    for name in ("strength", "steps", "cfg", "sampler_name", "scheduler", "seed"):
        b.entry(name, (made, name))
    b.exit("image", image, "IMAGE")
    b.exit("report", made, "report")
    return b


def repaint(info: dict) -> Blueprint:
    b = Blueprint(
        info,
        "Repaint under a mask",
        "A picture and a mask in; the picture repainted under the mask at the model's own resolution, and untouched "
        "outside it, out.",
    )
    b.column()
    cut = b.node("BespokeCropToMask")
    latent = b.node("VAEEncode", pixels=(cut, "image"))
    words, nothing = prompts(b)
    b.column()
    blend = b.node("BespokeLatentMaskBlend", latent=(latent, "LATENT"), mask=(cut, "mask"))
    made = b.node(
        "KSampler",
        model=(blend, "model"),
        latent_image=(blend, "latent"),
        positive=(words, "CONDITIONING"),
        negative=(nothing, "CONDITIONING"),
        scheduler="normal",
    )
    b.column()
    image = b.node("VAEDecode", samples=(made, "LATENT"))
    whole = b.node(
        "BespokeRestoreUnmasked", generated=(image, "IMAGE"), mask=(blend, "latent_mask"), crop=(cut, "crop")
    )
    b.entry("model", (blend, "model"))
    b.entry("clip", (words, "clip"), (nothing, "clip"))
    b.entry("vae", (cut, "vae"), (latent, "vae"), (image, "vae"))
    b.entry("image", (cut, "image"), (whole, "original"))
    b.entry("mask", (cut, "mask"))
    b.entry("prompt", (words, "text"))
    b.entry("negative", (nothing, "text"))
    b.entry("grow", (blend, "grow"))
    b.entry("feather", (blend, "feather"))
    b.entry("context", (cut, "context"))
    b.entry("resolution", (cut, "resolution"))
    for name in ("steps", "cfg", "sampler_name", "scheduler", "seed"):
        b.entry(name, (made, name))
    b.exit("image", whole, "image")
    b.exit("preview", blend, "preview")
    b.exit("report", whole, "report")
    b.exit("where", cut, "preview")
    return b


def teach(info: dict) -> Blueprint:
    b = Blueprint(
        info,
        "Teach a word",
        "A folder of pictures in; a text encoder that knows their word, and its file, out. No weight changes.",
    )
    b.column()
    folder = b.node("BespokeImageFolder", folder=NO_FOLDER)
    b.column()
    trainer = b.node("BespokeTrainTextualInversion", images=(folder, "images"), init_text="object")
    b.column()
    saved = b.node("BespokeSaveEmbedding", embedding=(trainer, "embedding"), run=(trainer, "run"))
    wires(b, trainer)
    b.entry("folder", (folder, "folder"))
    b.entry("name", (trainer, "name"), (saved, "name"))
    for name in ("init_text", "vectors", "learning_rate", "steps", "template", "seed"):
        b.entry(name, (trainer, name))
    b.entry("overwrite", (saved, "overwrite"))
    b.exit("clip", trainer, "clip")
    b.exit("prompt_word", saved, "prompt_word")
    b.exit("report", trainer, "report")
    b.exit("run", trainer, "run")
    return b


def smaller(info: dict) -> Blueprint:
    b = Blueprint(
        info,
        "Make a LoRA smaller",
        "A LoRA file in; the nearest LoRA of a smaller rank, as a new file, out. The report says how much is kept.",
    )
    b.column()
    loaded = b.node("BespokeLoadLora", lora_name="none")
    b.column()
    made = b.node("BespokeComposeLoras", loras=[(loaded, "lora")], rank=16)
    b.column()
    saved = b.node("BespokeSaveLora", lora=(made, "lora"), filename_prefix="bespoke/smaller")
    b.entry("lora_name", (loaded, "lora_name"))
    for name in ("rank", "energy", "energy_kind"):
        b.entry(name, (made, name))
    b.entry("filename_prefix", (saved, "filename_prefix"))
    b.exit("lora", made, "lora")
    b.exit("lora_name", saved, "lora_name")
    b.exit("report", made, "report")
    return b


def recipe(name: str, goal: str, info: dict) -> Blueprint:
    return recipes.make(Blueprint, info, name, goal)


RECIPES = {f"{name}, {goal}": partial(recipe, name, goal) for name, of in recipes.FAMILIES.items() for goal in of.goals}
BLUEPRINTS = (train_lora, change, repaint, teach, smaller, *RECIPES.values())


def main() -> None:
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as base, host.Host(host.prepare_base(Path(base))) as server:
        info = server.get("/object_info")
    for build in BLUEPRINTS:
        made = build(info)
        made.save(OUT / f"{made.name}.json")
        print(f"{made.name}.json")


if __name__ == "__main__":
    main()
