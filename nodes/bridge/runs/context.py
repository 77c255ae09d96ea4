"""Where a training happens: in the page's own process, or in one of several that torchrun started."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from ....training.distributed import FINISH, GO_ON, World
from .events import RunDisplay
from .store import RunStore, take_finish


class Display(Protocol):
    """Who is shown a run: the page, or a terminal and a log."""

    node_id: str | None

    def start(self, text: str) -> None: ...
    def step(self, values: dict[str, Any]) -> None: ...
    def validation(self, step: int, loss: float, best: bool) -> None: ...
    def sample(self, step: int, name: str) -> None: ...
    def end(self, state: str, files: list[str] = ()) -> None: ...


@dataclass(frozen=True)
class RunContext:
    """What a run needs around it; as it stands, the page's process.

    world: the processes that train together. store: (run id) -> its folder. display: (run id, steps) -> who is shown
    it.
    wish: (run id) -> what this process wants after a step. prepare: called with the opened model before anything is
    attached to it. sharded: whether that spreads the base over the processes, so that no device has to hold the whole.
    """

    world: World = field(default_factory=World)
    store: Callable[[str], RunStore] = RunStore
    display: Callable[[str, int], Display] = RunDisplay
    wish: Callable[[str], int] = lambda run_id: FINISH if take_finish(run_id) else GO_ON
    prepare: Callable[[Any], None] = lambda denoiser: None
    sharded: bool = False
