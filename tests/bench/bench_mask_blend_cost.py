"""The cost of the blend compared with core's KSampler with a noise mask: the same U-Net, latent, mask, noise and steps.

    python3 dev.py test -m bench tests/bench/bench_mask_blend_cost.py -s

Both alternate in one process, on one thread, in processor time. "itself" is the median difference to core in
milliseconds for each run with a network that does nothing, so without a network's scatter. "ratio", which is checked,
is 1 + "itself" over the time of core's run with the network. The other columns are measured ratios with the network:
of the least times, and the median and range of those to the mean of the neighbouring core runs. With other work on the
machine they scatter by several percent, also between core's two methods.
"""

import statistics
import time

import pytest
import torch

pytestmark = [pytest.mark.bench, pytest.mark.usefixtures("no_progress_bars", "one_thread")]


ROUNDS, STEPS, CELLS, LIMIT = 7, 3, 16, 1.02


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


def run(model, latent, condition=None):
    """Seconds of processor time of one KSampler run."""
    import nodes

    condition = condition or [[torch.zeros(1, 77, 768), {}]]
    before = time.process_time()
    with torch.inference_mode():
        nodes.common_ksampler(model, 1, STEPS, 4.0, "euler", "normal", condition, condition, latent)
    return time.process_time() - before


def methods(run_node, model, latent, mask):
    """{name: (model, latent)}: core's two, of which the first is the reference, and ours."""
    (masked,) = run_node("SetLatentNoiseMask", samples=latent, mask=mask)
    out = {"core: noise mask": (model, masked)}
    out["core: Differential Diffusion"] = (*run_node("DifferentialDiffusion", model=model), masked)
    for blend in ("re-inject", "prediction", "differential"):
        out[f"ours: {blend}"] = run_node("BespokeLatentMaskBlend", model=model, latent=latent, mask=mask, blend=blend)[
            :2
        ]
    return out


def test_cost_beside_ksampler_with_a_noise_mask(run_node, unet):
    import analytic

    latent = {"samples": torch.randn(1, 4, CELLS, CELLS, generator=torch.Generator().manual_seed(1))}
    mask = torch.zeros(1, 8 * CELLS, 8 * CELLS)
    mask[:, 40:90, 30:100] = 1.0
    (_, core), *others = methods(run_node, unet, latent, mask).items()
    before = run(*core)  # warm-up
    our_times, neighbours, ratios = {}, {}, {}
    for _ in range(ROUNDS):
        for name, method in others:
            ours, after = run(*method), run(*core)
            our_times.setdefault(name, []).append(ours)
            neighbours.setdefault(name, []).append(after)
            ratios.setdefault(name, []).append(2 * ours / (before + after))
            before = after
    (_, core), *nothing = methods(run_node, analytic.wrap(lambda y, sigma: y * 0.5), latent, mask).items()
    differences = {}
    for _ in range(5 * ROUNDS):
        for name, method in nothing:
            ours, after = (run(*m, analytic.conditioning()) for m in (method, core))
            differences.setdefault(name, []).append(1000 * (ours - after))
    seconds = min(min(v) for v in neighbours.values())
    print(f"\nKSampler with a noise mask, {CELLS}x{CELLS} cells, {STEPS} steps: {seconds:.2f} s of processor time")
    print(f"{'':32s}{'itself':>11s}{'ratio':>8s}{'least':>8s}{'median':>8s}{'range':>16s}")
    itself = {name: statistics.median(values) for name, values in differences.items()}
    total = {name: 1.0 + itself[name] / 1000 / seconds for name in itself}
    for name, values in ratios.items():
        span = f"{min(values):.3f}..{max(values):.3f}"
        least = min(our_times[name]) / min(neighbours[name])
        print(
            f"{name:32s}{itself[name]:8.2f} ms{total[name]:8.4f}{least:8.3f}{statistics.median(values):8.3f}{span:>16s}"
        )
    assert max(ratio for name, ratio in total.items() if name.startswith("ours")) <= LIMIT


def test_the_empty_mask_costs_no_model_call(run_node, unet):
    latent = {"samples": torch.randn(1, 4, CELLS, CELLS, generator=torch.Generator().manual_seed(1))}
    mask = torch.zeros(1, 8 * CELLS, 8 * CELLS)
    model, ours, *_ = run_node("BespokeLatentMaskBlend", model=unet, latent=latent, mask=mask)
    full, empty = run(unet, latent), run(model, ours)
    print(f"\nempty mask: {empty:.4f} s, no mask: {full:.2f} s of processor time")
    assert empty < full / 20
