"""The node that compares pictures and training runs."""

from __future__ import annotations

from comfy_api.latest import io

from ...training.errors import InputError
from ...training.record import Run as Record
from ..bridge.drawing.fonts import missing_letters
from ..bridge.errors import name_node_in_errors
from ..bridge.types import Run, grown_values
from . import sheet, table
from .layout import arrange

IMAGES, RUNS = 50, 20


class Compare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeCompare",
            display_name="Bespoke Compare",
            category="Bespoke/compare",
            description=(
                "Lays pictures out as a labelled grid, and says what each training run took: numbers trained, file "
                "size, steps, time, held-out loss."
            ),
            search_aliases=["compare images", "xy plot", "image grid", "side by side", "contact sheet"],
            inputs=[
                io.Autogrow.Input(
                    "images",
                    template=io.Autogrow.TemplatePrefix(
                        io.Image.Input(
                            "image",
                            tooltip=(
                                "Pictures of one way of making them. A batch is laid out across, so make every batch "
                                "with the same seeds."
                            ),
                        ),
                        prefix="image",
                        min=0,
                        max=IMAGES,
                    ),
                    optional=True,
                    tooltip="One row for each. Sizes may differ.",
                ),
                io.String.Input(
                    "labels",
                    default="",
                    multiline=True,
                    tooltip=(
                        "One a line, in the order of the images: the name of its row. 'row | column' puts a picture "
                        "into that place of the grid."
                    ),
                ),
                io.Autogrow.Input(
                    "runs",
                    template=io.Autogrow.TemplatePrefix(
                        Run.Input("run", tooltip="A trainer's run."), prefix="run", min=0, max=RUNS
                    ),
                    optional=True,
                    tooltip="The run outputs of trainers: one line of the table for each.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "image", display_name="image", tooltip="The labelled grid, with the table of runs under it."
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="The table in text: technique, numbers trained, file size, steps, time, held-out loss.",
                ),
            ],
        )

    @classmethod
    @name_node_in_errors
    def execute(cls, labels="", images=None, runs=None) -> io.NodeOutput:
        pictures, records = grown_values(images), grown_values(runs)
        if not pictures and not records:
            raise InputError("0 images and 0 runs are connected; wire in at least one IMAGE, or the run of a trainer")
        for record in records:
            if not isinstance(record, Record):
                raise InputError(f"a {type(record).__name__} is no run; wire in the run output of a Bespoke trainer")
        grid, rows = arrange(pictures, labels), [table.row(record) for record in records]
        lines = [table.report(rows)] if rows else []
        if pictures:
            counts = f"{len(pictures)} images in {len(grid.rows)} rows and {len(grid.columns)} columns."
            lines.append(
                counts.replace("1 images", "1 image").replace("1 rows", "1 row").replace("1 columns", "1 column")
            )
        codes = missing_letters("".join(grid.rows + grid.columns))
        if codes:
            grid.notes.append(
                f"No font here has {', '.join(codes)}: in the picture they are written as codes, {codes[0]} as "
                f"U+{ord(codes[0]):04X}."
            )
        return io.NodeOutput(sheet.draw(grid, rows), "\n".join(lines + grid.notes))
