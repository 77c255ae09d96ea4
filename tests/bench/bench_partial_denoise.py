"""The cost of Partial Denoise compared with core's KSampler on the same sigmas: the same model, latent, noise, sampler.

    python3 dev.py test -m bench tests/bench/bench_partial_denoise.py -s

Both run the small model and alternate in one process, on one thread, in processor time. "besides" is the node's work
besides sampling (the plan, the noised start, the report) in milliseconds, the median of many runs without a network, so
without a network's scatter. "ratio", which is checked, is 1 + "besides" over KSampler's time with the network. The
other columns are measured ratios with the network: of the least times, and the median and range of those to the mean
of the neighbouring KSampler runs, which scatter by several percent with other work on the machine.
"""

import statistics
import time

import pytest
import torch

pytestmark = [pytest.mark.bench, pytest.mark.usefixtures("no_progress_bars", "one_thread")]

ROUNDS, CELLS, LIMIT = 7, 16, 1.01


def ksampler(model, latent, condition, sigmas, steps, sampler, scheduler):
    """The code of KSampler (nodes.common_ksampler) on given sigmas."""
    import comfy.sample
    import latent_preview

    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    noise = comfy.sample.prepare_noise(samples, 1)
    callback = latent_preview.prepare_callback(model, steps)
    return comfy.sample.sample(
        model,
        noise,
        steps,
        4.0,
        sampler,
        scheduler,
        condition,
        condition,
        samples,
        sigmas=sigmas.clone(),
        callback=callback,
        disable_pbar=True,
        seed=1,
    )


def timed(call):
    """(processor seconds, the returned value)."""
    before = time.process_time()
    with torch.inference_mode():
        result = call()
    return time.process_time() - before, result


CASES = [
    ("noise level", False, 0.6, 6, "euler", "normal"),
    ("noise level", True, 0.6, 4, "dpmpp_2m", "karras"),
    ("comfy", False, 0.5, 4, "euler", "normal"),
    ("a1111", False, 0.5, 6, "uni_pc", "karras"),
]


def test_cost_beside_ksampler_on_the_same_sigmas(run_node, small):
    import analytic

    unet = small[0]

    latent = {"samples": torch.randn(1, 4, CELLS, CELLS, generator=torch.Generator().manual_seed(1))}
    none = [[torch.zeros(1, 77, 768), {}]]
    nothing = analytic.wrap(lambda y, sigma: y * 0.5)
    print(
        f"\n{'':44s}{'steps':>6s}{'KSampler':>10s}{'besides':>10s}{'ratio':>8s}{'least':>8s}{'median':>8s}{'range':>15s}"
    )
    worst = 0.0
    for contract, exact_steps, strength, steps, sampler, scheduler in CASES:
        fixed = dict(
            latent_image=latent,
            strength=strength,
            steps=steps,
            cfg=4.0,
            sampler_name=sampler,
            scheduler=scheduler,
            seed=1,
            contract=contract,
            exact_steps=exact_steps,
        )
        ours = lambda model, cond: run_node("BespokePartialDenoise", model=model, positive=cond, negative=cond, **fixed)  # noqa: E731
        theirs = lambda model, cond: ksampler(model, latent, cond, sigmas, steps, sampler, scheduler)  # noqa: E731
        _, (_, _, sigmas, _) = timed(lambda: ours(unet, none))
        ratios, mine, core, besides = [], [], [], []
        before, _ = timed(lambda: theirs(unet, none))
        for _ in range(ROUNDS):
            (a, (out, *_)), (after, expected) = timed(lambda: ours(unet, none)), timed(lambda: theirs(unet, none))
            assert torch.equal(out["samples"], expected)
            ratios.append(2 * a / (before + after))
            mine.append(a)
            core.append(after)
            before = after
        plain = analytic.conditioning()
        for _ in range(3 * ROUNDS):
            (a, _), (b, _) = timed(lambda: ours(nothing, plain)), timed(lambda: theirs(nothing, plain))
            besides.append(1000 * (a - b))
        least = min(mine) / min(core)
        itself = statistics.median(besides)
        ratio = 1.0 + itself / 1000 / min(core)
        worst = max(worst, ratio)
        name = f"{contract}{', exact' if exact_steps else ''} {strength:g}, {sampler}, {scheduler}"
        span = f"{min(ratios):.3f}..{max(ratios):.3f}"
        print(
            f"{name:44s}{len(sigmas) - 1:6d}{min(core):8.2f} s{itself:7.1f} ms{ratio:8.4f}{least:8.3f}"
            f"{statistics.median(ratios):8.3f}{span:>15s}"
        )
    assert worst <= LIMIT
