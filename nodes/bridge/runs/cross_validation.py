"""Cross-validation for small sets (Kohavi 1995): finds the step to stop at by trainings that leave pictures out.

A set of fewer than ten pictures is too small to hold pictures out for good. A few trainings, each without some of the
pictures, show at which step the loss on the left-out pictures is lowest. A last training on all pictures runs to that
step. A larger set is trained once; `trainer.train` treats that as a single fold.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ....training.config import TrainConfig
from ....training.leak import mean_leak
from ....training.picture_scores import joined
from ....training.record import Run, RunState
from ....training.run_identity import run_id
from ....training.stopping import ALL_STEPS, is_over
from ....training.validation import mean_curve
from ..dataset.pictures import Pictures


@dataclass(frozen=True)
class Fold:
    """One training of a run. training_indices, held_out: positions in `Pictures.items`.

    run: the record of this training. until: the step to stop at; None for `config.steps`. prefix: precedes the line
    that is shown before the first step. is_final: whether its result is the run's.
    """

    run: Run
    config: TrainConfig
    training_indices: Sequence[int]
    held_out: Sequence[int]
    until: int | None = None
    prefix: str = ""
    is_final: bool = True

    @property
    def steps(self) -> int:
        return self.config.steps if self.until is None else min(self.until, self.config.steps)


def validation_folds(pictures: Pictures, config: TrainConfig, run: Run) -> Iterator[Fold]:
    """The trainings that leave pictures out; none where `pictures.folds` is empty.

    Each has a record and a state of its own, so that it can be resumed. They write no files, draw no samples
    and score no trained pictures.
    """
    count = len(pictures.folds)
    several = len({item.picture[0] for item in pictures.items}) > 1
    # "rotation" is an earlier word for fold. Saved records and the ids made from it keep it.
    for number, (training_indices, held_out) in enumerate(pictures.folds, 1):
        info = replace(
            run.info,
            id=run_id(run.info.technique, {"rotation": number}, run.id, ""),
            settings={**run.info.settings, "rotation": f"{number} of {count}"},
            images=pictures.count_pictures(training_indices),
            started=time.time(),
        )
        names = ", ".join(pictures.items[i].path if several else pictures.items[i].name for i in held_out)
        prefix = f"training {number} of {count + 1}, without {names}, to learn when to stop: "
        quiet = replace(config, save_every=0, sample_every=0, score_pictures="off")
        yield Fold(Run(info), quiet, training_indices, held_out, prefix=prefix, is_final=False)


def training_indices_of(pictures: Pictures, run: Run) -> Sequence[int]:
    """The pictures that a run of `validation_folds` or `final_fold` trains on: positions in `Pictures.items`."""
    rotation = run.info.settings.get("rotation")
    if rotation is None:
        return pictures.training_indices
    return pictures.folds[int(str(rotation).split()[0]) - 1][0]


def final_fold(pictures: Pictures, config: TrainConfig, run: Run, folds: Sequence[Fold]) -> Fold:
    """The training whose result is the run's result.

    folds: the finished trainings of `validation_folds`. With them, and with `keep` "best", it stops at the step where
    their mean loss on the left-out pictures was lowest. Where no step was better than the start it goes as far as they
    went, as `Training.result` keeps the last state then: stopping at step 0 would give a LoRA of zeros.
    """
    if not folds:
        return Fold(run, config, pictures.training_indices, pictures.held_out_indices)
    run.folds, run.held_out = len(folds), mean_curve([fold.run.held_out for fold in folds])
    run.pictures = joined(fold.run.pictures for fold in folds)
    run.leak = mean_leak([fold.run.leak for fold in folds])
    until = config.steps
    if config.keep == "best" and run.best is not None:
        until = run.best[0] or run.held_out[-1][0] or config.steps
    if config.stop != ALL_STEPS:
        run.note(_ends_of(folds))
    prefix = f"training {len(folds) + 1} of {len(folds) + 1}, on all pictures, to step {until}: "
    return Fold(run, config, pictures.training_indices, [], until, prefix)


def _ends_of(folds: Sequence[Fold]) -> str:
    """Which folds `config.stop` has ended, and after how many steps, as a note."""
    stop, ended = folds[0].config.stop, [fold for fold in folds if is_over(fold.config.stop, fold.run.comparisons)]
    at = ", ".join(str(len(fold.run.losses)) for fold in ended)
    return f"{len(ended)} of {len(folds)} trainings ended {stop}" + (f", after {at} steps" if ended else "")


def was_finished_by_user(fold: Fold) -> bool:
    """Whether the user ended the training early. One that `config.patience` or `config.stop` ended is KEPT too."""
    run, config = fold.run, fold.config
    if run.state is not RunState.KEPT or is_over(config.stop, run.comparisons):
        return False
    waited = run.held_out[-1][0] - run.best[0] if run.held_out and run.best is not None else 0
    return not (config.patience > 0 and waited >= config.patience * config.validate_every)
