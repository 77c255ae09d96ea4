"""How visible the mask's border is, and what changes outside, compared with a hard paste and core's two methods.

    python3 dev.py test -m bench tests/bench/bench_inpaint_seam.py -s

The model is exact: latents are Gaussian random fields with a known spectrum and the model returns their posterior mean,
so the tables show the blend and the sampler and not a network. All methods get the same pictures, masks and noise. The
seam is the median absolute step between neighbouring cells across the border of the region that may change, divided by
that across the contours 2 to 6 cells from it on both sides. A ratio of 1 is an invisible border.
"""

import analytic
import pytest
import torch
import torch.nn.functional as F
from bespoke.nodes.inpaint.mask import FEATHER, Grid, to_cells
from seams import CELL, CELLS, SCALE, Seam, decode, encode, table

pytestmark = [
    pytest.mark.bench,
    pytest.mark.usefixtures("no_progress_bars"),
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor"),
    pytest.mark.filterwarnings("ignore:Should have t"),
]


SPECTRA = ("white", "pink", "natural", "steep", "blobs")
RUNS = (
    ("epsilon", "dpmpp_2m", "karras", 20),
    ("v", "dpmpp_2m", "karras", 20),
    ("flow", "dpmpp_2m", "simple", 20),
    ("epsilon", "euler", "normal", 20),
    ("epsilon", "euler", "normal", 60),
    ("epsilon", "euler_ancestral", "normal", 20),
    ("epsilon", "euler_ancestral", "normal", 60),
)
TARGET = 1.10


def blob_mask(seed, size=CELLS * CELL):
    """A free-form mask [1, size, size] px whose border does not follow the cells."""
    rough = analytic.Field(size, size, "steep").sample(1, 1, seed)[0, 0]
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    return ((1 - 1.3 * (x**2 + y**2).sqrt()) + 0.35 * rough > 0.35).float()[None]


def ksample(model, latent, sampler, scheduler, steps, seed=11):
    import nodes

    none = analytic.conditioning()
    with torch.inference_mode():
        return nodes.common_ksampler(model, seed, steps, 1.0, sampler, scheduler, none, none, latent)[0]["samples"]


def core_cells(mask):
    """The cells that core's bilinear down-scale touches [1, 1, rows, columns]."""
    return F.interpolate(mask[:, None], (mask.shape[1] // CELL, mask.shape[2] // CELL), mode="bilinear")


OURS = {
    "ours": {},
    "ours, hard": {"feather": 0},
    "ours, prediction": {"blend": "prediction"},
    "ours, within": {"grow": -FEATHER},
}


def methods(run_node, model, latent, mask):
    """name -> (model, latent with its noise mask, cells that may change [rows, columns], latent mask in pixels)."""
    (masked,) = run_node("SetLatentNoiseMask", samples=latent, mask=mask)
    (differential,) = run_node("DifferentialDiffusion", model=model)
    core = (core_cells(mask) > 0)[0, 0].float()
    out = {
        "noise mask": (model, masked, core, mask),
        "diff. diffusion": (differential, masked, core, mask),
    }
    for name, options in OURS.items():
        patched, ours, latent_mask, *_ = run_node(
            "BespokeLatentMaskBlend", model=model, latent=latent, mask=mask, **options
        )
        out[name] = (patched, ours, (ours["noise_mask"][0, 0] > 0).float(), latent_mask)
        if name == "ours":
            # Differential Diffusion with the mask of our node.
            out["diff. d., our mask"] = (differential, ours, out[name][2], latent_mask)
    return out


def test_seam_in_latents(run_node):
    names, rows, worst_rows, ours = None, [], [], {}
    for spectrum in SPECTRA:
        field = analytic.Field(CELLS, CELLS, spectrum)
        latent = {"samples": field.sample(6, 4, 3) / SCALE}
        for kind, sampler, scheduler, steps in RUNS:
            model, seams = analytic.wrap(field.denoise, kind), {}
            free = ksample(model, latent, sampler, scheduler, steps)
            for mask in (blob_mask(5), blob_mask(6), blob_mask(9)):
                cells = to_cells(mask, Grid.of(CELLS, CELLS, CELL, CELLS * CELL, CELLS * CELL), "any")[0]
                seams.setdefault("original", Seam()).add(latent["samples"], cells)
                seams.setdefault("hard paste", Seam()).add(torch.where(cells > 0, free, latent["samples"]), cells)
                for name, (patched, masked, touched, _) in methods(run_node, model, latent, mask).items():
                    seams.setdefault(name, Seam()).add(ksample(patched, masked, sampler, scheduler, steps), touched)
            names = list(seams)
            label = f"{spectrum}, {kind}, {sampler} {steps}"
            rows.append((label, [f"{s.ratio():.2f}" for s in seams.values()]))
            worst_rows.append((label, [f"{s.worst_contour():.2f}" for s in seams.values()]))
            ours[spectrum, kind, sampler, steps] = seams["ours"].ratio()
    table("Latents: step across the border / step 2 to 6 cells away", names, rows)
    table("Latents: largest step of any contour from 6 cells within to 1 beyond / step far outside", names, worst_rows)
    over = {run: round(ratio, 3) for run, ratio in ours.items() if ratio > TARGET}
    print(f"\nours: {len(ours) - len(over)} of {len(ours)} rows at most {TARGET}; above: {over or 'none'}")
    # The solvers that reach the field's own variance meet the target everywhere.
    accurate = {run: ratio for run, ratio in ours.items() if run[2] == "dpmpp_2m" or run[3] == 60}
    assert max(accurate.values()) <= TARGET, max(accurate, key=accurate.get)


# --- In pixels -------------------------------------------------------------------------------------------------------


RESTORES = {
    "ours": {},
    "ours, colours too": {"match_color": 1.0},
    "ours, 16 px": {"feather": 16},
    "ours, no fade": {"feather": 0},
}


@pytest.mark.parametrize("spectrum", ["pink", "natural", "steep", "blobs"])
def test_seam_in_pixels(run_node, spectrum):
    rows, names, ours = [], None, {}
    field = analytic.Field(CELLS, CELLS, spectrum)
    original = decode(field.sample(3, 4, 3) / SCALE)
    latent = {"samples": encode(original)}
    for kind, sampler, scheduler, steps in (RUNS[0], RUNS[2]):
        model, seams = analytic.wrap(field.denoise, kind), {}
        free = decode(ksample(model, latent, sampler, scheduler, steps))
        for mask in (blob_mask(5), blob_mask(6)):

            def add(name, image, inside, seams=seams):
                seams.setdefault(name, Seam(unit=CELL)).add(image.movedim(-1, 1), inside)

            add("original", original, mask[0])
            add("hard paste", torch.where(mask[..., None] > 0, free, original), mask[0])
            for name, (patched, masked, _, composite) in methods(run_node, model, latent, mask).items():
                decoded = decode(ksample(patched, masked, sampler, scheduler, steps))
                if name == "noise mask":
                    # Core's run, pasted back as ours is: over all cells it touched, fading inward.
                    cells = (core_cells(mask) > 0)[0].float()
                    wide = cells.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)
                    image, *_ = run_node("BespokeRestoreUnmasked", original=original, generated=decoded, mask=wide)
                    add("noise mask, faded", image, wide[0])
                # Core's node is ImageCompositeMasked, which pastes with a hard edge.
                for restored, options in RESTORES.items() if name == "ours" else [(name, {"feather": 0})]:
                    image, _, changed = run_node(
                        "BespokeRestoreUnmasked", original=original, generated=decoded, mask=composite, **options
                    )
                    assert changed == 0
                    add(restored, image, (composite[0] > 0).float())
        names = list(seams)
        rows.append((f"{spectrum}, {kind}, {sampler} {steps}", [f"{s.ratio():.2f}" for s in seams.values()]))
        ours[spectrum, kind] = seams["ours"].ratio()
    table("Pixels, pasted back: step across the border / step 16 to 48 px away", names, rows)
    print(f"\nours: {sum(r <= TARGET for r in ours.values())} of {len(ours)} rows at most {TARGET}")
    assert max(ours.values()) <= TARGET, max(ours, key=ours.get)


# --- Through a crop ---------------------------------------------------------------------------------------------------


def picture_of_cells(cell, side, spectrum, seed):
    """Pictures [3, side, side, 3] of a field with `cell` px to a value, drawn as `decode` does."""
    field = analytic.Field(side // cell, side // cell, spectrum).sample(3, 4, seed) / SCALE
    drawn = 0.5 + 0.12 * SCALE * F.interpolate(field[:, :3], scale_factor=cell, mode="bicubic")
    return drawn.movedim(1, -1).clamp(0, 1)


@pytest.mark.parametrize("spectrum", ["pink", "natural", "steep", "blobs"])
@pytest.mark.parametrize("cell", [4, 8, 12])  # px in the whole picture: the crop is scaled by 2, 1 or 2 / 3
def test_seam_through_crop_and_restore(run_node, spectrum, cell):
    """As in pixels, but for a crop that is scaled, repainted, scaled back and laid into its picture.

    The picture's field has cells that are as large in the scaled crop as the latent's, so that inside and outside are
    alike but for the border. The border of whole cells meets steps of their bicubic drawing that contours away from it
    do not, so the original has a ratio of its own, which is divided out.
    """
    seams = {"original": Seam(unit=cell), "ours": Seam(unit=cell), "no blend, no fade": Seam(unit=cell)}
    model = analytic.wrap(analytic.Field(CELLS, CELLS, spectrum).denoise)
    side, border = CELLS * cell, 16 * cell  # px: of the crop, and of the picture around it
    for seed in (5, 6):
        original = picture_of_cells(cell, side + 2 * border, spectrum, seed)
        blob = F.pad(F.interpolate(blob_mask(seed)[:, None], (side, side))[:, 0], (border,) * 4)
        middle = F.pad(torch.ones(1, side, side), (border,) * 4)
        cropped, masks, crop, *_ = run_node(
            "BespokeCropToMask", image=original, mask=blob, resolution=512, context=1.0, context_mask=middle
        )
        latent = {"samples": encode(cropped)}
        patched, masked, latent_mask, *_ = run_node("BespokeLatentMaskBlend", model=model, latent=latent, mask=masks)

        def back(generated, mask=latent_mask, crop=crop, original=original, **options):
            image, _, changed = run_node(
                "BespokeRestoreUnmasked", generated=generated, original=original, mask=mask, crop=crop, **options
            )
            assert changed == 0
            return image

        # What may change, from a picture that differs from the original everywhere.
        inside = (back(torch.full_like(cropped, 2.0), feather=0) != original).any(-1)[0].float()
        made = {
            "original": original,
            "ours": back(decode(ksample(patched, masked, "dpmpp_2m", "karras", 20))),
            "no blend, no fade": back(decode(ksample(model, latent, "dpmpp_2m", "karras", 20)), feather=0),
        }
        for name, image in made.items():
            seams[name].add(image.movedim(-1, 1), inside)
    scale = crop.scaled[1] / crop.pieces[0].rect.width
    title = "Pixels, through a crop: step across the border / step 2 to 6 cells away"
    table(title, list(seams), [(f"{spectrum}, x {scale:.2f}", [f"{s.ratio():.2f}" for s in seams.values()])])
    assert seams["ours"].ratio() / seams["original"].ratio() <= TARGET


# --- Outside ---------------------------------------------------------------------------------------------------------


def test_outside_the_mask(run_node):
    """The largest latent difference where the mask is 0, in units of the latent's deviation, for every sampler."""
    import comfy.samplers

    field = analytic.Field(16, 16, "natural")
    latent = {"samples": field.sample(1, 4, 3) / SCALE}
    mask = torch.zeros(1, 128, 128)
    mask[:, 41:90, 50:100] = 1.0
    worst, names = {}, None
    for kind in ("epsilon", "v", "flow"):
        model = analytic.wrap(field.denoise, kind)
        prepared = methods(run_node, model, latent, mask)
        names = list(prepared)
        for sampler in comfy.samplers.SAMPLER_NAMES:
            for scheduler in comfy.samplers.SCHEDULER_NAMES:
                for name, (patched, masked, touched, _) in prepared.items():
                    result = ksample(patched, masked, sampler, scheduler, 5)
                    error = float((result - latent["samples"]).abs()[..., touched == 0].max() / latent["samples"].std())
                    key = sampler if error > 1e-5 or name.startswith("ours") else "all others"
                    worst.setdefault(key, {})
                    worst[key][name] = max(worst[key].get(name, 0.0), error)
    shown = [(k, v) for k, v in worst.items() if any(v.get(n, 0) > 1e-5 for n in names)]
    rest = {n: max(v.get(n, 0.0) for k, v in worst.items() if k not in dict(shown)) for n in names}
    table(
        "Largest latent difference where the mask is 0 / deviation (three kinds of prediction, every scheduler)",
        names,
        [(k, [f"{v.get(n, 0.0):.2g}" for n in names]) for k, v in [*shown, ("every other sampler", rest)]],
    )
    assert all(v.get(name, 0.0) == 0.0 for v in worst.values() for name in OURS)


def test_pixels_outside_the_mask(run_node):
    """The largest pixel difference outside what may change after 1 and 10 rounds of encode, repaint, decode.

    The VAE is ComfyUI's class over the small model's layers, which keep the mean of each cell: like any VAE, it does
    not return a picture as it was.
    """
    import comfy.sd
    import model as small

    layers = {k.removeprefix("first_stage_model."): v for k, v in small.vae_state_dict().items()}
    vae, field = comfy.sd.VAE(sd=layers), analytic.Field(16, 16, "natural")
    model = analytic.wrap(field.denoise)
    original = decode(field.sample(1, 4, 3) / SCALE)
    mask = torch.zeros(1, 128, 128)
    mask[:, 41:90, 50:100] = 1.0
    wide = (core_cells(mask) > 0)[0].float().repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)

    def core(image, seed, differential, paste):
        (encoded,) = run_node("VAEEncode", pixels=image, vae=vae)
        (masked,) = run_node("SetLatentNoiseMask", samples=encoded, mask=mask)
        patched = run_node("DifferentialDiffusion", model=model)[0] if differential else model
        (decoded,) = run_node(
            "VAEDecode", vae=vae, samples={"samples": ksample(patched, masked, "euler", "karras", 5, seed)}
        )
        if not paste:
            return decoded, wide
        (pasted,) = run_node(
            "ImageCompositeMasked", destination=image, source=decoded, x=0, y=0, resize_source=False, mask=mask
        )
        return pasted, mask

    def ours(image, seed):
        (encoded,) = run_node("VAEEncode", pixels=image, vae=vae)
        patched, masked, latent_mask, *_ = run_node("BespokeLatentMaskBlend", model=model, latent=encoded, mask=mask)
        (decoded,) = run_node(
            "VAEDecode", vae=vae, samples={"samples": ksample(patched, masked, "euler", "karras", 5, seed)}
        )
        restored, *_ = run_node("BespokeRestoreUnmasked", original=image, generated=decoded, mask=latent_mask)
        return restored, latent_mask

    rows, mine = [], []
    for name, way in (
        ("noise mask, as decoded", lambda i, s: core(i, s, False, False)),
        ("diff. diffusion, as decoded", lambda i, s: core(i, s, True, False)),
        ("noise mask, ImageCompositeMasked", lambda i, s: core(i, s, False, True)),
        ("diff. d., ImageCompositeMasked", lambda i, s: core(i, s, True, True)),
        ("ours, Restore Unmasked", ours),
    ):
        image, after = original, []
        for seed in range(10):
            image, may_change = way(image, seed)
            difference = (image - original).abs().amax(-1)
            outside = torch.where(may_change == 0, difference, 0.0)
            after.append((float(outside.max()), int((outside > 0).sum())))
        rows.append((name, [f"{after[i][j]:.3g}" for i in (0, 9) for j in (0, 1)]))
        if name.startswith("ours"):
            mine = after
    table(
        f"Pixels outside what may change (of {128 * 128}), on a scale of 0 to 1",
        ["largest, 1 round", "changed, 1", "largest, 10 rounds", "changed, 10"],
        rows,
    )
    assert mine[0] == mine[9] == (0.0, 0)
