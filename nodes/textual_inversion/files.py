"""Embedding files: their tensors and metadata, and the files that are written during a training."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...training.config import check_choice
from ...training.record import Run
from ..bridge.files.writing import write_safetensors
from .names import prompt_word
from .words import Embedding, named_by, on_wire

FORMATS = ("comfy", "a1111")
File = tuple[dict[str, Tensor], dict[str, str]]  # tensors, metadata


def metadata(
    name: str, embedding: Mapping[str, Tensor], run: Run | None, prompt: Any = None, workflow: Any = None
) -> dict[str, str]:
    """The metadata of an embedding file.

    name: the file's, without its ending. embedding: vectors [n, width] by encoder. run: the training's record, or None
    where it is unknown. prompt, workflow: ComfyUI's, of the running graph.
    """
    meta: dict[str, Any] = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": name,
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "modelspec.trigger_phrase": prompt_word(name),
        "bespoke.norms": json.dumps({key: value.norm(dim=-1).tolist() for key, value in embedding.items()}),
    }
    if run is not None:
        meta |= {
            "modelspec.architecture": "stable-diffusion/textual-inversion",
            "modelspec.prediction_type": run.info.prediction,
            "ss_sd_model_name": run.info.base,
            "ss_steps": len(run.losses),
            "bespoke.run": run.id,
            "bespoke.base_hash": run.info.base_hash,
            "bespoke.clip_skip": run.info.clip_skip,
            "bespoke.template": run.info.settings.get("template"),
            "bespoke.held_out": _curve(run) if run.held_out else None,
            "bespoke.settings": json.dumps(run.info.settings),
            **run.info.part.metadata(),
        }
    for key, value in (("prompt", prompt), ("workflow", workflow)):
        if value is not None:
            meta[key] = json.dumps(value)
    return {key: str(value) for key, value in meta.items() if value not in (None, "")}


def _curve(run: Run) -> str:
    """The held-out curve as JSON; a loss that is not finite is null."""
    return json.dumps([(step, loss if math.isfinite(loss) else None) for step, loss in run.held_out])


def as_file(
    name: str, embedding: Mapping[str, Tensor], run: Run | None, format: str = "comfy", graph: tuple = (None, None)
) -> File:
    """(tensors, metadata) of an embedding file. graph: (prompt, workflow) of the running graph.

    format: "comfy" has a tensor for each encoder under its key; "a1111" has one under "emb_params" where there is one
    encoder. Raises `InputError` for another format.
    """
    check_choice("format", format, FORMATS)
    tensors = {key: value.detach().float().cpu().contiguous() for key, value in embedding.items()}
    if format == "a1111" and len(tensors) == 1:
        tensors = {"emb_params": next(iter(tensors.values()))}
    return tensors, metadata(name, embedding, run, *graph)


def as_files(
    prefix: str, embedding: Embedding, run: Run | None, format: str = "comfy", graph: tuple = (None, None)
) -> dict[str, File]:
    """{name: `as_file`} of one word or several: prompts say `embedding:name`. prefix: see `named_by`."""
    named = named_by(prefix, embedding)
    return {name: as_file(name, each, run, format, graph) for name, each in named.items()}


def save_on_the_way(
    folder: Path, step: int, learned: Mapping[str, Tensor], run: Run, graph: tuple = (None, None)
) -> None:
    """Write FOLDER/RUN-stepN.safetensors during a training; prompts can use it from the embeddings folder.

    Several words have a file each, RUN-stepN-WORD.safetensors.
    """
    for name, file in as_files(f"{run.id}-step{step:06}", on_wire(learned), run, graph=graph).items():
        write_safetensors(folder / f"{name}.safetensors", *file, overwrite=True)
