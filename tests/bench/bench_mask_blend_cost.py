"""What the blend costs beside core's KSampler with a noise mask: the same U-Net, latent, mask, noise and steps.

    python3 dev.py test -m bench tests/bench/bench_mask_blend_cost.py -s

They alternate in one process, on one thread; a run's ratio is to the mean of its neighbours, and medians are printed.
Processor time is what counts (wall time stands beside it): other work on the machine hardly enters it.
"""

import statistics
import time

import pytest
import torch

pytestmark = pytest.mark.bench


@pytest.fixture(autouse=True)
def quiet(comfyui, monkeypatch):
    """No progress bars between the tables."""
    import comfy.utils

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_ENABLED", False)


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other use processor time by chance."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


ROUNDS, STEPS, CELLS, LIMIT = 7, 6, 16, 1.02


@pytest.fixture(scope="module")
def unet(comfyui):
    """A ModelPatcher of SD1.5's own U-Net class in the small model's size, with weights from a seed."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models
    import model as small

    torch.manual_seed(0)
    config = comfy.supported_models.SD15(dict(small.UNET_CONFIG))
    net = comfy.model_base.BaseModel(config, device=torch.device("cpu"))
    return comfy.model_patcher.ModelPatcher(net.eval(), torch.device("cpu"), torch.device("cpu"))


def run(model, latent, sampler, scheduler):
    import nodes

    condition = [[torch.zeros(1, 77, 768), {}]]
    wall, processor = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        nodes.common_ksampler(model, 1, STEPS, 4.0, sampler, scheduler, condition, condition, latent)
    return time.process_time() - processor, time.perf_counter() - wall


def test_cost_beside_ksampler_with_a_noise_mask(run_node, unet):
    latent = {"samples": torch.randn(1, 4, CELLS, CELLS, generator=torch.Generator().manual_seed(1))}
    mask = torch.zeros(1, 8 * CELLS, 8 * CELLS)
    mask[:, 40:90, 30:100] = 1.0
    (masked,) = run_node("SetLatentNoiseMask", samples=latent, mask=mask)
    (differential,) = run_node("DifferentialDiffusion", model=unet)
    ways = {"core: Differential Diffusion": (differential, masked)}
    for blend in ("re-inject", "prediction", "differential"):
        ways[f"ours: {blend}"] = run_node("BespokeLatentMaskBlend", model=unet, latent=latent, mask=mask, blend=blend)[
            :2
        ]
    ratios = {name: [] for name in ways}
    walls = {name: [] for name in ways}
    seconds = []
    before = run(unet, masked, "euler", "normal")  # warm
    for _ in range(ROUNDS):
        for name, (model, ours) in ways.items():
            mine, after = run(model, ours, "euler", "normal"), run(unet, masked, "euler", "normal")
            ratios[name].append(2 * mine[0] / (before[0] + after[0]))
            walls[name].append(2 * mine[1] / (before[1] + after[1]))
            seconds.append(after[0])
            before = after
    print(
        f"\nKSampler with a noise mask, {CELLS}x{CELLS} cells, {STEPS} steps: {statistics.median(seconds):.2f} s of processor time"
    )
    print(f"{'':32s}{'processor':>11s}{'range':>16s}{'wall':>8s}")
    for name, values in ratios.items():
        span = f"{min(values):.3f}..{max(values):.3f}"
        print(f"{name:32s}{statistics.median(values):11.3f}{span:>16s}{statistics.median(walls[name]):8.3f}")
    assert max(statistics.median(v) for name, v in ratios.items() if name.startswith("ours")) <= LIMIT


def test_the_empty_mask_costs_no_model_call(run_node, unet):
    latent = {"samples": torch.randn(1, 4, CELLS, CELLS, generator=torch.Generator().manual_seed(1))}
    mask = torch.zeros(1, 8 * CELLS, 8 * CELLS)
    model, ours, *_ = run_node("BespokeLatentMaskBlend", model=unet, latent=latent, mask=mask)
    full = run(unet, latent, "euler", "normal")[0]
    empty = run(model, ours, "euler", "normal")[0]
    print(f"\nempty mask: {empty:.4f} s, no mask: {full:.2f} s of processor time")
    assert empty < full / 20
