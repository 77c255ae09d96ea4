"""What a training's report says about its run."""

from __future__ import annotations

from ....training.config import TrainConfig
from ....training.record import Run


def describe_held_out(run: Run, config: TrainConfig) -> list[str]:
    """The held-out curve in words, a line each: its lowest point, where over-fitting began, which step was kept."""
    if run.best is None:
        return []
    step, loss = run.best
    first = run.held_out[0]
    lines = [
        f"Held-out loss {first[1]:.4f} at step {first[0]}, lowest {loss:.4f} at step {step}, "
        f"{run.held_out[-1][1]:.4f} at the end."
    ]
    if run.folds:
        lines[0] = (
            f"{run.folds} trainings, each without {config.validation} other pictures, said when to stop; then all "
            f"{run.info.images} were trained on. Of those left out: {lines[0]}"
        )
    since = run.over_fitting_since()
    if since is not None:
        lines.append(f"From step {since} on it only rose: that is over-fitting, so fewer steps would do.")
    lines.append(f"Kept: {'step ' + str(step) if config.keep == 'best' else 'the last step'}.")
    return lines
