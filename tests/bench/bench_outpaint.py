"""Which fill of a new border gives the best join, at three strengths, over 24 seeds; and the fill's time at 4096 px.

    python3 dev.py test -m bench tests/bench/bench_outpaint.py -s

A picture of 192x256 px grows by 64 px on the right, through the nodes: Fill Masked, encode, Latent Mask Blend,
Partial Denoise, decode, Restore Unmasked. The model is exact: see bench_inpaint_seam.py. Columns:

* seam: the median step across the border of what may change, over that 16 to 48 px away (1: invisible).
* level: the difference of the mean colours of the 16 px on both sides of the old picture's edge, along the edge in
  pieces of 32 px, over the same in whole pictures (1: as in a picture).
* detail: the mean step between neighbours in the new border, over that in the old picture (1: as sharp).
"""

import time

import analytic
import pytest
import torch
from bespoke.nodes.inpaint.fill.contents import FILLS
from seams import CELL, SCALE, Seam, decode, encode, table

pytestmark = [
    pytest.mark.bench,
    pytest.mark.usefixtures("no_progress_bars"),
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor"),
    pytest.mark.filterwarnings("ignore:Should have t"),
]

SEEDS = 24
STRENGTHS = (0.6, 0.8, 1.0)
CELLS = 32
BORDER = 64  # px
BEST = "carry"


def grown(run_node, model, picture, fill, border, strength, codec, conditions, seed, **blend):
    """(the restored picture, the filled one, latent_mask) of a picture that grows on the right."""
    to_latent, to_picture = codec
    filled, mask, _ = run_node("BespokeFillMasked", image=picture, fill=fill, right=border, seed=seed)
    patched, latent, latent_mask, *_ = run_node(
        "BespokeLatentMaskBlend", model=model, latent={"samples": to_latent(filled)}, mask=mask, **blend
    )
    out, *_ = run_node(
        "BespokePartialDenoise",
        model=patched,
        latent_image=latent,
        strength=strength,
        seed=seed,
        **conditions,
    )
    image, _, changed = run_node(
        "BespokeRestoreUnmasked", generated=to_picture(out["samples"]), original=filled, mask=latent_mask
    )
    assert changed == 0
    return image, filled, latent_mask


def level(image, edge):
    """The mean difference of colour between 16 px left and right of the column `edge`, in pieces of 32 rows."""
    left, right = (
        part.unflatten(1, (-1, 32)).mean((2, 3))
        for part in (image[:, :, edge - 32 : edge], image[:, :, edge:][:, :, :32])
    )
    return float((left - right).abs().mean())


def detail(image):
    return float(
        torch.cat(
            ((image[:, 1:] - image[:, :-1]).abs().flatten(), (image[:, :, 1:] - image[:, :, :-1]).abs().flatten())
        ).mean()
    )


@pytest.mark.parametrize("spectrum", ["natural", "blobs"])
def test_which_fill_joins_best(run_node, spectrum):
    field = analytic.Field(CELLS, CELLS, spectrum)
    size = CELLS * CELL
    edge = size - BORDER
    whole = decode(field.sample(SEEDS, 4, 3) / SCALE)
    model = analytic.wrap(field.denoise, "flow")
    none = analytic.conditioning()
    conditions = {
        "positive": none,
        "negative": none,
        "steps": 20,
        "cfg": 1.0,
        "sampler_name": "dpmpp_2m",
        "scheduler": "simple",
    }
    rows, seams = [], {}
    for strength in STRENGTHS:
        for fill in FILLS:
            image, _, latent_mask = grown(
                run_node, model, whole[:, :, :edge], fill, BORDER, strength, (encode, decode), conditions, 7
            )
            seam, inside = Seam(unit=CELL), (latent_mask[0] > 0).float()
            seam.add(image.movedim(-1, 1), inside)
            seams[fill, strength] = seam.ratio()
            sharp = detail(image[:, :, edge + 16 :]) / detail(whole[:, :, : edge - 40])
            step = level(image, edge) / level(whole, edge)
            rows.append(
                (f"{spectrum}, strength {strength:g}, {fill}", [f"{x:.2f}" for x in (seam.ratio(), step, sharp)])
            )
    table(f"A new border of {BORDER} px, exact model, {SEEDS} pictures", ["seam", "level", "detail"], rows)
    assert max(ratio for (fill, _), ratio in seams.items() if fill == BEST) <= 1.10


@pytest.mark.usefixtures("one_thread")
def test_time_at_4096(run_node):
    """Processor seconds of the fills of a picture of 4096x4096 px with a hole of 1024 px, and with a new border of 512
    px, on one thread."""
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(image.movedim(-1, 1), (4096, 4096), mode="bilinear").movedim(1, -1)
    mask = torch.zeros(1, 4096, 4096)
    mask[:, 1000:2024, 2000:3024] = 1.0
    rows = []
    for fill in FILLS:
        cells = []
        for inputs in ({"mask": mask}, {"right": 512}):
            start = time.process_time()
            run_node("BespokeFillMasked", image=image, fill=fill, **inputs)
            cells.append(f"{time.process_time() - start:.2f} s")
        rows.append((fill, cells))
    table("Fill Masked at 4096x4096 px", ["hole of 1024 px", "border of 512 px"], rows)
