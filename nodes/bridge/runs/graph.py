"""The graph that a run was queued with, kept in the run's folder, and the files that the run made."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path

import folder_paths

from ....training.plain_json import read_json
from ..files.headers import read_metadata
from ..files.writing import write_text
from ..running_prompt import running_workflow, workflow_id
from .store import RunStore

GRAPH = "graph.json"
MADE = {"loras": "lora", "embeddings": "embedding"}  # ComfyUI's folders, and what a file there is called


def keep_graph(folder: Path) -> str:
    """Write the workflow that is running now into a run's folder; gives the workflow's id, "" where there is none.

    The page sends the workflow along with the prompt; a prompt queued by a script has none, and none is kept.
    """
    workflow = running_workflow()
    if workflow is None:
        return ""
    write_text(folder / GRAPH, json.dumps(workflow))
    return workflow_id(workflow)


def kept_graph(run_id: str) -> dict | None:
    """The run's workflow: the kept one, else that in a file it made. Raises `ValueError` for what is no run's id."""
    folder = RunStore(run_id).folder
    try:
        return read_json((folder / GRAPH).read_text("utf-8"))
    except (OSError, ValueError):
        pass
    for kind, names in files_of(run_id).items():
        for name in names:
            try:
                return read_json(_metadata(*_identity(kind, name)).get("workflow", ""))
            except ValueError:
                continue
    return None


def files_of(run_id: str) -> dict[str, list[str]]:
    """{"loras": [...], "embeddings": [...]}: the files in ComfyUI's folders whose metadata names this run.

    It reads the files and not the record, so that files that were renamed or deleted since are listed as they are now.
    """
    found: dict[str, list[str]] = {}
    for kind in MADE:
        names = [name for name in folder_paths.get_filename_list(kind) if name.endswith(".safetensors")]
        found[kind] = [name for name in names if _metadata(*_identity(kind, name)).get("bespoke.run") == run_id]
    return found


def _identity(kind: str, name: str) -> tuple[str, int, int]:
    path = folder_paths.get_full_path(kind, name) or ""
    try:
        stat = os.stat(path)
    except OSError:
        return "", 0, 0
    return path, stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=4096)
def _metadata(path: str, _size: int, _changed: int) -> dict[str, str]:
    """A safetensors file's metadata, from its header alone; {} where it cannot be read."""
    try:
        meta = read_metadata(path)
    except (OSError, ValueError):
        return {}
    if "bespoke.run" not in meta:
        return {}
    return {key: value for key, value in meta.items() if key in ("bespoke.run", "workflow") and isinstance(value, str)}
