"""What a run needs around it: in the page's process, or in one of several processes started by torchrun."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ....training.distributed import StopRequest, World
from ....training.record import Run
from .events import RunDisplay
from .samples import SamplerSettings
from .store import RunStore, take_finish


class Display(Protocol):
    """Shows a run to the user: on the page, or in a terminal and a log."""

    node_id: str | None

    def start(self, text: str) -> None: ...
    def step(self, values: dict[str, Any]) -> None: ...
    def validation(self, step: int, loss: float, best: bool) -> None: ...
    def sample(self, step: int, name: str) -> None: ...
    def end(self, state: str, files: Sequence[str] = ()) -> None: ...


def _stop_request_of_page(run_id: str) -> StopRequest:
    return StopRequest.FINISH if take_finish(run_id) else StopRequest.CONTINUE


def _save_nothing(step: int, learned: dict[str, Tensor], run: Run) -> None:
    pass


@dataclass(frozen=True)
class RunContext:
    """What a run needs around it. The defaults are those of the page's process.

    world: the processes that train together.
    store: run id -> the run's folder.
    display: (run id, steps) -> what shows the run.
    stop_request: run id -> what this process requests after a step; a request is given once.
    prepare_model: called with the prepared model before anything is attached to it.
    sharded: whether `prepare_model` spreads the base over the processes, so that no device holds all of it.
    sampler: how sample images are drawn.
    save: called with (step, what is learned, run) for each file that is saved during the training.
    """

    world: World = field(default_factory=World)
    store: Callable[[str], RunStore] = RunStore
    display: Callable[[str, int], Display] = RunDisplay
    stop_request: Callable[[str], StopRequest] = _stop_request_of_page
    prepare_model: Callable[[Any], None] = lambda denoiser: None
    sharded: bool = False
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    save: Callable[[int, dict[str, Tensor], Run], None] = _save_nothing
