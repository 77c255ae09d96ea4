"""One real ComfyUI server for all tests of this folder, on a free port of the loopback interface."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "demo"))

import host
import loras
import pictures


@pytest.fixture(scope="session")
def server(tmp_path_factory, small_checkpoint):
    """A `host.Host` with the pack, the small model and the demo's inputs."""
    host.end_on_terminate()
    base = host.prepare_base(tmp_path_factory.mktemp("server"), small_checkpoint)
    pictures.make(base / "input")
    loras.make(base / "models" / "loras")
    with host.Host(base) as running:
        yield running


@pytest.fixture(scope="session")
def object_info(server) -> dict:
    """The definitions of all nodes, as the page gets them."""
    return server.get("/object_info")
