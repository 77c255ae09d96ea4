"""Exports a training to a job folder, from the models on the wire and the encoded training set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import folder_paths

from ...training.errors import InputError
from ..bridge.files import writing as storage
from ..bridge.trainer import Models
from ..bridge.wire.table import CLIP, VAE, is_set
from .job import ExportedModel, JobContents, write_job
from .source import source_of
from .techniques import needed_models
from .wire import check_exportable, export_changes


def export_models(models: Models, technique: str, settings: Mapping[str, Any]) -> dict[str, ExportedModel]:
    """The models that the job needs, by role.

    Call it before anything is encoded: it raises `InputError` for a model that cannot be exported.
    """
    out: dict[str, ExportedModel] = {}
    for role in needed_models(technique, settings):
        if role == "model":
            changes = export_changes(models.model, role, for_samples=bool(settings.get("sample_every")))
            out[role] = ExportedModel(source_of(models.model, role), *changes)
        elif role == "clip":
            out[role] = ExportedModel(source_of(models.clip.patcher, role), *_export_clip_changes(models.clip))
        else:
            check_exportable(models.vae, VAE, role)
            source = source_of(models.vae.patcher, role)
            out[role] = ExportedModel(source, *export_changes(models.vae.patcher, role))
            if any(map(is_set, out[role].changes.values())):  # a job loads the VAE as it is in its file
                raise InputError(
                    "the vae on the wire carries changes of another node, which cannot go into a job; take it off"
                )
    return out


def _export_clip_changes(clip: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    check_exportable(clip, CLIP, "clip")
    # `clip_with_pseudo_word` gives a tokenizer this attribute.
    if any(
        "_try_get_embedding" in vars(tokenizer)
        for tokenizer in vars(clip.tokenizer).values()
        if hasattr(tokenizer, "__dict__")
    ):
        raise InputError(
            "the clip on the wire has a learned word without a file, which cannot go into a job; save the word with "
            "Bespoke Save Embedding and wire in the clip from before it"
        )
    changes, tensors = export_changes(clip.patcher, "clip")
    return changes | {"layer": clip.layer_idx, "tokenizer_options": dict(clip.tokenizer_options)}, tensors


def export_job(wanted: Path, contents: JobContents) -> tuple[Path, str]:
    """Write a job; returns (the folder, the report of the node).

    wanted: see `resolve_job_folder`. A folder that exists is not overwritten; the job's name gets a number. An empty
    result name becomes the folder's name.
    """
    for number in range(1, 100_000):
        path = wanted if number == 1 else wanted.with_name(f"{wanted.name}_{number:05}")
        if path.exists():
            continue
        result = dict(contents.result)
        if "name" in result and not result["name"]:
            result["name"] = re.sub(r"\s+", "-", path.name)
        try:
            size = write_job(path, replace(contents, result=result))
        except FileExistsError:
            continue
        return path, _report(path, contents, size)
    raise InputError(f"the folder {wanted.name!r} is taken, and so are its numbered ones; give another name")


def resolve_job_folder(folder: str) -> Path:
    """The path of a job in ComfyUI's output folder. Raises `InputError` for a name that leads out of that folder."""
    # The job's result is named after the folder.
    return storage.resolve_inside(Path(folder_paths.get_output_directory()), folder, storage.NUMBERED.format(1))


def _report(path: Path, contents: JobContents, size: int) -> str:
    """The report of the node. size: of the folder, in bytes."""
    dataset = contents.dataset
    lines = [
        f"Job folder of {size / 1e6:.1f} MB: settings, {len(dataset.pictures.items)} encoded pictures, "
        f"{len(dataset.prompts)} encoded prompts. It needs no picture, and of the models:"
    ]
    for role, model in contents.models.items():
        source = model.source
        files = ", ".join(
            f"{name} (SHA-256 {sha256[:12]}...)" for name, sha256 in zip(source.files, source.sha256, strict=True)
        )
        count = len(model.changes["patches"])
        lines.append(f"- {role}: {files} from the {source.loader} loader, {count} weights changed on the wire")
        if model.changes.get("left_out"):
            lines.append(f"  without {', '.join(model.changes['left_out'])}, which only a sampler reads")
    command = Path(__file__).with_name("command.py")
    lines += [
        f"Train it here or on another machine with ComfyUI and this pack ({contents.technique}):",
        f'python "{command}" "{path}"',
        f'torchrun --standalone --nproc-per-node 2 "{command}" "{path}"',
    ]
    return "\n".join(lines)
