"""Makes jobs for a small SD3 that ComfyUI loads from a file, and starts processes that train them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import ranks
import tiny
import torch
from helpers import sprite_set
from run_records import losses_of
from safetensors import safe_open
from safetensors.torch import save_file

BASE = "tiny-sd3.safetensors"
SETTINGS = dict(steps=50, batch_size=4, rank=4, alpha=4.0, learning_rate=1e-2, seed=5, precision="fp32", keep="last")


def base_model(comfyui: Path):
    """(model, clip, vae): the model through ComfyUI's own loader, from a file in its folder."""
    import comfy.sd

    path = comfyui / "models" / "diffusion_models" / BASE
    made, clip, vae = tiny.sd3()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in made.model.diffusion_model.state_dict().items()}, path)
    with torch.inference_mode():
        return comfy.sd.load_diffusion_model(str(path)), clip, vae


def video_model(comfyui: Path):
    """(model, clip, vae) as `base_model`: the smallest Wan that ComfyUI reads, with a text encoder of its width."""
    import comfy.sd
    import families
    import stand_ins

    path = comfyui / "models" / "diffusion_models" / "tiny-wan.safetensors"
    made, *_ = families.wan(dim=128, num_heads=1, freq_dim=256, text_dim=4096)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in made.model.diffusion_model.state_dict().items()}, path)
    with torch.inference_mode():
        loaded = comfy.sd.load_diffusion_model(str(path))
    return loaded, stand_ins.clip(stand_ins.Text(4096)), families.wan_vae()


def pictures():
    return sprite_set(2, 5, side=64, colour="teal"), sprite_set(9, 3, side=64, colour="teal")


def export(run_node, models, name, **changes):
    """(folder, report) of an exported LoRA job. changes: inputs of the node other than `SETTINGS`."""
    images, validation = pictures()
    given = dict(model=models[0], clip=models[1], vae=models[2], images=images, validation_images=validation)
    return run_node("BespokeExportLoraJob", **given | SETTINGS | {"folder": name} | changes)


def losses(job: Path) -> list[float]:
    """The loss of each step of the newest run."""
    newest = max((job / "runs").glob("*/record.json"), key=lambda path: path.stat().st_mtime)
    return losses_of(newest.parent)


def step_lost(job: Path) -> tuple[int, int]:
    """(the last step of the first start, the step that the second start resumed from)."""
    lines = [json.loads(line) for line in (job / "log.jsonl").read_text().splitlines()]
    first, second = (place for place, line in enumerate(lines) if line["event"] == "start")
    steps = [
        [line["step"] for line in part if line["event"] == "step"] for part in (lines[first:second], lines[second:])
    ]
    return steps[0][-1], steps[1][0] - 1


def events(job: Path, kind: str) -> list[dict]:
    path = job / "log.jsonl"
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118 (it is no dict)


def result(job: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    (path,) = (job / "result").glob("*.safetensors")
    return read(path)


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The relative distance |one - other| / |one| over all tensors together."""
    assert one.keys() == other.keys()
    squares = [((one[key].double() - other[key].double()) ** 2).sum() for key in one]
    return float((sum(squares) / sum((value.double() ** 2).sum() for value in one.values())) ** 0.5)


def copy_of(job: Path, name: str, **settings) -> Path:
    """A copy of the job with other settings, without the output of trainings."""
    out = job.with_name(name)
    shutil.copytree(job, out, ignore=shutil.ignore_patterns("runs", "saves", "result", "log.jsonl"))
    text = (out / "job.toml").read_text()
    for key, value in settings.items():
        # A setting that version 0.1 lacks is not written at its default.
        old = next((line for line in text.splitlines() if line.startswith(f"{key} = ")), None)
        head, line = "\n[settings]\n", f"{key} = {json.dumps(value)}"
        text = text.replace(head, f"{head}{line}\n", 1) if old is None else text.replace(old, line, 1)
    (out / "job.toml").write_text(text)
    return out


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_for(what, seconds: float = 240):
    """Call `what()` until its result is true, and return that."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := what():
            return value
        time.sleep(0.01)
    raise AssertionError(f"nothing came of {what} in {seconds} s")


class Ranks:
    """Starts jobs in several processes, which are forks of one process that has imported ComfyUI (`ranks.py`)."""

    def __init__(self, comfyui: Path, out: Path):
        self.out, self.base, self._number = out, comfyui, 0
        self.errors = (out / "errors.txt").open("w")
        self.process = subprocess.Popen(
            [sys.executable, ranks.__file__, str(comfyui)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def _hear(self) -> dict:
        line = self.process.stdout.readline()
        assert line, f"the processes' parent ended; see {self.errors.name}"
        return json.loads(line)

    def start(
        self,
        *jobs: Path,
        options: list[str] = (),
        port: int | None = None,
        env: dict | None = None,
        last: list[str] = (),
    ) -> list[int]:
        """Start one process for each of `jobs`, usually the same job several times; returns the process ids.

        options: of the command, for all. last: further options for the last process.
        """
        self._number += 1
        port = free_port() if port is None and len(jobs) > 1 else port
        arguments = [[str(job), *options] for job in jobs]
        arguments[-1] += last
        request = {"arguments": arguments, "port": port, "out": str(self.out / str(self._number)), "env": env or {}}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        self.pids = self._hear()["pids"]
        return self.pids

    def ended(self, seconds: float = 240) -> tuple[list[int], list[str]]:
        """(exit status of each process, output of each). Processes that run longer than `seconds` are killed."""
        late = threading.Timer(
            seconds, lambda: [os.kill(pid, signal.SIGKILL) for pid in self.pids if psutil.pid_exists(pid)]
        )
        late.start()
        statuses = self._hear()["statuses"]
        late.cancel()
        return statuses, [(self.out / str(self._number) / f"{rank}.txt").read_text() for rank in range(len(statuses))]

    def train(self, job: Path, count: int, options: list[str] = ()) -> Path:
        self.start(*[job] * count, options=options)
        statuses, said = self.ended()
        assert statuses == [0] * count, "\n".join(said)
        return job

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)


def torchrun(job: Path, comfyui: Path, count: int, *options: str) -> subprocess.Popen:
    """Start the command of the help page, with `torchrun` as a process of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *options]
    return subprocess.Popen(
        [*command, str(ranks.COMMAND), str(job), "--base-directory", str(comfyui)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
