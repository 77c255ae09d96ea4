"""How a training ends and what it leaves behind, without a model: `run_training` on one small parameter."""

import json

import pytest
import torch
from bespoke.nodes.bridge.runs.context import RunContext
from bespoke.nodes.bridge.runs.run_training import run_training
from bespoke.nodes.bridge.runs.store import RunStore
from bespoke.nodes.bridge.runs.task import TrainingTask
from bespoke.training.config import TrainConfig
from bespoke.training.distributed import StopRequest
from bespoke.training.embedding import PseudoWord
from bespoke.training.record import Run, RunInfo, RunState
from run_records import Shown

ID = "lora-000000000001"


def train(folder, steps=4, stop_at=0, store=RunStore, shown=None):
    """The run's record after a training that is interrupted after step `stop_at`."""
    word = PseudoWord({"a": torch.linspace(-1, 1, 4)[None]}, None, torch.device("cpu"))
    calls = []

    def stop_request(run_id):  # the first call discards an earlier request
        calls.append(run_id)
        return StopRequest.ABORT if len(calls) == stop_at + 1 and stop_at else StopRequest.CONTINUE

    config = TrainConfig(steps=steps, learning_rate=0.05, batch_size=1, seed=0)
    run = Run(RunInfo(ID, "lora", {"steps": steps}, "base", 4))

    def loss(micro):
        return (word.vectors["a"] - micro).pow(2).sum()

    context = RunContext(
        store=lambda run_id: store(run_id, folder),
        display=lambda run_id, last: shown or Shown(),
        stop_request=stop_request,
    )
    task = TrainingTask(word, loss, config, run, None, None, True, lambda cost: "")
    run_training(task, context)
    return run


@pytest.mark.parametrize("steps", [None, "many", [4]])
def test_an_interrupted_run_is_resumed_whatever_its_settings_hold(comfyui, tmp_path, steps):
    import comfy.model_management

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(tmp_path, stop_at=2)
    record = tmp_path / ID / "record.json"
    values = json.loads(record.read_text())
    assert values["state"] == "interrupted"
    record.write_text(json.dumps(values | {"settings": {"steps": steps}}))
    run = train(tmp_path)
    assert (run.state, len(run.losses)) == (RunState.FINISHED, 4)
    assert run.losses == train(tmp_path / "whole").losses


def test_a_run_whose_last_state_cannot_be_saved_is_shown_as_failed_and_hands_its_result_on(comfyui, tmp_path):
    class Full(RunStore):
        def save(self, state, run):
            raise OSError("no space left on device")

    shown = Shown()
    run = train(tmp_path, store=Full, shown=shown)
    assert shown.ends == [RunState.FAILED]
    assert len(run.losses) == 4
    assert any("the end of the run could not be written (no space left on device" in note for note in run.notes)
