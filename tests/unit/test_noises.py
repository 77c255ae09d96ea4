"""Noise of several resolutions and the perturbation of the input: their law, and that they follow from the seed."""

import random

import pytest
import torch
from bespoke.training.config import TrainConfig
from bespoke.training.data import LatentSet
from bespoke.training.noises import multires, perturbations, sample_noises
from bespoke.training.objective import SQUARED, ErrorMeasure
from bespoke.training.randomness import generator, noise
from bespoke.training.timesteps import UniformTimesteps
from bespoke.training.validation import grid_batch

CPU = torch.device("cpu")


def config(**changes) -> TrainConfig:
    return TrainConfig(steps=10, learning_rate=1e-3, batch_size=4, seed=3, **changes)


def by_kohyas_rule(shape, discount):
    """sd-scripts' pyramid noise of a batch of one, written from its rule: six grids at r^i of the size, r uniform in
    2..4, each counting discount^i, until a side is 1; the sum is divided by its standard deviation."""
    height, width = shape[-2:]
    total = torch.randn(1, *shape)
    for level in range(6):
        ratio = random.uniform(2, 4) ** level
        size = max(1, int(height / ratio)), max(1, int(width / ratio))
        enlarge = torch.nn.Upsample(size=(height, width), mode="bilinear")
        total = total + enlarge(torch.randn(1, shape[0], *size)) * discount**level
        if 1 in size:
            break
    return (total / total.std())[0]


def spread(noises):
    """The standard deviation of the means of blocks of 1, 4 and 16 cells a side."""
    pooled = (torch.nn.functional.avg_pool2d(noises, size) for size in (1, 4, 16))
    return [each.std().item() for each in pooled]


@pytest.mark.parametrize("discount", [0.3, 0.8])
def test_multires_noise_has_the_law_of_kohyas(discount):
    """Of 300 samples: blocks of plain noise would spread 1, 1/4 and 1/16."""
    random.seed(1)
    torch.manual_seed(1)
    shape = (4, 32, 32)
    expected = spread(torch.stack([by_kohyas_rule(shape, discount) for _ in range(300)]))
    own = spread(sample_noises(config(multires_noise=discount), 3, 0, range(300), shape))
    print(f"blocks of 1, 4, 16: {own}, by kohya's rule {expected}")
    assert own == pytest.approx(expected, rel=0.05)
    assert own[2] > 1.2 / 16


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 5, 7), (16, 1, 9), (3, 2, 33), (16, 3, 6, 10)])
def test_multires_noise_of_any_shape_has_the_standard_deviation_1(shape):
    noises = sample_noises(config(multires_noise=0.5), 3, 2, [0, 1], shape)
    assert noises.shape == (2, *shape)
    assert [each.std().item() for each in noises] == pytest.approx([1, 1], abs=1e-5)
    assert not torch.equal(noises[0], noises[1])


def test_the_first_iteration_is_a_second_noise_of_the_full_size():
    """With discount 0 the sum is of two noises, by hand: both draws of the generator's stream, over their deviation."""
    own = noise(3, 2, 1, (4, 6, 6))
    draw = generator(3, "multires", 2, 1)
    torch.rand((), generator=draw)
    total = own + torch.randn(4, 6, 6, generator=draw)
    assert torch.allclose(multires(own, 0.0, generator(3, "multires", 2, 1)), total / total.std(), atol=1e-6)


def test_frames_of_a_film_have_coarse_noise_of_their_own():
    """The means of two frames of one channel over 400 samples: 0 but for 1 / sqrt(400 * 4)."""
    film = sample_noises(config(multires_noise=0.9), 3, 0, range(400), (4, 2, 16, 16)).mean((-2, -1))
    first, second = film[:, :, 0].flatten(), film[:, :, 1].flatten()
    assert first.std() > 0.1  # the coarse noise moves the mean; plain noise has 1/16
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.1


def test_the_additions_are_functions_of_seed_batch_and_position():
    settings = config(multires_noise=0.3, ip_noise_gamma=0.2)
    for make in (sample_noises, perturbations):
        whole = make(settings, 3, 5, [0, 1, 2], (4, 8, 8))
        assert torch.equal(make(settings, 3, 5, [2, 0], (4, 8, 8)), whole[[2, 0]])
        for other in (make(settings, 4, 5, [0], (4, 8, 8)), make(settings, 3, 6, [0], (4, 8, 8))):
            assert abs(torch.corrcoef(torch.stack([whole[0].flatten(), other.flatten()]))[0, 1]) < 0.3


def test_the_perturbation_is_a_noise_of_its_own():
    data = LatentSet([torch.randn(1, 4, 16, 16)], [None])
    batches = [data.batch(config(ip_noise_gamma=0.2), n, CPU, UniformTimesteps()) for n in range(50)]
    added, noises = (torch.cat([getattr(b, name) for b in batches]) for name in ("perturbation", "noise"))
    assert added.std().item() == pytest.approx(0.2, rel=0.02)
    assert abs(torch.corrcoef(torch.stack([added.flatten(), noises.flatten()]))[0, 1]) < 0.02
    plain = data.batch(config(), 0, CPU, UniformTimesteps())
    assert plain.perturbation is None
    assert torch.equal(plain.noise, batches[0].noise)  # the noise itself stays that of earlier versions


def test_held_out_pictures_are_measured_alike_whatever_is_trained_with():
    data = LatentSet([torch.randn(1, 4, 8, 8)], [None])
    settings = config(loss_type="huber", huber_c=0.3, ip_noise_gamma=0.1)
    trained, scored = data.batch(settings, 0, CPU, UniformTimesteps()), grid_batch(data, 0, 0, CPU)
    assert trained.measure == ErrorMeasure("huber", 0.3)
    assert scored.measure == SQUARED
    assert scored.perturbation is None
