"""Measures this pack at full size on a machine that has a GPU and PyTorch and cannot reach a network.

    python3 tests/bench/on_a_gpu.py prepare [--out .dev/gpu] [--python 3.12] [--machine-has numpy,scipy]
    python3 FOLDER/on_a_gpu.py run [--out results] [--tiny] [--trials] [--blocks lora-sdxl,cards] [--seconds 480]
    python3 FOLDER/on_a_gpu.py list

`prepare`, here: makes a folder of at most 64 MiB with ComfyUI's source, the packages that PyTorch does not bring, and
the pack. Carry it to the machine. `run`, there: needs the folder and a Python with PyTorch. It makes full-size models
of random weights on the GPU and runs the blocks of on_gpu/plan.py in the order of their worth, each in a process of
its own that is ended at its limit; eight minutes in all. A row is on the disk as soon as it is measured: rows.jsonl;
results.json and table.md are written anew after each block; log.txt has what the blocks print. A block that fails, or
runs out of its time or memory, says so in its row, and the next one runs.

--tiny: everything a thousandth of the size, also on a CPU, to try the program itself; --trials: first blocks that go
wrong on purpose.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from on_gpu import folder, plan, rows  # noqa: E402 (found by the line above)

LEAST = 8  # seconds that must be left for a block to be started


def prepare(options: argparse.Namespace) -> int:
    """Make the folder."""
    without = [name for name in options.machine_has.split(",") if name]
    folder.prepare(HERE.parents[1], options.out.resolve(), options.python, options.platform, without, print)
    return 0


def run(options: argparse.Namespace) -> int:
    """Unpack the folder and run the blocks; returns 1 where one of them did not end well."""
    began, out = time.monotonic(), options.out.resolve()
    blocks = plan.chosen([name for name in options.blocks.split(",") if name], options.trials)
    out.mkdir(parents=True, exist_ok=True)
    (out / "rows.jsonl").unlink(missing_ok=True)
    done: list[dict] = []
    with tempfile.TemporaryDirectory(prefix="bespoke-gpu-") as work, (out / "log.txt").open("wb") as log:
        folder.unpack(HERE, Path(work))
        print(f"unpacked after {time.monotonic() - began:.0f} s", flush=True)
        for block in blocks:
            left = options.seconds - (time.monotonic() - began)
            state, seconds = "left out: no time was left", 0.0
            if left >= LEAST:
                state, seconds = run_block(
                    block, min(block.limit * options.patience, left), Path(work), out, log, options
                )
            done.append(dict(name=block.name, about=block.about, state=state, seconds=seconds))
            write_results(out, done, options)
            print(f"{time.monotonic() - began:4.0f} s  {block.name}: {state} after {seconds:.0f} s", flush=True)
    print((out / "table.md").read_text("utf-8"))
    trials = {block.name for block in plan.TRIALS}
    return int(any(block["state"] != "done" for block in done if block["name"] not in trials))


def run_block(block: plan.Block, limit: float, work: Path, out: Path, log, options) -> tuple[str, float]:
    """(what became of the block, its seconds). Its process and all that it started are ended at the limit."""
    command = [sys.executable, "-u", str(work / "pack" / "tests" / "bench" / "on_a_gpu.py"), "block", block.name]
    command += ["--work", str(work), "--out", str(out), "--seconds", str(limit)] + ["--tiny"] * options.tiny
    log.write(f"\n=== {block.name}\n".encode())
    log.flush()
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=variables(work),
    )
    try:
        status = process.wait(limit)
        state = "done" if status == 0 else f"failed with status {status}"
        if status < 0:
            state = f"ended by signal {signal.Signals(-status).name}"
    except subprocess.TimeoutExpired:
        state = f"stopped at its limit of {limit:.0f} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if state != "done":
        rows.append(out / "rows.jsonl", {"block": block.name, "what": "the block", "error": state})
    return state, time.monotonic() - began


def variables(work: Path) -> dict[str, str]:
    """The environment of a block: nothing is looked for in a network, and what is written lies in `work`."""
    cache = work / "cache"
    cache.mkdir(exist_ok=True)
    return dict(os.environ) | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(cache / "hub"),
        "TORCH_HOME": str(cache / "torch"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "TQDM_DISABLE": "1",
        "PYTHONUTF8": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def write_results(out: Path, done: list[dict], options: argparse.Namespace) -> None:
    """results.json and table.md of what has run so far."""
    found = rows.read(out / "rows.jsonl")
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    command = "on_a_gpu.py run" + " --tiny" * options.tiny
    whole = dict(date=date, command=command, contents=json.loads((HERE / folder.CONTENTS).read_text()))
    (out / "results.json").write_text(json.dumps(whole | dict(blocks=done, rows=found), indent=1))
    title = f"Full size on a GPU, {date}, {command}"
    if options.tiny:
        title = f"A trial of the program with tiny models, {date}: its numbers mean nothing"
    (out / "table.md").write_text(rows.report(title, done, found), "utf-8")


def block(options: argparse.Namespace) -> int:
    """Run one block in this process, which `run` has started; returns its exit status."""
    began, work = time.monotonic(), options.work
    bench = work / "pack" / "tests"
    sys.path[1:1] = [str(bench / "lib"), str(bench / "small_model"), str(work / "site")]
    sys.path.append(str(work / "end"))
    (chosen,) = plan.chosen([options.name])
    try:
        from on_gpu import work as works

        if chosen.host:
            from on_gpu import host

            host.start(work / "comfyui", work / "pack", work / f"base-{chosen.name}", chosen.dynamic)
            host.quiet()
            from on_gpu import blocks as functions
        else:
            from on_gpu import trials as functions
        limit = options.seconds - (time.monotonic() - began)
        print(f"started after {time.monotonic() - began:.1f} s", flush=True)
        given = works.Work(chosen.name, options.out / "rows.jsonl", work, limit, options.tiny)
        getattr(functions, chosen.function)(given, chosen.argument)
    except Exception as error:  # any kind: the row says it, and the next block runs
        traceback.print_exc()
        text = f"{type(error).__name__}: {error}"
        rows.append(options.out / "rows.jsonl", {"block": chosen.name, "what": "the block", "error": text})
        return 1
    return 0


def arguments(given: list[str]) -> argparse.Namespace:
    """The parsed command line."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="on_a_gpu.py", description=__doc__, formatter_class=plain)
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("prepare", help="make the folder for the machine")
    made.add_argument("--out", type=Path, default=HERE.parents[1] / ".dev" / "gpu", help="the folder; default .dev/gpu")
    made.add_argument("--python", default="3.12", help="the machine's Python, such as 3.12 (default)")
    made.add_argument("--platform", default="x86_64-manylinux_2_28", help="the machine's platform in uv's words")
    made.add_argument("--machine-has", default="", metavar="NAMES", help="packages that need not be brought")
    runs = commands.add_parser("run", help="measure, on the machine with the GPU")
    runs.add_argument("--out", type=Path, default=Path("results"), help="the folder of the results; default results")
    runs.add_argument("--tiny", action="store_true", help="tiny models, to try the program itself")
    runs.add_argument("--trials", action="store_true", help="first run blocks that go wrong on purpose")
    runs.add_argument("--blocks", default="", metavar="NAMES", help="these blocks alone, divided by commas")
    runs.add_argument("--seconds", type=float, default=plan.TOTAL, help="the time of the whole run")
    runs.add_argument("--patience", type=float, default=1.0, help="a factor of the blocks' limits, for a slow machine")
    commands.add_parser("list", help="the blocks and their limits")
    one = commands.add_parser("block", help="one block in this process; used by run")
    one.add_argument("name")
    one.add_argument("--work", type=Path, required=True)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--seconds", type=float, required=True)
    one.add_argument("--tiny", action="store_true")
    return parser.parse_args(given)


def main(given: list[str]) -> int:
    """Run a command line; returns the exit status."""
    options = arguments(given)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a block that runs is ended too
    try:
        if options.command == "list":
            print("\n".join(f"{each.limit:4} s  {each.name:14} {each.about}" for each in plan.BLOCKS))
            return 0
        return {"prepare": prepare, "run": run, "block": block}[options.command](options)
    except (folder.FolderError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
