"""The progress of a training on the page: ComfyUI's progress bar, and `bespoke.run.*` events to the client that queued
it.

Each event has the node's execution path, and the id of the workflow that was queued: nodes of other workflows have the
same path. `bespoke.run.phase` tells what takes time before a step or between two steps: see `PHASES`. The page shows it
until the next event of the run, or until the prompt ends.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any, TypeVar

import comfy.model_management
import comfy.utils
from comfy_execution.utils import get_executing_context

from ....training.record import RunState
from ....training.stopping import Comparison
from ..running_prompt import prompt_server, running_workflow, workflow_id

T = TypeVar("T")

MOST_PER_SECOND = 10  # step events, and those of an encoding
# What a phase event names. "pictures", "captions" and "scoring" come with how many are done of how many.
PHASES = ("pictures", "captions", "loading", "measuring", "validation", "sample", "scoring")


class RunDisplay:
    """The display of one run on its node. Every method is safe without a server."""

    def __init__(self, run_id: str, steps: int):
        context = get_executing_context()
        self.node_id = context.node_id if context else None
        self.workflow = workflow_id(running_workflow())
        self.run_id, self.steps = run_id, steps
        self._bar = comfy.utils.ProgressBar(steps)
        self._last_event = 0.0  # when the last step event was sent, by `time.monotonic`

    def phase(self, name: str, **values: int) -> None:
        """Something of `PHASES` begins that takes longer than a step. values: "done" of "total", for some of them."""
        self._send("phase", {"phase": name, **values})

    def start(self, text: str) -> None:
        """The run begins. text: the line before the first step: what is trained and what it takes."""
        self._send("start", {"steps": self.steps, "text": text})

    def step(self, values: dict[str, Any]) -> None:
        """A step is done: at most `MOST_PER_SECOND` of these events reach the page, and always that of the last step.

        Raises ComfyUI's `InterruptProcessingException` where the user has cancelled the prompt.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        now, is_last_step = time.monotonic(), values["step"] == self.steps
        if now - self._last_event < 1 / MOST_PER_SECOND and not is_last_step:
            return
        self._last_event = now
        self._bar.update_absolute(values["step"], self.steps)
        self._send("step", values)

    def validation(
        self, step: int, loss: float, best: bool, leak: float | None = None, comparison: Comparison | None = None
    ) -> None:
        """The held-out pictures were scored. leak: see `LeakPoint.leak`; None where it was not measured.

        comparison: with the lowest validation before; None where none was made.
        """
        # A page cannot read the JSON of NaN or infinity; `addHeldOut` of js/curve.js leaves null out.
        values = {"step": step, "loss": loss if math.isfinite(loss) else None, "best": best}
        if leak is not None and math.isfinite(leak):
            values["leak"] = leak
        if comparison is not None:
            values["comparison"] = list(comparison)
        self._send("validation", values)

    def sample(self, step: int, name: str) -> None:
        """A sample image is drawn: its file in the run's folder, which the panel on the node fetches."""
        self._send("sample", {"step": step, "image": name})

    def end(self, state: RunState, files: Sequence[str] = ()) -> None:
        """The run has ended. files: the names of what it wrote."""
        self._send("end", {"state": state.value, "files": list(files)})

    def _send(self, name: str, values: dict[str, Any]) -> None:
        where = {"node_id": self.node_id, "workflow": self.workflow}
        _send_event(name, {**where, "run_id": self.run_id, **values})


def show_phase(name: str, **values: int) -> None:
    """Show something of `PHASES` on the node that is executed now, before its run has an id.

    Raises ComfyUI's `InterruptProcessingException` where the user has cancelled the prompt.
    """
    comfy.model_management.throw_exception_if_processing_interrupted()
    context = get_executing_context()
    if context is not None:
        where = {"node_id": context.node_id, "workflow": workflow_id(running_workflow())}
        _send_event("phase", {**where, "phase": name, **values})


def with_phase(name: str, items: Collection[T]) -> Iterator[T]:
    """The items, with a phase event that says how many of them are done, at most `MOST_PER_SECOND` of these.

    Raises as `show_phase`, before each item.
    """
    last_event = -math.inf
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last_event >= 1 / MOST_PER_SECOND:
            last_event = now
            show_phase(name, done=done, total=len(items))
        else:
            comfy.model_management.throw_exception_if_processing_interrupted()
        yield item


def _send_event(name: str, values: dict[str, Any]) -> None:
    server = prompt_server()
    if server is None or server.client_id is None:
        return  # without a client it would go to every open page
    server.send_sync(f"bespoke.run.{name}", values, server.client_id)
