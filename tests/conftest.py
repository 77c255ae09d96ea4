"""One real ComfyUI in this process, the pack loaded from its folder, and the small model.

`$COMFYUI_PATH` says where ComfyUI lies (`python3 dev.py test` sets it). The pack is imported under the fixed name
`bespoke`; only ComfyUI is on `sys.path`, since the pack's `nodes` folder must not hide ComfyUI's `nodes` module.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SMALL = Path(__file__).parent / "small_model"
# Folders whose tests share a server: in several processes (pytest-xdist) one process runs all of such a folder.
SHARED_SERVER = ("tests/server", "tests/browser")
# The slowest files, slowest first: several processes start with them, so that all end at about the same time.
LONGEST_FIRST = (
    *SHARED_SERVER,
    "tests/comfy/test_torchrun.py",
    "tests/comfy/test_concepts.py",
    "tests/comfy/test_textual_inversion.py",
    "tests/comfy/test_runs.py",
    "tests/comfy/test_trainer.py",
    "tests/comfy/test_memory.py",
    "tests/comfy/test_convolutions.py",
    "tests/comfy/test_small_model.py",
    "tests/comfy/test_foreign_files.py",
    "tests/comfy/test_foreign_strengths.py",
    "tests/comfy/test_weights.py",
    "tests/comfy/test_inject_scope.py",
    "tests/comfy/test_jobs.py",
    "tests/comfy/test_training_adapter.py",
)


def _load_pack():
    spec = importlib.util.spec_from_file_location(
        "bespoke", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["bespoke"] = module
    spec.loader.exec_module(module)
    return module


# At import, so that test modules can import `bespoke.training` at their top.
_load_pack()
sys.path[:0] = [str(SMALL), str(Path(__file__).parent / "lib")]  # sprites, judge, model; helpers, inprocess


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_xdist_make_scheduler(config, log):
    """Give each process whole files, and the folders of `SHARED_SERVER` as a whole."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return next((name for name in SHARED_SERVER if nodeid.startswith(f"{name}/")), super()._split_scope(nodeid))

    return Scheduling(config, log)


def pytest_collection_modifyitems(config, items):
    """In several processes, order the files by `LONGEST_FIRST`; tests keep their order within a file."""
    if not hasattr(config, "workerinput"):
        return
    order = {ROOT / name: position for position, name in enumerate(LONGEST_FIRST)}
    if missing := [path for path in order if not path.exists()]:
        raise pytest.UsageError(f"LONGEST_FIRST in tests/conftest.py names {missing[0]}, which is missing: correct it.")
    items.sort(key=lambda item: order.get(item.path, order.get(item.path.parent, len(order))))


def _cache() -> Path:
    return Path(os.environ.get("BESPOKE_CACHE") or ROOT / ".dev" / "cache")


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """The base directory of a ComfyUI that runs in this process, with core's nodes and the pack's registered."""
    import inprocess

    base = inprocess.start_comfyui()
    import nodes

    asyncio.run(_load_all(nodes))
    return base


async def _load_all(nodes) -> None:
    await nodes.init_builtin_extra_nodes()
    module = sys.modules["bespoke"]
    extension = await module.comfy_entrypoint()
    for node in await extension.get_node_list():
        nodes.NODE_CLASS_MAPPINGS[node.GET_SCHEMA().node_id] = node


@pytest.fixture(scope="session")
def run_node(comfyui):
    """run_node("BespokePartialDenoise", model=..., ...) -> the node's outputs, see `inprocess.call_node`."""
    import inprocess

    return inprocess.call_node


@pytest.fixture
def no_progress_bars(comfyui, monkeypatch):
    """ComfyUI prints no progress bars, between the lines of a table for example."""
    import comfy.utils

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_ENABLED", False)


@pytest.fixture
def one_thread():
    """Torch computes on one thread. Several add up in another order, and use processor time while they wait."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def small_checkpoint() -> Path:
    """The small model as a checkpoint file, made once and cached."""
    import model as small

    path = _cache() / f"bespoke-small-{small.RECIPE}.safetensors"
    return small.with_edit_form(path if path.is_file() else small.write_checkpoint(path))


@pytest.fixture(scope="session")
def small(comfyui, small_checkpoint):
    """(model, clip, vae) of the small model, loaded by ComfyUI's own loader. Tests must not change them."""
    import comfy.sd

    return comfy.sd.load_checkpoint_guess_config(
        str(small_checkpoint), embedding_directory=str(comfyui / "models" / "embeddings")
    )[:3]
