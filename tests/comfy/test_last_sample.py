"""At the end of a run that draws samples there is one of what it keeps, drawn with what it keeps."""

import comfy.model_management
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
from PIL import Image
from run_records import Shown

ID, STEPS = "lora-000000000001", 12


def train(folder, drawn, finish_at=None, fault_at=None, **changes):
    """(what was learned, the run). Each sample appends the vector that it is drawn with to `drawn`.

    finish_at: the step at which the user asks to finish. fault_at: number of the sample at which the user interrupts.
    """
    word = PseudoWord({"a": torch.linspace(-1, 1, 4)[None]}, None, torch.device("cpu"))
    settings = dict(steps=STEPS, learning_rate=0.1, batch_size=1, seed=0, sample_every=5, keep="last")
    config = TrainConfig(**settings | changes)
    run = Run(RunInfo(ID, "lora", {"steps": config.steps}, "base", 4))
    steps = []

    def sample():
        if len(drawn) + 1 == fault_at:
            raise comfy.model_management.InterruptProcessingException
        drawn.append(word.vectors["a"].detach().clone())
        return [Image.new("RGB", (8, 8))]

    def stop_request(run_id):
        steps.append(run_id)  # called once before the training and once after each step
        return StopRequest.FINISH if finish_at is not None and len(steps) == finish_at + 1 else StopRequest.CONTINUE

    context = RunContext(
        store=lambda run_id: RunStore(run_id, folder),
        display=lambda run_id, last: Shown(),
        stop_request=stop_request,
        save=lambda step, learned, run: None,
    )

    def loss(micro):
        return (word.vectors["a"] - 1.0).pow(2).sum()

    def score():
        """Lowest where the mean of the vector is 0.3, which it passes on its way to 1."""
        return float((word.vectors["a"].mean() - 0.3).detach().abs())

    task = TrainingTask(word, loss, config, run, score, None, True, lambda cost: "", sample)
    return run_training(task, context), run


def test_a_run_that_is_finished_early_has_a_sample_of_what_it_kept(comfyui, tmp_path):
    drawn = []
    learned, run = train(tmp_path, drawn, finish_at=7)
    assert run.state is RunState.KEPT
    assert [step for step, _ in run.samples] == [0, 5, 7]
    assert torch.equal(drawn[-1], learned["a"])
    assert RunStore(ID, tmp_path).record().samples == run.samples


def test_the_sample_is_drawn_with_the_best_step_where_that_is_kept(comfyui, tmp_path):
    drawn = []
    learned, run = train(tmp_path, drawn, keep="best", sample_every=7)
    assert min(run.held_out, key=lambda scored: scored[1])[0] == 10
    assert [step for step, _ in run.samples] == [0, 7, 10]
    assert torch.equal(drawn[-1], learned["a"])
    state = RunStore(ID, tmp_path).state()
    assert state.step == STEPS
    assert not torch.equal(state.trained["a"], learned["a"])


def test_with_a_moving_average_the_average_is_drawn(comfyui, tmp_path):
    drawn = []
    learned, run = train(tmp_path, drawn, ema=0.9)
    assert [step for step, _ in run.samples] == [0, 5, 10, STEPS]
    assert torch.equal(drawn[-1], learned["a"])


@pytest.mark.parametrize("changes", [{"sample_every": 4}, {"sample_every": STEPS}])
def test_a_step_that_has_a_sample_gets_no_second_one(comfyui, tmp_path, changes):
    drawn = []
    _, run = train(tmp_path, drawn, **changes)
    assert [step for step, _ in run.samples] == list(range(0, STEPS + 1, changes["sample_every"]))
    assert len(drawn) == len(run.samples)


def test_a_run_without_samples_gets_none(comfyui, tmp_path):
    drawn = []
    _, run = train(tmp_path, drawn, sample_every=0)
    assert drawn == []
    assert run.samples == []


def test_a_last_sample_that_was_interrupted_is_drawn_by_the_same_request(comfyui, tmp_path):
    drawn = []
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(tmp_path, drawn, fault_at=4)
    assert RunStore(ID, tmp_path).record().state is RunState.INTERRUPTED
    learned, run = train(tmp_path, drawn)
    assert [step for step, _ in run.samples] == [0, 5, 10, STEPS]
    assert run.state is RunState.FINISHED
    assert torch.equal(drawn[-1], learned["a"])
    train(tmp_path, drawn)
    assert len(drawn) == 4  # a finished run draws nothing more
