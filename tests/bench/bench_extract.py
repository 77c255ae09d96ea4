"""Extract LoRA at the models' real sizes, with random weights: time, error and memory, beside other ways.

    python3 dev.py test -m bench tests/bench/bench_extract.py -s

- SD1.5: two U-Nets in fp16 whose difference has a spectrum that falls slowly, through the node's own function. Printed
  are the time, the relative error, and the greatest memory of the process above what it had with both models, with and
  without the LoRA itself. The target is at most 300 MB (1e6 bytes) without it.
- A plain loop of `torch.linalg.svd` over the same weights, and kohya's clamp on its result: each shape once, times the
  number of layers of that shape.
- CLIP's table of tokens, 49,408 x 768: the same target of memory at any rank.
- SDXL: `nearest` for each shape of the U-Net, times the number of layers of that shape. The target is minutes.

$BESPOKE_BENCH_THREADS (2) is the number of torch's threads, $BESPOKE_BENCH_RANK (32) the rank.
"""

import gc
import math
import os
import time
from collections import Counter
from pathlib import Path

import full_size
import pytest
import tiny
import torch
from bespoke.nodes.lora.extraction.decompose import Size, nearest

pytestmark = pytest.mark.bench
THREADS, RANK = (int(os.environ.get(f"BESPOKE_BENCH_{name}", value)) for name, value in (("THREADS", 2), ("RANK", 32)))
SD15 = {**tiny.SD15, "model_channels": 320, "channel_mult": [1, 2, 4, 4], "context_dim": 768, "num_heads": 8}


@pytest.fixture(scope="module", autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def u_net(config, sdxl=False, device="cpu"):
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    known = (comfy.supported_models.SDXL if sdxl else comfy.supported_models.SD15)({**config, "dtype": torch.float16})
    base = comfy.model_base.BaseModel(known, device=torch.device(device))
    return comfy.model_patcher.ModelPatcher(base.eval(), torch.device("cpu"), torch.device("cpu"))


def change(shape, generator):
    """A change of weights of full rank, whose first 40 directions fall as 1 / sqrt(i) and hold half of it."""
    rows, columns = shape[0], math.prod(shape[1:])
    flat = torch.randn(rows, columns, generator=generator)
    up = torch.randn(rows, 40, generator=generator) * torch.arange(1, 41) ** -0.5
    low = up @ torch.randn(40, columns, generator=generator)
    return 1e-3 * (flat + low * (flat.norm() / low.norm()))


def pair():
    base, tuned = u_net(SD15), u_net(SD15)
    generator = torch.Generator().manual_seed(0)
    weights = zip(base.model.named_parameters(), tuned.model.parameters(), strict=True)
    with torch.no_grad():
        for (_, one), other in weights:
            one.requires_grad_(False).uniform_(-0.02, 0.02, generator=generator)
            other.requires_grad_(False).copy_(one)
            if one.ndim > 1:
                other.add_(change(tuple(one.shape), generator).reshape(one.shape))
    return base, tuned


def memory(what):
    """VmHWM (the greatest) or VmRSS (now) of this process, in bytes."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1024
    raise AssertionError(what)


def forget_the_greatest():
    Path("/proc/self/clear_refs").write_text("5", "utf-8")


def kohyas_error(matrix, rank):
    """The squared error of the SVD with kohya's clamp at the quantile 0.99 of all numbers of both factors."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    up, down = u[:, :rank] * s[:rank], vh[:rank]
    numbers = torch.cat([up.flatten(), down.flatten()]).sort().values
    most = float(numbers[math.ceil(0.99 * (len(numbers) - 1))])
    return float((matrix - up.clamp(-most, most) @ down.clamp(-most, most)).square().sum())


def test_sd15(comfyui):
    from bespoke.nodes.lora.extraction.extract import extract
    from bespoke.nodes.lora.extraction.report import report
    from bespoke.nodes.lora.extraction.request import Request

    base, tuned = pair()
    extract(tuned, base, Request(rank=4, targets="custom", custom_targets="middle_block.*"))  # warms up
    gc.collect()
    forget_the_greatest()
    before, began = memory("VmRSS"), time.perf_counter()
    done = extract(tuned, base, Request(rank=RANK))
    seconds, peak = time.perf_counter() - began, memory("VmHWM") - before
    own = sum(tensor.numel() * tensor.element_size() for tensor in done.lora.values())
    error = math.sqrt(sum(layer.lost for layer in done.layers) / sum(layer.change for layer in done.layers))
    print(
        f"\nSD1.5, rank {RANK}, {THREADS} threads: {seconds:.1f} s, relative error {error:.4f}; memory beside the "
        f"models {peak / 1e6:.0f} MB, of which the LoRA itself {own / 1e6:.0f} MB: {(peak - own) / 1e6:.0f} MB (target "
        "at most 300)"
    )
    print(report(done, Request(rank=RANK)))
    assert peak - own <= 300e6
    _plain_loop(base, tuned)


def _plain_loop(base, tuned):
    shapes = Counter(tuple(one.shape) for one in base.model.parameters() if one.ndim > 1)
    pairs = zip(base.model.parameters(), tuned.model.parameters(), strict=True)
    first = {tuple(one.shape): other.float() - one.float() for one, other in pairs if one.ndim > 1}
    spent = {"ours": 0.0, "torch.linalg.svd": 0.0}
    lost = {"ours": 0.0, "kohya": 0.0, "whole": 0.0}
    for shape, count in shapes.items():
        matrix = first[shape].flatten(1)
        began = time.perf_counter()
        found = nearest(matrix, Size(RANK))
        middle = time.perf_counter()
        theirs = kohyas_error(matrix, RANK)
        spent["ours"] += count * (middle - began)
        spent["torch.linalg.svd"] += count * (time.perf_counter() - middle)
        lost["ours"] += count * found.lost
        lost["kohya"] += count * theirs
        lost["whole"] += count * found.total
    errors = {name: math.sqrt(lost[name] / lost["whole"]) for name in ("ours", "kohya")}
    print(
        f"by shape, times its layers: decomposition {spent['ours']:.1f} s, a plain loop of torch.linalg.svd with "
        f"kohya's clamp {spent['torch.linalg.svd']:.1f} s; relative error {errors['ours']:.4f}, kohya's "
        f"{errors['kohya']:.4f}"
    )
    assert errors["ours"] <= errors["kohya"]


def test_a_token_table():
    """The change itself takes 152 MB."""
    matrix = change((49408, 768), torch.Generator().manual_seed(0))
    whole = matrix.numel() * matrix.element_size()
    nearest(matrix[:1000].clone(), Size(4))  # warms up
    print()
    for rank in (32, 96, 256, 512, 768):
        gc.collect()
        forget_the_greatest()
        before, began = memory("VmRSS"), time.perf_counter()
        found = nearest(matrix, Size(rank))
        seconds, peak = time.perf_counter() - began, memory("VmHWM") - before + whole
        own = sum(side.numel() * side.element_size() for side in (found.factors.up, found.factors.down))
        print(
            f"token table, rank {rank}: {seconds:.1f} s, {peak / 1e6:.0f} MB with the change and the LoRA's "
            f"{own / 1e6:.0f} MB",
            flush=True,
        )
        assert peak - own <= 300e6
        del found


def test_sdxl_by_shape(comfyui):
    base = u_net(full_size.SDXL, sdxl=True, device="meta")
    shapes = Counter(tuple(one.shape) for one in base.model.parameters() if one.ndim > 1)
    generator, seconds = torch.Generator().manual_seed(0), 0.0
    for shape, count in shapes.items():
        matrix = change(shape, generator)
        began = time.perf_counter()
        nearest(matrix, Size(RANK))
        seconds += count * (time.perf_counter() - began)
    print(
        f"\nSDXL, rank {RANK}, {THREADS} threads: {sum(shapes.values())} weights of {len(shapes)} shapes, "
        f"{seconds / 60:.1f} minutes for their decomposition"
    )
