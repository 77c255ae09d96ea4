"""One Chromium and one ComfyUI server for the tests of the page. Screenshots are kept in .dev/screenshots."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "server"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "demo"))

import chromium
import host
import loras
import pictures
from comfy_page import ComfyPage
from small_values import for_small_model

SCREENSHOTS = host.ROOT / ".dev" / "screenshots"


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium; the tests that need one are skipped where there is none."""
    if chromium.find() is None:
        pytest.skip("no Chromium is installed, so the page is not tested (Debian: apt-get install chromium)")
    with chromium.Chromium() as running:
        yield running


@pytest.fixture(scope="session")
def server(browser, tmp_path_factory, small_checkpoint):
    """A `host.Host` for the tests of the page, which stop it in mid-run and change its settings."""
    host.end_on_terminate()
    base = host.prepare_base(tmp_path_factory.mktemp("page"), small_checkpoint)
    pictures.make(base / "input")
    loras.make(base / "models" / "loras")
    with host.Host(base) as running:
        yield running


@pytest.fixture
def open_page(browser, server):
    """open_page(look="classic", palette="dark", rewrite=None) -> a `ComfyPage`, closed after the test."""
    opened = []

    def open_one(**options):
        opened.append(ComfyPage(browser, server, **options))
        return opened[-1]

    yield open_one
    for page in opened:
        page.close()


@pytest.fixture(scope="module")
def page(browser, server):
    """One page for all tests of a file, in the classic look. Files that need another override this fixture."""
    opened = ComfyPage(browser, server)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def workflow(server):
    """workflow("lora_train_and_use") -> the example workflow of that name, with the small model's values."""
    about = server.get("/object_info")
    return lambda name: for_small_model(
        json.loads((host.ROOT / "example_workflows" / f"{name}.json").read_text("utf-8")), about
    )


@pytest.fixture(scope="session")
def screenshots() -> Path:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    return SCREENSHOTS


CORE = (
    "test_bypass.py",
    "test_core.py",
    "test_runs_list.py",
    "test_round_trip.py",
    "test_repair.py",
    "test_links.py",
    "test_blueprint_values.py",
)


def pytest_collection_modifyitems(items):
    """All files but `CORE` take minutes and are marked slow: `python3 dev.py test -m slow tests/browser` runs them."""
    for item in items:
        if "/browser/" in item.path.as_posix() and item.path.name not in CORE:
            item.add_marker(pytest.mark.slow)
