"""The node that finds the learning rate of a textual inversion."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge.errors import name_node_in_errors
from ..bridge.learning_rate.inputs import check_trainer, search_inputs, search_outputs
from ..bridge.learning_rate.plot import draw_rates
from ..bridge.learning_rate.report import report
from ..bridge.learning_rate.search import RateRange, find_rate
from ..bridge.running_prompt import differing_inputs
from ..bridge.trainer import Models
from ..images.wired import training_set
from .node import request_from_inputs, trainer_inputs
from .technique import TextualInversionTechnique, encode_dataset

LOWEST, HIGHEST = 5e-4, 0.5
TRAINER = "BespokeTrainTextualInversion"


class FindWordLearningRate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeFindWordLearningRate",
            display_name="Bespoke Find Word Learning Rate",
            category="Bespoke/textual inversion",
            description=(
                "Finds the learning rate for Bespoke Train Textual Inversion by the first steps of that training at "
                "several rates. Give it the trainer's settings and wire learning_rate into the trainer."
            ),
            search_aliases=["lr finder", "learning rate finder", "range test", "textual inversion learning rate"],
            inputs=search_inputs(trainer_inputs(), LOWEST, HIGHEST),
            outputs=search_outputs("Bespoke Train Textual Inversion"),
        )

    @classmethod
    @name_node_in_errors
    def execute(cls, model, clip, vae, images, name, lowest, highest, probes, **settings) -> io.NodeOutput:
        check_trainer(TRAINER)
        wanted = RateRange(lowest, highest, probes)
        request = request_from_inputs(settings | {"name": name, "learning_rate": lowest})
        models = Models(model, clip, vae)
        dataset = encode_dataset(models, training_set(images), request)
        found = find_rate(TextualInversionTechnique(request, models, dataset), models, dataset, wanted)
        different = differing_inputs(TRAINER, 0)
        return io.NodeOutput(found.rate, draw_rates(found), report(found, different))
