"""A job folder: all of a training but the base models, to be carried to another machine and trained there.

job.toml          the settings, and what the base models are: file, SHA-256, loader
material.safetensors, material.json   latents, masks, conditionings, captions, a LoRA to go on from, patches on the wire
graph.json        the graph that exported the job, for the result's metadata
runs/  saves/  result/  log.jsonl  lock     what the training writes
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...training.config import TrainConfig
from ...training.data import LatentSet
from ...training.errors import InputError
from ...training.images import TrainingImage
from ...training.plain_json import read_json
from ..bridge.dataset.encoded import EncodedDataset
from ..bridge.dataset.pictures import split_pictures
from ..bridge.files.reading import read_safetensors
from ..bridge.files.writing import write_safetensors, write_text
from ..bridge.runs.samples import SamplerSettings
from . import wire
from .source import Source, sha256_of
from .toml import Tables, read_toml, write_toml

FORMAT = 1
SETTINGS, TENSORS, PLAN, GRAPH = "job.toml", "material.safetensors", "material.json", "graph.json"
COMMENT = """A training job of Bespoke. Train it with (see the help page of the node that wrote it)
  torchrun --standalone --nproc-per-node 2 custom_nodes/bespoke/nodes/jobs/command.py THIS_FOLDER
[settings] are the trainer's inputs and may be edited; what is in material.* stays as it was exported."""


@dataclass(frozen=True)
class Job:
    """What a job folder says. folder: where it lies. technique: "lora" or "textual inversion". settings: the trainer's.

    sources: the files of "model" and, where the training needs them, "clip" and "vae". wires: by the same names what
    was
    changed on them (see `wire.carry`). result: name, and for a LoRA key_format and dtype. graph: (prompt, workflow).
    digest: a hash of everything that is read, by which processes know that they have the same job.
    """

    folder: Path
    technique: str
    settings: dict[str, Any]
    result: dict[str, Any]
    samples: SamplerSettings
    sources: dict[str, Source]
    wires: dict[str, dict[str, Any]]
    tensors: dict[str, Tensor]
    plan: dict[str, Any]
    graph: tuple[Any, Any] = (None, None)
    digest: str = ""

    def dataset(self, config: TrainConfig) -> EncodedDataset:
        """What is trained on, its pictures divided as the settings now say."""
        items = [_picture(dict(item)) for item in self.plan["pictures"]]
        count = range(len(items))
        data = LatentSet([self.tensors[f"latent/{i}"] for i in count], [self.tensors.get(f"mask/{i}") for i in count])
        prompts = {
            text: (
                self.tensors[f"prompt/{i}"],
                {
                    key: self.tensors[f"prompt/{i}/{key}"] if value is None else value["plain"]
                    for key, value in extra.items()
                },
            )
            for i, (text, extra) in enumerate(self.plan["prompts"])
        }
        start = {key.removeprefix("start/"): tensor for key, tensor in self.tensors.items() if key.startswith("start/")}
        plan = self.plan
        blank = {tuple(size): self.tensors[f"blank/{i}"] for i, size in enumerate(plan["blank"])}
        pictures = replace(split_pictures(items, data, plan["counts"], config), blank_latents=blank)
        return EncodedDataset(pictures, plan["fingerprint"], plan["models"], plan["about"], prompts, start or None)


def write_job(
    folder: Path,
    technique: str,
    settings: Mapping[str, Any],
    dataset: EncodedDataset,
    models: Mapping[str, tuple[Source, dict, dict]],
    result: Mapping[str, Any],
    samples: SamplerSettings,
    graph: tuple[Any, Any] = (None, None),
) -> int:
    """Write a job folder, whole or not at all; gives its bytes. Raises `FileExistsError` where the folder is taken.

    models: name -> (source, what `wire.carry` gave: plan, tensors).
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".bespoke-job-") as work:
        made = Path(work) / "job"
        made.mkdir()
        plan, tensors = _plan(dataset)
        for _, _, carried in models.values():
            tensors |= carried
        plan["wires"] = {name: wired for name, (_, wired, _) in models.items()}
        write_safetensors(made / TENSORS, tensors, {}, overwrite=False)
        write_text(made / PLAN, json.dumps(plan))
        write_text(made / GRAPH, json.dumps(graph))
        tables = {"job": {"format": FORMAT, "technique": technique}, "settings": settings, "result": result}
        if settings.get("sample_every"):
            tables["samples"] = vars(samples)
        tables |= {name: source.table() for name, (source, _, _) in models.items()}
        tables["sha256"] = {name.replace(".", "_"): sha256_of(made / name) for name in (TENSORS, PLAN, GRAPH)}
        write_text(made / SETTINGS, write_toml(tables, COMMENT))
        size = sum(path.stat().st_size for path in made.iterdir())
        if folder.exists():
            raise FileExistsError(folder)
        os.rename(made, folder)
    return size


def _plan(dataset: EncodedDataset) -> tuple[dict[str, Any], dict[str, Tensor]]:
    pictures, tensors = dataset.pictures, {}
    for i, (latent, mask) in enumerate(zip(pictures.data.latents, pictures.data.masks, strict=True)):
        tensors[f"latent/{i}"] = latent.cpu().clone()
        if mask is not None:
            tensors[f"mask/{i}"] = mask.cpu().clone()
    for i, latent in enumerate(pictures.blank_latents.values()):
        tensors[f"blank/{i}"] = latent.cpu().clone()
    prompts = []
    for i, (text, (cond, extra)) in enumerate(sorted(dataset.prompts.items())):
        tensors[f"prompt/{i}"] = cond.cpu().clone()
        plain: dict[str, Any] = {}
        for key, value in extra.items():
            if isinstance(value, Tensor):
                tensors[f"prompt/{i}/{key}"], plain[key] = value.cpu().clone(), None
            elif value is None or isinstance(value, (bool, int, float, str)):
                plain[key] = {"plain": value}
            else:
                raise InputError(
                    f"the clip on the wire adds {key} to each prompt, which cannot go into a job; take that node off"
                )
        prompts.append([text, plain])
    for key, tensor in (dataset.start or {}).items():
        tensors[f"start/{key}"] = tensor.detach().cpu().clone()
    return {
        "pictures": [_facts(item) for item in pictures.items],
        "counts": pictures.set_sizes,
        "blank": list(pictures.blank_latents),
        "prompts": prompts,
        "fingerprint": dataset.fingerprint,
        "models": dataset.models_digest,
        "about": dict(dataset.run_fields),
    }, tensors


def _facts(item: TrainingImage) -> dict[str, Any]:
    """All that is known of a picture but its pixels: name, caption, size and what else stands beside them."""
    known = {f.name: getattr(item, f.name) for f in fields(item) if f.name not in ("pixels", "mask")}
    return known | {"size": list(item.pixels.shape[:2])}


def _picture(facts: dict[str, Any]) -> TrainingImage:
    """The picture of `_facts`, of its size and without pixels."""
    size = facts.pop("size")
    known = {key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()}
    return TrainingImage(pixels=torch.empty(*size, 0), **known)


def read_job(folder: Path) -> Job:
    """The job that `write_job` wrote. Raises `InputError` for what is none, and for material that was changed since."""
    tables, text = _tables(folder)
    for name in (TENSORS, PLAN, GRAPH):
        path = folder / name
        if not path.is_file():
            raise InputError(f"{folder} lacks {name}; copy the whole folder that the export node wrote")
        if sha256_of(path) != tables["sha256"].get(name.replace(".", "_")):
            raise InputError(f"{path} was changed or cut off since it was exported; copy it again")
    tensors, _ = read_safetensors(folder / TENSORS, "job")
    plan, graph = (read_json((folder / name).read_text("utf-8")) for name in (PLAN, GRAPH))
    sources = {what: Source.of_table(tables[what], what) for what in ("model", "clip", "vae") if what in tables}
    samples = SamplerSettings(
        **{k: v for k, v in tables.get("samples", {}).items() if k in SamplerSettings.__dataclass_fields__}
    )
    return Job(
        folder,
        str(tables["job"].get("technique")),
        tables["settings"],
        tables["result"],
        samples,
        sources,
        plan["wires"],
        tensors,
        plan,
        tuple(graph),
        hashlib.sha256(text.encode()).hexdigest(),
    )


def _tables(folder: Path) -> tuple[Tables, str]:
    path = folder / SETTINGS
    try:
        text = path.read_text("utf-8")
        tables = read_toml(text)
    except FileNotFoundError:
        raise InputError(
            f"{folder} holds no {SETTINGS}, so it is no job; give the folder that the export node named"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    missing = [name for name in ("job", "settings", "result", "model", "sha256") if name not in tables]
    if missing:
        raise InputError(f"{path} has no [{missing[0]}]; export the job again")
    if tables["job"].get("format") != FORMAT:
        raise InputError(
            f"{path} has the format {tables['job'].get('format')}; this Bespoke reads {FORMAT}: use the one that "
            "exported it"
        )
    return tables, text


def restored(job: Job, what: str, made) -> Any:
    """A freshly loaded MODEL, CLIP or VAE with what the job says was changed on it."""
    plan = job.wires[what]
    if what == "model":
        return wire.put_back(made, plan, job.tensors, what)
    out = made.clone() if what == "clip" else made
    if what == "clip":
        out.patcher = wire.put_back(made.patcher, plan, job.tensors, what)
        out.clip_layer(plan["layer"])
        out.tokenizer_options = dict(plan["tokenizer_options"])
    return out
