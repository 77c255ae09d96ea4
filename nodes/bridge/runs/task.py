"""What one training consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ....training.config import TrainConfig
from ....training.leak import LeakMeter
from ....training.loop import Trainable
from ....training.measure import StepCost
from ....training.picture_scores import Picture
from ....training.record import Run
from ....training.stopping import StopRule
from ..drawing.animated import SamplePicture
from .scoring import PictureScorer


class Drift(Protocol):
    """Measures what a training does to the base besides what it is to learn."""

    def start(self) -> None:
        """Called once before the first step of a sitting, also of one that goes on."""
        ...

    def measure(self, run: Run) -> str:
        """A note on the model with the result in it, for the run's record; "" where `start` was not called.

        run: the record, which takes what else was found. The part of the note before a colon names its kind.
        """
        ...


@dataclass(frozen=True)
class TrainingTask:
    """One training. `trainer.train` makes it of a technique; the technique is not known here.

    trainable: what is learned, attached to the model.
    loss: micro-batch number -> this process's share of the mean loss, a scalar with a graph, or None; see `Training`.
    run: the record. It is updated in place.
    validation_loss: computes the loss on the held-out pictures with the model as it is now; None without them.
    until: the step to stop at, where cross-validation has found it; None for `config.steps`.
    resume: whether an earlier state of the run is continued; otherwise it is set aside.
    describe_start: the line before the first step, from the measured cost of a step.
    draw_sample: draws an image of each sample prompt with the model as it is now; None where none is drawn.
    precision_advice: what to change against numbers that overflow, to end an error text; "" where the model computes
    in float32 already.
    check: called before the first step with the number of its micro-batch; raises `InputError` where it cannot train.
    training_picture: a picture of the set, uint8 [H, W, 3], which the page shows beside the samples; None without one.
    scorer: scores the trained pictures at the start and at the end; None where they are not scored.
    leak: measures the leak after some of the validations; None where it is not measured.
    stopping: ends the training by the losses of the held-out samples, which `validation_loss` gives it; None where
    nothing does.
    held_out_losses: the loss of each held-out picture at the last call of `validation_loss`.
    draws_ends: whether a sample is drawn before the first step and of the result, also at a `sample_every` of 0.
    drift: measured at the start and of the result; None where it is not.
    card: (run, the run's folder) -> draws the evidence card into the folder at the end; None where none is drawn.
    frozen: tensors that stay in memory between steps; the measured memory of a step does not include them.
    """

    trainable: Trainable
    loss: Callable[[int], Tensor | None]
    config: TrainConfig
    run: Run
    validation_loss: Callable[[], float] | None
    until: int | None
    resume: bool
    describe_start: Callable[[StepCost], str]
    draw_sample: Callable[[], Sequence[SamplePicture]] | None = None
    precision_advice: str = ""
    check: Callable[[int], None] = lambda micro: None
    frozen: Sequence[Tensor] = ()
    training_picture: Tensor | None = None
    scorer: PictureScorer | None = None
    held_out_losses: Mapping[Picture, float] = field(default_factory=dict[Picture, float])
    leak: LeakMeter | None = None
    draws_ends: bool = False
    drift: Drift | None = None
    stopping: StopRule | None = None
    card: Callable[[Run, Path], object] | None = None
