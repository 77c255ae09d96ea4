"""Runs the probes of a search for a learning rate: see `find_rate`."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import comfy.utils
import torch

from ....training.errors import InputError
from ....training.loop import NotANumber, Training
from ....training.optimizers import OPTIMIZERS
from ....training.picture_scores import Picture, add_losses
from ....training.rate_search import (
    ProbePlan,
    best_by_sections,
    is_better,
    is_hopeless,
    plan_probes,
    rate_for_training,
    rates_between,
)
from ....training.record import Run, RunState
from ....training.stopping import ALL_STEPS, StopRule
from ....training.validation import TIMESTEPS
from ..dataset.encoded import EncodedDataset
from ..runs.context import RunContext
from ..runs.cross_validation import Fold
from ..runs.failures import failure_of
from ..runs.monitor import check_initial_loss
from ..trainer import Models, PreparedTrainer, Technique, new_run, prepared
from ..training_model.denoiser import wider_precision
from .book import Probe, ProbeBook, is_as_long, note_of


@dataclass(frozen=True)
class RateRange:
    """The rates of a search: `probes` of them from `lowest` to `highest`, evenly on a logarithmic scale."""

    lowest: float
    highest: float
    probes: int

    def __post_init__(self) -> None:
        """Raises `InputError` for values that give no rates."""
        assert self.rates

    @property
    def rates(self) -> list[float]:
        return rates_between(self.lowest, self.highest, self.probes)


@dataclass(frozen=True)
class Found:
    """What a search has found.

    rates: all of the range, rising. probes: those that were tried, by rate. base: the loss before anything is learned.
    rate: the chosen one. plan: of the probes. held_out: whether the scored pictures are held out of the training.
    learned: how many probes were run now and not known from before. seconds: that these took, scores included.
    begun: how many steps of the training at the chosen rate are done, 0 for none. is_alike: whether they are those of a
    training of this length. why_not: why no probe can be gone on with, "" where one can. best: the rate of the best
    probe, which is higher than `rate` or the same.
    """

    rates: Sequence[float]
    probes: Mapping[float, Probe]
    base: float
    rate: float
    plan: ProbePlan
    held_out: bool
    learned: int
    seconds: float
    begun: int
    is_alike: bool
    why_not: str
    best: float


def find_rate(technique: Technique[Any], models: Models, dataset: EncodedDataset, wanted: RateRange) -> Found:
    """The rate of the range for a training, from short ones: see `rate_for_training`.

    The best of these has the lowest loss on the fixed grid, and steady steps.

    technique: of a request whose own learning rate counts for nothing. The user's models are not changed. A search that
    is interrupted goes on with the results that it has. Raises `InputError` as `trainer.train`, and where no rate can
    be found.
    """
    request, rates = technique.request, wanted.rates
    if OPTIMIZERS[request.train.optimizer].finds_rate:
        raise InputError(
            f"optimizer is {request.train.optimizer}, which finds the learning rate itself; choose another one, or "
            "train without this node"
        )
    held_out, others = _scored(dataset)
    plan = plan_probes(request.train, len(rates), len(held_out), len(TIMESTEPS))
    # The id of the training at a rate that no training has.
    book = ProbeBook(new_run(technique, dataset, RunContext(), learning_rate=-1.0).id)
    book.remove_old_states()
    if not request.resume:
        book.forget()
    with contextlib.ExitStack() as stack:
        search = _Search(technique, models, dataset, plan, book, (held_out or others)[: plan.pictures], stack)
        best = rates[best_by_sections(len(rates), lambda one, higher: search.rises(rates[one], rates[higher]))]
        base = search.base()
        if not math.isfinite(search.tried[best].loss):
            raise InputError(
                f"no learning rate from {wanted.lowest:g} to {wanted.highest:g} could be trained at: "
                f"{search.tried[best].problem}; give a lower range"
            )
        rate = search.for_training(rates, best)
    there = book.hand_over(search.record_of(rate).id, request.train.steps) if request.resume else None
    if dataset.unread:
        book.forget()  # no later search is equal to this one
    book.clear_states()
    return Found(
        rates,
        search.tried,
        base,
        rate,
        plan,
        bool(held_out),
        search.learned,
        search.seconds,
        0 if there is None else len(there.losses),
        there is not None and is_as_long(there, request.train.steps),
        search.why_not,
        best,
    )


def _scored(dataset: EncodedDataset) -> tuple[list[int], list[int]]:
    """(the pictures that are held out, those that are trained on), of cross-validation those of its first training."""
    pictures = dataset.pictures
    if pictures.folds:
        training, held_out = pictures.folds[0]
        return list(held_out), list(training)
    return list(pictures.held_out_indices), list(pictures.training_indices)


class _Search:
    """The probes of one search.

    tried: the probes so far, by rate. learned: how many were run now. seconds: that they took. why_not: why no probe
    can be gone on with by the training; "" where one can.
    """

    def __init__(
        self,
        technique: Technique[Any],
        models: Models,
        dataset: EncodedDataset,
        plan: ProbePlan,
        book: ProbeBook,
        scored: Sequence[int],
        stack: contextlib.ExitStack,
    ) -> None:
        self._technique, self._models, self._dataset = technique, models, dataset
        self._plan, self._book, self._scored, self._stack = plan, book, scored, stack
        config = technique.request.train
        self._config = replace(config, warmup_steps=0, ema=0.0)
        count = len({dataset.pictures.items[index].picture for index in scored})
        # A search with another number of probes scores another number of pictures.
        usable = (probe for probe in book.known() if probe.problem or len(probe.pictures) == count)
        self._known = {probe.key: probe for probe in usable}
        self._bar = comfy.utils.ProgressBar(plan.most * plan.steps)
        self._prepared: tuple[PreparedTrainer, Run] | None = None
        self.tried: dict[float, Probe] = {}
        self.learned, self.seconds = 0, 0.0
        self.why_not = (
            "resume is off"
            if not technique.request.resume
            else "warm-up steps are left out of the probes"
            if config.warmup_steps
            else "the average of ema is left out of the probes"
            if config.ema
            else "cross-validation trains on other pictures first"
            if dataset.pictures.folds
            else "not all of the held-out pictures are scored in the probes"
            if 0 < len(scored) < len(dataset.pictures.held_out_indices)
            else "the wires carry what cannot be compared with a later run"
            if dataset.unread
            else ""
        )

    def rises(self, rate: float, higher: float) -> bool:
        """Whether the probe at a higher rate is the better one."""
        one, other = self.probe(rate), self.probe(higher)
        return is_better(other.loss, other.losses, one.loss, one.losses)

    def for_training(self, rates: Sequence[float], best: float) -> float:
        """The rate for the whole training, of those that were tried, or that can be within the probes' share."""
        losses = {rate: probe.loss for rate, probe in self.tried.items()}
        can = sorted(rate for rate, loss in losses.items() if math.isfinite(loss))
        share = self._plan.steps / self._config.steps
        rate = rate_for_training(rates if len(losses) < self._plan.most else can, best, losses, share)
        return rate if math.isfinite(self.probe(rate).loss) else best

    def probe(self, rate: float) -> Probe:
        """The probe at a rate, which is run where its result is not known."""
        if rate in self.tried:
            return self.tried[rate]
        found = self._known.get((rate, self._plan.steps, self._config.steps))
        if found is None:
            self.base()
            found = self._run(rate)
            self.seconds += found.seconds
            self.learned += 1
            self._book.add(found)
        self.tried[rate] = found
        self._bar.update_absolute(len(self.tried) * self._plan.steps)
        return found

    def base(self) -> float:
        """The loss before anything is learned."""
        if (found := self._known.get((0.0, 0, self._config.steps))) is None:
            began = time.monotonic()
            rule = None if self._config.stop == ALL_STEPS else StopRule(self._config.stop)
            with self._training(0.0) as (trainer, training, _):
                loss, of_pictures = self._score(trainer, training, rule)
            check_initial_loss(loss, wider_precision(trainer.denoiser.base, trainer.denoiser.compute))
            seconds, stopping = time.monotonic() - began, dict[str, Any]()
            if rule is not None:
                rule.add(0)
                stopping = rule.state()
            found = Probe(0.0, 0, self._config.steps, loss, list(of_pictures.values()), [], seconds, stopping=stopping)
            self._known[found.key] = found
            self._book.add(found)
            self.seconds += seconds
        return found.loss

    def record_of(self, rate: float) -> Run:
        """The record of the training at a rate, before its first step."""
        return new_run(self._technique, self._dataset, RunContext(), learning_rate=rate)

    @contextlib.contextmanager
    def _training(self, rate: float) -> Iterator[tuple[PreparedTrainer, Training, Run]]:
        """(the trainer, the steps of a probe, the record of the training that it begins) in a context for them."""
        checked, pictures = self._prepared is not None, self._dataset.pictures
        if self._prepared is None:
            self._prepared = self._stack.enter_context(prepared(self._technique, self._models, self._dataset))
        trainer, run = self._prepared
        own = self.record_of(rate).info
        record = Run(replace(run.info, id=own.id, settings=own.settings, started=time.time()))
        indices = pictures.folds[0][0] if pictures.folds else pictures.training_indices
        fold = Fold(record, replace(self._config, learning_rate=rate), indices, [], until=self._plan.steps)
        with trainer.attached_training(fold, checked) as training:
            yield trainer, training, record

    def _run(self, rate: float) -> Probe:
        began, best = time.monotonic(), min(self.tried.values(), key=lambda probe: probe.loss, default=None)
        losses, problem = list[float](), ""
        with self._training(rate) as (trainer, training, record):
            try:
                for step in training:
                    comfy.model_management.throw_exception_if_processing_interrupted()
                    losses.append(step.loss)
                    record.seconds = step.seconds
                    self._bar.update_absolute(len(self.tried) * self._plan.steps + step.step)
                    if best is not None and is_hopeless(losses, best.losses):
                        problem = f"ended at step {step.step}: its loss was far above that of {best.rate:g}"
                        break
            except NotANumber as error:
                problem = str(error)
            except Exception as error:
                message = failure_of(error, RunContext()).message
                if message is None:
                    raise
                advice = wider_precision(trainer.denoiser.base, trainer.denoiser.compute)
                raise message(error, training.steps_done, advice) from error
            loss, of_pictures = (math.inf, {}) if problem else self._score(trainer, training)
            if not problem and not math.isfinite(loss):
                problem, loss, of_pictures = "its loss on the fixed grid was not a number", math.inf, {}
            record.losses = losses
            if not problem and not self.why_not:
                self._keep(training, record)
        seconds, scores = time.monotonic() - began, list(of_pictures.values())
        return Probe(rate, self._plan.steps, self._config.steps, loss, scores, losses, seconds, problem)

    def _score(
        self, trainer: PreparedTrainer, training: Training, rule: StopRule | None = None
    ) -> tuple[float, dict[Picture, float]]:
        """(the loss on the fixed grid, that of each picture) of what is trained. rule: takes that of each sample."""
        of_pictures = dict[Picture, float]()
        score = trainer.validation_loss(self._scored, of_pictures, rule)
        assert score is not None  # a set has a picture
        with torch.no_grad(), training.evaluated():
            return score(), of_pictures

    def _keep(self, training: Training, record: Run) -> None:
        """Save what a probe has trained, as the training at its rate would be saved after these steps."""
        state = training.state()
        if self._dataset.pictures.held_out_indices:
            base = self._known[0.0, 0, self._config.steps]
            items = self._dataset.pictures.items
            names = dict.fromkeys(items[index].picture for index in self._scored)
            record.held_out = [(0, base.loss)]
            add_losses(record.pictures, 0, dict(zip(names, base.pictures, strict=True)), held_out=True)
            state = replace(state, best_loss=base.loss, stopping=base.stopping)
        record.state = RunState.INTERRUPTED
        record.note(note_of(training.steps_done))
        self._book.save_state(record, state)
