"""Starts ComfyUI in this process, once."""

from __future__ import annotations

import asyncio
import atexit
import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

_base: Path | None = None


def start_comfyui() -> Path:
    """Put ComfyUI on `sys.path` and start its parts in this process, once, on the CPU, in a base directory of its
    own."""
    global _base
    if _base is not None:
        return _base
    where = os.environ.get("COMFYUI_PATH")
    if not where or not (Path(where) / "comfy").is_dir():
        pytest.exit("COMFYUI_PATH does not name a ComfyUI folder: run the tests with `python3 dev.py test`", 2)
    sys.path.insert(0, where)
    # First, as in main.py: older versions put comfy/ on sys.path, and its utils.py would hide ComfyUI's package.
    importlib.import_module("utils")
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    base = Path(tempfile.mkdtemp(prefix="bespoke-test-"))
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    args.cpu = True
    args.base_directory = str(base)
    for folder in ("input", "output", "temp", "user", "models/loras", "models/embeddings", "models/checkpoints"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    import server

    server.PromptServer(asyncio.new_event_loop())
    _base = base
    return base
