"""Embedding files: what stands in their metadata, and where the ones written on the way go."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...training.record import Run
from ..bridge import storage
from .names import prompt_word


def metadata(name: str, embedding: Mapping[str, Tensor], run: Run | None, prompt: Any = None, workflow: Any = None) -> dict[str, str]:
    """What the word is, how it was learned and on what, and ComfyUI's `prompt` and `workflow`."""
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
            "modelspec.prediction_type": run.prediction,
            "ss_sd_model_name": run.base,
            "ss_steps": len(run.losses),
            "bespoke.run": run.id,
            "bespoke.base_hash": run.base_hash,
            "bespoke.clip_skip": run.clip_skip,
            "bespoke.template": run.settings.get("template"),
            "bespoke.held_out": json.dumps(run.held_out) if run.held_out else None,
            "bespoke.settings": json.dumps(run.settings),
        }
    for key, value in (("prompt", prompt), ("workflow", workflow)):
        if value is not None:
            meta[key] = json.dumps(value)
    return {key: str(value) for key, value in meta.items() if value not in (None, "")}


def save_on_the_way(step: int, embedding: Mapping[str, Tensor], run: Run, prompt: Any = None, workflow: Any = None) -> None:
    """Write embeddings/bespoke/runs/RUN-stepN.safetensors, which prompts can say too."""
    name = f"{run.id}-step{step:06}"
    path = storage.inside(storage.models_folder("embeddings"), f"bespoke/runs/{name}.safetensors")
    tensors = {key: value.detach().float().cpu().contiguous() for key, value in embedding.items()}
    storage.write_safetensors(path, tensors, metadata(name, embedding, run, prompt, workflow), overwrite=True)
