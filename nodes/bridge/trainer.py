"""Trains any technique on ComfyUI's models: `train`, read from top to bottom.

A technique (a LoRA, a textual inversion, ...) is one class in one file. It says what is learned and what the loss of
a batch is; the trainer does all else: preparing the models, validation, sample images, saving and resuming.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor

from ...training.config import TrainConfig
from ...training.data import Batch
from ...training.loop import Trainable
from ...training.measure import StepCost
from ...training.record import Run
from ...training.run_identity import defaults_of
from ...training.timesteps import TimestepSampler, timestep_sampler
from ...training.validation import validation_batches, validation_scorer
from . import identity
from .dataset.encoded import EncodedDataset
from .runs.context import RunContext
from .runs.cross_validation import Fold, final_fold, validation_folds, was_finished_by_user
from .runs.run_training import TrainingTask, run_training
from .runs.samples import sampler_for
from .training_model.denoiser import ComfyDenoiser, compute_type, prepare_for_training
from .training_model.memory_forecast import StepMemory
from .training_model.offload import OffloadPlan, plan_offload
from .training_model.text_encoder import TrainableTextEncoder, prepare_text_encoder

T = TypeVar("T", bound=Trainable)


@dataclass(frozen=True)
class Models:
    """ComfyUI's objects on the wire. clip: needed where the text encoder takes part. vae: where samples are drawn."""

    model: Any
    clip: Any = None
    vae: Any = None


class TrainingRequest(Protocol):
    """What the trainer reads of a technique's request. resume: continue an earlier training of the same request."""

    @property
    def train(self) -> TrainConfig: ...
    @property
    def precision(self) -> str: ...
    @property
    def resume(self) -> bool: ...


class Technique(Protocol[T]):
    """What one way of training adds to the trainer. An instance serves one run.

    name: the technique's name in records and run ids.
    request: what the user asks for.
    needs_text_encoder: whether gradients flow through the text encoder.
    memory_advice: what a user can change to make a step need less memory.
    """

    name: str
    request: Any  # a TrainingRequest
    needs_text_encoder: bool
    memory_advice: str

    def settings(self) -> dict[str, Any]:
        """The request by widget name: what a run's record shows and its identity is made of."""
        ...

    def step_memory(self, batch_size: int, compute: torch.dtype | None) -> StepMemory:
        """The memory of a step on `batch_size` pictures. compute: the type of autocast, or None."""
        ...

    def frozen_models(self) -> Sequence[Any]:
        """The patchers whose weights are compared bit for bit before and after the training."""
        ...

    def prepare(self, denoiser: ComfyDenoiser, text: TrainableTextEncoder | None) -> None:
        """Called once, before all below, with the models prepared for autograd."""
        ...

    def layer_names(self) -> Mapping[str, Any]:
        """{trained layer: its names by file format}, for the record."""
        ...

    def new_trainable(self) -> T:
        """New parameters at their start."""
        ...

    def attached(self, trainable: T) -> AbstractContextManager[None]:
        """Within the block `trainable` takes part in the model's output."""
        ...

    def loss(self, batch: Batch) -> Tensor:
        """The loss of each sample [B], with a graph to the attached trainable."""
        ...

    def sample_conditioning(self) -> tuple[list, list]:
        """(positive, negative) of a sample image, as ComfyUI's samplers take them."""
        ...

    def frozen_tensors(self) -> Sequence[Tensor]:
        """Tensors besides the model's and the latents that exist anyway: they do not count as memory of a step."""
        ...

    def describe_start(self, run: Run, cost: StepCost, steps: int) -> str:
        """The line before the first step: what is trained and what it takes."""
        ...

    def describe(self, run: Run, learned: Mapping[str, Tensor]) -> str:
        """The report after the last step: what was learned and how it went."""
        ...


@dataclass(frozen=True)
class TrainingResult:
    """What was learned, {name: tensor} on the CPU, and the run's record."""

    learned: dict[str, Tensor]
    run: Run


def train(
    technique: Technique[Any], models: Models, dataset: EncodedDataset, context: RunContext | None = None
) -> TrainingResult:
    """Train a technique. The user's models stay as they are, bit for bit.

    context: the page's process by default, or one of several processes that train together and all call this.
    Raises `InputError` for what cannot be trained; see `runs.failures` for what may happen on the way.
    """
    context, request = context or RunContext(), technique.request
    config, model = request.train, models.model
    run = dataset.new_run(technique.name, technique.settings(), defaults_of(TrainConfig, type(request)))
    positions = context.world.share(config.batch_size)  # in each global batch, those of this process
    compute = compute_type(model.model, model.load_device, request.precision)
    offload = OffloadPlan()
    if not context.sharded:
        batch_size = max(1, len(positions))
        offload = plan_offload(model, lambda: technique.step_memory(batch_size, compute), technique.memory_advice)
    weights = FrozenWeights(technique.frozen_models())
    with contextlib.ExitStack() as stack:
        text = None
        if technique.needs_text_encoder:
            text = stack.enter_context(prepare_text_encoder(models.clip, compute))
        checkpointing = config.gradient_checkpointing
        denoiser = stack.enter_context(
            prepare_for_training(model, request.precision, checkpointing, offload.leave_free)
        )
        context.prepare_model(denoiser)
        if context.sharded:
            weights.measure_again(model)  # from here on this process has its share of them
        technique.prepare(denoiser, text)
        run.info = replace(run.info, prediction=denoiser.prediction, names=technique.layer_names())
        trainer = _Trainer(technique, models, dataset, denoiser, positions, offload, context)
        result = _train_folds(trainer, run)
    weights.check()
    return result


def _train_folds(trainer: _Trainer, run: Run) -> TrainingResult:
    pictures, config = trainer.dataset.pictures, trainer.technique.request.train
    done: list[Fold] = []
    for fold in validation_folds(pictures, config, run):
        learned = trainer.train_fold(fold)
        if was_finished_by_user(fold):
            return TrainingResult(learned, fold.run)
        done.append(fold)
    final = final_fold(pictures, config, run, done)
    return TrainingResult(trainer.train_fold(final), final.run)


@dataclass(frozen=True)
class _Trainer:
    """What all trainings of one run share."""

    technique: Technique[Any]
    models: Models
    dataset: EncodedDataset
    denoiser: ComfyDenoiser
    positions: Sequence[int]
    offload: OffloadPlan
    context: RunContext

    def train_fold(self, fold: Fold) -> dict[str, Tensor]:
        """One training from its start, or from the state it was interrupted at; gives what was learned."""
        technique, config = self.technique, self.technique.request.train
        trainable = technique.new_trainable()
        trained = sum(p.numel() for parameters, _ in trainable.parameter_groups(0.0) for p in parameters)
        fold.run.info = replace(fold.run.info, trained=trained)
        timesteps = timestep_sampler(self.denoiser, config.timestep_sampling, config.loss_weighting)
        task = TrainingTask(
            trainable,
            MicroBatchLoss(
                technique, self.dataset, fold.training_indices, self.denoiser.device, self.positions, timesteps
            ),
            fold.config,
            fold.run,
            self._validation_loss(fold),
            fold.until,
            technique.request.resume,
            partial(self._describe_start, fold),
            self._draw_sample(fold),
            [
                *self.denoiser.base.parameters(),
                *self.dataset.pictures.data.latents,
                *technique.frozen_tensors(),
            ],
        )
        with technique.attached(trainable):
            return run_training(task, self.context)

    def _describe_start(self, fold: Fold, cost: StepCost) -> str:
        return fold.prefix + self.technique.describe_start(fold.run, cost, fold.steps) + self.offload.summary

    def _validation_loss(self, fold: Fold) -> Callable[[], float] | None:
        if not fold.held_out:
            return None
        batches = validation_batches(self.dataset.pictures.data, fold.held_out, self.denoiser.device)
        return validation_scorer(batches, self.technique.loss, self.context.world)

    def _draw_sample(self, fold: Fold) -> Callable[[], Image.Image] | None:
        if not fold.config.sample_every or self.context.world.rank != 0:
            return None
        pictures = self.dataset.pictures
        like = pictures.data.latents[pictures.training_indices[0]]
        return sampler_for(
            self.denoiser, self.models.vae, like, self.context.sampler, self.technique.sample_conditioning
        )


@dataclass(frozen=True)
class MicroBatchLoss:
    """The loss of one micro-batch as the training loop takes it.

    training_indices: the pictures that are trained on. positions: those of each global batch that this process
    computes. timesteps: the distribution of t.
    """

    technique: Technique[Any]
    dataset: EncodedDataset
    training_indices: Sequence[int]
    device: torch.device
    positions: Sequence[int]
    timesteps: TimestepSampler

    def __call__(self, micro: int) -> Tensor | None:
        """This process's share of the mean loss over micro-batch number `micro`, a scalar; None where it has none.

        With prior pictures: that of the training pictures plus `prior_weight` times that of a batch of prior pictures.
        """
        if not self.positions:
            return None
        prior = self.dataset.pictures.prior_indices
        loss = self._share_of_mean(micro, self.training_indices)
        if not prior:
            return loss
        return loss + self.technique.request.train.prior_weight * self._share_of_mean(micro, prior, "prior")

    def _share_of_mean(self, micro: int, indices: Sequence[int], stream: str = "") -> Tensor:
        config, data = self.technique.request.train, self.dataset.pictures.data
        batch = data.batch(config, micro, self.device, self.timesteps, indices, stream, self.positions)
        return batch.share_of_mean(self.technique.loss(batch))


class FrozenWeights:
    """Checks that a training has changed no weight of the models. patchers: ComfyUI's, one a model."""

    def __init__(self, patchers: Sequence[Any]) -> None:
        self._patchers = list(patchers)
        self._before = [identity.checksum(patcher) for patcher in self._patchers]

    def measure_again(self, patcher: Any) -> None:
        """Take the present weights of `patcher` as those that must stay."""
        for i, known in enumerate(self._patchers):
            if known is patcher:
                self._before[i] = identity.checksum(patcher)

    def check(self) -> None:
        """Raise `RuntimeError` where a weight has changed."""
        if [identity.checksum(patcher) for patcher in self._patchers] != self._before:
            raise RuntimeError(
                "a weight of the models changed during the training; this is a fault of Bespoke, please report it"
            )
