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
    """Put ComfyUI on `sys.path` and start it in this process on the CPU, once. Returns its base directory, which is
    temporary."""
    global _base
    if _base is not None:
        return _base
    comfyui = os.environ.get("COMFYUI_PATH")
    if not comfyui or not (Path(comfyui) / "comfy").is_dir():
        pytest.exit("COMFYUI_PATH does not name a ComfyUI folder: run the tests with `python3 dev.py test`", 2)
    sys.path.insert(0, comfyui)
    # First, as in main.py: older versions put comfy/ on sys.path, whose utils.py would hide ComfyUI's package `utils`.
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
