"""Trainings killed at random moments: the saved files are complete, and the same request resumes from them."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tiny
import torch
from bespoke.nodes.bridge.runs.store import RunStore
from bespoke.training.checkpoint import unpack
from helpers import sprite_set
from run_records import losses_of
from safetensors import safe_open

FORK_SERVER = Path(__file__).parent.parent / "lib" / "fork_server.py"
SAVE_EVERY = 4
LORA = dict(steps=24, batch_size=2, rank=4, alpha=4.0, learning_rate=1e-2, save_every=SAVE_EVERY, seed=7)
WORD = dict(steps=20, batch_size=1, name="w", init_text="red", learning_rate=5e-3, save_every=SAVE_EVERY, seed=7)


class ForkServer:
    """Starts trainings that can be killed. base: their common ComfyUI base directory."""

    def __init__(self, errors: Path):
        self.errors = errors.open("w")
        self.process = subprocess.Popen(
            [sys.executable, FORK_SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        self.base = Path(self.answer()["base"])

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        assert line, f"the fork server ended; see {self.errors.name}"
        return json.loads(line)

    def start(self, node: str, result: str, **settings) -> int:
        self.process.stdin.write(json.dumps({"node": node, "result": result, "settings": settings}) + "\n")
        self.process.stdin.flush()
        return self.answer()["pid"]

    def wait(self) -> int:
        return self.answer()["status"]

    def train(self, node: str, result: str, **settings) -> dict:
        self.start(node, result, **settings)
        assert self.wait() == 0, f"see {self.errors.name}"
        return json.loads((self.base / f"{result}.json").read_text())


@pytest.fixture(scope="module")
def fork_server(tmp_path_factory):
    server = ForkServer(tmp_path_factory.mktemp("fork_server") / "errors.txt")
    yield server
    server.process.stdin.close()
    server.process.wait(30)


def read(path: Path) -> dict:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)


class Watcher:
    """Reads every LoRA or embedding file in the folders, repeatedly, in a thread."""

    def __init__(self, *folders: Path):
        self.folders, self.reads, self.broken = folders, 0, []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def look(self) -> None:
        for path in (path for folder in self.folders for path in folder.rglob("*.safetensors")):
            try:
                assert read(path)
                self.reads += 1
            except FileNotFoundError:
                continue  # set aside between the listing and the reading
            except Exception as error:
                self.broken.append(f"{path.name}: {error}")

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.look()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("node", "settings", "kills"), [("BespokeTrainLora", LORA, 20), ("BespokeTrainTextualInversion", WORD, 6)]
)
def test_a_killed_training_resumes_from_the_last_save(fork_server, node, settings, kills):
    kind = "loras" if node == "BespokeTrainLora" else "embeddings"
    folder = fork_server.base / "models" / kind
    began = time.monotonic()
    whole = fork_server.train(node, "whole", resume=False, **settings)
    seconds = time.monotonic() - began
    (made,) = folder.glob("whole*.safetensors")
    expected = read(made)
    run = fork_server.base / "user" / "bespoke" / "runs" / whole["id"]
    draw, table = random.Random(0), []
    for number in range(kills):
        with Watcher(folder) as watcher:
            child = fork_server.start(node, f"cut{number}", resume=False, **settings)
            moment = draw.uniform(0, seconds)
            time.sleep(moment)
            # It may have ended: the first training, which was timed, also had to load everything.
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            killed = fork_server.wait() == signal.SIGKILL
            watcher.look()
        assert not watcher.broken
        assert watcher.reads > 0
        step = 0
        record = run / "record.json"
        if record.is_file() and (state := json.loads(record.read_text())["state_file"]):
            with safe_open(run / state, "pt") as file:
                step = unpack({key: file.get_tensor(key) for key in file.keys()}, file.metadata()).step  # noqa: SIM118
            assert losses_of(run) == whole["losses"][:step]
        with Watcher(folder) as watcher:
            again = fork_server.train(node, f"again{number}", resume=True, **settings)
        assert not watcher.broken
        (made,) = folder.glob(f"again{number}*.safetensors")
        result = read(made)
        assert again["losses"] == whole["losses"]
        assert again["held_out"] == whole["held_out"]
        assert result.keys() == expected.keys()
        assert all(torch.equal(value, result[key]) for key, value in expected.items())
        table.append((moment, killed, step, watcher.reads))
    print(f"\n{node}: {kills} kills in {settings['steps']} steps of {seconds:.1f} s in all")
    print(f"{'killed after s':>15} {'in mid-run':>11} {'resumes from':>13} {'files read':>11}")
    for moment, killed, step, reads in table:
        print(f"{moment:15.2f} {'yes' if killed else 'done':>11} {step:13} {reads:11}")
    assert sum(killed for _, killed, *_ in table) >= kills * 2 // 3
    assert any(0 < step < settings["steps"] for _, _, step, _ in table)


@pytest.mark.slow
def test_temporary_files_of_killed_writers_are_removed_and_not_listed(fork_server):
    folder = fork_server.base / "models" / "loras" / "bespoke" / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    old, new = folder / ".bespoke-old.part", folder / ".bespoke-new.part"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    fork_server.train("BespokeTrainLora", "sweep", resume=False, **LORA | {"steps": 4})
    assert not old.exists()
    assert new.exists()  # another process may be writing it
    assert not [path for path in folder.glob("*.safetensors") if path.name.startswith(".")]


@pytest.mark.parametrize("version", ["0.1", "present"])
def test_an_incomplete_save_is_discarded(comfyui, run_node, version):
    """As after a kill: version 0.1 wrote the record first, then the state; now the record completes the save."""
    model, clip, vae = tiny.patcher(tiny.SMALLEST), tiny.clip(), tiny.vae()

    def train(steps, resume=True):
        settings = dict(
            images=sprite_set(2, 10, side=64, colour="teal"),
            batch_size=1,
            rank=2,
            alpha=2.0,
            precision="fp32",
            validation=2,
            seed=77,
        )
        return run_node(
            "BespokeTrainLora",
            model=model,
            clip=clip,
            vae=vae,
            steps=steps,
            resume=resume,
            lr_schedule="constant",
            keep="last",
            **settings,
        )

    whole = train(14, resume=False)
    folder = RunStore(whole[3].id).folder
    train(9, resume=False)
    before = {name: (folder / name).read_bytes() for name in ("record.json", "state-000009.safetensors")}
    train(12)
    assert len(losses_of(folder)) == 12
    ahead = RunStore(whole[3].id).record()
    if version == "0.1":
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "record.json").write_text(ahead.to_json())
        (folder / "state.safetensors").write_bytes(before["state-000009.safetensors"])
    else:
        for name, data in before.items():
            (folder / name).write_bytes(data)
        assert len((folder / "losses.jsonl").read_text().splitlines()) == 12
        assert RunStore(whole[3].id).record().losses == whole[2]["loss"][:9]
    assert RunStore(whole[3].id).state().step == 9
    again = train(14)
    assert again[2]["loss"] == whole[2]["loss"] == losses_of(folder)
    assert [step for step, _ in again[3].held_out] == [0, 9, 10, 14]
    assert all(torch.equal(value, again[1][key]) for key, value in whole[1].items())
    assert [path.name for path in folder.glob("state*")] == ["state-000014.safetensors"]
