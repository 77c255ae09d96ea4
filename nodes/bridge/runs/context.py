"""What a run needs around it: in the page's process, or in one of several processes started by torchrun."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from ....training.checkpoint import State
from ....training.distributed import StopRequest, World
from ....training.record import Run, RunState
from .events import RunDisplay
from .samples import SamplerSettings
from .store import RunStore, consume_finish_request


class Display(Protocol):
    """Where the progress of a run is shown: on the page, or in a terminal and a log."""

    @property
    def node_id(self) -> str | None: ...

    def start(self, text: str) -> None: ...
    def step(self, values: dict[str, Any]) -> None: ...
    def validation(self, step: int, loss: float, best: bool) -> None: ...
    def sample(self, step: int, name: str) -> None: ...
    def end(self, state: RunState, files: Sequence[str] = ()) -> None: ...


class Store(Protocol):
    """Where a run is saved: its folder, or the folder as one of several processes sees it.

    The state that `state` gives belongs to the record that `record` gives: `save` writes both as one.
    """

    @property
    def folder(self) -> Path: ...

    def record(self) -> Run | None: ...
    def state(self) -> State | None: ...
    def save(self, state: State, run: Run) -> None: ...
    def save_record(self, run: Run) -> None: ...
    def save_sample(self, step: int, picture: Image.Image) -> str: ...
    def set_aside(self) -> None: ...


def _stop_request_of_page(run_id: str) -> StopRequest:
    return StopRequest.FINISH if consume_finish_request(run_id) else StopRequest.CONTINUE


def _save_nothing(step: int, learned: dict[str, Tensor], run: Run) -> None:
    pass


@dataclass(frozen=True)
class RunContext:
    """What a run needs around it. The defaults are those of the page's process.

    world: the processes that train together.
    store: run id -> where the run is saved.
    display: (run id, steps) -> where the run is shown.
    stop_request: run id -> what this process requests after a step; a request is given once.
    prepare_model: called with the prepared model before anything is attached to it.
    sharded: whether `prepare_model` spreads the base over the processes, so that no device holds all of it.
    sampler: how sample images are drawn.
    save: called with (step, what is learned, run) for each file that is saved during the training.
    """

    world: World = field(default_factory=World)
    store: Callable[[str], Store] = RunStore
    display: Callable[[str, int], Display] = RunDisplay
    stop_request: Callable[[str], StopRequest] = _stop_request_of_page
    prepare_model: Callable[[Any], None] = lambda denoiser: None
    sharded: bool = False
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    save: Callable[[int, dict[str, Tensor], Run], None] = _save_nothing
