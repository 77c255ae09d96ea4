"""Starts ComfyUI in this process, once, and calls nodes."""

from __future__ import annotations

import asyncio
import atexit
import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

_base: Path | None = None


def start_comfyui() -> Path:
    """Put ComfyUI on `sys.path` and start it in this process on the CPU, once. Returns its base directory, which is
    temporary."""
    global _base
    if _base is not None:
        return _base
    comfyui = os.environ.get("COMFYUI_PATH")
    if not comfyui or not (Path(comfyui) / "comfy").is_dir():
        import pytest  # here, as `call_node` is used without it too

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


def call_node(node_id: str, **inputs):
    """A node's outputs, run as ComfyUI runs it: `call_node("BespokePartialDenoise", model=..., ...)`.

    Missing required widgets get the schema's default. Missing optional inputs are left out, as in a prompt that was
    saved before they existed. The call runs under `torch.inference_mode()`, as in ComfyUI. Core's nodes can be called
    too. `hidden={io.Hidden.prompt: ...}` sets hidden inputs.
    """
    import nodes
    import torch
    from comfy_api.latest import io
    from comfy_execution.utils import CurrentNodeContext

    cls = nodes.NODE_CLASS_MAPPINGS[node_id]
    hidden = inputs.pop("hidden", {})
    with torch.inference_mode(), CurrentNodeContext("test-prompt", "1", 0):
        if not issubclass(cls, io.ComfyNode):
            return getattr(cls(), cls.FUNCTION)(**inputs)
        for item in cls.GET_SCHEMA().inputs:
            default = getattr(item, "default", None)
            if default is None and item.get_io_type() == "COMBO":
                default = item.options[0]
            if item.id not in inputs and not item.optional and default is not None:
                inputs[item.id] = default
        clone = cls.PREPARE_CLASS_CLONE({"hidden_inputs": hidden})
        return clone.EXECUTE_NORMALIZED(**inputs).args
