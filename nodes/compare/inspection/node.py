"""The node that shows which pictures of its set a run found hard."""

from __future__ import annotations

from comfy_api.latest import io

from ....training.errors import InputError
from ....training.record import Run as Record
from ...bridge.drawing.image import tensor_of
from ...bridge.errors import name_node_in_errors
from ...bridge.evidence.kept import card_image
from ...bridge.runs.store import folder_of_run
from ...bridge.types import Images, Run
from .curve import draw_curve
from .inspect import entries_of, report, sheet


class InspectRun(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeInspectRun",
            display_name="Bespoke Inspect Run",
            category="Bespoke/compare",
            description=(
                "Shows which pictures of a training set the model found hard, which captions do not fit, and which "
                "pictures were learned by heart: a contact sheet, the losses as a curve, and a report."
            ),
            search_aliases=["bad pictures", "wrong captions", "picture loss", "dataset quality", "overfitting"],
            inputs=[
                Run.Input("run", tooltip="The run output of a trainer whose score_pictures was on."),
                Images.Input("images", tooltip="The training set of that run."),
            ],
            outputs=[
                io.Image.Output(
                    "sheet",
                    display_name="sheet",
                    tooltip=(
                        "The pictures with the loss at the start and at the end: those with a finding first, in a "
                        "frame, then the hardest."
                    ),
                ),
                io.Image.Output(
                    "curve", display_name="curve", tooltip="The loss of each picture over the steps, lower is better."
                ),
                io.String.Output(
                    "report", display_name="report", tooltip="What was found, and a table of the hardest pictures."
                ),
                io.Image.Output(
                    "card",
                    display_name="card",
                    tooltip="The run's evidence card: which step to use and why, and what to change next.",
                ),
            ],
        )

    @classmethod
    @name_node_in_errors
    def execute(cls, run, images) -> io.NodeOutput:
        if not isinstance(run, Record):
            raise InputError(f"a {type(run).__name__} is no run; wire in the run output of a Bespoke trainer")
        entries = entries_of(run, images)
        found = [entry.row for entry in entries if entry.findings]
        card = tensor_of(card_image(run, folder_of_run(run)))
        return io.NodeOutput(sheet(entries), draw_curve(run, found), report(run, images, entries), card)
