"""record.json in a run's folder: the run without its losses, and which losses and which state belong to it.

It is written last at each save, as a whole. So a save is complete when its record.json is there, and after a crash at
any moment the record, the losses that it counts and the state that it names are of one save.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ....training.checkpoint import MOST_STEPS
from ....training.plain_json import read_json
from ....training.record import Run
from .loss_file import LossFile

RECORD = "record.json"
STATE_0_1 = "state.safetensors"  # the one state of a folder of version 0.1
STATE_NAME = re.compile(r"state(-\d{6,})?\.safetensors")


def state_name(step: int) -> str:
    """The file of the state after `step` steps."""
    return f"state-{step:06}.safetensors"


@dataclass(frozen=True)
class SavedRecord:
    """What record.json says.

    run: with its losses in a record of version 0.1, without them in a later one. steps_done: how many losses there are.
    state_file: the name of the state in the folder, "" where none was saved. losses_inside: whether `run` has them.
    """

    run: Run
    steps_done: int
    state_file: str
    losses_inside: bool = False

    def to_json(self) -> str:
        return self.run.to_json(leave_out=("losses",), steps_done=self.steps_done, state_file=self.state_file)

    @classmethod
    def from_json(cls, text: str) -> SavedRecord:
        """What `to_json` or version 0.1 wrote. Raises `ValueError` when it is no record of a run."""
        values = read_json(text)
        run = Run.from_values(values)
        if "losses" in values:
            return cls(run, len(run.losses), STATE_0_1, True)
        return cls(run, _steps(values.get("steps_done")), _state(values.get("state_file")))

    def losses(self, file: LossFile) -> list[float]:
        """The losses of the run, of every step that can be read: fewer than `steps_done` where the file was damaged."""
        return self.run.losses if self.losses_inside else file.read(self.steps_done)


def _steps(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_STEPS:
        raise ValueError(f"no record of a run: steps_done is {str(value)[:40]}")
    return value


def _state(value: Any) -> str:
    if not isinstance(value, str) or (value and not STATE_NAME.fullmatch(value)):
        raise ValueError(f"no record of a run: state_file is {str(value)[:40]!r}")
    return value
