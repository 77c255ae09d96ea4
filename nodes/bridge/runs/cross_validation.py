"""Small sets: trainings that each leave out some pictures say when to stop, then one on all pictures does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ....training.config import TrainConfig
from ....training.record import Run, run_id
from ....training.validation import mean_curve
from ..dataset.pictures import Pictures


@dataclass(frozen=True)
class Fold:
    """One training: on which pictures, which it is scored on, and the step to stop at where that is known.

    said: what to say of it before the first step.
    """

    run: Run
    config: TrainConfig
    trained_on: Sequence[int]
    held_out: Sequence[int]
    until: int | None = None
    said: str = ""

    @property
    def steps(self) -> int:
        return self.config.steps if self.until is None else min(self.until, self.config.steps)


def cross_validate(
    pictures: Pictures, config: TrainConfig, run: Run, train: Callable[[Fold], dict[str, Tensor]]
) -> tuple[dict[str, Tensor], Run]:
    """(what was learned, its record): one training, or with `pictures.rotations` some before it.

    train: carries one out and fills its record in. Each has a record and a state of its own, so that an interruption
    in any of them is gone on from. One that the user finishes early is handed on as it is.
    """
    if not pictures.rotations:
        return train(Fold(run, config, pictures.trained_on, pictures.held_out)), run
    quiet, curves = replace(config, save_every=0, sample_every=0), []
    for number, (rest, left_out) in enumerate(pictures.rotations, 1):
        own = Run(
            run_id(run.technique, {"rotation": number}, run.id, ""),
            run.technique,
            run.settings | {"rotation": f"{number} of {len(pictures.rotations)}"},
            run.base,
            pictures.count(rest),
            run.trigger,
            run.tags,
            run.resolution,
            run.prediction,
            run.architecture,
            run.base_hash,
            run.clip_skip,
            run.trained,
            names=run.names,
        )
        names = ", ".join(pictures.items[i].name for i in left_out)
        said = f"training {number} of {len(pictures.rotations) + 1}, without {names}, to learn when to stop: "
        learned = train(Fold(own, quiet, rest, left_out, said=said))
        if own.state == "kept" and not _turned(own, config):
            return learned, own
        curves.append(own.held_out)
    run.rotations, run.held_out = len(curves), mean_curve(curves)
    until = run.best[0] if config.keep == "best" else config.steps
    said = f"training {len(curves) + 1} of {len(curves) + 1}, on all pictures, to step {until}: "
    return train(Fold(run, config, pictures.trained_on, [], until, said)), run


def _turned(run: Run, config: TrainConfig) -> bool:
    """Whether it ended by itself because the held-out loss rose."""
    waited = run.held_out[-1][0] - run.best[0] if run.held_out else 0
    return config.patience > 0 and waited >= config.patience * config.validate_every
