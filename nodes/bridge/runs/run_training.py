"""One training of a run: the loop's events go to the page and into the record, the state to disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import comfy.model_management
from PIL import Image
from torch import Tensor

from ....training.checkpoint import State
from ....training.config import TrainConfig
from ....training.distributed import StopRequest
from ....training.loop import Trainable, Training
from ....training.measure import StepCost
from ....training.record import Run, RunState
from .context import RunContext, Store
from .failures import failure_of
from .graph import keep_graph
from .monitor import RunMonitor


@dataclass(frozen=True)
class TrainingTask:
    """One training.

    trainable: what is learned.
    loss: micro-batch number -> this process's share of the mean loss, a scalar with a graph, or None; see `Training`.
    run: the record, which is filled in on the way.
    validation_loss: the loss on the fixed grid as the model stands, or None.
    until: the step to stop at, where it is known beforehand.
    resume: whether an earlier state of the run is continued; otherwise it is set aside.
    describe_start: the line before the first step, from the measured cost of a step.
    draw_sample: draws one image with the model as it stands, or None.
    frozen: tensors that exist anyway and do not count as memory of a step.
    """

    trainable: Trainable
    loss: Callable[[int], Tensor | None]
    config: TrainConfig
    run: Run
    validation_loss: Callable[[], float] | None
    until: int | None
    resume: bool
    describe_start: Callable[[StepCost], str]
    draw_sample: Callable[[], Image.Image] | None = None
    frozen: Sequence[Tensor] = ()


def run_training(task: TrainingTask, context: RunContext) -> dict[str, Tensor]:
    """Train to the last step, or until the user asks to finish; gives what was learned.

    An interruption saves the state and is raised; the same request resumes from it. Of several processes that train
    together, all call this and all get the same result. What other exceptions do is in `failures.FAILURES`.
    """
    run, store = task.run, context.store(task.run.id)
    context.stop_request(run.id)  # drops a request that was meant for an earlier training of this run
    state = _restore(task, store)
    training = Training(task.trainable, task.loss, task.config, task.validation_loss, state, task.until, context.world)
    if run.state is RunState.KEPT:
        return _load_result(training)
    display = context.display(run.id, training.last_step)
    run.info = replace(run.info, node=str(display.node_id or ""), workflow=keep_graph(store.folder))
    store.save_record(run)  # from here on the page can ask for it
    monitor, failure, request = RunMonitor(task, training, display, store, context), None, StopRequest.CONTINUE
    try:
        monitor.start()
        for step in training:
            monitor.record(step)
            monitor.save_if_due(step.step)
            request = context.world.agree(context.stop_request(run.id))
            if request == StopRequest.ABORT:
                raise comfy.model_management.InterruptProcessingException
            if request == StopRequest.FINISH:
                break
        finished = training.steps_done >= training.last_step and request is not StopRequest.FINISH
        run.state = RunState.FINISHED if finished else RunState.KEPT
    except BaseException as error:
        failure = failure_of(error, context)
        run.state = failure.state
        if failure.message is None:
            raise
        raise failure.message(error, training.steps_done) from error
    finally:
        monitor.end(failure)
    return _load_result(training)


def _restore(task: TrainingTask, store: Store) -> State | None:
    """The state to resume from, or None; the run's record takes over the earlier progress.

    The run's state is KEPT afterwards where an earlier training was finished on purpose and no more steps are
    requested: the same request gives the same result.
    """
    run, last = task.run, task.config.steps if task.until is None else task.until
    run.state = RunState.RUNNING
    if not task.resume:
        store.set_aside()
        return None
    state, earlier = store.state(), store.record()
    if state is not None and state.step > last:
        store.set_aside()
        return None
    if state is None:
        return None
    run.restore_progress(earlier, state.step, held_out=task.validation_loss is not None)
    steps = 0 if earlier is None else int(earlier.info.settings.get("steps", 0))
    if earlier is not None and earlier.state is RunState.KEPT and task.config.steps <= steps:
        run.info, run.state = replace(run.info, settings={**run.info.settings, "steps": steps}), RunState.KEPT
    return state


def _load_result(training: Training) -> dict[str, Tensor]:
    """The result, which the trained parameters then hold too."""
    result = training.result()
    training.trainable.load_state_dict(result)
    return result
