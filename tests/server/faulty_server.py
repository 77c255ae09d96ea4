"""A real server whose trainings can be stopped, killed or made to fail at a chosen moment; see `fault_pack`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import urllib.error
from pathlib import Path

import host
import numpy as np
from PIL import Image
from safetensors import safe_open

PACK = Path(__file__).resolve().parent / "fault_pack"
PHASES = Path(__file__).resolve().parents[1] / "lib" / "phases.py"
PREFIX = "faulty"
SETTINGS = {
    "targets": "cross-attention",
    "rank": 2,
    "alpha": 2.0,
    "learning_rate": 1e-3,
    "steps": 6,
    "batch_size": 1,
    "seed": 3,
    "validation": 2,
    "lr_schedule": "constant",
    "precision": "fp32",
    "save_every": 2,
    "sample_every": 3,
    "sample_prompt": "a red circle",
    "keep": "last",
    "resume": True,
}
FOLDER = {"folder": "set", "captions": "text files", "template": "", "trigger": "", "resolution": 64, "bucket_step": 64}
SAMPLER = {"steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "seed": 0}
SIDE, PICTURES = 64, 12


def make_base(base: Path, checkpoint: Path) -> Path:
    """A base directory with this pack, the fault pack, the small model and a folder "set" of small pictures."""
    base = host.prepare_base(base, checkpoint)
    shutil.copytree(PACK, base / "custom_nodes" / "fault_pack", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PHASES, base / "custom_nodes" / "fault_pack" / "phases.py")
    folder = base / "input" / "set"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(PICTURES):
        picture = draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"a {('red', 'blue', 'teal')[number % 3]} circle\n")
    return base


def prompt(prefix: str = PREFIX, **changes) -> dict:
    """A graph: load the small model, train a LoRA on the folder "set", save it."""
    settings = SETTINGS | changes
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": host.CHECKPOINT}},
        "2": {"class_type": "BespokeImageFolder", "inputs": FOLDER},
        "3": {
            "class_type": "BespokeTrainLora",
            "inputs": {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "images": ["2", 0], **settings},
        },
        "4": {
            "class_type": "BespokeSaveLora",
            "inputs": {"lora": ["3", 1], "run": ["3", 3], "filename_prefix": prefix, "dtype": "fp32"},
        },
        # It is not run. Sample images are drawn with its settings.
        "5": {"class_type": "KSampler", "inputs": SAMPLER},
    }


class FaultyServer(host.Host):
    """A `host.Host` of `make_base` with one thread."""

    def __init__(self, base: Path, name: str = "one"):
        """name: differs for servers that share a base directory at the same time."""
        options = ["--cpu", "--disable-api-nodes", "--whitelist-custom-nodes", host.PACK, "fault_pack"]
        options += ["--temp-directory", str(base / f"temp-{name}"), "--database-url", f"sqlite:///{base / name}.db"]
        super().__init__(base, options=tuple(options))
        self.console = self.base / f"console-{name}.log"
        self.queued = 0

    def start(self, seconds: float = 600) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        super().start(seconds)
        self.arm()

    def arm(self, phase: str = "", at: int = 0, action: str = "") -> None:
        self.post("/faults", {"phase": phase, "at": at, "action": action})

    def counts(self) -> dict[str, int]:
        return self.get("/faults")["counts"]

    def queue(self, graph: dict) -> str:
        """Queue a prompt whose nodes all run again; gives its id.

        ComfyUI ignores an input that a node does not have, but its cache of outputs counts it.
        """
        self.queued += 1
        graph["1"]["inputs"]["again"] = self.queued
        try:
            return self.post("/prompt", {"prompt": graph})["prompt_id"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error

    def wait(self, prompt_id: str, seconds: float = 120) -> dict | None:
        """The history of the prompt when it has ended; None where the server ended first."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                return None
            with contextlib.suppress(OSError, ValueError, urllib.error.URLError):
                found = self.get(f"/history/{prompt_id}")
                if prompt_id in found:
                    return found[prompt_id]
            time.sleep(0.05)
        raise AssertionError(f"the prompt did not end in {seconds:g} s:\n{self.tail()}")

    def train(self, graph: dict) -> dict | None:
        return self.wait(self.queue(graph))

    def wait_held(self, seconds: float = 60) -> None:
        """Wait until the training has come to the armed moment of action "hold"."""
        end = time.monotonic() + seconds
        while not self.get("/faults")["held"]:
            assert time.monotonic() < end, f"the moment did not come:\n{self.tail()}"
            time.sleep(0.02)


def records_in(base: Path) -> list[dict]:
    """The records of all runs, oldest first."""
    records = [json.loads(path.read_text()) for path in runs_in(base).glob("lora-*/record.json")]
    return sorted(records, key=lambda record: record["started"])


def runs_in(base: Path) -> Path:
    return base / "user" / "bespoke" / "runs"


def outcome(base: Path, prefix: str = PREFIX) -> dict:
    """What the one run and its LoRA file hold, and then both are removed: the next run begins anew."""
    (folder,) = [path for path in runs_in(base).glob("lora-*") if path.is_dir()]
    (path,) = (base / "models" / "loras").glob(f"{prefix}_*.safetensors")
    with safe_open(path, "np") as file:
        tensors = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118 (it is no dict)
    record = json.loads((folder / "record.json").read_text())
    # "start_line" is of the last sitting: its measured time, and the step that it goes on from.
    times = ("started", "seconds", "start_line")
    found = {
        "file": path.name,
        "tensors": tensors,
        "losses": (folder / "losses.jsonl").read_bytes(),
        "record": {name: value for name, value in record.items() if name not in times},
        "samples": {each.name: Image.open(each).tobytes() for each in sorted((folder / "samples").glob("*"))},
        "files": sorted(each.name for each in folder.iterdir() if each.name != "graph.json"),
        "state": (folder / record["state_file"]).read_bytes(),
    }
    reset(base)
    return found


def differences(found: dict, expected: dict) -> list[str]:
    """What differs of two outcomes, the fields of the record one by one."""
    names = [name for name in expected if found[name] != expected[name]]
    fields = {**found["record"], **expected["record"]}
    return names + [name for name in fields if found["record"].get(name) != expected["record"].get(name)]


def reset(base: Path) -> None:
    """Remove the runs and the LoRA files."""
    shutil.rmtree(runs_in(base), ignore_errors=True)
    shutil.rmtree(base / "models" / "loras")
    (base / "models" / "loras").mkdir()


def error_of(history: dict) -> str:
    """The text of the error that ended a prompt, "interrupted" for an interruption, "" for none."""
    for kind, values in history["status"]["messages"]:
        if kind == "execution_error":
            return values["exception_message"].strip()
        if kind == "execution_interrupted":
            return "interrupted"
    return ""
