"""One training of a run: runs the loop, shows and records its steps, and saves and restores its state."""

from __future__ import annotations

import contextlib
import logging
import math
from dataclasses import replace

import comfy.model_management
from torch import Tensor

from ....training.checkpoint import State, UnusableState, copy_state
from ....training.distributed import StopRequest
from ....training.errors import InputError
from ....training.loop import NotANumber, Training
from ....training.record import Run, RunState
from ..files.writing import reason_of
from ..running_prompt import origin_of
from .context import Display, RunContext, Store
from .failures import failure_of
from .graph import keep_graph
from .monitor import RunMonitor
from .task import TrainingTask


def run_training(task: TrainingTask, context: RunContext) -> dict[str, Tensor]:
    """Train to the last step, or until the user asks to finish; returns what was learned.

    An interruption saves the state and is raised; the same request resumes from it. Processes that train together must
    all call this; all get the same result. `failures.FAILURES` says what other exceptions do. Raises `InputError` where
    another server trains this run now.
    """
    store = context.store(task.run.id)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(store.owned())
        except OSError as error:
            raise _not_saved(error) from error
        return _train(task, context, store)


def _train(task: TrainingTask, context: RunContext, store: Store) -> dict[str, Tensor]:
    run = task.run
    context.stop_request(run.id)  # discard a request to an earlier training of this run
    training = Training(
        task.trainable,
        task.loss,
        task.config,
        task.validation_loss,
        until=task.until,
        world=context.world,
        stopping=task.stopping,
    )
    needs_initial = task.scorer is not None or task.draw_sample is not None
    initial = copy_state(task.trainable.state_dict()) if needs_initial else None
    broke_off = _restore(task, training, store)
    if run.state is RunState.KEPT:  # set by `_restore`: the run ended early before, and there is nothing to train
        return _load_result(training)
    display = context.display(run.id, training.last_step)
    _save_first_record(run, display, store)
    monitor = RunMonitor(task, training, display, store, context, broke_off, initial)
    failure, stop = None, StopRequest.CONTINUE
    try:
        monitor.start()  # runs one forward and backward pass to measure it
        for step in training:
            monitor.record(step)  # on ComfyUI's page this raises when the user cancels, see `RunDisplay.step`
            monitor.save_if_due(step.step)
            stop = max(monitor.stop, context.world.agree(context.stop_request(run.id)))
            if stop == StopRequest.ABORT:
                raise comfy.model_management.InterruptProcessingException
            if stop == StopRequest.FINISH:
                break
        _check_held_out(task)
        monitor.draw_result()
        monitor.score_result()
        monitor.measure_drift()
        # `config.patience` and `config.stop` end the loop early too; that run is KEPT as well.
        finished = training.steps_done >= training.last_step and stop != StopRequest.FINISH
        run.state = RunState.FINISHED if finished else RunState.KEPT
    except BaseException as error:
        failure = failure_of(error, context)
        run.state = failure.state
        if failure.message is None:
            raise
        raise failure.message(error, training.steps_done, task.precision_advice) from error
    finally:
        monitor.end(failure)
    return _load_result(training)


def _restore(task: TrainingTask, training: Training, store: Store) -> bool:
    """Go on from the saved state, if there is one; the run's record takes over the earlier progress.

    Returns whether the earlier training broke off: it was interrupted or failed, or its process ended. The run's state
    is KEPT afterwards where an earlier training of it ended early and no more steps are requested: the same request
    gives the same result. Otherwise it is RUNNING. A state that cannot be used is set aside, with a note in the record.
    """
    run, last = task.run, training.last_step
    run.state = RunState.RUNNING
    if not task.resume:
        store.set_aside()
        return False
    try:
        state, earlier = store.state(), store.record()
        if earlier is not None:
            run.info = replace(run.info, label=earlier.info.label)
        if state is None:
            return False
        if state.step > last:  # fewer steps are requested than are done
            store.set_aside()
            return False
        training.restore(state)
    except UnusableState as error:
        aside = store.set_aside()
        run.note(
            f"the state of an earlier training could not be used, since {error}; it is kept in the folder "
            f"{aside or 'that was set aside'}, and the run began anew"
        )
        logging.warning("Bespoke: %s", run.notes[-1])
        return False
    if earlier is None:
        earlier = _without_record(run, state, store)
    run.restore_progress(earlier, state.step, held_out=task.validation_loss is not None)
    run.found_rate = training.found_rate or 0.0
    if earlier.state is RunState.KEPT:
        steps = earlier.info.settings.get("steps")
        if isinstance(steps, (int, float)) and task.config.steps <= steps:
            run.info, run.state = replace(run.info, settings={**run.info.settings, "steps": steps}), RunState.KEPT
    _match_samples(run, earlier, has_steps_left=run.state is RunState.RUNNING and state.step < last)
    return earlier.state not in (RunState.KEPT, RunState.FINISHED)


def _match_samples(run: Run, earlier: Run, has_steps_left: bool) -> None:
    """Where the earlier samples show other prompts than those that are asked for now: leave the samples out, as base
    and result would be of two prompts; without a step to do, keep what they show."""
    given = earlier.info.settings.get("sample_prompt", "")
    if not run.samples or given == run.info.settings.get("sample_prompt", ""):
        return
    if not has_steps_left:
        run.info = replace(run.info, settings={**run.info.settings, "sample_prompt": given})
        return
    run.samples = []
    run.note(f"samples up to step {len(run.losses)} showed another sample_prompt and are left out")


def _without_record(run: Run, state: State, store: Store) -> Run:
    """The progress of an earlier training whose record is lost, from its state and its losses."""
    scores = [(state.best_step, state.best_loss)] if math.isfinite(state.best_loss) else []
    note = (
        "the record of the earlier training could not be read; its samples, its time and all but the lowest of its "
        "held-out losses are missing"
    )
    return Run(run.info, store.losses(state.step), scores, state=RunState.INTERRUPTED, notes=[note])


def _save_first_record(run: Run, display: Display, store: Store) -> None:
    """Save the record, so that the page can show the run. Raises `InputError` where nothing can be written."""
    try:
        node, source = str(display.node_id or ""), origin_of("learning_rate")
        run.info = replace(run.info, node=node, workflow=keep_graph(store.folder), rate_source=source)
        store.save_record(run)
    except OSError as error:
        raise _not_saved(error) from error


def _not_saved(error: OSError) -> InputError:
    return InputError(
        f"the run cannot be saved in bespoke/runs of ComfyUI's user directory ({reason_of(error)}), so it could "
        "not be resumed; free space there, or allow writing, and queue again"
    )


def _check_held_out(task: TrainingTask) -> None:
    """Raise `NotANumber` where the held-out pictures were scored after the start and no loss is finite.

    The result would give no picture. A later sitting of the same run, with no step left, ends in the same way.
    """
    later = [loss for step, loss in task.run.held_out if step > 0]
    if task.validation_loss is not None and later and not any(map(math.isfinite, later)):
        raise NotANumber(f"the held-out loss was not a number at any of {len(later)} validations after the start")


def _load_result(training: Training) -> dict[str, Tensor]:
    """The result, which is also copied into the trained parameters."""
    result = training.result()
    training.trainable.load_state_dict(result)
    return result
