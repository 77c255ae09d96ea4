"""The node that fills masked places and new borders before they are sampled."""

from __future__ import annotations

from comfy_api.latest import io

from ...bridge.errors import name_node_in_errors
from .contents import CARRY, FILLS
from .fill import AMOUNT_MAX, AMOUNT_MIN, BORDER_MAX, FillSettings, fill_masked


def border_input(side: str, where: str) -> io.Int.Input:
    return io.Int.Input(
        side,
        default=0,
        min=0,
        max=BORDER_MAX,
        step=8,
        tooltip=f"Pixels of new picture {where}, filled and masked (outpainting). Multiples of 8 fit the VAE.",
    )


class FillMasked(io.ComfyNode):
    """Fills masked places and new borders with something for a sampler to start from."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeFillMasked",
            display_name="Bespoke Fill Masked (inpaint)",
            category="Bespoke/inpaint",
            description=(
                "Replace what is under a mask before it is repainted, and add new borders around the picture "
                "(outpainting). Below strength 1 the fill is what the sampler starts from."
            ),
            search_aliases=[
                "masked content",
                "outpaint",
                "pad image for outpainting",
                "fill masked area",
                "blur masked area",
                "uncrop",
                "expand image",
            ],
            inputs=[
                io.Image.Input("image", tooltip="The picture with something to replace, or to make larger."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip=(
                        "White (1) is filled, black (0) stays bit for bit, grey is mixed. One for all pictures, or one "
                        "each. Not needed to add a border."
                    ),
                ),
                io.Combo.Input(
                    "fill",
                    options=list(FILLS),
                    default=CARRY,
                    tooltip=(
                        "carry: the colours at the edge, carried inward smoothly; to remove a thing, and for new "
                        "borders. blur: what was there, without its shapes; to make another thing in the same colours. "
                        "mean: one flat colour, the mean of the rest; for a calm ground. noise: random patches in the "
                        "picture's colours; to get something new below strength 1. neutral: grey; for inpainting "
                        "models, which are trained on it."
                    ),
                ),
                io.Float.Input(
                    "amount",
                    default=1.0,
                    min=AMOUNT_MIN,
                    max=AMOUNT_MAX,
                    step=0.05,
                    tooltip="How much of the fill is mixed into what was there: 1 replaces it, 0 leaves it as it was.",
                ),
                border_input("left", "on the left"),
                border_input("top", "above"),
                border_input("right", "on the right"),
                border_input("bottom", "below"),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    optional=True,
                    advanced=True,
                    tooltip="Which random patches the fill noise gives. The other fills draw nothing.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image",
                    tooltip="The filled picture, for VAE Encode and as the original of Restore Unmasked.",
                ),
                io.Mask.Output(
                    display_name="mask", tooltip="The mask with the new border in it, for Latent Mask Blend."
                ),
                io.String.Output(
                    display_name="report", tooltip="How much was filled, with what, and how large the picture is now."
                ),
            ],
        )

    @classmethod
    @name_node_in_errors
    def execute(
        cls, image, mask=None, fill=CARRY, amount=1.0, left=0, top=0, right=0, bottom=0, seed=0
    ) -> io.NodeOutput:
        filled, grown, notes = fill_masked(image, mask, FillSettings(fill, amount, left, top, right, bottom, seed))
        return io.NodeOutput(filled, grown, "\n".join(notes))
