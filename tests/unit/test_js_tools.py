"""The JavaScript tools: pinned, without the address of a registry, and left out of the published package."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = json.loads((ROOT / "package.json").read_text("utf-8"))
LOCK = json.loads((ROOT / "package-lock.json").read_text("utf-8"))


def test_every_tool_is_pinned_to_one_version():
    pinned = PACKAGE["devDependencies"]
    assert {"eslint", "typescript", "pyright", "@comfyorg/comfyui-frontend-types"} <= set(pinned)
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in pinned.values())
    assert LOCK["packages"][""]["devDependencies"] == pinned, "run npm install --package-lock-only"
    for name, version in pinned.items():
        assert LOCK["packages"][f"node_modules/{name}"]["version"] == version


def test_the_lock_has_a_hash_of_every_package_and_no_address_of_a_registry():
    packages = {path: package for path, package in LOCK["packages"].items() if path}
    assert len(packages) > 50
    assert [path for path, package in packages.items() if not package.get("integrity", "").startswith("sha512-")] == []
    assert [path for path, package in packages.items() if "resolved" in package] == []


def test_js_tools_are_not_published():
    ignored = (ROOT / ".comfyignore").read_text("utf-8").splitlines()
    assert {"/package.json", "/package-lock.json", "/tsconfig.json", "/eslint.config.js", "/tests/"} <= set(ignored)


def test_every_script_is_type_checked():
    for script in (ROOT / "js").glob("*.js"):
        text = script.read_text("utf-8")
        assert text.startswith("// @ts-check\n"), script.name
        assert not re.search(r"@ts-(?:ignore|nocheck|expect-error)|eslint-disable", text), script.name
