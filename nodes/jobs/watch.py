"""The `Display` and `Store` of a job (see `bridge.runs.context`): progress bar, log.jsonl, and the folder of each run.

Only process 0 shows, reads and writes; the others receive what it read.
"""

from __future__ import annotations

import json
import math
import time
from array import array
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import safetensors.torch
from tqdm import tqdm

from ...training.checkpoint import State, UnusableState, pack, unpack
from ...training.distributed import World
from ...training.record import Run, RunState
from ...training.stopping import Comparison
from ..bridge.drawing.animated import SamplePicture
from ..bridge.runs.store import RunStore

LOG = "log.jsonl"


class Log:
    """Appends events to a file: one JSON object a line, with "time" in seconds since 1970 and "event"."""

    def __init__(self, path: Path | None):
        """path: the file, or None to write nothing."""
        self.path = path

    def write(self, event: str, **values: Any) -> None:
        if self.path is not None:
            finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
            line = json.dumps({"time": round(time.time(), 3), "event": event, **finite}, allow_nan=False)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


class JobDisplay:
    """Shows one run in a terminal. All events go into the log; steps and validations also to a progress bar."""

    node_id: str | None = None  # a job has no graph

    def __init__(self, log: Log, world: World, run_id: str, steps: int):
        self._log, self._world, self._run_id, self.steps = log, world, run_id, steps
        self._sent = dict(world.sent)
        self._bar: tqdm | None = None

    def phase(self, name: str, **values: int) -> None:
        """Nothing is shown: the terminal says what comes of it."""

    def start(self, text: str) -> None:
        self._log.write("start", run_id=self._run_id, steps=self.steps, text=text, processes=self._world.size)
        if self._log.path is not None:
            tqdm.write(text)
            self._bar = tqdm(total=self.steps, unit="step", dynamic_ncols=True)

    def step(self, values: dict[str, Any]) -> None:
        sent = {f"{name}_bytes": count - self._sent[name] for name, count in self._world.sent.items()}
        self._sent = dict(self._world.sent)
        self._log.write("step", **values, **sent)
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{values['loss_ema']:.4f}", refresh=False)
            self._bar.update(values["step"] - self._bar.n)

    def validation(
        self, step: int, loss: float, best: bool, leak: float | None = None, comparison: Comparison | None = None
    ) -> None:
        more = {"leak": leak, "comparison": comparison}
        given = {name: value for name, value in more.items() if value is not None}
        self._log.write("validation", step=step, loss=loss, best=best, **given)
        if self._bar is not None:
            self._bar.write(f"step {step}: held-out loss {loss:.4f}{', the lowest so far' if best else ''}")

    def sample(self, step: int, name: str) -> None:
        self._log.write("sample", step=step, image=name)

    def end(self, state: RunState, files: Sequence[str] = ()) -> None:
        self._log.write("end", run_id=self._run_id, state=state.value)
        if self._bar is not None:
            self._bar.close()


class SharedStore:
    """A run's folder for several processes: process 0 reads and writes, and broadcasts what it read.

    All processes must call `state` and `record` together. The other methods do nothing in processes other than 0;
    `save_sample` is called by process 0 only, which alone draws samples.
    """

    def __init__(self, own: RunStore, world: World):
        self._own, self._world, self._writes = own, world, world.rank == 0

    @property
    def folder(self) -> Path:
        return self._own.folder

    def owned(self) -> AbstractContextManager[None]:
        return nullcontext()  # `lock.lock_folder` holds the whole job folder

    def state(self) -> State | None:
        data, problem = b"", ""
        if self._writes:
            try:
                state = self._own.state()
            except UnusableState as error:
                problem = str(error)
            else:
                data = b"" if state is None else safetensors.torch.save(*pack(state))
        problem = self._world.broadcast(problem.encode()).decode()
        if problem:
            raise UnusableState(problem)
        data = self._world.broadcast(data)
        return unpack(safetensors.torch.load(data), _metadata(data)) if data else None

    def record(self) -> Run | None:
        run = self._own.record() if self._writes else None
        text = self._world.broadcast(run.to_json().encode() if run is not None else b"")
        return Run.from_json(text.decode()) if text else None

    def losses(self, count: int) -> list[float]:
        own = self._own.losses(count) if self._writes else []
        return list(array("d", self._world.broadcast(array("d", own).tobytes())))

    def save(self, state: State, run: Run) -> None:
        if self._writes:
            self._own.save(state, run)

    def save_record(self, run: Run) -> None:
        if self._writes:
            self._own.save_record(run)

    def save_end(self, state: RunState) -> None:
        if self._writes:
            self._own.save_end(state)

    def save_sample(self, step: int, picture: SamplePicture, number: int = 0) -> str:
        return self._own.save_sample(step, picture, number)

    def set_aside(self) -> str:
        return self._own.set_aside() if self._writes else ""


def _metadata(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file in memory. The library reads metadata from files only."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length])["__metadata__"]
