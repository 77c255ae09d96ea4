"""The node that keeps the latent outside a mask while any sampler denoises inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.utils
import torch
import torch.nn.functional as F
from comfy_api.latest import io, ui

from ...training.errors import InputError
from ..bridge.errors import name_node_in_errors
from ..bridge.latent_frames import CHUNKED
from ..bridge.sampling import fitting_latent, is_blank
from .assignment import Layout, to_frames, to_latent
from .background import background_notes
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
    RAMP_MAX,
    RAMP_MIN,
    CellMask,
    MaskSettings,
    shape_mask,
    to_picture,
)
from .preview import MOST, draw, picture_of
from .start import RESIZED, clean_of

ORIGINAL = "bespoke_original"  # key of the clean latent in a LATENT, for the node of a later stage


class LatentMaskBlend(io.ComfyNode):
    """Sets a noise mask and patches the model so that any sampler keeps the latent outside the mask."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BespokeLatentMaskBlend",
            display_name="Bespoke Latent Mask Blend (inpaint)",
            category="Bespoke/inpaint",
            description=(
                "Repaint inside a mask and keep the rest of the latent bit for bit, with any model and any sampler "
                "node. Wire both model and latent to the sampler, and latent_mask to Restore Unmasked after decoding."
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
                        "prediction: only the predicted picture is blended, so a soft mask keeps the right noise with "
                        "every sampler. differential: the mask's grey is each place's strength; .5 changes half as "
                        "much as 1. auto chooses, and the report says why."
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
                        "Pixels by which the mask grows on every side (below 0: shrinks). With more room the new "
                        "part fits its surroundings better."
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
                        "How a soft mask acts over time. 0: the same at every step. Higher: grey places keep to the "
                        "original in early steps, which make shapes, and are free in late steps, which make details."
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
                        "How strongly grey places keep to the original. 1: as the mask says. Higher: more of it "
                        "stays there. 0: grey is repainted as white is."
                    ),
                ),
                io.Int.Input(
                    "ramp",
                    default=0,
                    min=RAMP_MIN,
                    max=RAMP_MAX,
                    step=8,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Pixels over which the strength falls evenly from 1 at the edge of the mask to 0. Wider than "
                        "the feather: what lies there keeps its shapes and takes on the new part's light and style. "
                        "For new borders: 64 to 256."
                    ),
                ),
            ],
            has_intermediate_output=True,  # what it showed comes again with a cached run
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
        ramp=RAMP_MIN,
    ) -> io.NodeOutput:
        settings = MaskSettings(grow, feather, coverage, min_strength, ramp)
        # An empty latent gets the model's channels only when it is sampled; the mask must fit those.
        samples = fitting_latent(model, latent, "latent")
        picture_latent = samples.unbind()[0] if samples.is_nested else samples
        if picture_latent.ndim not in (4, 5):
            raise InputError(
                f"the latent has {picture_latent.ndim} dimensions; give a picture's or a video's, not sound"
            )
        latent_format = model.get_model_object("latent_format")
        rows, columns = picture_latent.shape[-2:]
        chunk = CHUNKED.get(type(latent_format).__name__, 0)
        layout = Layout.of(tuple(picture_latent.shape), latent_format.temporal_downscale_ratio, chunk)
        shaped = shape_mask(mask, rows, columns, latent_format.spacial_downscale_ratio, settings, layout)
        cells, grid = shaped.cells, shaped.grid
        noise_mask = to_latent(cells, layout, picture_latent.ndim)
        kind, reason = (blend, "as chosen") if blend != "auto" else choose(cells, model)
        original = _clean_original(latent, samples)
        patched = patch(model, Blend(kind, bias, original, preservation))
        shown_latent = _shown_latent(picture_latent, len(cells))
        preview = draw(shaped, picture_of(shown_latent, latent_format, grid.height, grid.width))
        notes = [*background_notes(shaped), *_notes_on(latent, samples, cells)]
        report = _report(shaped, layout, kind, reason, model, notes)
        return io.NodeOutput(
            patched,
            {**latent, "noise_mask": noise_mask, ORIGINAL: original},
            to_frames(to_picture(cells, grid), layout),
            preview,
            report,
            ui=ui.PreviewImage(preview, cls=cls),  # also shown on the node, whether or not `preview` is connected
        )


def _shown_latent(latent: torch.Tensor, count: int) -> torch.Tensor:
    """The latents that the previews of `count` masks show: one each where there are as many, else the first."""
    if latent.ndim == 5 and count == latent.shape[0] * latent.shape[2] > latent.shape[0]:
        return latent[: -(-MOST // latent.shape[2])].movedim(2, 1).flatten(0, 1)[:MOST, :, None]  # each frame
    return latent[: min(count, MOST)] if latent.shape[0] == count else latent[:1]


def _clean_original(latent: Mapping[str, Any], samples) -> torch.Tensor:
    """The latent without noise: the one that an earlier stage kept, if `latent` is its unfinished result.

    A blended model's results are known by their content, in any order of a batch. For others the latent's own key
    counts: a finished result equals the kept latent wherever its noise mask is 0. Without such a place it is taken for
    unfinished, which does no harm: only a run that adds no noise uses the kept latent.
    """
    flat = comfy.utils.pack_latents(samples.unbind())[0] if samples.is_nested else samples
    return clean_of(flat, _kept(latent, flat, samples.is_nested))


def _kept(latent: Mapping[str, Any], flat: torch.Tensor, nested: bool) -> torch.Tensor:
    kept = latent.get(ORIGINAL)
    if kept is None or kept.shape != flat.shape or nested or "noise_mask" not in latent:
        return flat
    outside = comfy.utils.reshape_mask(latent["noise_mask"], flat.shape) == 0
    finished = bool(outside.any()) and torch.equal(flat[outside], kept.to(flat)[outside])
    return flat if finished else kept


def _notes_on(latent: Mapping[str, Any], samples, cells: torch.Tensor) -> list[str]:
    """Notes for the report: a noise mask that is replaced, an empty latent with a mask that keeps part of it."""
    notes = []
    if "noise_mask" in latent and ORIGINAL not in latent:
        notes.append("The latent had a noise mask of its own, which this one replaces.")
    if is_blank(samples) and not bool((cells >= 1).all()):
        notes.append(
            "The latent is empty (all zeros), so outside the mask there is no picture to keep; encode one with VAE "
            "Encode."
        )
    if _is_resized(latent, samples):
        notes.append(
            "The latent was cropped or resized since an earlier Latent Mask Blend. If that stage left noise, the noise "
            "is kept outside the mask: finish the stage before the size changes."
        )
    return notes


def _is_resized(latent: Mapping[str, Any], samples) -> bool:
    """Whether the latent has another size than the one kept by an earlier node, and is not that one as a picture."""
    kept = latent.get(ORIGINAL)
    if kept is None or samples.is_nested or kept.shape == samples.shape:
        return False
    if kept.shape[:-2] != samples.shape[:-2] or "noise_mask" not in latent:
        return True
    planes = kept.reshape(1, -1, *kept.shape[-2:]).to(samples)
    resized = F.interpolate(planes, size=samples.shape[-2:], mode="bilinear").reshape(samples.shape)
    outside = comfy.utils.reshape_mask(latent["noise_mask"], samples.shape) == 0
    error = (samples - resized)[outside].square().mean().sqrt()
    return not bool(error < RESIZED * kept.std())


def _report(shaped: CellMask, layout: Layout, kind: str, reason: str, model, notes: list[str]) -> str:
    cells = shaped.cells
    touched, full = int((cells > 0).sum()), int((cells >= 1).sum())
    lines = [f"Blend: {kind} ({reason})."]
    if kind != "re-inject" and has_own_inpaint_noise(model):
        lines.append("This model keeps masked latents in a way of its own, which is used outside the mask.")
    lines.append(
        f"{touched} of {cells.numel()} latent cells may change ({touched / cells.numel():.1%})"
        f"{_where(len(cells), layout)}: {full} fully, {touched - full} partly."
    )
    if touched == 0:
        lines.append("The mask is empty: a sampler returns the original and does not call the model.")
    elif full == cells.numel():
        lines.append("The mask covers everything: the same as no mask.")
    elif empty := int((cells == 0).flatten(1).all(1).sum()):
        lines.append(f"Empty masks: {empty} of {len(cells)}. Nothing changes there.")
    return "\n".join([*lines, *shaped.notes, *notes])


def _where(used: int, layout: Layout) -> str:
    """What the counted cells of `used` masks are of: "" for one picture."""
    if used == layout.count * layout.latent_frames:
        return "" if used == 1 else f" in {used} {'latent frames' if layout.is_video else 'pictures'}"
    if used == layout.count:
        return f" in {used} videos, the same in each frame" if used > 1 else " in each latent frame"
    return f" in each {'latent frame' if layout.is_video else 'picture'}"
