"""Where a run is saved and shown, and who can stop it: on ComfyUI's page, or in processes started by torchrun."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ....training.checkpoint import State
from ....training.distributed import StopRequest, World
from ....training.record import Run, RunState
from ....training.stopping import Comparison
from ..drawing.animated import SamplePicture
from .events import RunDisplay
from .samples import SamplerSettings
from .store import RunStore, consume_finish_request


class Display(Protocol):
    """Where the progress of a run is shown: on the page (`events.RunDisplay`), or in a terminal (`jobs.watch`).

    node_id: the node whose panel shows the run, or None. `phase` names something of `events.PHASES`. `step` may raise
    to stop the training; on the page it does so where the user has cancelled the prompt.
    """

    @property
    def node_id(self) -> str | None: ...

    def phase(self, name: str, **values: int) -> None: ...
    def start(self, text: str) -> None: ...
    def step(self, values: dict[str, Any]) -> None: ...
    def validation(
        self, step: int, loss: float, best: bool, leak: float | None = None, comparison: Comparison | None = None
    ) -> None: ...
    def sample(self, step: int, name: str) -> None: ...
    def end(self, state: RunState, files: Sequence[str] = ()) -> None: ...


class Store(Protocol):
    """Where a run is saved: its folder (`store.RunStore`), for several processes through `jobs.watch.SharedStore`.

    `owned` gives a context in which no other server trains the run; it raises `InputError` where one does.

    `state` and `record` return what was saved, or None; `state` raises `UnusableState` for what cannot be read.
    `losses` returns the first losses, as many as can be read without the record. `save` writes state and record
    together, so they belong to the same step. `save_record` writes the record alone, `save_end` only changes the run's
    state in it. `save_sample` returns the name of the image file. `set_aside` renames what was saved, so that the run
    starts anew, and returns the new name.
    """

    @property
    def folder(self) -> Path: ...

    def owned(self) -> AbstractContextManager[None]: ...
    def record(self) -> Run | None: ...
    def losses(self, count: int) -> list[float]: ...
    def state(self) -> State | None: ...
    def save(self, state: State, run: Run) -> None: ...
    def save_record(self, run: Run) -> None: ...
    def save_end(self, state: RunState) -> None: ...
    def save_sample(self, step: int, picture: SamplePicture, number: int = 0) -> str: ...
    def set_aside(self) -> str: ...


def _stop_request_of_page(run_id: str) -> StopRequest:
    return StopRequest.FINISH if consume_finish_request(run_id) else StopRequest.CONTINUE


def _save_nothing(step: int, learned: dict[str, Tensor], run: Run) -> None:
    pass


@dataclass(frozen=True)
class RunContext:
    """What a run needs besides technique, models and dataset. The defaults are for a run on ComfyUI's page.

    world: the processes that train together.
    store: run id -> where the run is saved.
    display: (run id, steps) -> where the run is shown.
    stop_request: run id -> what this process requests after a step. Each request is returned once.
    prepare_model: called with the `ComfyDenoiser` before anything is attached to the model.
    sharded: whether `prepare_model` shards the base over the processes, so that no device holds all of it.
    sampler: how sample images are drawn.
    save: (step, what is learned, run) -> writes a file during the training; by default none is written.
    """

    world: World = field(default_factory=World)
    store: Callable[[str], Store] = RunStore
    display: Callable[[str, int], Display] = RunDisplay
    stop_request: Callable[[str], StopRequest] = _stop_request_of_page
    prepare_model: Callable[[Any], None] = lambda denoiser: None
    sharded: bool = False
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    save: Callable[[int, dict[str, Tensor], Run], None] = _save_nothing
