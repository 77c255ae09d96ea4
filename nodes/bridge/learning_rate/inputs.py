"""The inputs and outputs that the nodes share which find a learning rate."""

from __future__ import annotations

from collections.abc import Sequence

from comfy_api.latest import io

from ....training.config import RANGES
from ....training.errors import InputError
from ....training.rate_search import MOST_PROBES
from ..running_prompt import inputs_behind
from ..trainer_inputs import sample_prompt_problem

# What a trainer has besides that changes neither its steps nor which run it is.
LEFT_OUT = {"save_every", "sample_every", "sample_prompt", "keep", "score_pictures"}


def search_inputs(trainer: Sequence[io.Input], lowest: float, highest: float) -> list[io.Input]:
    """The inputs of a trainer with a range of rates, as its first widgets, instead of its rate.

    lowest, highest: the defaults. The range comes first for a node that is bypassed: the page then passes `lowest` on
    to the trainer, and not another number.
    """
    inputs, is_widget = list[io.Input](), False
    for item in trainer:
        if isinstance(item, io.WidgetInput) and not is_widget:
            inputs += _range(lowest, highest)
            is_widget = True
        if item.id != "learning_rate" and item.id not in LEFT_OUT:
            inputs.append(item)
    return inputs


def _range(lowest: float, highest: float) -> list[io.Input]:
    least, most = RANGES["learning_rate"]

    def rate(name: str, default: float, tooltip: str) -> io.Input:
        step = lowest / 10
        return io.Float.Input(name, default=default, min=least, max=most, step=step, round=False, tooltip=tooltip)

    return [
        rate("lowest", lowest, "The lowest learning rate that is tried: one that is too low for sure."),
        rate("highest", highest, "The highest learning rate that may be tried: one that is too high for sure."),
        io.Int.Input(
            "probes",
            default=7,
            min=3,
            max=MOST_PROBES,
            tooltip=(
                "How many learning rates there are from lowest to highest, each the same multiple of the one before. "
                "A search tries about half of them or fewer. More are finer, and each gets fewer steps."
            ),
        ),
    ]


def search_outputs(trainer: str) -> list[io.Output]:
    """trainer: the name of the node that takes the rate."""
    return [
        io.Float.Output(
            "learning_rate",
            display_name="learning_rate",
            tooltip=(
                "The rate for the whole training, that follows from short ones. Wire it into learning_rate of "
                f"{trainer} with the same settings."
            ),
        ),
        io.Image.Output(
            "plot", display_name="plot", tooltip="The loss over the learning rate, with the chosen one marked."
        ),
        io.String.Output(
            "report", display_name="report", tooltip="What was tried, what was chosen, and how sure that is."
        ),
    ]


def check_trainer(kind: str) -> None:
    """Raise `InputError` where a trainer of class `kind` that takes the rate would refuse its sample_prompt.

    ComfyUI leaves that trainer out of the queue and still runs the search where its plot or report is shown.
    """
    for inputs in inputs_behind(kind, 0):
        text = inputs.get("sample_prompt")
        if isinstance(text, str) and (problem := sample_prompt_problem(text)):
            raise InputError(f"{problem}. Correct it on the trainer that takes the rate; nothing was searched")
