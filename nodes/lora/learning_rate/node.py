"""The node that finds the learning rate of a LoRA training."""

from __future__ import annotations

from comfy_api.latest import io

from ....training.optimizers import check_optimizer
from ...bridge.errors import name_node_in_errors
from ...bridge.learning_rate.inputs import check_trainer, search_inputs, search_outputs
from ...bridge.learning_rate.plot import draw_rates
from ...bridge.learning_rate.report import report
from ...bridge.learning_rate.search import RateRange, find_rate
from ...bridge.running_prompt import differing_inputs
from ...bridge.trainer import Models
from ..training.node import request_from_inputs, trainer_inputs
from ..training.technique import LoraTechnique, encode_dataset

LOWEST, HIGHEST = 1e-5, 1e-2
TRAINER = "BespokeTrainLora"


class FindLearningRate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeFindLearningRate",
            display_name="Bespoke Find Learning Rate",
            category="Bespoke/lora",
            description=(
                "Finds the learning rate for Bespoke Train LoRA by the first steps of that training at several rates. "
                "Give it the trainer's settings and wire learning_rate into the trainer."
            ),
            search_aliases=["lr finder", "learning rate finder", "range test", "best learning rate"],
            inputs=search_inputs(trainer_inputs(), LOWEST, HIGHEST),
            outputs=search_outputs("Bespoke Train LoRA"),
        )

    @classmethod
    @name_node_in_errors
    def execute(
        cls, model, clip, vae, images, lowest, highest, probes, train_text_encoder=False, **inputs
    ) -> io.NodeOutput:
        check_trainer(TRAINER)
        wanted = RateRange(lowest, highest, probes)
        given = {"images": images, "train_text_encoder": train_text_encoder, "learning_rate": lowest}
        request, data = request_from_inputs(inputs | given)
        check_optimizer(request.train.optimizer, model.load_device)
        models = Models(model, clip, vae)
        dataset = encode_dataset(models, data, request)
        found = find_rate(LoraTechnique(request, models, dataset), models, dataset, wanted)
        return io.NodeOutput(found.rate, draw_rates(found), report(found, differing_inputs(TRAINER, 0)))
