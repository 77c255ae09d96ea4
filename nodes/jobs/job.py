"""A job folder: all that a training needs besides the base models, written on one machine and trained on another.

job.toml                the settings, and for each base model its files, their SHA-256 and the loader
material.safetensors    tensors: latents, masks, conditionings, the LoRA to start from, the training adapter,
                        patches of other nodes
material.json           the same material without tensors: captions, sizes, counts, changes by other nodes
graph.json              (prompt, workflow) of the graph that exported the job, for the result's metadata
runs/  saves/  result/  log.jsonl  lock     written by the training

In material.safetensors: latent/I, mask/I, blank/I, told/I/KEY, prompt/I, prompt/I/KEY, start/KEY, training_adapter/KEY,
and ROLE/I of `wire`.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...training.caption_variants import CaptionVariants
from ...training.captions import PROMPT
from ...training.config import TrainConfig
from ...training.data import LatentSet
from ...training.errors import InputError
from ...training.images import TrainingImage, first_equal
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
ADAPTER = "training_adapter/"  # the beginning of the keys of its tensors
SETTINGS, TENSORS, MATERIAL, GRAPH = "job.toml", "material.safetensors", "material.json", "graph.json"
COMMENT = """A training job of Bespoke. Train it with (see the help page of the node that wrote it)
  torchrun --standalone --nproc-per-node 2 custom_nodes/bespoke/nodes/jobs/command.py THIS_FOLDER
[settings] are the trainer's inputs and may be edited; what is in material.* stays as it was exported."""


@dataclass(frozen=True)
class ExportedModel:
    """A model that a job needs: its files, and what other nodes changed on it (see `wire.export_changes`)."""

    source: Source
    changes: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class JobContents:
    """What is written into a job folder.

    technique: a name in `techniques.TECHNIQUES`. settings: the request by widget name. models: by role, those of
    "model", "clip" and "vae" that the training needs. result: name and format of the result's file, see `techniques`.
    graph: (prompt, workflow).
    """

    technique: str
    settings: Mapping[str, Any]
    dataset: EncodedDataset
    models: Mapping[str, ExportedModel]
    result: Mapping[str, Any]
    samples: SamplerSettings
    graph: tuple[Any, Any] = (None, None)


@dataclass(frozen=True)
class Job:
    """What is read from a job folder; the fields that it shares with `JobContents` are described there.

    folder: where the job lies. sources: the files of each model, by role. tensors, material: the content of
    material.safetensors and material.json. digest: a hash of all that is read; processes compare it to know that they
    have the same job.
    """

    folder: Path
    technique: str
    settings: dict[str, Any]
    result: dict[str, Any]
    samples: SamplerSettings
    sources: dict[str, Source]
    tensors: dict[str, Tensor]
    material: dict[str, Any]
    graph: tuple[Any, Any] = (None, None)
    digest: str = ""

    def dataset(self, config: TrainConfig) -> EncodedDataset:
        """The training set. Which pictures are held out is decided here, by the settings as they are now."""
        material, tensors = self.material, self.tensors
        items = [_decode_picture(dict(item)) for item in material["pictures"]]
        count = range(len(items))
        data = LatentSet([tensors[f"latent/{i}"] for i in count], [tensors.get(f"mask/{i}") for i in count])
        data = replace(data, weights=[item.weight for item in items])
        prompts = {text: self._prompt(i, extra) for i, (text, extra) in enumerate(material["prompts"])}
        start = {key.removeprefix("start/"): tensor for key, tensor in tensors.items() if key.startswith("start/")}
        adapter = {key.removeprefix(ADAPTER): tensor for key, tensor in tensors.items() if key.startswith(ADAPTER)}
        blank = {tuple(size): tensors[f"blank/{i}"] for i, size in enumerate(material["blank"])}
        equal = material.get("equal", count)  # the items have no pixels
        pictures = split_pictures(items, data, material["counts"], config, equal)
        pictures = replace(pictures, blank_latents=blank, notes=tuple(material.get("notes", ())))
        seconds = material.get("seconds")
        if seconds:
            told = [_decode_told(i, entry, tensors) for i, entry in enumerate(seconds["told"])]
            pictures = replace(pictures, how=seconds["how"], told=told, in_prompts=tuple(seconds["in_prompts"]))
        return EncodedDataset(
            pictures,
            material["fingerprint"],
            material["models"],
            material["about"],
            prompts,
            start or None,
            training_adapter=adapter or None,
        )

    def _prompt(self, index: int, extra: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The conditioning of a prompt. extra: {key: {"plain": value}, or None for a tensor}."""
        values = {
            key: self.tensors[f"prompt/{index}/{key}"] if value is None else value["plain"]
            for key, value in extra.items()
        }
        return self.tensors[f"prompt/{index}"], values

    def apply_changes(self, role: str, loaded: Any) -> Any:
        """A freshly loaded MODEL, CLIP or VAE with the changes that the job records for it."""
        changes = self.material["wires"][role]
        if role == "model":
            return wire.apply_changes(loaded, changes, self.tensors, role)
        if role == "vae":
            return loaded
        clip = loaded.clone()
        clip.patcher = wire.apply_changes(loaded.patcher, changes, self.tensors, role)
        clip.clip_layer(changes["layer"])
        clip.tokenizer_options = dict(changes["tokenizer_options"])
        return clip


def write_job(folder: Path, contents: JobContents) -> int:
    """Write a job folder, whole or not at all; returns its size in bytes.

    Raises `FileExistsError` where the folder exists.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".bespoke-job-") as work:
        made = Path(work) / "job"
        made.mkdir()
        material, tensors = _encode_dataset(contents.dataset)
        for model in contents.models.values():
            tensors |= model.tensors
        material["wires"] = {role: model.changes for role, model in contents.models.items()}
        write_safetensors(made / TENSORS, tensors, {}, overwrite=False)
        write_text(made / MATERIAL, json.dumps(material))
        write_text(made / GRAPH, json.dumps(contents.graph))
        tables = _settings_tables(contents)
        tables["sha256"] = {_hash_key(name): sha256_of(made / name) for name in (TENSORS, MATERIAL, GRAPH)}
        write_text(made / SETTINGS, write_toml(tables, COMMENT))
        size = sum(path.stat().st_size for path in made.iterdir())
        if folder.exists():
            raise FileExistsError(folder)
        os.rename(made, folder)
    return size


def _settings_tables(contents: JobContents) -> dict[str, Mapping[str, Any]]:
    tables: dict[str, Mapping[str, Any]] = {
        "job": {"format": FORMAT, "technique": contents.technique},
        "settings": contents.settings,
        "result": contents.result,
    }
    if contents.settings.get("sample_every") or contents.dataset.training_adapter:
        tables["samples"] = vars(contents.samples)
    return tables | {role: model.source.to_table() for role, model in contents.models.items()}


def _hash_key(name: str) -> str:
    """The key of a file's hash in [sha256] of job.toml."""
    return name.replace(".", "_")


def _encode_dataset(dataset: EncodedDataset) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(material, tensors): the training set for material.json and material.safetensors."""
    pictures = dataset.pictures
    tensors: dict[str, Tensor] = {}
    for i, (latent, mask) in enumerate(zip(pictures.data.latents, pictures.data.masks, strict=True)):
        tensors[f"latent/{i}"] = latent.cpu().clone()
        if mask is not None:
            tensors[f"mask/{i}"] = mask.cpu().clone()
    for i, latent in enumerate(pictures.blank_latents.values()):
        tensors[f"blank/{i}"] = latent.cpu().clone()
    prompts = []
    for i, (text, (cond, extra)) in enumerate(sorted(dataset.prompts.items())):
        tensors[f"prompt/{i}"] = cond.cpu().clone()
        prompts.append([text, _encode_prompt_extra(i, extra, tensors)])
    for key, tensor in (dataset.start or {}).items():
        tensors[f"start/{key}"] = tensor.detach().cpu().clone()
    for key, tensor in (dataset.training_adapter or {}).items():
        tensors[ADAPTER + key] = tensor.detach().cpu().clone()
    material = {
        "pictures": [_encode_picture(item) for item in pictures.items],
        "counts": pictures.set_sizes,
        "blank": list(pictures.blank_latents),
        "prompts": prompts,
        "fingerprint": dataset.fingerprint,
        "models": dataset.models_digest,
        "about": dict(dataset.run_fields),
    }
    if pictures.how:
        told = [_encode_told(i, each, tensors) for i, each in enumerate(pictures.told)]
        material["seconds"] = {"how": pictures.how, "in_prompts": list(pictures.in_prompts), "told": told}
    if pictures.notes:
        material["notes"] = list(pictures.notes)
    equal = first_equal(pictures.items)
    if equal != list(range(len(equal))):  # a field since 0.1, see `_FIELDS_SINCE_0_1`
        material["equal"] = equal
    return material, tensors


def _encode_told(index: int, told: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, int | None]:
    """What is told of a second picture, with its tensors in `tensors`: {key: length of a list, None for a tensor}."""
    out: dict[str, int | None] = {}
    for key, value in told.items():
        out[key] = len(value) if isinstance(value, list) else None
        for number, tensor in enumerate(value if isinstance(value, list) else [value]):
            tensors[f"told/{index}/{key}/{number}"] = tensor.cpu().clone()
    return out


def _decode_told(index: int, encoded: Mapping[str, int | None], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What `_encode_told` encoded."""
    return {
        key: tensors[f"told/{index}/{key}/0"]
        if count is None
        else [tensors[f"told/{index}/{key}/{number}"] for number in range(count)]
        for key, count in encoded.items()
    }


def _encode_prompt_extra(index: int, extra: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What belongs to a prompt's context: {key: {"plain": value}, or None for a tensor, which goes into `tensors`}."""
    out: dict[str, Any] = {}
    for key, value in extra.items():
        if isinstance(value, Tensor):
            tensors[f"prompt/{index}/{key}"], out[key] = value.cpu().clone(), None
        elif value is None or isinstance(value, (bool, int, float, str)):
            out[key] = {"plain": value}
        else:
            raise InputError(
                f"the clip on the wire adds {key} to each prompt, which cannot go into a job; take that node off"
            )
    return out


_NOT_WRITTEN = ("pixels", "mask", "control", "caption_syntax")
# {field of a picture that version 0.1 lacks: its default}
_FIELDS_SINCE_0_1 = {"more_captions": (), "weight": 1.0, "trigger": "", "source": "", "variants": None}
_FIELDS_SINCE_0_1 |= {"fps": 0.0, "film": "", "start": 0.0}


def _encode_picture(item: TrainingImage) -> dict[str, Any]:
    """All fields of a picture but its pixels and mask; its size (height, width) in px, and a clip's frames.

    Captions are written as the prompts that they stand for: what a training encodes, whatever `caption_syntax` was, and
    with their fixed variants. Captions that are varied at each draw are written as they are, with their syntax and how
    they are varied. Fields that version 0.1 lacks are written only where they say something, so that it can read the
    other jobs.
    """
    rule, shown = item.variants, item
    if rule is None or not rule.at_each_draw:
        first, *more = item.prompts
        shown = replace(item, caption=first, more_captions=tuple(more), caption_syntax=PROMPT, variants=None)
    known = {f.name: getattr(shown, f.name) for f in fields(shown) if f.name not in _NOT_WRITTEN}
    for name, default in _FIELDS_SINCE_0_1.items():
        if known[name] == default:
            del known[name]
    if shown.variants is not None:
        known |= {"variants": asdict(shown.variants), "caption_syntax": shown.caption_syntax}
    return known | ({"frames": item.frames} if item.is_clip else {}) | {"size": list(item.size)}


def _decode_picture(encoded: dict[str, Any]) -> TrainingImage:
    """What `_encode_picture` encoded, with pixels [H, W, 0] or [F, H, W, 0]: it has the size and no content."""
    size, rule = encoded.pop("size"), encoded.pop("variants", None)
    size = [encoded.pop("frames"), *size] if "frames" in encoded else size
    known: dict[str, Any] = {"caption_syntax": PROMPT, **_with_tuples(encoded)}
    variants = None if rule is None else CaptionVariants(**_with_tuples(rule))
    return TrainingImage(pixels=torch.empty(*size, 0), variants=variants, **known)


def _with_tuples(encoded: Mapping[str, Any]) -> dict[str, Any]:
    """A dataclass's fields from JSON, which has lists for tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in encoded.items()}


def read_job(folder: Path) -> Job:
    """The job that `write_job` wrote.

    Raises `InputError` for a folder that is no job, and for material that has changed since it was exported.
    """
    tables, text = _read_settings(folder)
    for name in (TENSORS, MATERIAL, GRAPH):
        path = folder / name
        if not path.is_file():
            raise InputError(f"{folder} lacks {name}; copy the whole folder that the export node wrote")
        if sha256_of(path) != tables["sha256"].get(_hash_key(name)):
            raise InputError(f"{path} was changed or cut off since it was exported; copy it again")
    tensors, _ = read_safetensors(folder / TENSORS, "job")
    material, graph = (read_json((folder / name).read_text("utf-8")) for name in (MATERIAL, GRAPH))
    known = {f.name for f in fields(SamplerSettings)}
    return Job(
        folder=folder,
        technique=str(tables["job"].get("technique")),
        settings=tables["settings"],
        result=tables["result"],
        samples=SamplerSettings(**{k: v for k, v in tables.get("samples", {}).items() if k in known}),
        sources={role: Source.from_table(tables[role], role) for role in ("model", "clip", "vae") if role in tables},
        tensors=tensors,
        material=material,
        graph=tuple(graph),
        digest=hashlib.sha256(text.encode()).hexdigest(),
    )


def _read_settings(folder: Path) -> tuple[Tables, str]:
    """The tables and the text of job.toml."""
    path = folder / SETTINGS
    try:
        text = path.read_text("utf-8-sig")  # an editor may have written a mark
        tables = read_toml(text)
    except FileNotFoundError:
        raise InputError(
            f"{folder} holds no {SETTINGS}, so it is no job; give the folder that the export node named"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; correct it, or export the job again") from error
    missing = [name for name in ("job", "settings", "result", "model", "sha256") if name not in tables]
    if missing:
        raise InputError(f"{path} has no [{missing[0]}]; export the job again")
    if tables["job"].get("format") != FORMAT:
        raise InputError(
            f"{path} has the format {tables['job'].get('format')}; this Bespoke reads {FORMAT}; use the version that "
            "exported it"
        )
    return tables, text
