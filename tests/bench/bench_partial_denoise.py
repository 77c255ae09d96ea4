"""What Partial Denoise costs beside core's KSampler on the same sigmas: the same model, latent, noise and sampler.

    python3 dev.py test -m bench tests/bench/bench_partial_denoise.py -s

Both run the small model and alternate in one process, on one thread; a run's ratio is to the mean of its neighbours,
and medians are printed. Processor time is what counts (wall time stands beside it): other work on the machine hardly
enters it. The last column is what this node does besides sampling - the plan, the noised start, the words - in
milliseconds, measured without a network.
"""

import statistics
import time

import pytest
import torch

pytestmark = pytest.mark.bench

ROUNDS, CELLS, LIMIT = 7, 16, 1.01


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


def ksampler(model, latent, condition, sigmas, steps, sampler, scheduler):
    """KSampler's own way (nodes.common_ksampler), on given sigmas."""
    import comfy.sample
    import latent_preview

    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    noise = comfy.sample.prepare_noise(samples, 1)
    callback = latent_preview.prepare_callback(model, steps)
    return comfy.sample.sample(
        model, noise, steps, 4.0, sampler, scheduler, condition, condition, samples, sigmas=sigmas.clone(),
        callback=callback, disable_pbar=True, seed=1,
    )  # fmt: skip


def timed(call):
    wall, processor = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        result = call()
    return time.process_time() - processor, time.perf_counter() - wall, result


CASES = [
    ("noise level", False, 0.6, 10, "euler", "normal"),
    ("noise level", True, 0.6, 6, "dpmpp_2m", "karras"),
    ("comfy", False, 0.5, 6, "euler", "normal"),
    ("a1111", False, 0.5, 10, "uni_pc", "karras"),
    ("noise level", False, 1.0, 6, "euler", "normal"),
]


def test_cost_beside_ksampler_on_the_same_sigmas(run_node, small):
    import analytic

    unet = small[0]

    latent = {"samples": torch.randn(1, 4, CELLS, CELLS, generator=torch.Generator().manual_seed(1))}
    none = [[torch.zeros(1, 77, 768), {}]]
    nothing = analytic.wrap(lambda y, sigma: y * 0.5)
    print(f"\n{'':44s}{'steps':>6s}{'KSampler':>10s}{'processor':>11s}{'range':>15s}{'wall':>7s}{'besides':>10s}")
    medians = []
    for contract, exact_steps, strength, steps, sampler, scheduler in CASES:
        fixed = dict(
            latent_image=latent, strength=strength, steps=steps, cfg=4.0, sampler_name=sampler, scheduler=scheduler,
            seed=1, contract=contract, exact_steps=exact_steps,
        )  # fmt: skip
        ours = lambda model, cond: run_node("BespokePartialDenoise", model=model, positive=cond, negative=cond, **fixed)  # noqa: E731
        theirs = lambda model, cond: ksampler(model, latent, cond, sigmas, steps, sampler, scheduler)  # noqa: E731
        *_, (_, _, sigmas, _) = timed(lambda: ours(unet, none))
        ratios, walls, seconds, besides = [], [], [], []
        before = timed(lambda: theirs(unet, none))
        for _ in range(ROUNDS):
            mine, after = timed(lambda: ours(unet, none)), timed(lambda: theirs(unet, none))
            assert torch.equal(mine[2][0]["samples"], after[2])
            ratios.append(2 * mine[0] / (before[0] + after[0]))
            walls.append(2 * mine[1] / (before[1] + after[1]))
            seconds.append(after[0])
            before = after
            plain = analytic.conditioning()
            a, b = timed(lambda: ours(nothing, plain)), timed(lambda: theirs(nothing, plain))
            besides.append(1000 * (a[0] - b[0]))
        medians.append(statistics.median(ratios))
        name = f"{contract}{', exact' if exact_steps else ''} {strength:g}, {sampler}, {scheduler}"
        span = f"{min(ratios):.3f}..{max(ratios):.3f}"
        print(
            f"{name:44s}{len(sigmas) - 1:6d}{statistics.median(seconds):8.2f} s{medians[-1]:11.3f}{span:>15s}"
            f"{statistics.median(walls):7.3f}{statistics.median(besides):7.1f} ms"
        )
    assert max(medians) <= LIMIT
