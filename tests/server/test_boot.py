"""The server starts with the pack, without warnings."""

from __future__ import annotations

import json
import re

import host
import pytest

FIRST_NODES = {
    "BespokeImageFolder",
    "BespokeImageBatch",
    "BespokeTrainLora",
    "BespokeSaveLora",
    "BespokeLoadLora",
    "BespokeInjectLora",
    "BespokePartialDenoise",
    "BespokeLatentMaskBlend",
    "BespokeRestoreUnmasked",
    "BespokeTrainTextualInversion",
    "BespokeSaveEmbedding",
}


def complaints(log: str, *folders: str) -> list[str]:
    """The records of level WARNING and above that are about the pack. `folders`: texts to ignore."""
    for folder in folders:
        log = log.replace(folder, "")
    records = re.split(r"^(?=\[\d{4}-\d\d-\d\d [\d:,]+\] \[)", log, flags=re.MULTILINE)
    serious = [record for record in records if re.match(r"\[[^]]+\] \[(WARNING|ERROR|CRITICAL)\]", record)]
    return [record for record in serious if re.search("bespoke", record, re.IGNORECASE)]


def test_complaints_are_found():
    log = (
        "[2026-01-01 10:00:00,001] [INFO] bespoke is here\n"
        "[2026-01-01 10:00:01,001] [WARNING] something else\n"
        "[2026-01-01 10:00:02,001] [WARNING] Traceback (most recent call last):\n"
        '  File "/base/custom_nodes/bespoke/__init__.py", line 1\n'
        "[2026-01-01 10:00:03,001] [ERROR] /home/bespoke/ComfyUI is full\n"
    )
    assert complaints(log, "/home/bespoke") == [
        "[2026-01-01 10:00:02,001] [WARNING] Traceback (most recent call last):\n"
        '  File "/base/custom_nodes/bespoke/__init__.py", line 1\n'
    ]


def test_the_pack_loads_without_warnings(server):
    log, console = server.output_at_start  # later tests cause warnings, of a missing input for example
    assert re.search(r"seconds: .*custom_nodes.bespoke$", log, re.MULTILINE), "the pack is not in the list of imports"
    assert "IMPORT FAILED" not in log
    if host.writes_log():  # an older ComfyUI prints no levels
        assert complaints(log, str(host.ROOT), str(server.base)) == []
    # Python's warnings go to the console alone.
    printed = console.replace(str(host.ROOT), "").replace(str(server.base), "")
    assert [line for line in printed.splitlines() if re.search(r"bespoke.*warning", line, re.IGNORECASE)] == []


def test_no_other_pack_is_loaded(server):
    log = server.log.read_text("utf-8")
    assert len(re.findall(r"^.* seconds.*: .*custom_nodes", log, re.MULTILINE)) == 1


def test_the_nodes_are_served(object_info):
    assert set(object_info) >= FIRST_NODES


def test_every_node_of_the_pack_is_described(object_info):
    ours = [info for name, info in object_info.items() if name.startswith("Bespoke")]
    assert ours
    for info in ours:
        assert info["category"].startswith("Bespoke/"), info["name"]
        assert info["description"], info["name"]
        assert info["search_aliases"], info["name"]
        assert info["python_module"] == "custom_nodes.bespoke", info["name"]
        assert all(info["output_tooltips"]), info["name"]
        for group in ("required", "optional"):
            for name, spec in (info["input"].get(group) or {}).items():
                assert spec[1].get("tooltip"), f"{info['name']}.{name} has no tooltip"


def test_the_scripts_are_served_once(server):
    ours = [path for path in server.get("/extensions") if "/bespoke/" in path]
    assert "/extensions/bespoke/index.js" in ours
    assert len(ours) == len(set(ours)) == len(list((host.ROOT / "js").rglob("*.js")))


def test_the_help_and_the_names_are_served_in_each_language(server):
    """Where the pages 1.44.19 to 1.58.1 look: /extensions/<pack>/docs/<node>/<locale>.md, and /i18n."""
    texts = server.get("/i18n")
    for page in (host.ROOT / "js" / "docs").glob("*/*.md"):
        node, language = page.parent.name, page.stem
        assert server.get(f"/extensions/{host.PACK}/docs/{node}/{language}.md") == page.read_bytes()
        names = json.loads((host.ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))[node]
        assert texts[language]["nodeDefs"][node] == names


def test_the_templates_are_listed(server):
    ours = {path.stem for path in (host.ROOT / "example_workflows").glob("*.json")}
    assert set(server.get("/workflow_templates").get(host.PACK, [])) == ours


def test_nothing_is_written_into_comfyui(server):
    # The server's files are in the base directory of the command line.
    for file in (server.log, server.console, server.base / "user" / "comfyui.db"):
        assert file.is_file(), file
    assert not (host.comfyui() / "comfyui_detail.log").exists()


def test_a_port_in_use_is_seen(server):
    assert not host.port_is_free(server.port)
    assert host.port_is_free(host.free_port())


def test_a_start_that_fails_says_why(tmp_path):
    base = host.prepare_base(tmp_path)
    with pytest.raises(host.HostError, match="unrecognized arguments: --no-such-option"):
        host.Host(base, options=("--no-such-option",)).start()


def test_missing_comfyui_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(host.HostError, match="is no ComfyUI folder"):
        host.comfyui()


def test_prepare_base_can_run_twice(tmp_path):
    checkpoint = tmp_path / "model.safetensors"
    checkpoint.write_bytes(b"weights")
    for _ in range(2):
        base = host.prepare_base(tmp_path / "base", checkpoint)
        assert (base / "custom_nodes" / "bespoke" / "__init__.py").is_file()
        assert (base / "models" / "checkpoints" / host.CHECKPOINT).read_bytes() == b"weights"
    checkpoint.unlink()
    checkpoint.write_bytes(b"other weights")
    host.prepare_base(tmp_path / "base", checkpoint)
    assert (base / "models" / "checkpoints" / host.CHECKPOINT).read_bytes() == b"other weights"


def test_the_pack_is_copied_where_links_are_not_allowed(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("a required privilege is not held by the client")

    monkeypatch.setattr("pathlib.Path.symlink_to", refuse)
    for _ in range(2):  # the second time over the first copy
        copy = host.prepare_base(tmp_path) / "custom_nodes" / "bespoke"
        assert (copy / "nodes" / "extension.py").is_file()
        assert not any((copy / name).exists() for name in host.NOT_THE_PACK)
