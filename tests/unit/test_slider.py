"""The mathematics of sliders, against arithmetic by hand and the equations of the papers."""

import math

import pytest
import torch
from bespoke.training import strength_range
from bespoke.training.adapters import AdapterConfig, AdapterSet, LoraAdapter
from bespoke.training.adapters.strength import at_strength, same_strength_again
from bespoke.training.objective import prediction_change
from bespoke.training.record import Run, RunInfo
from bespoke.training.slider import guided, partly_denoised, pulled
from bespoke.training.slider_evidence import monotone_share, score, useful_range

# --- the objective ----------------------------------------------------------------------------------------------------


class Noising:
    """A denoiser's noising alone: x0 + sigma n, or the flow's (1 - sigma) x0 + sigma n."""

    def __init__(self, prediction):
        self.prediction = prediction

    def sigma(self, t):
        return t if self.prediction == "flow" else 10 * t

    def add_noise(self, sigma, noise, latent):
        sigma = sigma.reshape(-1, 1)
        return ((1 - sigma) if self.prediction == "flow" else 1) * latent + sigma * noise


def own_prediction(kind, noisy, clean, sigma):
    """What the network predicts where its clean latent is `clean` (Ho 2020; Salimans & Ho 2022; Lipman 2023)."""
    if kind == "v":  # v = a eps - s x0 on the unit-variance latent, a^2 = 1 / (1 + sigma^2)
        return ((noisy - clean) / sigma - sigma * clean) / math.sqrt(1 + sigma**2)
    return (noisy - clean) / sigma


@pytest.mark.parametrize("kind", ["epsilon", "v", "flow"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_target_is_the_papers_in_the_models_own_prediction(kind, sign):
    """Concept Sliders, eq. 7: eps(x, c_t) + eta (eps(x, c_+) - eps(x, c_-)); the same for v and velocity."""
    noisy, own, more, less, trained = torch.randn(
        5, 1, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    sigma, eta = 0.6, sign * 1.7
    wanted = own_prediction(kind, noisy, own, sigma) + eta * (
        own_prediction(kind, noisy, more, sigma) - own_prediction(kind, noisy, less, sigma)
    )
    by_hand = (own_prediction(kind, noisy, trained, sigma) - wanted).square().mean()
    found = prediction_change(Noising(kind), trained, pulled(own, more, less, eta), torch.tensor([sigma]))
    assert found.item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_guidance_of_one_is_the_conditional_estimate():
    conditional, unconditional = torch.tensor([3.0]), torch.tensor([1.0])
    assert [guided(conditional, unconditional, scale).item() for scale in (0.0, 1.0, 3.0)] == [1.0, 3.0, 7.0]


# --- the latents ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["epsilon", "flow"])
def test_partial_denoising_follows_ddim(kind):
    """Two steps by hand (Song et al. 2020, eq. 12 with eta = 0) where the estimate is half of the noisy latent.

    A sample at t = 0.5 of 4 steps takes the timesteps 1, 0.75 and 0.5; one at 0.9 takes 1 and 0.9.
    """
    denoiser, noise = Noising(kind), torch.tensor([[1.5], [1.0]])
    seen = []

    def estimate(noisy, sigma, rows):
        seen.append((rows, [round(level, 6) for level in sigma.tolist()]))
        return 0.5 * noisy

    found = partly_denoised(denoiser, noise, torch.tensor([0.5, 0.9]), estimate, steps=4)

    def signal(sigma):
        return 1 - sigma if kind == "flow" else 1.0

    def by_hand(start, levels):
        x = levels[0] * start
        for level, to in zip(levels, levels[1:], strict=False):
            clean = 0.5 * x
            x = signal(to) * clean + to * (x - signal(level) * clean) / level
        return x

    scale = 1 if kind == "flow" else 10
    expected = [by_hand(1.5, [scale, 0.75 * scale, 0.5 * scale]), by_hand(1.0, [scale, 0.9 * scale])]
    assert found.flatten().tolist() == pytest.approx(expected, rel=1e-5)
    assert [rows for rows, _ in seen] == [[0, 1], [0]]


def test_partial_denoising_of_one_step_to_clean_is_the_estimate():
    clean = torch.full((1, 3), 0.25)
    found = partly_denoised(Noising("flow"), torch.randn(1, 3), torch.tensor([0.0]), lambda *_: clean, steps=1)
    assert torch.equal(found, clean)


# --- the strength of attached adapters --------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [-2.0, -1.0, 0.0, 0.5, 1.0])
def test_the_strength_is_a_loaders(strength):
    """A loader computes (W + strength * delta) x: the oracle."""
    layer = torch.nn.Linear(4, 3)
    adapters = AdapterSet(LoraAdapter, {"layer": layer}, AdapterConfig(2, 2.0, 0), torch.device("cpu"))
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    x = torch.randn(5, 4)
    merged = torch.nn.functional.linear(x, layer.weight + strength * adapters["layer"].delta_weight(), layer.bias)
    with adapters.attached(), at_strength(strength):
        assert torch.allclose(layer(x), merged, atol=1e-5)


def test_the_strength_comes_back_for_a_second_pass():
    with at_strength(-1.0):
        again = same_strength_again()
    layer = torch.nn.Linear(2, 2)
    adapters = AdapterSet(LoraAdapter, {"layer": layer}, AdapterConfig(1, 1.0, 0), torch.device("cpu"))
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.fill_(0.5)
    x = torch.ones(1, 2)
    with adapters.attached():
        with at_strength(-1.0):
            first = layer(x)
        assert not torch.equal(layer(x), first)
        with again:
            assert torch.equal(layer(x), first)


# --- the evidence -----------------------------------------------------------------------------------------------------


def test_a_score_is_the_share_that_one_prompt_explains_better():
    assert (score(3.0, 1.0), score(1.0, 3.0), score(1.0, 1.0), score(0.0, 0.0)) == (0.5, -0.5, 0.0, 0.0)


def test_monotone_share_counts_seeds_that_rise_and_never_fall_far():
    scores = {-1.0: [-0.5, 0.4], 0.0: [0.0, 0.1], 1.0: [0.5, 0.5], 2.0: [0.4, 0.6]}  # a span of 0.55
    assert monotone_share(scores, -1.0, 2.0) == 0.5  # the second falls by 0.3, the first by 0.1, less than a quarter
    assert monotone_share(scores, 0.0, 2.0) == 1.0
    # A fall in small steps adds up, and what ends where it began has not moved.
    assert monotone_share({0.0: [0.0], 1.0: [0.8], 2.0: [0.7], 3.0: [0.5]}, 0.0, 3.0) == 0.0
    assert monotone_share({0.0: [0.1], 1.0: [0.1], 2.0: [0.1]}, 0.0, 2.0) == 0.0


def test_the_useful_range_ends_where_pictures_go_back_or_break():
    scores = {-2.0: [-0.4], -1.0: [-0.4], 0.0: [0.0], 1.0: [0.3], 2.0: [0.4], 3.0: [0.5]}
    errors = {-2.0: [1.0], -1.0: [1.0], 0.0: [1.0], 1.0: [1.2], 2.0: [1.4], 3.0: [1.6]}
    assert useful_range(scores, errors) == (-2.0, 2.0)  # -2 is saturated, 3 has 1.6 times the error
    fine = {strength: [1.0] for strength in (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)}
    # Of a slider on the small model, of which the hue moves on from -2 to 2: a quarter of the span is 0.105.
    means = {-3.0: [-0.14], -2.0: [-0.18], -1.0: [-0.22], 0.0: [0.2], 1.0: [0.19], 2.0: [0.14], 3.0: [0.09]}
    assert useful_range(means, fine) == (-3.0, 2.0)
    assert useful_range({strength: [0.01 * strength] for strength in (-1.0, 0.0, 1.0)}, fine) is None  # a span of 0.02
    assert useful_range({-1.0: [0.2], 0.0: [0.0], 1.0: [-0.2]}, {-1.0: [1.0], 0.0: [1.0], 1.0: [1.0]}) is None


def test_the_range_goes_through_metadata_and_record():
    meta = strength_range.metadata((-2.0, 1.5))
    assert meta == {"bespoke.useful_strengths": "-2,1.5"}
    assert strength_range.strengths_in(meta) == (-2.0, 1.5)
    for odd in ("", "1", "a,b", "2,-2", "nan,1", "1,2,3"):
        assert strength_range.strengths_in({"bespoke.useful_strengths": odd}) is None
    run = Run(RunInfo("slider-1", "slider", {}, "base", 0), useful_strengths=(-2.0, 1.5))
    assert list(Run.from_json(run.to_json()).useful_strengths) == [-2.0, 1.5]
    assert "useful_strengths" not in Run(RunInfo("slider-1", "slider", {}, "base", 0)).to_json()
    with pytest.raises(ValueError, match="useful_strengths"):
        Run.from_json(run.to_json().replace("[-2.0, 1.5]", "[1]"))
