"""One training of a run: runs the loop, shows and records its steps, and saves and restores its state."""

from __future__ import annotations

from dataclasses import replace

import comfy.model_management
from torch import Tensor

from ....training.checkpoint import State
from ....training.distributed import StopRequest
from ....training.loop import Training
from ....training.record import RunState
from .context import RunContext, Store
from .failures import failure_of
from .graph import keep_graph
from .monitor import RunMonitor
from .task import TrainingTask


def run_training(task: TrainingTask, context: RunContext) -> dict[str, Tensor]:
    """Train to the last step, or until the user asks to finish; returns what was learned.

    An interruption saves the state and is raised; the same request resumes from it. Processes that train together must
    all call this; all get the same result. `failures.FAILURES` says what other exceptions do.
    """
    run, store = task.run, context.store(task.run.id)
    context.stop_request(run.id)  # discard a request to an earlier training of this run
    state = _restore(task, store)
    training = Training(task.trainable, task.loss, task.config, task.validation_loss, state, task.until, context.world)
    if run.state is RunState.KEPT:  # set by `_restore`: the run ended early before, and there is nothing to train
        return _load_result(training)
    display = context.display(run.id, training.last_step)
    run.info = replace(run.info, node=str(display.node_id or ""), workflow=keep_graph(store.folder))
    store.save_record(run)  # the page can show it from now on
    monitor = RunMonitor(task, training, display, store, context)
    failure, stop = None, StopRequest.CONTINUE
    try:
        monitor.start()  # runs one forward and backward pass to measure it
        for step in training:
            monitor.record(step)  # on ComfyUI's page this raises when the user cancels, see `RunDisplay.step`
            monitor.save_if_due(step.step)
            stop = context.world.agree(context.stop_request(run.id))
            if stop == StopRequest.ABORT:
                raise comfy.model_management.InterruptProcessingException
            if stop == StopRequest.FINISH:
                break
        # `config.patience` ends the loop early too; that run is KEPT as well.
        finished = training.steps_done >= training.last_step and stop != StopRequest.FINISH
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

    The run's state is KEPT afterwards where an earlier training of it ended early and no more steps are requested: the
    same request gives the same result. Otherwise it is RUNNING.
    """
    run, last = task.run, task.config.steps if task.until is None else task.until
    run.state = RunState.RUNNING
    if not task.resume:
        store.set_aside()
        return None
    state, earlier = store.state(), store.record()
    if state is not None and state.step > last:  # fewer steps are requested than are done
        store.set_aside()
        return None
    if state is None:
        return None
    run.restore_progress(earlier, state.step, held_out=task.validation_loss is not None)
    if earlier is not None and earlier.state is RunState.KEPT:
        steps = earlier.info.settings.get("steps")
        if isinstance(steps, (int, float)) and task.config.steps <= steps:
            run.info, run.state = replace(run.info, settings={**run.info.settings, "steps": steps}), RunState.KEPT
    return state


def _load_result(training: Training) -> dict[str, Tensor]:
    """The result, which is also copied into the trained parameters."""
    result = training.result()
    training.trainable.load_state_dict(result)
    return result
