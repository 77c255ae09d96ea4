"""Trains any technique on ComfyUI's models: see `train`.

A technique (a LoRA, a textual inversion, ...) is one class in one file that satisfies `Technique`. It defines what is
learned and the loss of a batch. The trainer does all else: preparing the models, validation, sample images, saving and
resuming.

To add a technique, write beside its node:
- `request.py`: a frozen dataclass that satisfies `TrainingRequest`.
- `technique.py`: a function that makes an `EncodedDataset` (pictures and prompts, encoded once), and the class.
- `node.py`: a node that makes request, dataset and technique, calls `train`, and shows `technique.describe(...)`.
`nodes/textual_inversion` is the smaller example. `nodes/jobs/techniques.py` lets a technique run under torchrun.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

import comfy.model_management
import torch
from torch import Tensor, nn

from ...training.adapters import AdapterSet
from ...training.adapters.dropout import without_dropout
from ...training.config import TrainConfig
from ...training.data import Batch
from ...training.distributed import World
from ...training.images import TrainingImage, by_picture
from ...training.leak import LeakMeter, plan_leak
from ...training.loop import Trainable, Training
from ...training.measure import StepCost
from ...training.optimizers import check_optimizer
from ...training.picture_scores import Picture
from ...training.record import Run
from ...training.run_identity import defaults_of
from ...training.sample_prompts import SamplePrompt
from ...training.stopping import ALL_STEPS, StopRule
from ...training.timesteps import TimestepSampler, timestep_sampler
from ...training.validation import grid_within, validation_batches, validation_scorer
from . import identity
from .dataset.encoded import EncodedDataset
from .drawing.animated import SamplePicture
from .evidence.kept import keep_card
from .runs.context import RunContext
from .runs.cross_validation import Fold, final_fold, validation_folds, was_finished_by_user
from .runs.events import show_phase
from .runs.report import describe_unread
from .runs.run_training import run_training
from .runs.samples import SamplerSettings, SampleShape, sampler_for
from .runs.scoring import PictureScorer, scored_indices, what_is_scored
from .runs.task import Drift, TrainingTask
from .schedule_part import trained_range
from .training_model.backward_check import check_gradients
from .training_model.denoiser import ComfyDenoiser, compute_type, prepare_for_training, wider_precision
from .training_model.memory_forecast import StepMemory
from .training_model.offload import OffloadPlan, plan_offload
from .training_model.text_encoder import TrainableTextEncoder, prepare_text_encoder

T = TypeVar("T", bound=Trainable)


@dataclass(frozen=True)
class Models:
    """ComfyUI's MODEL, CLIP and VAE.

    A training needs the CLIP where the technique's `needs_text_encoder` is set, and the VAE where samples are drawn.
    Encoding a dataset needs all three.
    """

    model: Any
    clip: Any = None
    vae: Any = None


class TrainingRequest(Protocol):
    """The part of a technique's request that the trainer reads. The technique adds settings of its own.

    train: settings that all techniques share. precision: one of `config.PRECISIONS`. resume: whether an earlier run of
    the same request is continued.
    """

    @property
    def train(self) -> TrainConfig: ...
    @property
    def precision(self) -> str: ...
    @property
    def resume(self) -> bool: ...


class Technique(Protocol[T]):
    """What a technique gives to the trainer. T is what it trains, a `Trainable`. An instance serves one run.

    `train` calls the methods in this order:
    1. `settings`, `step_memory` (only where memory may be short) and `frozen_models`, before the models are prepared.
    2. `prepare`, then `layer_names`.
    3. For each fold of cross-validation, or once: `new_trainable`, `drift` (the last one alone), `frozen_tensors` and
       `attached`. In the block of `attached`: `loss` for training and validation batches, `describe_start` once, and
       `sample_conditioning` for each sample image.
    `describe` is called after `train`, by the node or the job.

    name: the technique's name in records and run ids. It must not change between versions.
    request: a `TrainingRequest`.
    needs_text_encoder: whether the text encoder runs in each step, with a graph. `prepare` then gets it. Encoders that
        are no CLIP have no graph but where the technique has `learned_encoders`, their embedding keys.
    learns_captions: whether `loss` takes the pictures' own captions, and none for -1 in `Batch.caption_indices`.
    memory_advice: what a user can change to make a step need less memory, separated by commas; ends an error text.
    """

    name: str
    request: Any  # a TrainingRequest
    needs_text_encoder: bool
    learns_captions: bool
    memory_advice: str

    def settings(self) -> dict[str, Any]:
        """{widget name: value} for the run's record and for its id: requests with equal settings resume each other.

        Without `resume`.
        """
        ...

    def step_memory(self, batch_size: int, compute: torch.dtype | None) -> StepMemory:
        """The forecast memory of one forward and backward pass on `batch_size` pictures; see `forecast`.

        compute: the dtype of autocast, or None without autocast.
        """
        ...

    def frozen_models(self) -> Sequence[Any]:
        """Patchers whose weights are hashed before and after the training, to prove that none has changed.

        May be empty: hashing reads all weights twice.
        """
        ...

    def prepare(self, denoiser: ComfyDenoiser, text: TrainableTextEncoder | None) -> None:
        """Called once with the models prepared for autograd; the methods below use them.

        Loading may have replaced modules: take layers from `denoiser.base`, not from the MODEL. text: None unless
        `needs_text_encoder`.
        """
        ...

    def layer_names(self) -> Mapping[str, Any]:
        """{name of a trained layer: its names by file format}, for the record; empty where no layer is trained."""
        ...

    def new_trainable(self) -> T:
        """New parameters at their initial values, on the device of the denoiser. Equal at each call."""
        ...

    def attached(self, trainable: T) -> AbstractContextManager[None]:
        """A context in which the output of the prepared models depends on `trainable`. It is undone at the end."""
        ...

    def loss(self, batch: Batch) -> Tensor:
        """The loss of each sample [B], differentiable in the attached trainable.

        Validation calls it without gradients. All randomness must come from the batch: `t`, `noise`, or draws from
        `seed`, `number` and `sample_positions`.
        """
        ...

    def sample_prompts(self) -> Sequence[SamplePrompt]:
        """What the sample images show: one of each is drawn."""
        ...

    def sample_conditioning(self, prompt: SamplePrompt) -> tuple[list, list]:
        """(positive, negative) of a sample image, as ComfyUI's samplers take them; called without gradients."""
        ...

    def drift(self, sampler: SamplerSettings, timesteps: Sequence[float]) -> Drift | None:
        """What measures how far the training moves the base; None where nothing does.

        sampler: how pictures are drawn. timesteps: t of the fixed grid. Samples are then drawn of the base and of the
        result too, whatever `sample_every` is. Called for the training whose result is the run's, before `attached`.
        """
        ...

    def frozen_tensors(self) -> Sequence[Tensor]:
        """Tensors that stay in memory between steps, besides the model's parameters and the latents.

        The measured memory of a step does not include them.
        """
        ...

    def describe_start(self, run: Run, cost: StepCost, steps: int) -> str:
        """The line shown before the first step: what is trained, and the time and memory that it takes.

        cost: one measured forward and backward pass. steps: of this training.
        """
        ...

    def describe(self, run: Run, learned: Mapping[str, Tensor]) -> str:
        """The report after the training. learned: `TrainingResult.learned`."""
        ...


@runtime_checkable
class ComparesWithBase(Protocol):
    """What a `Technique` has besides, where its trainable can be detached from the model within a step.

    Both are called in the block of `attached`.
    """

    def preservation_loss(self, batch: Batch) -> Tensor | None:
        """A further loss of each sample [B] of a batch of training pictures, which is not validated; None for none."""
        ...

    def leak_meter(
        self, indices: Sequence[int], steps: Sequence[int], timesteps: Sequence[float], world: World
    ) -> LeakMeter:
        """What measures the leak after `steps`. indices: the pictures whose latents are noised to `timesteps`."""
        ...


@runtime_checkable
class SaysWhatFits(Protocol):
    """What a `Technique` has besides, where it can forecast the memory of other clips than those of the set."""

    def what_fits(self, batch_size: int, compute: torch.dtype | None, fits: Callable[[StepMemory], bool]) -> str:
        """Frames, size and batch, each alone lowered so far that a step on the largest clip fits; in words."""
        ...


@runtime_checkable
class DrawsStrips(Protocol):
    """What a `Technique` has besides, where a sample image shows the model at several strengths."""

    def sample_strip(self, draw: Callable[[], SamplePicture]) -> SamplePicture:
        """The sample image of one prompt. draw: draws a picture of it with the model as it is when called."""
        ...


@dataclass(frozen=True)
class TrainingResult:
    """learned: {name: tensor} on the CPU, the `state_dict` of the trainable. run: the record."""

    learned: dict[str, Tensor]
    run: Run


def train(
    technique: Technique[Any], models: Models, dataset: EncodedDataset, context: RunContext | None = None
) -> TrainingResult:
    """Train a technique. The user's models are not changed.

    dataset: made of the same models. context: where the run is saved and shown; by default in ComfyUI's folders and on
    its page. Several processes that train together must all call this. Raises `InputError` for a model or settings that
    cannot be trained; `runs.failures` lists the exceptions of a running training.
    """
    with prepared(technique, models, dataset, context) as (trainer, run):
        return _train_folds(trainer, run)


@contextlib.contextmanager
def prepared(
    technique: Technique[Any], models: Models, dataset: EncodedDataset, context: RunContext | None = None
) -> Iterator[tuple[PreparedTrainer, Run]]:
    """(what trains, the record of the run) in a context in which the models are prepared; for `train` and its probes.

    At the end of the context it is checked that no weight has changed. Arguments and errors are those of `train`.
    """
    show_phase("loading")
    context, request = context or RunContext(), technique.request
    config, model = request.train, models.model
    part = trained_range(model, config)
    check_optimizer(config.optimizer, model.load_device)
    run = new_run(technique, dataset, context)
    positions = context.world.share(config.batch_size)  # in each global batch, those of this process
    compute = compute_type(model.model, model.load_device, request.precision)
    offload = OffloadPlan()
    if not context.sharded:
        batch_size = max(1, len(positions))
        offload = _plan_offload(technique, model, dataset, batch_size, compute)
    weights = FrozenWeights(technique.frozen_models())
    with contextlib.ExitStack() as stack:
        text = None
        if technique.needs_text_encoder:
            learned = getattr(technique, "learned_encoders", ())
            text = stack.enter_context(prepare_text_encoder(models.clip, compute, learned))
        checkpointing = config.gradient_checkpointing
        denoiser = stack.enter_context(
            prepare_for_training(
                model, request.precision, checkpointing, offload.leave_free, config.compile and not context.sharded
            )
        )
        if config.compile and context.sharded:
            run.note("compile is not used: the weights are spread over several processes")
        context.prepare_model(denoiser)
        if context.sharded:
            weights.measure_again(model)  # this process now holds its shards of them
        technique.prepare(denoiser, text)
        run.info = replace(run.info, prediction=denoiser.prediction, names=technique.layer_names())
        limits = (0.0, 1.0)
        if not part.is_whole:
            limits = denoiser.timesteps_between(part.low, part.high)
            run.info = replace(run.info, timestep_range=(part.low, part.high))
        timesteps = timestep_sampler(denoiser, config.timestep_sampling, config.loss_weighting, limits)
        yield PreparedTrainer(technique, models, dataset, denoiser, positions, timesteps, limits, offload, context), run
    weights.check()


def _plan_offload(
    technique: Technique[Any], model: Any, dataset: EncodedDataset, batch_size: int, compute: torch.dtype | None
) -> OffloadPlan:
    """How the MODEL is loaded; of clips the error names frames, size and batch with which a step fits."""
    advice, more = technique.memory_advice, dict[str, Any]()
    if any(item.frames > 1 for item in dataset.pictures.items):
        advice += ", fewer frames of the clips"
        if isinstance(technique, SaysWhatFits):
            more["what_fits"] = partial(technique.what_fits, batch_size, compute)
    return plan_offload(model, lambda: technique.step_memory(batch_size, compute), advice, **more)


def new_run(technique: Technique[Any], dataset: EncodedDataset, context: RunContext, **changes: Any) -> Run:
    """The record of the run of `technique` on `dataset`, before its first step. changes: other values of settings."""
    defaults = defaults_of(TrainConfig, type(technique.request))
    settings = technique.settings() | changes
    return dataset.new_run(technique.name, settings, defaults, lambda run_id: context.store(run_id).record())


def _train_folds(trainer: PreparedTrainer, run: Run) -> TrainingResult:
    """Train the folds of cross-validation, if there are any, then the final training, whose result is returned.

    A fold that the user finishes early ends the run: its result is returned instead.
    """
    pictures, config = trainer.dataset.pictures, trainer.technique.request.train
    done: list[Fold] = []
    for fold in validation_folds(pictures, config, run):
        learned = trainer.train_fold(fold)  # updates `fold.run`
        if was_finished_by_user(fold):
            return TrainingResult(learned, fold.run)
        done.append(fold)
    final = final_fold(pictures, config, run, done)
    return TrainingResult(trainer.train_fold(final), final.run)


@dataclass(frozen=True)
class PreparedTrainer:
    """What the trainings (folds) of one run share.

    positions, timesteps: see `MicroBatchLoss`. limits: the range of t that is trained on and scored.
    """

    technique: Technique[Any]
    models: Models
    dataset: EncodedDataset
    denoiser: ComfyDenoiser
    positions: Sequence[int]
    timesteps: TimestepSampler
    limits: tuple[float, float]
    offload: OffloadPlan
    context: RunContext

    def train_fold(self, fold: Fold) -> dict[str, Tensor]:
        """Run one training, from its start or from its saved state; returns what was learned."""
        trainable, loss = self._begin(fold)
        held_out_losses = dict[Picture, float]()
        with self.technique.attached(trainable):
            task = self._task(fold, trainable, loss, held_out_losses)
            return run_training(task, self.context)

    @contextlib.contextmanager
    def attached_training(self, fold: Fold, checked: bool) -> Iterator[Training]:
        """The steps of `fold` from its start, without validation, in a context in which what they train is attached.

        Nothing of them is shown or saved. Raises as `train_fold`. checked: whether an earlier training of this model
        has found that the gradients are right; see `_check_gradients`.
        """
        trainable, loss = self._begin(fold)
        with self.technique.attached(trainable):
            if not checked:
                self._check_gradients(trainable, loss, 0)
            yield Training(trainable, loss, fold.config, until=fold.until, world=self.context.world)

    def _begin(self, fold: Fold) -> tuple[Trainable, MicroBatchLoss]:
        """(what is learned, at its start, the loss that it is trained on); the record says what it must of both."""
        technique = self.technique
        trainable = technique.new_trainable()
        # Only the parameters are read here, so the learning rate has no effect.
        trained = sum(p.numel() for parameters, _ in trainable.parameter_groups(0.0) for p in parameters)
        fold.run.info = replace(fold.run.info, trained=trained)
        for sentence in (*self.denoiser.compatibility.notes(), *self.dataset.pictures.notes):
            fold.run.note(sentence)
        if self.denoiser.compiler is not None:
            self.denoiser.compiler.tell_to(fold.run.note)
        return trainable, MicroBatchLoss(
            technique, self.dataset, fold.training_indices, self.denoiser.device, self.positions, self.timesteps
        )

    def _task(
        self,
        fold: Fold,
        trainable: Trainable,
        loss: MicroBatchLoss,
        held_out_losses: dict[Picture, float],
    ) -> TrainingTask:
        technique, drift = self.technique, self._drift(fold)
        stopping = StopRule(fold.config.stop) if fold.config.stop != ALL_STEPS and fold.held_out else None
        draws = fold.config.sample_every > 0 or (drift is not None and self.models.vae is not None)
        return TrainingTask(
            trainable,
            loss,
            fold.config,
            fold.run,
            validation_loss=self.validation_loss(fold.held_out, held_out_losses, stopping),
            until=fold.until,
            resume=technique.request.resume,
            describe_start=partial(self._describe_start, fold),
            draw_sample=self._sample_drawer() if draws else None,
            check=partial(self._check_gradients, trainable, loss),
            precision_advice=wider_precision(self.denoiser.base, self.denoiser.compute),
            frozen=[
                *self.denoiser.base.parameters(),
                *self.dataset.pictures.data.latents,
                *technique.frozen_tensors(),
            ],
            training_picture=self.dataset.pictures.items[0].first_frame if draws else None,
            scorer=self._picture_scorer(fold),
            held_out_losses=held_out_losses,
            leak=self._leak_meter(fold),
            draws_ends=draws,
            drift=drift,
            stopping=stopping,
            card=partial(keep_card, self._items(fold.training_indices), self._items(fold.held_out)),
        )

    def _items(self, indices: Sequence[int]) -> list[TrainingImage]:
        return [self.dataset.pictures.items[index] for index in indices]

    def _describe_start(self, fold: Fold, cost: StepCost) -> str:
        cost_of_code = self.denoiser.compatibility.cost()
        not_resumed = "; " + "; ".join(describe_unread(self.dataset.unread)) if self.dataset.unread else ""
        return (
            fold.prefix
            + self.technique.describe_start(fold.run, cost, fold.steps)
            + self.offload.summary
            + not_resumed
            + (f"; {cost_of_code}" if cost_of_code else "")
        )

    def _check_gradients(self, trainable: Trainable, loss: Callable[[int], Tensor | None], micro: int) -> None:
        """Raise `InputError` where the code of other nodes keeps the gradient from what is trained.

        Compiles the blocks too, where that is asked for: the cost of a step is measured afterwards.
        """
        denoiser, compute = self.denoiser, partial(loss, micro)
        if denoiser.compatibility.code:
            with without_dropout():
                check_gradients(compute, _parts(trainable), denoiser.without_code, denoiser.compatibility.code)
        if denoiser.compiler is not None:
            parameters = [each for own, _ in trainable.parameter_groups(0.0) for each in own]
            with without_dropout():
                denoiser.compiler.check(compute, parameters, denoiser.compute or denoiser.base.get_dtype_inference())

    def validation_loss(
        self, held_out: Sequence[int], of_pictures: dict[Picture, float], stopping: StopRule | None = None
    ) -> Callable[[], float] | None:
        """A function that computes the loss on the pictures `held_out` on the fixed grid; None without them.

        of_pictures: takes the loss of each of them at every call. stopping: takes that of each sample.
        """
        if not held_out:
            return None
        pictures = self.dataset.pictures
        batches = validation_batches(pictures.data, held_out, self.denoiser.device, self._grid)
        copies = by_picture(pictures.items[index] for index in held_out)

        def loss(batch: Batch) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            return self.technique.loss(batch)

        def keep(losses: list[float]) -> None:
            for own in copies:
                of_pictures[pictures.items[held_out[own[0]]].picture] = sum(losses[i] for i in own) / len(own)

        more = {} if stopping is None else {"keep_samples": stopping.take}
        return validation_scorer(batches, loss, self.context.world, keep, **more)

    def _leak_meter(self, fold: Fold) -> LeakMeter | None:
        """What measures the leak; None without held-out pictures, where that takes long, and for other techniques."""
        if not isinstance(self.technique, ComparesWithBase):
            return None
        copies = by_picture(self.dataset.pictures.items[index] for index in fold.held_out)
        plan = plan_leak(fold.config, len(copies))
        if plan is None:
            return None
        indices = [fold.held_out[own[0]] for own in copies[: plan.pictures]]
        return self.technique.leak_meter(indices, plan.steps, self._grid, self.context.world)

    def _picture_scorer(self, fold: Fold) -> PictureScorer | None:
        """What scores the trained pictures; None where that is off, or would take long and nobody asks for it."""
        pictures = self.dataset.pictures
        indices = scored_indices(pictures, fold.training_indices)
        is_on, captions = what_is_scored(fold.config, len(indices), self.technique.learns_captions)
        if not is_on:
            return None
        device, world = self.denoiser.device, self.context.world
        return PictureScorer(pictures, indices, captions, device, self._grid, self.technique.loss, world)

    @property
    def _grid(self) -> list[float]:
        """The timesteps at which pictures are scored."""
        return grid_within(*self.limits)

    def _drift(self, fold: Fold) -> Drift | None:
        """What measures the drift: in the first process, which must be able to call the model alone."""
        if not fold.is_final or self.context.world.rank != 0 or self.context.sharded:
            return None
        return self.technique.drift(self.context.sampler, self._grid)

    def _sample_drawer(self) -> Callable[[], list[SamplePicture]] | None:
        """A function that draws the sample images; None where none is drawn, as in all processes but the first."""
        if self.context.world.rank != 0:
            return None
        pictures = self.dataset.pictures
        shown, technique = pictures.sample_index, self.technique
        like = SampleShape.of(pictures.data.latents[shown], pictures.items[shown])
        prompts = technique.sample_prompts()
        strip = {"strip": technique.sample_strip} if isinstance(technique, DrawsStrips) else {}
        return sampler_for(
            self.denoiser, self.models.vae, like, self.context.sampler, prompts, technique.sample_conditioning, **strip
        )


def _parts(trainable: Trainable) -> list[tuple[str, list[nn.Parameter]]]:
    """The parameters of each adapter, or each parameter of another technique, by name; without optional ones."""
    if isinstance(trainable, AdapterSet):
        optional_layers = trainable.optional_layers
        return [
            (name, list(adapter.parameters())) for name, adapter in trainable.items() if name not in optional_layers
        ]
    optional = set(map(id, trainable.optional_parameters))
    every = [parameter for parameters, _ in trainable.parameter_groups(0.0) for parameter in parameters]
    named = [(f"parameter {number + 1}", [parameter]) for number, parameter in enumerate(every)]
    return [(name, own) for name, own in named if not any(id(each) in optional for each in own)]


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
        With a `preservation_loss`, that of the training pictures contains it.
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
        losses = self.technique.loss(batch)
        if not stream and isinstance(self.technique, ComparesWithBase):
            preservation = self.technique.preservation_loss(batch)
            losses = losses if preservation is None else losses + preservation
        return batch.share_of_mean(losses)


class FrozenWeights:
    """Checks that a training has changed no weight. patchers: one for each model to check."""

    def __init__(self, patchers: Sequence[Any]) -> None:
        self._patchers = list(patchers)
        self._before = [identity.checksum(patcher) for patcher in self._patchers]

    def measure_again(self, patcher: Any) -> None:
        """Hash the weights of `patcher` again, after the trainer itself has changed how they are stored."""
        for i, known in enumerate(self._patchers):
            if known is patcher:
                self._before[i] = identity.checksum(patcher)

    def check(self) -> None:
        """Raise `RuntimeError` where a weight has changed."""
        if [identity.checksum(patcher) for patcher in self._patchers] != self._before:
            raise RuntimeError(
                "a weight of the models changed during the training; this is a fault of Bespoke, please report it"
            )
