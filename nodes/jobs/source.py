"""The files that a MODEL, CLIP or VAE came from: named and hashed on one machine, found and loaded on another."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
import folder_paths
import torch

from ...training.errors import InputError

# ComfyUI's own loaders by the function that they leave on the wire: (name here, ComfyUI's folder, the options' place).
_LOADERS = {
    "load_checkpoint_guess_config": ("checkpoint", "checkpoints", 6),
    "load_checkpoint_clip_patcher": ("checkpoint", "checkpoints", 3),
    "load_checkpoint_vae_patcher": ("checkpoint", "checkpoints", 2),
    "load_diffusion_model": ("diffusion model", "diffusion_models", 1),
    "load_clip_model_patcher": ("text encoders", "text_encoders", 3),
    "load_vae_patcher": ("vae", "vae", None),
}
FOLDERS = {name: folder for name, folder, _ in _LOADERS.values()}


@dataclass(frozen=True)
class Source:
    """loader: which of ComfyUI's loaders. files: as ComfyUI lists them, "/" between folders. sha256: of each file.

    dtype: what the loader was told to keep the weights in, or nothing. kind: of text encoders, ComfyUI's name for it.
    """

    loader: str
    files: tuple[str, ...]
    sha256: tuple[str, ...]
    dtype: str | None = None
    kind: str | None = None

    def table(self) -> dict[str, Any]:
        return {
            "loader": self.loader,
            "files": list(self.files),
            "sha256": list(self.sha256),
            "dtype": self.dtype,
            "kind": self.kind,
        }

    @classmethod
    def of_table(cls, table: Mapping[str, Any], what: str) -> Source:
        """Raises `InputError` for a table that names no file."""
        try:
            found = cls(
                table["loader"], tuple(table["files"]), tuple(table["sha256"]), table.get("dtype"), table.get("kind")
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"the job's [{what}] lacks {error}; export the job again") from error
        if found.loader not in FOLDERS or len(found.files) != len(found.sha256) or not found.files:
            raise InputError(f"the job's [{what}] names no file that can be loaded; export the job again")
        return found


def source_of(patcher, what: str) -> Source:
    """What a MODEL, CLIP or VAE was loaded from. Raises `InputError` where its loader left no way to load it anew."""
    function, arguments, *_ = getattr(patcher, "cached_patcher_init", None) or (None, ())
    name = getattr(function, "__name__", "")
    if name not in _LOADERS or getattr(function, "__module__", "") != comfy.sd.__name__:
        raise InputError(
            f"the {what}'s loader left no word of its file, so that another machine could not load it; use ComfyUI's "
            "own loader for checkpoints, diffusion models, text encoders and VAEs"
        )
    loader, folder, place = _LOADERS[name]
    paths = [Path(path) for path in (arguments[0] if isinstance(arguments[0], (list, tuple)) else [arguments[0]])]
    options = dict(arguments[place] or {}) if place is not None and len(arguments) > place else {}
    options = {key: value for key, value in options.items() if not key.endswith("_device")}  # where, not what
    dtype = options.pop("dtype", None)
    if options:
        raise InputError(
            f"the {what} was loaded with {', '.join(sorted(options))}, which cannot go into a job; load it plainly"
        )
    kind = arguments[2].name if loader == "text encoders" else None
    named = None if dtype is None else str(dtype).removeprefix("torch.")
    return Source(loader, tuple(_listed(folder, path) for path in paths), tuple(map(sha256_of, paths)), named, kind)


def _listed(folder: str, path: Path) -> str:
    """The file as ComfyUI lists it below its folder, or its bare name where it lies elsewhere."""
    for base in folder_paths.get_folder_paths(folder):
        if path.resolve().is_relative_to(Path(base).resolve()):
            return path.resolve().relative_to(Path(base).resolve()).as_posix()
    return path.name


def sha256_of(path: Path) -> str:
    stat = os.stat(path)
    return _sha256(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: str, _size: int, _changed: int) -> str:
    out, buffer = hashlib.sha256(), bytearray(1 << 22)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            out.update(memoryview(buffer)[:count])
    return out.hexdigest()


def find(source: Source, what: str, further: Iterable[Path] = ()) -> list[Path]:
    """The source's files on this machine: in ComfyUI's folder for them, then in `further` folders, by name.

    Raises `InputError` where one is missing or holds something else than on the machine that exported.
    """
    found = []
    for name, wanted in zip(source.files, source.sha256, strict=True):
        kind = FOLDERS[source.loader]
        places = [
            folder_paths.get_full_path(kind, name),
            *(folder / part for folder in further for part in (name, Path(name).name)),
        ]
        here = [Path(place) for place in places if place is not None and Path(place).is_file()]
        if not here:
            where = ", ".join([*folder_paths.get_folder_paths(kind), *map(str, further)])
            raise InputError(
                f"the job's {what} is {name}, which is not here; put it into one of {where}, or name its folder "
                "with --models"
            )
        # ComfyUI's folder may hold another file of this name, for which --models names the right one.
        path = next((one for one in here if sha256_of(one) == wanted), None)
        if path is None:
            path = here[0]
            raise InputError(
                f"{path} is another file than the job's {what}: its SHA-256 is {sha256_of(path)} and not {wanted}; "
                "fetch the one that the job was exported with"
            )
        found.append(path)
    return found


def load(source: Source, paths: list[Path], what: str):
    """The MODEL (a patcher), CLIP or VAE of a source. what: "model", "clip" or "vae"."""
    first, words = str(paths[0]), folder_paths.get_folder_paths("embeddings")
    options = {} if source.dtype is None else {"dtype": getattr(torch, source.dtype)}
    if source.loader == "checkpoint":
        place = ("model", "clip", "vae").index(what)
        made = comfy.sd.load_checkpoint_guess_config(
            first,
            output_vae=what == "vae",
            output_clip=what == "clip",
            output_model=what == "model",
            embedding_directory=words,
            model_options=options if what != "clip" else {},
            te_model_options=options if what == "clip" else {},
        )[place]
    elif source.loader == "diffusion model":
        made = comfy.sd.load_diffusion_model(first, model_options=options)
    elif source.loader == "text encoders":
        kind = getattr(comfy.sd.CLIPType, source.kind or "STABLE_DIFFUSION", None)
        if kind is None:
            raise InputError(
                f"the job's {what} is of the kind {source.kind}, which this ComfyUI does not know; use the version "
                "that exported the job"
            )
        made = comfy.sd.load_clip(
            list(map(str, paths)), embedding_directory=words, clip_type=kind, model_options=options
        )
    else:
        tensors, metadata = comfy.utils.load_torch_file(first, return_metadata=True)
        made = comfy.sd.VAE(sd=tensors, metadata=metadata)
    if made is None:
        raise InputError(
            f"{paths[0].name} holds no {what} that this ComfyUI can load; use the version that exported the job"
        )
    return made
