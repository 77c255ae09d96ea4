"""What Crop to Mask costs and gains: time and memory at 4096 px, and a shape 3 cells wide.

Seams through crop, scaling and restore are in bench_inpaint_seam.py.

python3 dev.py test -m bench tests/bench/bench_crop.py -s
"""

import threading
import time
from pathlib import Path

import judge
import numpy as np
import pytest
import sprites
import torch
from PIL import Image

pytestmark = [
    pytest.mark.bench,
    pytest.mark.usefixtures("no_progress_bars"),
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor"),
    pytest.mark.filterwarnings("ignore:Should have t"),
]

# --- Cost ------------------------------------------------------------------------------------------------------------

SIDE, SECONDS, MEMORY = 4096, 1.5, 1e9


class Peak:
    """The most memory of this process while it runs, over that at the start, in bytes."""

    def __enter__(self):
        self.start, self.most, self.ends = _resident(), 0, threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self):
        while not self.ends.wait(0.002):
            self.most = max(self.most, _resident() - self.start)

    def __exit__(self, *_):
        self.ends.set()
        self.thread.join()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize(("name", "share"), [("a face", 0.05), ("a third of the side", 0.33), ("all of it", 0.98)])
def test_cost_at_4096_px(run_node, name, share):
    """Crop and Restore of one picture, beyond the inputs and the result; the sampling between is left out."""
    image = torch.rand(1, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(0))
    mask, half = torch.zeros(1, SIDE, SIDE), int(SIDE * share / 2)
    mask[:, SIDE // 2 - half : SIDE // 2 + half, SIDE // 2 - half : SIDE // 2 + half] = 1.0
    rows = []
    for _ in range(3):
        with Peak() as peak:
            began, worked = time.perf_counter(), time.process_time()
            images, masks, crop, *_ = run_node("BespokeCropToMask", image=image, mask=mask, resolution=1024)
            cut = time.perf_counter()
            result, _, changed = run_node(
                "BespokeRestoreUnmasked", generated=images, original=image, mask=masks, crop=crop
            )
            ended = time.perf_counter()
        beyond = peak.most - result.numel() * 4
        rows.append((cut - began, ended - cut, time.process_time() - worked, beyond))
        assert changed == 0
        del result, images, masks, crop
    crop_s, restore_s, worked, beyond = (min(column) for column in zip(*rows, strict=True))
    times = f"crop {crop_s:.2f} s, restore {restore_s:.2f} s ({worked:.2f} s of the processor)"
    print(f"\n{name:20s} {times}, {beyond / 1e9:.2f} GB beyond the result")
    assert crop_s + restore_s < SECONDS
    assert beyond < MEMORY


# --- A small shape ---------------------------------------------------------------------------------------------------

PROMPTS = (("green", "cross"), ("blue", "square"), ("purple", "ring"), ("orange", "triangle"))
BATCH, STEPS, CFG = 6, 16, 2.0  # 24 draws of noise in all
SIDE_OF_MASK, CONTEXT = 24, 4 / 3  # px: 3 latent cells; in the scaled crop 12 of 16 cells, as the model knows shapes


def small_shapes(batch):
    """(pictures [6, 128, 128, 3], masks [6, 128, 128]): a red circle 3 cells wide, to become another thing."""
    images, masks = [], torch.zeros(BATCH, 128, 128)
    rng = np.random.default_rng(batch)
    for i in range(BATCH):
        x, y = (int(v) for v in rng.integers(2, 11, 2))  # cells
        sprite = sprites.Sprite("red", "circle", "white", cx=x + 1.5, cy=y + 1.5, radius=1.5)
        images.append(torch.from_numpy(np.array(sprites.image(sprite))).float() / 255)
        masks[i, 8 * y : 8 * y + SIDE_OF_MASK, 8 * x : 8 * x + SIDE_OF_MASK] = 1.0
    return torch.stack(images), masks


def judged(image, mask):
    """What is seen in the mask [H, W] of a picture [H, W, C] and a sixth of its size around it."""
    rows, columns = (torch.nonzero(mask.amax(axis)).flatten() for axis in (1, 0))
    top, left, side = int(rows[0]) - 4, int(columns[0]) - 4, SIDE_OF_MASK + 8
    part = (image[top : top + side, left : left + side].numpy() * 255).round().astype(np.uint8)
    return judge.judge(Image.fromarray(part).resize((128, 128), Image.BICUBIC))


def repaint(run_node, small, image, mask, prompt, seed):
    """(repainted pictures, latent masks)."""
    model, clip, vae = small
    (words,), (nothing,) = (run_node("CLIPTextEncode", clip=clip, text=text) for text in (prompt, ""))
    (latent,) = run_node("VAEEncode", pixels=image, vae=vae)
    patched, masked, latent_mask, *_ = run_node(
        "BespokeLatentMaskBlend", model=model, latent=latent, mask=mask, feather=0
    )
    (made,) = run_node(
        "KSampler",
        model=patched,
        seed=seed,
        steps=STEPS,
        cfg=CFG,
        sampler_name="euler",
        scheduler="normal",
        positive=words,
        negative=nothing,
        latent_image=masked,
        denoise=1.0,
    )
    (decoded,) = run_node("VAEDecode", vae=vae, samples=made)
    return decoded, latent_mask


def both_ways(run_node, small, seed, colour, shape):
    """(masks, repainted in place, repainted with the crop) of one batch."""
    (images, masks), prompt = small_shapes(seed), f"a {colour} {shape} on white"
    decoded, latent_mask = repaint(run_node, small, images, masks, prompt, seed)
    plain, *_ = run_node("BespokeRestoreUnmasked", generated=decoded, original=images, mask=latent_mask, feather=0)
    cut, small_masks, crop, *_ = run_node(
        "BespokeCropToMask", image=images, mask=masks, resolution=128, context=CONTEXT
    )
    decoded, latent_mask = repaint(run_node, small, cut, small_masks, prompt, seed)
    better, _, changed = run_node(
        "BespokeRestoreUnmasked", generated=decoded, original=images, mask=latent_mask, crop=crop, feather=0
    )
    assert changed == 0
    return masks, plain, better


def test_a_shape_3_cells_wide(run_node, small):
    """The small model draws shapes of 10 to 12 cells. 3 cells have room for a dot only, and the crop makes them 12."""
    counts, total = {"in place": [0, 0], "with the crop": [0, 0]}, BATCH * len(PROMPTS)
    for seed, (colour, shape) in enumerate(PROMPTS):
        masks, plain, better = both_ways(run_node, small, seed, colour, shape)
        for name, results in (("in place", plain), ("with the crop", better)):
            for result, mask in zip(results, masks, strict=True):
                seen = judged(result, mask)
                counts[name][0] += seen.colour == colour
                counts[name][1] += seen.colour == colour and seen.shape == shape
    for name, (colours, both) in counts.items():
        print(f"\n{name}: {colours} of {total} have the colour, {both} colour and shape")
    assert counts["in place"][1] <= total // 4
    assert counts["with the crop"][1] >= total * 3 // 4
