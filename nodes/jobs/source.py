"""The files that a MODEL, CLIP or VAE was loaded from: recorded on one machine, found and loaded on another.

A role is the name of a trainer's input: "model" (a patcher), "clip" or "vae".
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import comfy.sd
import comfy.utils
import folder_paths
import torch

from ...training.errors import InputError


class _Loader(NamedTuple):
    """A loader of ComfyUI. name: in job.toml. folder: ComfyUI's name of the models folder.

    options_index: which positional argument of the loader's function holds the model options; None where it has none.
    """

    name: str
    folder: str
    options_index: int | None


# By the name of the function that ComfyUI records on a patcher (`cached_patcher_init`).
_LOADERS = {
    "load_checkpoint_guess_config": _Loader("checkpoint", "checkpoints", 6),
    "load_checkpoint_clip_patcher": _Loader("checkpoint", "checkpoints", 3),
    "load_checkpoint_vae_patcher": _Loader("checkpoint", "checkpoints", 2),
    "load_diffusion_model": _Loader("diffusion model", "diffusion_models", 1),
    "load_clip_model_patcher": _Loader("text encoders", "text_encoders", 3),
    "load_vae_patcher": _Loader("vae", "vae", None),
}
# The dtypes that a job can name, by their names: nothing else is looked up in torch.
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
FOLDERS = {loader.name: loader.folder for loader in _LOADERS.values()}


@dataclass(frozen=True)
class Source:
    """The files of one model.

    loader: a key of `FOLDERS`. files: the names in ComfyUI's lists, with "/" between folders. sha256: the hash of each
    file. dtype: the weight dtype that the loader was given, such as "float8_e4m3fn", or None. kind: of text encoders
    the name in `comfy.sd.CLIPType`, else None.
    """

    loader: str
    files: tuple[str, ...]
    sha256: tuple[str, ...]
    dtype: str | None = None
    kind: str | None = None

    def to_table(self) -> dict[str, Any]:
        """The source as a table of job.toml."""
        return {
            "loader": self.loader,
            "files": list(self.files),
            "sha256": list(self.sha256),
            "dtype": self.dtype,
            "kind": self.kind,
        }

    @classmethod
    def from_table(cls, table: Mapping[str, Any], role: str) -> Source:
        """The source in the table [role] of job.toml. Raises `InputError` for a table that names no file."""
        try:
            found = cls(
                table["loader"], tuple(table["files"]), tuple(table["sha256"]), table.get("dtype"), table.get("kind")
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"the job's [{role}] lacks {error}; export the job again") from error
        if found.loader not in FOLDERS or len(found.files) != len(found.sha256) or not found.files:
            raise InputError(f"the job's [{role}] names no file that can be loaded; export the job again")
        if found.dtype is not None and found.dtype not in DTYPES:
            raise InputError(f"the job's [{role}] names the dtype {str(found.dtype)[:40]!r}; export the job again")
        return found


def source_of(patcher: Any, role: str) -> Source:
    """The files that a patcher was loaded from.

    patcher: a MODEL, or the `patcher` of a CLIP or VAE. Raises `InputError` where its loader did not record them, or
    was given options that job.toml cannot hold.
    """
    recorded = getattr(patcher, "cached_patcher_init", None)
    function, arguments = recorded[:2] if recorded else (None, [])
    name = getattr(function, "__name__", "")
    if name not in _LOADERS or getattr(function, "__module__", "") != comfy.sd.__name__:
        raise InputError(
            f"the {role}'s loader did not record its file, so another machine could not load it; use ComfyUI's own "
            "loader for checkpoints, diffusion models, text encoders and VAEs"
        )
    loader = _LOADERS[name]
    paths = [Path(path) for path in (arguments[0] if isinstance(arguments[0], (list, tuple)) else [arguments[0]])]
    options: dict[str, Any] = {}
    if loader.options_index is not None and len(arguments) > loader.options_index:
        options = dict(arguments[loader.options_index] or {})
    # Devices belong to this machine and are not exported.
    options = {key: value for key, value in options.items() if not key.endswith("_device")}
    dtype = options.pop("dtype", None)
    if options:
        raise InputError(
            f"the {role} was loaded with {', '.join(sorted(options))}, which cannot go into a job; load it without"
        )
    return Source(
        loader.name,
        tuple(_listed_name(loader.folder, path) for path in paths),
        tuple(map(sha256_of, paths)),
        None if dtype is None else str(dtype).removeprefix("torch."),
        arguments[2].name if loader.name == "text encoders" else None,
    )


def _listed_name(folder: str, path: Path) -> str:
    """The name of a file in ComfyUI's list of `folder`; the bare file name for a file outside of it."""
    for base in folder_paths.get_folder_paths(folder):
        if path.resolve().is_relative_to(Path(base).resolve()):
            return path.resolve().relative_to(Path(base).resolve()).as_posix()
    return path.name


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal, computed again only where its size or time has changed."""
    stat = os.stat(path)
    return _sha256(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: str, _size: int, _changed: int) -> str:
    out, buffer = hashlib.sha256(), bytearray(1 << 22)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            out.update(memoryview(buffer)[:count])
    return out.hexdigest()


def find_files(source: Source, role: str, further: Sequence[Path] = ()) -> list[Path]:
    """The files of a source on this machine.

    Each is looked up by name in ComfyUI's folder, then in the `further` folders. Raises `InputError` where a file is
    missing, or where none of the files with its name has its SHA-256.
    """
    return [
        _find_file(FOLDERS[source.loader], name, sha256, role, further)
        for name, sha256 in zip(source.files, source.sha256, strict=True)
    ]


def _find_file(kind: str, name: str, sha256: str, role: str, further: Sequence[Path]) -> Path:
    candidates = [
        folder_paths.get_full_path(kind, name),
        *(folder / part for folder in further for part in (name, Path(name).name)),
    ]
    paths = [Path(path) for path in candidates if path is not None and Path(path).is_file()]
    if not paths:
        folders = ", ".join([*folder_paths.get_folder_paths(kind), *map(str, further)])
        raise InputError(
            f"the job's {role} is {name}, which is not here; put it into one of {folders}, or name its folder "
            "with --models"
        )
    # ComfyUI's folder may hold another file of this name while --models names the right one.
    found = next((path for path in paths if sha256_of(path) == sha256), None)
    if found is None:
        raise InputError(
            f"{paths[0]} is another file than the job's {role}: its SHA-256 is {sha256_of(paths[0])} and not "
            f"{sha256}; use the file that the job was exported with"
        )
    return found


def load_source(source: Source, paths: Sequence[Path], role: str) -> Any:
    """The MODEL, CLIP or VAE of a source, loaded from `paths` by ComfyUI's own loader."""
    first, embeddings = str(paths[0]), folder_paths.get_folder_paths("embeddings")
    options = {} if source.dtype is None else {"dtype": DTYPES[source.dtype]}
    if source.loader == "checkpoint":
        index = ("model", "clip", "vae").index(role)
        loaded = comfy.sd.load_checkpoint_guess_config(
            first,
            output_vae=role == "vae",
            output_clip=role == "clip",
            output_model=role == "model",
            embedding_directory=embeddings,
            model_options=options if role != "clip" else {},
            te_model_options=options if role == "clip" else {},
        )[index]
    elif source.loader == "diffusion model":
        loaded = comfy.sd.load_diffusion_model(first, model_options=options)
    elif source.loader == "text encoders":
        kind = getattr(comfy.sd.CLIPType, source.kind or "STABLE_DIFFUSION", None)
        if kind is None:
            raise InputError(
                f"the job's {role} is of the kind {source.kind}, which this ComfyUI does not know; use the version "
                "that exported the job"
            )
        loaded = comfy.sd.load_clip(
            list(map(str, paths)), embedding_directory=embeddings, clip_type=kind, model_options=options
        )
    else:
        tensors, metadata = comfy.utils.load_torch_file(first, return_metadata=True)
        loaded = comfy.sd.VAE(sd=tensors, metadata=metadata)
    if loaded is None:
        raise InputError(
            f"{paths[0].name} holds no {role} that this ComfyUI can load; use the version that exported the job"
        )
    return loaded
