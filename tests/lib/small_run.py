"""A training of one small parameter, through the real loop, record and store, with faults at any of its calls."""

from __future__ import annotations

import json

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


class Faults:
    """Raises an error at the call number `at` of a place ("loss", "score", "sample", "file"), counted from 1."""

    def __init__(self, place="", at=0, error=None):
        self.place, self.at, self.error, self.calls = place, at, error, {}

    def __call__(self, place):
        self.calls[place] = self.calls.get(place, 0) + 1
        if place == self.place and self.calls[place] == self.at:
            raise self.error


def train(folder, faults, **changes):
    """(what was learned, the run's record, the display) of a training with samples, files and validation."""
    word = PseudoWord({"a": torch.linspace(-1, 1, 4)[None]}, None, torch.device("cpu"))
    settings = dict(steps=STEPS, learning_rate=0.05, batch_size=1, seed=0, sample_every=4, save_every=6)
    config = TrainConfig(**settings | changes)
    run, shown = Run(RunInfo(ID, "lora", {"steps": config.steps}, "base", 4)), Shown()

    def loss(micro):
        faults("loss")
        return (word.vectors["a"] - 0.1 * micro).pow(2).sum()

    def score():
        faults("score")
        return float((word.vectors["a"] - 0.2).detach().pow(2).sum())

    def sample():
        faults("sample")
        return [Image.new("RGB", (8, 8))]

    context = RunContext(
        store=lambda run_id: RunStore(run_id, folder),
        display=lambda run_id, last: shown,
        stop_request=lambda run_id: StopRequest.CONTINUE,
        save=lambda step, learned, run: faults("file"),
    )
    task = TrainingTask(word, loss, config, run, score, None, True, lambda cost: "", sample)
    return run_training(task, context), run, shown


def saved(folder):
    return json.loads((folder / ID / "record.json").read_text())


def check_resumed(folder, whole, **changes):
    """Train again without faults: the result is that of `whole`, (learned, record, display, ...)."""
    learned, run, shown, _ = whole
    again, record, display = train(folder, Faults(), **changes)
    assert all(torch.equal(again[key], learned[key]) for key in learned)
    assert record.losses == run.losses
    assert record.held_out == run.held_out
    assert [at for at, _ in record.samples] == [at for at, _ in run.samples]
    assert display.ends == shown.ends == [RunState.FINISHED]
