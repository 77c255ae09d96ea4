"""Which pictures are trained on and which are only scored."""

from __future__ import annotations

from ...training.config import TrainConfig
from ...training.images import ImageSet, TrainingImage
from ...training.record import Run
from ...training.validation import split


def held_out_split(
    images: ImageSet, validation: ImageSet | None, config: TrainConfig
) -> tuple[list[TrainingImage], list[int], list[int]]:
    """(all pictures, indices trained on, indices held out): a set of their own, or `config.validation` of the images."""
    items = list(images.items)
    if validation is not None:
        return items + list(validation.items), list(range(len(items))), list(range(len(items), len(items) + len(validation.items)))
    if config.validation:
        return items, *split(len(items), config.validation, config.seed)
    return items, list(range(len(items))), []


def describe_held_out(run: Run, config: TrainConfig) -> list[str]:
    """The held-out curve in words: where it was lowest, what was kept, where over-fitting began."""
    if run.best is None:
        return []
    step, loss = run.best
    first = run.held_out[0]
    lines = [f"Held-out loss {first[1]:.4f} at step {first[0]}, lowest {loss:.4f} at step {step}, {run.held_out[-1][1]:.4f} at the end."]
    since = run.over_fitting_since()
    if since is not None:
        lines.append(f"From step {since} on it only rose: that is over-fitting, so fewer steps would do.")
    lines.append(f"Kept: {'step ' + str(step) if config.keep == 'best' else 'the last step'}.")
    return lines
