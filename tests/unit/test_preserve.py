"""The loss that holds a model to its base, the switch that takes adapters off, and the leak."""

import math
from contextlib import nullcontext

import pytest
import torch
from bespoke.training.adapters import ADAPTERS, AdapterConfig, AdapterSet
from bespoke.training.captions import without_words
from bespoke.training.data import LatentSet
from bespoke.training.leak import MOST_COST, LeakMeter, LeakPoint, mean_leak, plan_leak, spread
from bespoke.training.objective import prediction_change, preservation_loss
from bespoke.training.picture_scores import passes_of_run
from bespoke.training.record import Run, RunInfo
from bespoke.training.validation import TIMESTEPS, grid_batch
from torch import nn
from toy_training import NAME, BiasAdapter, train_config

KINDS = {**ADAPTERS, "bias": BiasAdapter}
B, C = 3, 10


class LinearDenoiser:
    """x0 = layer(noisy + conditioning), with epsilon's noising. conditioning: [B, C]."""

    prediction = "epsilon"

    def __init__(self, layer):
        self.layer = layer

    def sigma(self, t):
        return 0.1 + t

    def add_noise(self, sigma, noise, latent):
        return latent + sigma[:, None] * noise

    def denoise(self, noisy, sigma, conditioning):
        return self.layer(noisy + conditioning)


def adapted(kind, dtype=torch.float64):
    """(a frozen layer, adapters of a kind on it with random values in the place of all zeros)."""
    torch.manual_seed(1)
    layer = nn.Linear(C, C).to(dtype).requires_grad_(False)
    adapters = AdapterSet(KINDS[kind], {NAME: layer}, AdapterConfig(2, 2.0, 3), torch.device("cpu")).to(dtype)
    for parameter in adapters.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return layer, adapters


def sample(dtype=torch.float64):
    draw = torch.Generator().manual_seed(5)
    latent, noise, conditioning = (torch.randn(B, C, generator=draw, dtype=dtype) for _ in range(3))
    return latent, noise, torch.tensor([0.3, 0.7, 1.1], dtype=dtype), conditioning


@pytest.mark.parametrize("kind", ["LoRA", "LoKr", "LoHa", "bias"])
def test_the_gradient_is_that_of_finite_differences(kind):
    """In float64. DoRA is left out: its norm is a constant in the backward pass, as its paper wants."""
    layer, adapters = adapted(kind)
    latent, noise, sigma, conditioning = sample()

    def loss():
        of_each = preservation_loss(
            LinearDenoiser(layer), latent, noise, sigma, lambda: conditioning, adapters.detached, "min-SNR"
        )
        return of_each.sum()

    with adapters.attached():
        loss().backward()
        for parameter in adapters.parameters():
            numbers, step = parameter.data.view(-1), 1e-5
            for i in range(0, numbers.numel(), 7):
                before = numbers[i].item()
                sides = []
                for side in (step, -step):
                    numbers[i] = before + side
                    sides.append(loss().item())
                numbers[i] = before
                assert parameter.grad.view(-1)[i].item() == pytest.approx(
                    (sides[0] - sides[1]) / (2 * step), rel=1e-6, abs=1e-9
                )


def test_the_loss_by_hand():
    """A bias b moves the estimate of the clean latent by b, so the noise's by b / sigma: the loss is mean(b^2) /
    sigma^2, at any latent."""
    layer, adapters = adapted("bias")
    latent, noise, sigma, conditioning = sample()
    with adapters.attached():
        loss = preservation_loss(LinearDenoiser(layer), latent, noise, sigma, lambda: conditioning, adapters.detached)
    (bias,) = adapters.parameters()
    assert loss.tolist() == pytest.approx(((bias**2).mean() / sigma**2).tolist(), rel=1e-12)


@pytest.mark.parametrize("kind", list(KINDS))
def test_detached_adapters_leave_the_base_to_the_bit(kind):
    layer, adapters = adapted(kind, torch.float32)
    x = torch.randn(4, C, requires_grad=True)  # as the conditioning of a trained text encoder
    plain = layer(x)
    with adapters.attached():
        assert not torch.equal(layer(x), plain)
        with adapters.detached():
            out = layer(x)
            with adapters.detached():
                pass
            assert torch.equal(layer(x), plain)  # an inner block ends without ending the outer one
        assert torch.equal(out, plain)
        assert not out.requires_grad
        assert layer(x).requires_grad
        with pytest.raises(KeyError), adapters.detached():
            raise KeyError
        assert not torch.equal(layer(x), plain)
    assert torch.equal(layer(x), plain)


def test_a_recomputed_block_sees_the_adapters():
    """Gradient checkpointing computes the layer again in the backward pass, where `detached` is left already."""
    from torch.utils.checkpoint import checkpoint

    layer, adapters = adapted("LoRA")
    latent, noise, sigma, conditioning = sample()

    class Checkpointed(LinearDenoiser):
        def denoise(self, noisy, sigma, conditioning):
            return checkpoint(super().denoise, noisy, sigma, conditioning, use_reentrant=False)

    gradients = []
    for kind in (LinearDenoiser, Checkpointed):
        with adapters.attached():
            preservation_loss(
                kind(layer), latent, noise, sigma, lambda: conditioning, adapters.detached
            ).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in adapters.parameters()])
        adapters.zero_grad()
    assert all(bool(one.any()) for one in gradients[0])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


# --- The leak ---------------------------------------------------------------------------------------------------------


def meter(kind, trained=True):
    """A meter on two pictures, and the adapters. The prompt "a" is a conditioning of zeros, any other of ones."""
    layer, adapters = adapted(kind, torch.float32)
    if not trained:
        adapters = AdapterSet(KINDS[kind], {NAME: layer}, AdapterConfig(2, 2.0, 3), torch.device("cpu"))
    denoiser = LinearDenoiser(layer)
    data = LatentSet([torch.randn(1, C) for _ in range(2)], [None, None])
    calls = []

    def predict(batch, prompts):
        calls.append(prompts)
        conditioning = torch.stack([torch.zeros(C) if prompt == "a" else torch.ones(C) for prompt in prompts])
        sigma = denoiser.sigma(batch.t)
        return denoiser.denoise(denoiser.add_noise(sigma, batch.noise, batch.latent), sigma, conditioning)

    def change(batch, one, other):
        return prediction_change(denoiser, one, other, denoiser.sigma(batch.t))

    batches = [grid_batch(data, index, index, torch.device("cpu")) for index in range(2)]
    prompts = [["a"] * 5] * 2, [["b"] * 5] * 2
    return LeakMeter(batches, *prompts, predict, change, adapters.detached), adapters, calls


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_leak_of_an_untrained_adapter_is_exactly_zero(kind):
    of_untrained, adapters, _ = meter(kind, trained=False)
    with adapters.attached():
        point = of_untrained.measure(0)
    assert point == (0, 0.0, 0.0)
    assert point.leak == 0.0


def test_the_leak_by_hand():
    """A bias moves all predictions alike, whatever the prompt: the leak is 1, each change mean(b^2) over the mean of
    1 / sigma^2. The base is computed once."""
    of_bias, adapters, calls = meter("bias")
    with adapters.attached():
        point = of_bias.measure(40)
        assert len(calls) == 8  # base and adapted, two prompts, two pictures
        (bias,) = adapters.parameters()
        wanted = (bias.double() ** 2).mean().item() * sum((0.1 + t) ** -2 for t in TIMESTEPS) / len(TIMESTEPS)
        assert point.other == pytest.approx(wanted, rel=1e-5)
        assert point.leak == pytest.approx(1.0, abs=1e-6)
        bias.data *= 2
        again = of_bias.measure(80)
    assert len(calls) == 12
    assert again.other == pytest.approx(4 * wanted, rel=1e-5)  # a square
    assert LeakPoint(1, 1.0, 4.0).leak == 0.5  # half as far
    assert math.isnan(LeakPoint(1, 1.0, 0.0).leak)
    assert math.isnan(LeakPoint(1, math.nan, 1.0).leak)
    assert mean_leak([[LeakPoint(1, 1.0, 2.0), LeakPoint(2, 2.0, 2.0)], [LeakPoint(2, 4.0, 6.0)]]) == [(2, 3.0, 4.0)]


@pytest.mark.parametrize("steps", [1, 10, 45, 46, 100, 400, 5000])
@pytest.mark.parametrize("pictures", [1, 3, 30])
def test_a_leak_takes_at_most_a_twentieth_of_the_run(steps, pictures):
    config = train_config(steps=steps, batch_size=4)
    plan = plan_leak(config, pictures)
    if plan is None:
        # One point on one picture: twice (base and trained) two prompts at five levels.
        assert MOST_COST * passes_of_run(config) < 20
        return
    assert 1 <= plan.pictures <= min(pictures, 4)
    assert 10 * plan.pictures * (len(plan.steps) + 1) <= MOST_COST * passes_of_run(config)
    assert plan.steps[-1] == steps
    assert list(plan.steps) == sorted(set(plan.steps))
    validated = {*range(config.validate_every, steps + 1, config.validate_every), steps}
    assert set(plan.steps) <= validated
    if steps == 5000:
        assert set(plan.steps) == validated
        assert plan.pictures == min(pictures, 4)


def test_no_held_out_picture_no_leak():
    assert plan_leak(train_config(steps=5000, batch_size=4), 0) is None


def test_prompts_take_turns_over_the_levels():
    assert spread(["a", "b"], 5) == ["a", "b", "b", "a", "a"]
    assert spread(["a", "b"], 2, first=4) == ["a", "b"]  # row 4 is a, row 5 is (5 + 2) % 2
    five = [spread(list("abcde"), 5, 5 * picture) for picture in range(5)]
    assert all(sorted(column) == list("abcde") for column in zip(*five, strict=True))  # each prompt at each level


@pytest.mark.parametrize(
    ("caption", "trigger", "left"),
    [
        ("sks, a dog on grass", "sks", "a dog on grass"),
        ("a photo of SKS dog", "sks", "a photo of dog"),
        ("a photo of ohwx man, smiling", "ohwx man", "a photo of, smiling"),
        ("asks for sks", "sks", "asks for"),
        ("a dog, sks", "sks", "a dog"),
        ("sks", "sks", ""),
        (r"saber \(fate\), a knight", "saber (fate)", ""),  # another spelling of the trigger: nothing is left of it
        ("a dog", "sks", "a dog"),
        ("a dog ()", "sks", "a dog ()"),
        ("a (sks) dog", "sks", "a dog"),
        ("a (sks:1.2), dog", "sks", "a, dog"),
        (r"a \(sks\) dog", "sks", "a dog"),
    ],
)
def test_a_caption_without_its_trigger(caption, trigger, left):
    assert without_words(caption, trigger) == left


# --- The record -------------------------------------------------------------------------------------------------------


def test_a_record_keeps_the_leak_and_an_old_one_has_none():
    info = RunInfo("lora-0123456789ab", "lora", {"keep": "best"}, "base", 3)
    run = Run(info, [1.0] * 30, [(0, 2.0), (10, 1.0), (20, 1.5)])
    assert '"leak"' not in run.to_json()
    assert Run.from_json(run.to_json()).leak == []
    run.leak = [LeakPoint(12, 1.0, 4.0), LeakPoint(30, math.nan, 1.0)]
    back = Run.from_json(run.to_json())
    assert back.leak[0] == LeakPoint(12, 1.0, 4.0)
    assert math.isnan(back.leak[1].other)
    assert back.leak_of_result == LeakPoint(12, 1.0, 4.0)  # the nearest to step 10, which is the best
    resumed = Run(info)
    resumed.restore_progress(run, 20)
    assert resumed.leak == run.leak[:1]
    for wrong in ([[1, 2.0]], [["one", 1.0, 1.0]], 7):
        with pytest.raises(ValueError):
            Run.from_values({**vars(info), "leak": wrong})


def test_nullcontext_is_no_switch():
    """The oracle of the loss's own switch: without it both predictions are the same, and the loss is 0."""
    layer, adapters = adapted("LoRA")
    latent, noise, sigma, conditioning = sample()
    with adapters.attached():
        loss = preservation_loss(LinearDenoiser(layer), latent, noise, sigma, lambda: conditioning, nullcontext)
    assert loss.tolist() == [0.0] * B
