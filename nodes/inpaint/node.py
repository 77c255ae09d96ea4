"""The two nodes of the mask blend: what a user sees, translated."""

from __future__ import annotations

import comfy.utils
import torch
from comfy_api.latest import io, ui

from ...training.errors import InputError
from ..bridge import sampling as bridge
from ..bridge.errors import name_node_in_errors
from .blend import (
    BIAS_MAX,
    BIAS_MIN,
    BLENDS,
    PRESERVATION,
    PRESERVATION_MAX,
    PRESERVATION_MIN,
    Blend,
    choose,
    has_own_inpaint_noise,
    patch,
)
from .mask import (
    COVERAGES,
    FEATHER,
    FEATHER_MAX,
    FEATHER_MIN,
    GROW_MAX,
    GROW_MIN,
    MaskSettings,
    shape_mask,
    to_latent,
    to_picture,
)
from .preview import MOST, draw, picture_of
from .restore import FEATHER as RESTORE_FEATHER
from .restore import FEATHER_MAX as RESTORE_FEATHER_MAX
from .restore import FEATHER_MIN as RESTORE_FEATHER_MIN
from .restore import RestoreSettings, restore

ORIGINAL = "bespoke_original"  # the clean latent, kept in the LATENT so that a later stage's node finds it


class LatentMaskBlend(io.ComfyNode):
    """Keep the latent outside a mask, with any sampler downstream."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeLatentMaskBlend",
            display_name="Bespoke Latent Mask Blend",
            category="Bespoke/inpaint",
            description=(
                "Repaint inside a mask and keep the rest of the latent bit for bit, with any model and any sampler "
                "node. "
                "Wire both model and latent to the sampler, and latent_mask to Restore Unmasked after decoding."
            ),
            search_aliases=[
                "inpaint",
                "set latent noise mask",
                "differential diffusion",
                "soft inpainting",
                "blended latent diffusion",
                "noise mask",
            ],
            inputs=[
                io.Model.Input("model", tooltip="Any diffusion model; no inpainting model is needed."),
                io.Latent.Input("latent", tooltip="The picture to repaint a part of, encoded by the VAE."),
                io.Mask.Input(
                    "mask",
                    tooltip=(
                        "White (1) may change, black (0) is kept; exactly so beyond the feather. One mask for all "
                        "pictures, one each, or one a video frame."
                    ),
                ),
                io.Combo.Input(
                    "blend",
                    options=list(BLENDS),
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "re-inject: the original, noised to the present level, replaces what is outside at every step. "
                        "prediction: only the predicted picture is blended, so a soft mask keeps the right noise "
                        "with every sampler. "
                        "differential: the mask's grey is each place's strength; .5 changes half as much as 1. "
                        "auto chooses, and the report says why."
                    ),
                ),
                io.Int.Input(
                    "grow",
                    default=0,
                    min=GROW_MIN,
                    max=GROW_MAX,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Pixels by which the mask grows on every side (below 0: shrinks). More room lets the new part "
                        "join its surroundings."
                    ),
                ),
                io.Int.Input(
                    "feather",
                    default=FEATHER,
                    min=FEATHER_MIN,
                    max=FEATHER_MAX,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Pixels over which the mask fades out beyond its edge. Hides the seam; that strip around the "
                        "mask changes a little. 0 gives a hard edge."
                    ),
                ),
                io.Combo.Input(
                    "coverage",
                    options=list(COVERAGES),
                    default="any",
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "How a latent cell (8x8 pixels for most models) gets its value. any: the strongest pixel, so "
                        "thin strokes repaint fully. area: the mean, so a cell barely touched changes little."
                    ),
                ),
                io.Float.Input(
                    "min_strength",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "The least value (0 to 1) that a touched latent cell gets. Raise it where faint strokes hardly "
                        "change anything."
                    ),
                ),
                io.Float.Input(
                    "bias",
                    default=0.0,
                    min=BIAS_MIN,
                    max=BIAS_MAX,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "How a soft mask acts over time. 0: the same at every step. Higher: grey places hold to the "
                        "original early, when shapes are made, and are let go late, for details."
                    ),
                ),
                io.Float.Input(
                    "preservation",
                    default=PRESERVATION,
                    min=PRESERVATION_MIN,
                    max=PRESERVATION_MAX,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "How strongly grey places hold to the original. 1: as the mask says. Higher: more of it stays "
                        "there. 0: grey is repainted as white is."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The model with the blend; use it in the sampler that gets the latent.",
                ),
                io.Latent.Output(display_name="latent", tooltip="The latent with its noise mask set."),
                io.Mask.Output(
                    display_name="latent_mask",
                    tooltip=(
                        "What the latent cells cover, at the picture's size: 1 where pixels may change. For Restore "
                        "Unmasked."
                    ),
                ),
                io.Image.Output(
                    display_name="preview",
                    tooltip=(
                        "What the latent sees of the mask: full and partial cells, your mask and the composite mask."
                    ),
                ),
                io.String.Output(
                    display_name="report",
                    tooltip=(
                        "The blend, what it covers in cells and percent, and anything about the mask that you should "
                        "know."
                    ),
                ),
            ],
        )

    @classmethod
    @name_node_in_errors
    def execute(
        cls,
        model,
        latent,
        mask,
        blend="auto",
        grow=0,
        feather=FEATHER,
        coverage="any",
        min_strength=0.0,
        bias=0.0,
        preservation=PRESERVATION,
    ) -> io.NodeOutput:
        settings = MaskSettings(grow, feather, coverage, min_strength)
        # An empty latent gets the model's channels only when it is sampled; the mask must fit that.
        samples = bridge.fitting_latent(model, latent, "latent")
        picture_latent = samples.unbind()[0] if samples.is_nested else samples
        if picture_latent.ndim not in (4, 5):
            raise InputError(
                f"the latent has {picture_latent.ndim} dimensions; give a picture's or a video's, not sound"
            )
        latent_format = model.get_model_object("latent_format")
        rows, columns = picture_latent.shape[-2:]
        shaped = shape_mask(mask, rows, columns, latent_format.spacial_downscale_ratio, settings)
        noise_mask, spread = to_latent(
            shaped.cells, tuple(picture_latent.shape), latent_format.temporal_downscale_ratio, coverage
        )

        kind, reason = (blend, "as chosen") if blend != "auto" else choose(shaped.cells, model)
        original = _clean_original(latent, samples)
        patched = patch(model, Blend(kind, bias, original, preservation))
        out = {**latent, "noise_mask": noise_mask, ORIGINAL: original}
        preview = draw(
            shaped,
            picture_of(
                _pictured(picture_latent, len(shaped.cells)), latent_format, shaped.grid.height, shaped.grid.width
            ),
        )
        report = _report(shaped, kind, reason, model, [*spread, *_notes_on(latent, samples, shaped.cells)])
        # The cells over the picture are seen on the node itself, too, whether or not `preview` is wired to anything.
        shown = ui.PreviewImage(preview, cls=cls)
        return io.NodeOutput(patched, out, to_picture(shaped.cells, shaped.grid), preview, report, ui=shown)


def _pictured(latent, count):
    """The latents that the previews of `count` masks show: one each where there are as many, else the first."""
    return latent[: min(count, MOST)] if latent.shape[0] == count else latent[:1]


def _clean_original(latent, samples) -> torch.Tensor:
    """The latent without noise: what an earlier stage's node kept, if what came is that stage's unfinished result.

    A finished result is pinned: it equals what was kept wherever its mask was 0. Only a run that adds no noise uses
    what was kept, so where no place was masked with 0 it may be taken for unfinished without harm.
    """
    flat = comfy.utils.pack_latents(samples.unbind())[0] if samples.is_nested else samples
    kept = latent.get(ORIGINAL)
    if kept is None or kept.shape != flat.shape or samples.is_nested or "noise_mask" not in latent:
        return flat
    outside = comfy.utils.reshape_mask(latent["noise_mask"], flat.shape) == 0
    finished = bool(outside.any()) and torch.equal(flat[outside], kept.to(flat)[outside])
    return flat if finished else kept


def _notes_on(latent, samples, cells) -> list[str]:
    """What a user should know of the latent that was wired in."""
    notes = []
    if "noise_mask" in latent and ORIGINAL not in latent:
        notes.append("The latent had a noise mask of its own, which this one replaces.")
    if bridge.is_blank(samples) and not bool((cells >= 1).all()):
        notes.append(
            "The latent is empty (all zeros), so outside the mask there is no picture to keep; encode one with VAE "
            "Encode."
        )
    return notes


def _report(shaped, kind, reason, model, notes) -> str:
    cells = shaped.cells
    touched, full = int((cells > 0).sum()), int((cells >= 1).sum())
    lines = [f"Blend: {kind} ({reason})."]
    if kind != "re-inject" and has_own_inpaint_noise(model):
        lines.append("This model keeps masked latents in a way of its own, which is used outside the mask.")
    lines.append(
        f"{touched} of {cells.numel()} latent cells may change ({touched / cells.numel():.1%}): {full} fully, "
        f"{touched - full} partly."
    )
    if touched == 0:
        lines.append("The mask is empty: a sampler returns the original and does not call the model.")
    elif full == cells.numel():
        lines.append("The mask covers everything: the same as no mask.")
    return "\n".join([*lines, *shaped.notes, *notes])


class RestoreUnmasked(io.ComfyNode):
    """Paste the original's pixels back outside the mask, and prove it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeRestoreUnmasked",
            display_name="Bespoke Restore Unmasked",
            category="Bespoke/inpaint",
            description="Put the original's pixels back outside the mask, bit for bit, and count what differs there.",
            search_aliases=[
                "paste back",
                "composite",
                "image composite masked",
                "inpaint restore",
                "color match",
                "stitch",
            ],
            inputs=[
                io.Image.Input("original", tooltip="The picture before repainting."),
                io.Image.Input("generated", tooltip="The decoded picture after repainting."),
                io.Mask.Input(
                    "mask",
                    tooltip=(
                        "White (1) is taken from the generated picture, black (0) stays the original. Wire latent_mask "
                        "of Latent Mask Blend here."
                    ),
                ),
                io.Int.Input(
                    "feather",
                    default=RESTORE_FEATHER,
                    min=RESTORE_FEATHER_MIN,
                    max=RESTORE_FEATHER_MAX,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Pixels over which the generated picture fades in from the mask's edge, inward only: nothing "
                        "outside changes."
                    ),
                ),
                io.Float.Input(
                    "match_color",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "How much of the colour difference at the mask's border (0 to 1) is taken off inside. Hides a "
                        "faint change of tone; details stay."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The original with the repainted part in it."),
                io.String.Output(
                    display_name="report",
                    tooltip=(
                        "How many pixels differ from the original outside the mask, and by how much, before and after."
                    ),
                ),
                io.Int.Output(
                    display_name="changed_outside", tooltip="Pixels outside the mask that differ from the original: 0."
                ),
            ],
        )

    @classmethod
    @name_node_in_errors
    def execute(cls, original, generated, mask, feather=RESTORE_FEATHER, match_color=0.0) -> io.NodeOutput:
        image, after, notes = restore(original, generated, mask, RestoreSettings(feather, match_color))
        notes.append(
            f"Restored: {after.changed} of {after.outside} px outside the mask differ, by up to {after.largest:.4f}."
        )
        return io.NodeOutput(image, "\n".join(notes), after.changed)
