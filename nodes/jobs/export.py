"""From models on the wire to a job folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths

from ...training.errors import InputError
from ..bridge.dataset.encoded import EncodedDataset
from ..bridge.files import writing as storage
from ..bridge.runs.samples import SamplerSettings
from . import wire
from .job import write_job
from .source import Source, source_of
from .techniques import needed_models


def refuse_early(model, clip, vae, technique: str, settings: Mapping[str, Any]) -> dict[str, tuple[Source, dict, dict]]:
    """What the job says of each model that it needs, before anything is encoded. Raises `InputError` with the
    reason."""
    out, drawn = {}, bool(settings.get("sample_every"))
    for what in needed_models(technique, settings):
        if what == "model":
            out[what] = (source_of(model, what), *wire.carry(model, what, drawn))
        elif what == "clip":
            out[what] = (source_of(clip.patcher, what), *_carry_clip(clip))
        else:
            out[what] = (source_of(vae.patcher, what), *wire.carry(vae.patcher, what))
            if out[what][1]["patches"]:
                raise InputError(
                    "the vae on the wire carries patches of another node, which cannot go into a job; take it off"
                )
    return out


def _carry_clip(clip) -> tuple[dict, dict]:
    if clip.apply_hooks_to_conds is not None or clip.use_clip_schedule:
        raise InputError(
            "the clip on the wire carries hooks of another node, which cannot go into a job; take that node off"
        )
    if any(
        "_try_get_embedding" in vars(tokenizer)
        for tokenizer in vars(clip.tokenizer).values()
        if hasattr(tokenizer, "__dict__")
    ):
        raise InputError(
            "the clip on the wire knows a word that has no file, which cannot go into a job; save the word with "
            "Bespoke Save Embedding and wire in the clip from before it"
        )
    plan, tensors = wire.carry(clip.patcher, "clip")
    return plan | {"layer": clip.layer_idx, "tokenizer_options": dict(clip.tokenizer_options)}, tensors


def export(
    wanted: Path,
    technique: str,
    settings: Mapping[str, Any],
    dataset: EncodedDataset,
    models: Mapping[str, tuple[Source, dict, dict]],
    result: Mapping[str, Any],
    samples: SamplerSettings,
    graph: tuple[Any, Any],
) -> tuple[Path, str]:
    """(the folder that was written, what it holds in words). wanted: from `place_of`; one that is taken gets a
    number."""
    for number in range(1, 100_000):
        path = wanted if number == 1 else wanted.with_name(f"{wanted.name}_{number:05}")
        named = {key: value if key != "name" or value else _name(path) for key, value in result.items()}
        if path.exists():
            continue
        try:
            size = write_job(path, technique, settings, dataset, models, named, samples, graph)
        except FileExistsError:
            continue
        return path, _in_words(path, technique, dataset, models, size)
    raise InputError(f"the folder {wanted.name!r} is taken, and so are its numbered ones; give another name")


def place_of(folder: str) -> Path:
    """Where a job of this name goes: below ComfyUI's output folder. Raises `InputError` for a name that leads
    elsewhere."""
    return storage.resolve_inside(Path(folder_paths.get_output_directory()), folder)


def _name(path: Path) -> str:
    return re.sub(r"\s+", "-", path.name)


def _in_words(
    path: Path, technique: str, dataset: EncodedDataset, models: Mapping[str, tuple[Source, dict, dict]], size: int
) -> str:
    lines = [
        f"Job folder of {size / 1e6:.1f} MB: settings, {len(dataset.pictures.items)} encoded pictures, "
        f"{len(dataset.prompts)} encoded prompts. It needs no picture, and of the models:"
    ]
    for what, (source, plan, _) in models.items():
        files = ", ".join(
            f"{name} (SHA-256 {known[:12]}...)" for name, known in zip(source.files, source.sha256, strict=True)
        )
        lines.append(
            f"- {what}: {files} from the {source.loader} loader, {len(plan['patches'])} weights changed on the wire"
        )
    command = Path(__file__).with_name("command.py")
    lines += [
        f"Train it here or on another machine with ComfyUI and this pack ({technique}):",
        f'python "{command}" "{path}"',
        f'torchrun --standalone --nproc-per-node 2 "{command}" "{path}"',
    ]
    return "\n".join(lines)
