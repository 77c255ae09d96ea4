"""The program for a machine with a GPU: its blocks, its tables, its list of what travels, and blocks that go wrong.

No folder is made and no model: `python3 FOLDER/on_a_gpu.py run --tiny --trials` tries the whole, see CONTRIBUTING.md.
"""

import argparse
import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "tests" / "bench"
sys.path.append(str(BENCH))

import on_a_gpu  # noqa: E402 (found by the line above)
from on_gpu import folder, plan, rows  # noqa: E402


def functions(name: str) -> set[str]:
    tree = ast.parse((BENCH / "on_gpu" / name).read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_the_blocks_take_at_most_eight_minutes():
    assert plan.TOTAL == 8 * 60
    assert sum(block.limit for block in plan.BLOCKS) + plan.UNPACKING <= plan.TOTAL


def test_every_block_has_a_name_of_its_own_and_a_function():
    blocks = (*plan.BLOCKS, *plan.TRIALS)
    assert len({block.name for block in blocks}) == len(blocks)
    here = functions("blocks.py")
    assert [block.name for block in plan.BLOCKS if block.function not in here] == []
    there = functions("trials.py")
    assert [block.name for block in plan.TRIALS if block.function not in there] == []


def test_blocks_are_chosen_by_name():
    assert plan.chosen([]) == plan.BLOCKS
    assert plan.chosen([], trials=True) == (*plan.TRIALS, *plan.BLOCKS)
    assert [block.name for block in plan.chosen(["cards", "peers"])] == ["cards", "peers"]
    with pytest.raises(ValueError, match="no block is called 'lora-x'; choose of .*lora-sdxl"):
        plan.chosen(["lora-x"])


# --- tables -----------------------------------------------------------------------------------------------------------


def test_a_table_has_the_columns_that_its_rows_have():
    """Against a table that was written by hand."""
    found = [
        dict(block="b", what="this pack", px=1024, step_ms=12.345, checkpointing=True, peak_gb=None),
        dict(block="b", what="a | b", px=512, error="out of memory:\n  too large", trained=1234567),
    ]
    assert rows.table(found) == (
        "| what | px | checkpointing | step, ms | trained | error |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| this pack | 1024 | yes | 12.3 | – | – |\n"
        "| a \\| b | 512 | – | – | 1,234,567 | out of memory: too large |"
    )


def test_a_report_says_what_became_of_each_block():
    blocks = [
        dict(name="one", about="a block", state="done", seconds=3.2),
        dict(name="two", about="another", state="stopped at its limit of 40 s", seconds=40.0),
    ]
    text = rows.report("Title", blocks, [dict(block="one", what="x", value=0.5)])
    assert text.startswith("# Title\n\n## one: a block\n\ndone after 3 s.\n\n| what | value |\n")
    assert text.endswith("## two: another\n\nstopped at its limit of 40 s after 40 s.\n\nNo row.\n")


def test_a_row_is_on_the_disk_at_once_and_half_a_row_is_left_out(tmp_path):
    file = tmp_path / "rows.jsonl"
    assert rows.read(file) == []
    rows.append(file, {"block": "a", "value": 1})
    with file.open("a") as stream:
        stream.write('{"block": "b", "va')
    assert rows.read(file) == [{"block": "a", "value": 1}]


# --- what travels -----------------------------------------------------------------------------------------------------


def test_what_travels_of_the_pack_is_small_and_whole():
    paths = folder.pack_files(ROOT)
    assert sum((ROOT / path).stat().st_size for path in paths) < 6 * 2**20  # before it is compressed
    names = {path.as_posix() for path in paths}
    wanted = {f"tests/bench/on_gpu/{path.name}" for path in (BENCH / "on_gpu").glob("*.py")}
    assert wanted | {"__init__.py", "nodes/extension.py", "tests/bench/on_a_gpu.py", "tests/lib/tiny.py"} <= names
    assert not any(path.suffix in (".safetensors", ".png", ".npz") for path in paths)


def test_every_package_that_travels_is_pinned(tmp_path):
    pinned = (ROOT / "tests" / "constraints.txt").read_text("utf-8")
    for name in (*folder.PACKAGES, *folder.OF_TORCH):
        assert re.search(rf"^{name}==", pinned, re.MULTILINE | re.IGNORECASE), name
    (tmp_path / "requirements.txt").write_text("torch\ncomfy-kitchen==0.2.26\ncomfy-aimdo==0.4.11\nnumpy>=1.25.0\n")
    found = folder.requirements(tmp_path, ["numpy", "comfy-aimdo"])
    assert found == [name for name in folder.PACKAGES if name != "numpy"] + ["comfy-kitchen==0.2.26"]
    with pytest.raises(folder.FolderError, match="--machine-has names 'nunpy'"):
        folder.requirements(tmp_path, ["nunpy"])


def test_a_folder_that_is_too_large_is_refused_and_the_kernels_make_room(tmp_path, monkeypatch):
    for name, size in (("site.tar.xz", 700), ("kernels.tar.xz", 400)):
        (tmp_path / name).write_bytes(bytes(size))
    monkeypatch.setattr(folder, "LIMIT", 1000)
    said = []
    folder._fit(tmp_path, said.append)
    assert [path.name for path in tmp_path.iterdir()] == ["site.tar.xz"]
    assert "CUDA kernels are left out" in said[0]
    monkeypatch.setattr(folder, "LIMIT", 600)
    with pytest.raises(folder.FolderError, match="--machine-has"):
        folder._fit(tmp_path, said.append)


def test_a_folder_for_another_python_is_refused(tmp_path):
    with pytest.raises(folder.FolderError, match="has no contents.json"):
        folder.unpack(tmp_path, tmp_path)
    (tmp_path / "contents.json").write_text('{"python": "2.7"}')
    with pytest.raises(folder.FolderError, match=r"for Python 2\.7 and this is"):
        folder.unpack(tmp_path, tmp_path)


# --- blocks that go wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "limit", "state"),
    [
        ("pass", 60, "done"),
        ("raise SystemExit(3)", 60, "failed with status 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 60, "ended by signal SIGKILL"),
        ("import time; time.sleep(60)", 1, "stopped at its limit of 1 s"),
    ],
)
def test_a_block_ends_in_its_time_and_its_row_says_how(tmp_path, program, limit, state):
    program_file = tmp_path / "pack" / "tests" / "bench" / "on_a_gpu.py"
    program_file.parent.mkdir(parents=True)
    program_file.write_text(program)
    with (tmp_path / "log.txt").open("wb") as log:
        options = argparse.Namespace(tiny=True)
        found, seconds = on_a_gpu.run_block(plan.BLOCKS[0], limit, tmp_path, tmp_path, log, options)
    assert found == state
    assert seconds < 50
    wanted = [] if state == "done" else [{"block": plan.BLOCKS[0].name, "what": "the block", "error": state}]
    assert rows.read(tmp_path / "rows.jsonl") == wanted
