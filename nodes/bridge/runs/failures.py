"""How a run ends after each kind of exception: the table `FAILURES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import comfy.model_management
import torch

from ....training.distributed import PeerLost, is_collective_error
from ....training.errors import InputError
from ....training.loop import NotANumber
from ....training.record import RunState
from .context import RunContext
from .lease import LeaseLost


class LastStep(Enum):
    """Whether the state after the last step is saved."""

    SAVED = "saved"
    SAVED_IF_RECORDED = "saved if its loss is in the record"
    DISCARDED = "discarded"  # the optimiser step may be incomplete: the run resumes from an earlier save


def _is_any(error: BaseException, context: RunContext) -> bool:
    return True


def _is_lost_peer(error: BaseException, context: RunContext) -> bool:
    """Whether a collective of the sharded model itself failed."""
    return context.sharded and isinstance(error, RuntimeError) and is_collective_error(error)


def _is_in_place_write(error: BaseException, context: RunContext) -> bool:
    return "modified by an inplace operation" in str(error)


def _is_used_graph(error: BaseException, context: RunContext) -> bool:
    return "backward through the graph a second time" in str(error)


def _not_a_number(error: BaseException, steps: int, precision_advice: str) -> Exception:
    kept = "what was learned before it is kept" if steps else "nothing was learned before it"
    advice = " or ".join(filter(None, ["lower the learning rate", precision_advice]))
    return InputError(f"{error}; {kept}; {advice}")


def _out_of_memory(error: BaseException, steps: int, precision_advice: str) -> Exception:
    return InputError(
        f"the memory is full after {steps} steps, which are kept; lower batch_size or the pictures' resolution, or "
        "switch gradient_checkpointing on"
    )


def _peer_lost(error: BaseException, steps: int, precision_advice: str) -> Exception:
    return PeerLost(f"another process ended or did not answer in time ({str(error).splitlines()[0]})")


def _in_place_write(error: BaseException, steps: int, precision_advice: str) -> Exception:
    return InputError(
        "this model, or a patch on the wire before the trainer, overwrites values that a gradient needs, so it cannot "
        "be trained here; take the patch off, or use a model of a family that is known"
    )


def _used_graph(error: BaseException, steps: int, precision_advice: str) -> Exception:
    return InputError(
        "code on the MODEL's wire keeps what it computed at one step and uses it at the next, so this training would "
        "learn from a step that is over; wire the MODEL from before that node into the trainer. The node may follow "
        "the trainer"
    )


@dataclass(frozen=True)
class Failure:
    """What happens to a run after an exception of `kind` for which `applies` is true.

    state: the run's state afterwards. last_step: whether the state after the last step is saved. saves_file: whether
    what was learned is also written as a file. message: (exception, steps done, `TrainingTask.precision_advice`) -> the
    exception that is raised instead; None raises it as it is.
    """

    kind: type[BaseException]
    state: RunState
    last_step: LastStep = LastStep.SAVED
    saves_file: bool = False
    message: Callable[[BaseException, int, str], Exception] | None = None
    applies: Callable[[BaseException, RunContext], bool] = _is_any


# The first row that matches is used.
FAILURES = (
    Failure(LeaseLost, RunState.INTERRUPTED, LastStep.DISCARDED),  # another server trains the run and has its state
    Failure(NotANumber, RunState.FAILED, saves_file=True, message=_not_a_number),
    Failure(torch.OutOfMemoryError, RunState.FAILED, saves_file=True, message=_out_of_memory),
    Failure(PeerLost, RunState.INTERRUPTED, LastStep.SAVED_IF_RECORDED),
    Failure(RuntimeError, RunState.INTERRUPTED, LastStep.SAVED_IF_RECORDED, message=_peer_lost, applies=_is_lost_peer),
    Failure(RuntimeError, RunState.FAILED, saves_file=True, message=_in_place_write, applies=_is_in_place_write),
    Failure(RuntimeError, RunState.FAILED, saves_file=True, message=_used_graph, applies=_is_used_graph),
    Failure(comfy.model_management.InterruptProcessingException, RunState.INTERRUPTED, saves_file=True),
    Failure(KeyboardInterrupt, RunState.INTERRUPTED, LastStep.DISCARDED),
    Failure(BaseException, RunState.FAILED, saves_file=True),
)


def failure_of(error: BaseException, context: RunContext) -> Failure:
    """The first row of `FAILURES` that matches the exception."""
    return next(row for row in FAILURES if isinstance(error, row.kind) and row.applies(error, context))
