"""Starts ComfyUI without its server in this process, on the machine's GPU or CPU, with the pack's nodes and core's
trainer."""

from __future__ import annotations

import asyncio
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import os
import sys
import types
from pathlib import Path
from typing import Any

CORE_NODES = ("nodes", "comfy_extras.nodes_train")  # core's own, and its trainer


class _Codecs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands for PyAV, the library of film codecs, where it is not installed.

    ComfyUI imports it with its nodes. It has 25 MB when compressed, and no block reads or writes a film: whatever is
    used of it raises `RuntimeError`.
    """

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname == "av" or fullname.startswith("av."):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Codec(spec.name)

    def exec_module(self, module: Any) -> None:
        module.__path__ = []


class _Codec(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": _no_codec})


def _no_codec(*_args: Any, **_more: Any) -> None:
    raise RuntimeError("PyAV is not in this folder: no block can read or write a film")


def start(comfyui: Path, pack: Path, base: Path, dynamic: bool = False) -> None:
    """Start ComfyUI of the folder `comfyui`, with the pack of the folder `pack` as the package `bespoke`.

    base: ComfyUI's base directory, for everything that is written. dynamic: with dynamic VRAM, as main.py does it;
    without a GPU there is none. Raises `RuntimeError` where comfy-aimdo cannot start it on a GPU.
    """
    if importlib.util.find_spec("av") is None:
        sys.meta_path.append(_Codecs())
    for folder in ("input", "output", "temp", "user", "models/loras", "models/embeddings", "models/checkpoints"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(comfyui))
    importlib.import_module("utils")  # first, as ComfyUI's main.py does
    import comfy.options

    comfy.options.enable_args_parsing(False)
    import torch
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    args.base_directory = str(base)
    if dynamic and not args.cpu:
        _start_dynamic(args)
    for name in CORE_NODES:
        importlib.import_module(name)
    asyncio.run(_register(pack))


def _start_dynamic(args: Any) -> None:
    import comfy_aimdo.control

    args.enable_dynamic_vram = True
    comfy_aimdo.control.init()
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher

    devices = comfy.model_management.get_all_torch_devices()
    if not comfy_aimdo.control.init_devices((d.index, 0) for d in devices):
        raise RuntimeError("comfy-aimdo finds no device for dynamic VRAM here")
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True


async def _register(pack: Path) -> None:
    """Import the pack, and put its nodes and core's trainer into ComfyUI's table."""
    import comfy_extras.nodes_train
    import nodes

    spec = importlib.util.spec_from_file_location(
        "bespoke", pack / "__init__.py", submodule_search_locations=[str(pack)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bespoke"] = module
    spec.loader.exec_module(module)
    extensions = [await module.comfy_entrypoint(), await comfy_extras.nodes_train.comfy_entrypoint()]
    for extension in extensions:
        for node in await extension.get_node_list():
            nodes.NODE_CLASS_MAPPINGS[node.GET_SCHEMA().node_id] = node


def quiet() -> None:
    """Log warnings alone, and print no progress bars."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.getLogger().setLevel(logging.WARNING)
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False
