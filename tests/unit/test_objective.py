"""The loss against arithmetic by hand for each prediction type, and the distributions of the random draws."""

import math

import pytest
import torch
from bespoke.training.config import TrainConfig
from bespoke.training.data import LatentSet
from bespoke.training.errors import InputError
from bespoke.training.objective import (
    LOSS_TYPES,
    LOSS_WEIGHTINGS,
    ErrorMeasure,
    denoising_loss,
    expected_loss,
    input_share,
    loss_weight,
    prediction_weight,
    signal_to_noise,
)
from bespoke.training.randomness import noise, stratified_uniform
from bespoke.training.timesteps import TIMESTEP_SAMPLERS, ImportanceSampling, UniformTimesteps, timestep_sampler


class LinearDenoiser:
    """A network whose output is 0.5 * its input, with the arithmetic of each prediction type."""

    def __init__(self, prediction):
        self.prediction = prediction
        self.calls = []

    def add_noise(self, sigma, noise, latent):
        s = sigma.reshape(-1, 1, 1, 1)
        return s * noise + (1 - s) * latent if self.prediction == "flow" else latent + s * noise

    def denoise(self, noisy, sigma, conditioning):
        self.calls.append(noisy.shape[0])
        s = sigma.reshape(-1, 1, 1, 1)
        if self.prediction == "epsilon":
            return noisy - s * 0.5 * noisy
        if self.prediction == "v":
            return noisy / (s**2 + 1) - s / (s**2 + 1) ** 0.5 * 0.5 * noisy
        if self.prediction == "edm":
            return (noisy * 0.25 + s * 0.5 * (s**2 + 0.25) ** 0.5 * 0.5 * noisy) / (s**2 + 0.25)
        return noisy - s * 0.5 * noisy


def _error_by_hand(prediction, latent, noise, sigma, seen=None):
    """Output - target of one image, as in the papers. seen: the noise in the input where it is not the target's."""
    seen = noise if seen is None else seen
    if prediction == "epsilon":
        return 0.5 * (latent + sigma * seen) - noise
    if prediction == "v":
        a = 1 / math.sqrt(1 + sigma**2)  # alpha; sigma of the variance-preserving process is a * sigma
        return 0.5 * (latent + sigma * seen) - (a * noise - a * sigma * latent)
    if prediction == "edm":  # Karras et al. 2022, eq. 8 and table 1: F = (x0 - c_skip x) / c_out, data of 0.5
        x, both = latent + sigma * noise, sigma**2 + 0.5**2
        return 0.5 * (latent + sigma * seen) - (latent - 0.5**2 / both * x) / (sigma * 0.5 / math.sqrt(both))
    return 0.5 * (sigma * seen + (1 - sigma) * latent) - (noise - latent)


def _by_hand(prediction, latent, noise, sigma):
    """The loss of one image from target and output, as in the papers."""
    return (_error_by_hand(prediction, latent, noise, sigma) ** 2).mean()


@pytest.mark.parametrize("prediction", ["epsilon", "v", "flow", "edm"])
@pytest.mark.parametrize("sigma", [0.05, 0.6, 0.99])
def test_loss_matches_the_papers(prediction, sigma):
    latent, eps = torch.randn(1, 4, 6, 6), torch.randn(1, 4, 6, 6)
    loss = denoising_loss(LinearDenoiser(prediction), latent, eps, torch.tensor([sigma]), None)
    assert loss.shape == (1,)
    assert loss.item() == pytest.approx(_by_hand(prediction, latent, eps, sigma).item(), rel=2e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "flow", "edm"])
@pytest.mark.parametrize("sigma", [0.05, 0.6, 0.99])
def test_loss_types_are_kohyas(prediction, sigma):
    """kohya's `conditional_loss` on output and target, with its schedule of c by `alphas_cumprod` (`huber_schedule`
    snr), by hand. A flow model has the SNR ((1 - sigma) / sigma)^2, which kohya gives no c for.
    """
    latent, eps = torch.randn(1, 4, 6, 6, dtype=torch.float64), torch.randn(1, 4, 6, 6, dtype=torch.float64)
    error = _error_by_hand(prediction, latent, eps, sigma)
    ratio = {"flow": sigma / (1 - sigma), "edm": sigma / 0.5}.get(prediction, sigma)  # kohya's "sigmas", 1 / sqrt(SNR)
    c = (1 - 0.2) / (1 + ratio) ** 2 + 0.2
    root = (error**2 + c**2).sqrt() - c
    for kind, expected in {"huber": 2 * c * root, "smooth l1": 2 * root, "mse": error**2}.items():
        measure = ErrorMeasure(kind, 0.2)
        given = (LinearDenoiser(prediction), latent, eps, torch.tensor([sigma], dtype=torch.float64), None)
        assert denoising_loss(*given, measure=measure).item() == pytest.approx(expected.mean().item(), rel=2e-4), kind
        # A weighting is a factor of the error, whatever its kind: kohya multiplies after `conditional_loss`.
        s = given[3]
        weight = (loss_weight(prediction, s, "min-SNR") / loss_weight(prediction, s)).item()
        weighted = denoising_loss(*given, weighting="min-SNR", measure=measure).item()
        assert weighted == pytest.approx(weight * expected.mean().item(), rel=2e-4), kind
    assert {"huber", "smooth l1", "mse"} == set(LOSS_TYPES)


def test_huber_is_the_square_of_small_errors_and_grows_evenly_with_large_ones():
    """In float32: kohya's difference of two roots has no digit left at an error of 1e-5."""
    errors, c = torch.tensor([1e-5, 1e3, 2e3]), torch.tensor(0.1)
    small, one, two = LOSS_TYPES["huber"](errors, c).tolist()
    assert small == pytest.approx(1e-10, rel=1e-4)
    assert two - one == pytest.approx(2 * 0.1 * 1e3, rel=1e-4)
    assert LOSS_TYPES["smooth l1"](errors, c).tolist()[2] == pytest.approx(2 * (2e3 - 0.1), rel=1e-5)


@pytest.mark.parametrize("kind", LOSS_TYPES)
def test_loss_types_have_the_gradient_of_finite_differences(kind):
    error = torch.tensor([-3.0, -0.1, 0.0, 1e-3, 0.7, 40.0], dtype=torch.float64, requires_grad=True)
    c = torch.tensor([0.1, 1.0, 0.3, 0.1, 0.5, 0.2], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda e: LOSS_TYPES[kind](e, c), (error,))


@pytest.mark.parametrize("prediction", ["epsilon", "v", "flow", "edm"])
@pytest.mark.parametrize("sigma", [0.05, 0.6, 0.99])
def test_the_target_has_no_part_of_the_perturbation(prediction, sigma):
    """Ning et al. 2023: the model sees noise + gamma xi, the target is that of noise alone; by hand."""
    torch.manual_seed(0)
    latent, eps, xi = torch.randn(3, 1, 4, 6, 6).unbind()
    expected = (_error_by_hand(prediction, latent, eps, sigma, seen=eps + 0.3 * xi) ** 2).mean()
    given = (LinearDenoiser(prediction), latent, eps, torch.tensor([sigma]), None)
    assert denoising_loss(*given, perturbation=0.3 * xi).item() == pytest.approx(expected.item(), rel=2e-4)
    # Not the loss at the target of the perturbed noise, which is an ordinary sample.
    assert expected.item() != pytest.approx(_by_hand(prediction, latent, eps + 0.3 * xi, sigma).item(), rel=1e-3)


def test_input_share_is_that_of_the_other_predictions():
    """velocity on z = x / (1 + sigma): x0 = z - t v. A network that predicts x0 reads nothing of it from the input."""
    assert input_share("velocity", torch.tensor([3.0])).item() == 1 / 4
    assert input_share("x0", torch.tensor([3.0])).item() == 0


def test_one_call_with_exactly_the_batch():
    model = LinearDenoiser("epsilon")
    denoising_loss(model, torch.randn(5, 4, 6, 6), torch.randn(5, 4, 6, 6), torch.rand(5) + 0.1, None)
    assert model.calls == [5]


@pytest.mark.parametrize("kind", LOSS_TYPES)
def test_masked_loss_is_the_mean_over_the_mask(kind):
    latent, eps, sigma = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6), torch.tensor([0.5, 2.0])
    model = LinearDenoiser("epsilon")
    mask = torch.zeros(2, 1, 6, 6)
    mask[0, :, :3] = 1
    mask[1] = 1
    masked = denoising_loss(model, latent, eps, sigma, None, mask, measure=ErrorMeasure(kind))
    top = denoising_loss(model, latent[:1, :, :3], eps[:1, :, :3], sigma[:1], None, measure=ErrorMeasure(kind))
    whole = denoising_loss(model, latent[1:], eps[1:], sigma[1:], None, measure=ErrorMeasure(kind))
    assert masked.tolist() == pytest.approx([top.item(), whole.item()], rel=1e-5)


def test_x0_weight_is_one_and_unknown_is_refused():
    assert prediction_weight("x0", torch.tensor([3.0])).item() == 1
    with pytest.raises(ValueError, match="wavelet"):
        prediction_weight("wavelet", torch.tensor([3.0]))


def test_velocity_is_that_of_the_flow_on_the_scaled_input():
    """By hand: x = x0 + 3 n; t = 3 / 4, z = x / 4 = x0 / 4 + 3 n / 4, v = n - x0 = (z - x0) / t.

    With x0 = 1, n = 2: x = 7, z = 7 / 4, v = 1. An estimate of 1.3 for x0 is v = (7 / 4 - 1.3) / (3 / 4) = 0.6.
    """
    error = (1.3 - 1.0) ** 2
    assert prediction_weight("velocity", torch.tensor([3.0])).item() * error == pytest.approx((0.6 - 1.0) ** 2)


def test_timesteps_are_uniform_and_stratified():
    draws = torch.cat([stratified_uniform(7, step, 8) for step in range(2000)])
    counts = torch.histc(draws, 16, 0, 1)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert (counts / counts.mean() - 1).abs().max() < 0.1  # 1,000 in each of 16 bins, standard deviation 3 % at most
    one = stratified_uniform(7, 3, 8)
    assert sorted((one * 8).long().tolist()) == list(range(8))
    assert not torch.equal(stratified_uniform(7, 3, 8), stratified_uniform(8, 3, 8))


def test_noise_is_a_pure_function_of_seed_step_and_position():
    a = noise(1, 2, 3, (4, 8, 8))
    assert torch.equal(a, noise(1, 2, 3, (4, 8, 8)))
    for other in (noise(2, 2, 3, (4, 8, 8)), noise(1, 3, 3, (4, 8, 8)), noise(1, 2, 4, (4, 8, 8))):
        assert abs(torch.corrcoef(torch.stack([a.flatten(), other.flatten()]))[0, 1]) < 0.2
    many = torch.cat([noise(5, step, 0, (64,)) for step in range(500)])
    assert abs(many.mean()) < 0.02
    assert abs(many.std() - 1) < 0.02


def test_batches_group_by_latent_shape_and_drop_captions_at_the_given_rate():
    data = LatentSet([torch.randn(1, 4, 8, 8) for _ in range(3)] + [torch.randn(1, 4, 8, 16)], [None] * 4)
    config = TrainConfig(steps=10, learning_rate=1e-3, batch_size=2, seed=0, caption_dropout=0.25)
    dropped = total = 0
    for micro in range(1000):
        batch = data.batch(config, micro, torch.device("cpu"), UniformTimesteps())
        assert batch.latent.shape == batch.noise.shape
        assert batch.mask is None
        dropped += batch.caption_indices.count(-1)
        total += 2
    assert dropped / total == pytest.approx(0.25, abs=0.03)


# The factor of the squared error of the noise, as in each weighting's paper.
ON_THE_NOISE_ERROR = {
    "min-SNR": lambda snr: min(snr, 5) / snr,
    "debiased": lambda snr: min(snr, 1000) ** 0.5 / snr,  # 1 / sqrt(SNR), SNR at most 1000
    "P2": lambda snr: 1 / (1 + snr),
    # On the velocity's error, which is the noise's over 1 - t; t = 1 / (1 + sqrt(SNR)).
    "cosmap": lambda snr: (
        2 / (math.pi * (1 - 2 * flow_time(snr) + 2 * flow_time(snr) ** 2)) / (1 - flow_time(snr)) ** 2
    ),
    "sigma-sqrt": lambda snr: flow_time(snr) ** -2 / (1 - flow_time(snr)) ** 2,
}


def flow_time(snr):
    return 1 / (1 + math.sqrt(snr))


def cosmap(t):
    return 2 / (math.pi - 2 * math.pi * t + 2 * math.pi * t**2)


def test_every_weighting_is_compared_with_its_paper():
    assert {"none", *ON_THE_NOISE_ERROR} == set(LOSS_WEIGHTINGS)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "flow"])
def test_weightings_match_the_papers(prediction):
    """Each as a factor on the error of the clean latent, from its formula on the noise error (or v) by hand."""
    for sigma in (0.02, 0.3, 0.7, 0.99) + ((6.0,) if prediction != "flow" else ()):
        snr = ((1 - sigma) / sigma) ** 2 if prediction == "flow" else 1 / sigma**2
        s = torch.tensor([sigma], dtype=torch.float64)
        assert signal_to_noise(prediction, s).item() == pytest.approx(snr)
        for name, factor in ON_THE_NOISE_ERROR.items():  # noise error = clean error * SNR
            assert loss_weight(prediction, s, name).item() == pytest.approx(factor(snr) * snr), name
        assert loss_weight(prediction, s).item() == pytest.approx(prediction_weight(prediction, s).item())
    v = torch.tensor([0.7], dtype=torch.float64)
    if prediction == "v":  # the paper's own form for v: min(SNR, 5) / (SNR + 1) on the v error
        snr = 1 / 0.49
        assert loss_weight("v", v, "min-SNR").item() == pytest.approx(
            min(snr, 5) / (snr + 1) * prediction_weight("v", v).item()
        )
    with pytest.raises(ValueError, match="no loss weighting"):
        loss_weight(prediction, v, "max-SNR")


# The cumulative distributions. That of importance sampling depends on the model and has tests of its own.
LAWS = {
    "uniform": lambda t: t,
    "logit-normal": lambda t: torch.special.ndtr(torch.special.logit(t)),
    "shifted": lambda t: t / (3 - 2 * t),
}


def test_every_timestep_sampling_is_compared_with_its_law():
    assert {"importance", *LAWS} == set(TIMESTEP_SAMPLERS)


@pytest.mark.parametrize(("sampling", "law"), LAWS.items(), ids=LAWS)
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.4), (0.3, 0.8), (0.7, 1.0)])
def test_a_part_of_the_timesteps_keeps_its_law(sampling, law, low, high):
    """The cumulative distribution within the part is (F(t) - F(low)) / (F(high) - F(low)) of the whole one, F."""
    timesteps = timestep_sampler(Schedule("epsilon"), sampling, limits=(low, high))
    uniform = (torch.arange(2000) + 0.5) / 2000
    t = timesteps.sample(uniform)
    assert low <= float(t.min()) < float(t.max()) < high
    ends = law(torch.tensor([low, high], dtype=torch.float64))
    expected = (law(t.double()) - ends[0]) / (ends[1] - ends[0])
    assert (expected - uniform).abs().max() < 1e-4
    assert timesteps.weight(t) is None


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.5), (0.2, 0.9), (0.9, 1.0)])
def test_importance_sampling_of_a_part_leaves_the_mean_of_the_part_as_it_is(low, high):
    """The mean of t^2 over low..high is (high^3 - low^3) / (3 (high - low)); weighted draws must have it."""
    timesteps = timestep_sampler(Schedule("epsilon"), "importance", limits=(low, high))
    t = timesteps.sample((torch.arange(200_000) + 0.5) / 200_000)
    assert low <= float(t.min()) < float(t.max()) < high
    mean = float((timesteps.weight(t).double() * t.double() ** 2).mean())
    assert mean == pytest.approx((high**3 - low**3) / (3 * (high - low)), rel=2e-3)


@pytest.mark.parametrize(("sampling", "law"), LAWS.items(), ids=LAWS)
def test_timestep_histogram_matches_its_law(sampling, law):
    """The cumulative distribution of 16,000 draws against the closed form; a Kolmogorov distance of .01 is expected."""
    data = LatentSet([torch.randn(1, 4, 4, 4)], [None])
    config = TrainConfig(steps=10, learning_rate=1e-3, batch_size=8, seed=3)
    timesteps = timestep_sampler(Schedule("epsilon"), sampling)
    batches = [data.batch(config, micro, torch.device("cpu"), timesteps) for micro in range(2000)]
    assert all(batch.weight is None for batch in batches)
    drawn = torch.cat([batch.t for batch in batches]).double().sort().values
    expected = law(drawn)
    empirical = (torch.arange(len(drawn)) + 0.5) / len(drawn)
    assert (expected - empirical).abs().max() < 0.012
    with pytest.raises(ValueError, match="no timestep sampling"):
        timestep_sampler(Schedule("epsilon"), "late")


class Schedule:
    """SD1.5's noise levels, or a flow model's."""

    def __init__(self, prediction):
        self.prediction = prediction
        cumulated = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
        self.sigmas = (
            (torch.arange(1000) + 1.0) / 1000 if prediction == "flow" else ((1 - cumulated) / cumulated).sqrt().float()
        )

    def sigma(self, t):
        return self.sigmas[(t * 1000).long().clamp(max=999)]


def test_expected_loss_of_unit_gaussians():
    """By hand: the variance of the target given x, for x0 and n of unit variance."""
    for sigma in (0.03, 0.4, 0.97, 12.0):
        s = torch.tensor([sigma], dtype=torch.float64)
        # Var(n) - Cov(n, x)^2 / Var(x).
        assert expected_loss("epsilon", s).item() == pytest.approx(1 - sigma**2 / (1 + sigma**2))
        assert expected_loss("v", s).item() == pytest.approx(1)  # v is independent of x
        assert expected_loss("edm", s).item() == pytest.approx(1)  # as is F, for x0 of the variance 0.5^2
        if sigma < 1:  # n - x0 on (1 - s) x0 + s n
            variance = 2 - (sigma - (1 - sigma)) ** 2 / (sigma**2 + (1 - sigma) ** 2)
            assert expected_loss("flow", s).item() == pytest.approx(variance)
    # A weighting is a factor of it: for flow of Var(n - x0) at sigma, by the formulas of SD3.
    half = torch.tensor([0.25], dtype=torch.float64)
    variance = 2 - (0.25 - 0.75) ** 2 / (0.25**2 + 0.75**2)
    assert expected_loss("flow", half, "cosmap").item() == pytest.approx(2 / (math.pi * (1 - 0.5 + 0.125)) * variance)
    assert expected_loss("flow", half, "sigma-sqrt").item() == pytest.approx(16 * variance)
    assert expected_loss("epsilon", s, "P2").item() == pytest.approx(12.0**-2 / (1 + 12.0**-2) ** 2)
    assert expected_loss("epsilon", s, "min-SNR").item() == pytest.approx(12.0**-2 / (1 + 12.0**-2))


@pytest.mark.parametrize(
    ("prediction", "weighting"),
    [
        ("epsilon", "none"),
        ("epsilon", "min-SNR"),
        ("epsilon", "debiased"),
        ("v", "min-SNR"),
        ("v", "debiased"),
        ("flow", "none"),
        ("flow", "min-SNR"),
        ("epsilon", "P2"),
        ("flow", "cosmap"),
        ("epsilon", "sigma-sqrt"),
    ],
)
def test_importance_sampling_draws_by_the_expected_loss_and_leaves_the_mean_as_it_is(prediction, weighting):
    model = Schedule(prediction)
    timesteps = timestep_sampler(model, "importance", weighting)
    data = LatentSet([torch.randn(1, 4, 4, 4)], [None])
    config = TrainConfig(steps=10, learning_rate=1e-3, batch_size=8, seed=3)
    batches = [data.batch(config, micro, torch.device("cpu"), timesteps) for micro in range(2000)]
    drawn = torch.cat([batch.t for batch in batches]).double()
    # The density: a tenth is uniform, the rest is in proportion to the expected loss.
    middles = (torch.arange(1000) + 0.5) / 1000
    expected = expected_loss(prediction, model.sigma(middles).double(), weighting)
    law = (0.9 * expected / expected.mean() + 0.1).cumsum(0) / 1000
    histogram = torch.histc(drawn, 1000, 0, 1).cumsum(0) / len(drawn)
    assert (law - histogram).abs().max() < 0.012
    # The mean of any loss over the timesteps, here of one that falls a hundredfold, is that of uniform draws.
    loss = lambda t: torch.exp(-4.6 * t)  # noqa: E731
    mean = sum(batch.share_of_mean(loss(batch.t)).item() for batch in batches) / len(batches)
    assert mean == pytest.approx((1 - math.exp(-4.6)) / 4.6, rel=0.03)
    # Exactly, by quadrature: the weight of each cell is the inverse of its density.
    assert torch.allclose(
        timesteps.weight(middles).double() * timesteps.density, torch.ones(1000, dtype=torch.float64), atol=1e-6
    )
    assert timesteps.density.mean().item() == pytest.approx(1)
    assert all(batch.weight.min() > 0 and batch.weight.max() <= 10.0001 for batch in batches)


def test_importance_sampling_keeps_strata_and_the_ends():
    timesteps = ImportanceSampling.of(Schedule("epsilon"))
    u = torch.tensor([0.0, 1e-6, 0.25, 0.5, 0.75, 1 - 2**-24])
    t = timesteps.sample(u)
    assert (t.diff() >= 0).all()
    assert t[0] == 0
    assert 0.99 < t[-1] < 1
    assert t[3] < 0.3  # half of the draws are in three tenths of the schedule
    even = ImportanceSampling(torch.ones(10, dtype=torch.float64))
    assert torch.allclose(even.sample(u), u, atol=1e-6)


def test_importance_sampling_with_zero_terminal_snr():
    """Zero terminal SNR as in ComfyUI, and a schedule that starts at sigma 0."""
    model = Schedule("v")
    model.sigmas[-1] = 4518.0
    for weighting in LOSS_WEIGHTINGS:
        density = ImportanceSampling.of(model, weighting).density
        assert density.isfinite().all()
        assert density.min() >= 0.1
    assert torch.allclose(ImportanceSampling.of(model).density, torch.ones(1000, dtype=torch.float64))
    model.sigmas[0] = 0.0
    with pytest.raises(InputError, match="begin at 0 .* choose uniform"):
        ImportanceSampling.of(model)
    for weighting in ("min-SNR", "debiased", "P2"):  # these are finite at sigma 0
        assert ImportanceSampling.of(model, weighting).density.isfinite().all(), weighting


def test_a_device_without_float64_can_draw_by_importance():
    class OnDevice(torch.Tensor):
        def double(self):
            raise TypeError("no float64 here")

        def cpu(self):
            return self.as_subclass(torch.Tensor)

    model = Schedule("epsilon")
    plain = ImportanceSampling.of(model).density
    model.sigmas = model.sigmas.as_subclass(OnDevice)
    assert torch.equal(ImportanceSampling.of(model).density, plain)


def test_noise_offset_moves_the_mean_of_each_channel_by_its_share():
    data = LatentSet([torch.randn(1, 4, 16, 16)], [None])

    def make(offset: float) -> TrainConfig:
        return TrainConfig(steps=10, learning_rate=1e-3, batch_size=4, seed=3, noise_offset=offset)

    cpu, timesteps = torch.device("cpu"), UniformTimesteps()
    plain, moved = (torch.stack([data.batch(make(o), m, cpu, timesteps).noise for m in range(400)]) for o in (0.0, 0.2))
    shift = moved - plain  # [400, 4, 4, 16, 16]: one number a channel
    assert torch.allclose(shift, shift[..., :1, :1].expand_as(shift), atol=1e-6)
    assert shift[..., 0, 0].std().item() == pytest.approx(0.2, rel=0.05)
    assert abs(shift.mean().item()) < 0.02


def test_prior_pictures_have_their_own_random_draws():
    data = LatentSet([torch.randn(1, 4, 4, 4) for _ in range(4)], [None] * 4)
    config = TrainConfig(steps=10, learning_rate=1e-3, batch_size=2, seed=3)
    own, prior = (
        data.batch(config, 5, torch.device("cpu"), UniformTimesteps(), [0, 1], stream) for stream in ("", "prior")
    )
    assert not torch.equal(own.noise, prior.noise)
    assert not torch.equal(own.t, prior.t)
