"""The optimisers that are ours, or of packages: their steps, their errors where they cannot run, and their states."""

import math
import sys
from dataclasses import replace

import prodigyopt
import pytest
import schedulefree
import torch
from bespoke.training import optimizers
from bespoke.training.adapters import AdapterConfig, AdapterSet, LoraAdapter
from bespoke.training.checkpoint import State, UnusableState, optimizer_state, pack, restore_optimizer, unpack
from bespoke.training.config import CHOICES, TrainConfig
from bespoke.training.errors import InputError
from bespoke.training.loop import Training
from bespoke.training.optimizers import (
    OPTIMIZERS,
    check_optimizer,
    found_rate,
    group_numbers,
    make_optimizer,
    rate_factor,
    schedule_of,
    set_group_numbers,
)
from bespoke.training.rate_free import D0, Prodigy
from safetensors.torch import load_file, save_file
from toy_training import copy_of, one_layer

CPU = torch.device("cpu")
BUILT_IN = "Prodigy (built in)"


def factors(seed=0):
    """The factors of a LoRA, as they start: down at random, up at zero."""
    made = torch.Generator().manual_seed(seed)
    return torch.nn.Parameter(torch.randn(3, 8, generator=made)), torch.nn.Parameter(torch.zeros(5, 3))


def gradients_at(parameters, step, scales=(1.0, 1.0)):
    """Noisy gradients of |up (s down) x - y|^2; each is with respect to the parameter over its scale."""
    down, up = (p.detach().clone().requires_grad_() for p in parameters)
    made = torch.Generator().manual_seed(step)
    x, y = torch.randn(8, 16, generator=made), torch.randn(5, 16, generator=made).sign()
    ((scales[1] * up) @ (scales[0] * down) @ x - y - x[:5]).square().mean().backward()
    return down.grad, up.grad


def both(mine, own, reference, theirs, count, scales=(1.0, 1.0), factor=lambda step: 1.0):
    """(d of each step, that of the reference): `count` steps of our Prodigy and of prodigyopt.

    Where ours has settled, a new reference begins at the start with that d and with Adam's bias correction.
    """
    starts, has_settled = [p.detach().clone() for p in theirs], False
    ours, others, rates = [], [], [group["lr"] for group in mine.param_groups]
    for step in range(count):
        for group in reference.param_groups:
            group["lr"] = factor(step)
        for group, rate in zip(mine.param_groups, rates, strict=True):
            group["lr"] = rate * factor(step)
        for optimizer, parameters, scale in ((mine, own, (1.0, 1.0)), (reference, theirs, scales)):
            for parameter, gradient in zip(parameters, gradients_at(parameters, step, scale), strict=True):
                parameter.grad = gradient
            optimizer.step()
        ours.append(mine.param_groups[0]["d"])
        others.append(reference.param_groups[0]["d"])
        if not has_settled and mine.param_groups[0]["settled"]:
            has_settled = True
            with torch.no_grad():
                for parameter, start in zip(theirs, starts, strict=True):
                    parameter.copy_(start)
            reference = of_the_authors(theirs, use_bias_correction=True, d0=others[-1])
    return ours, others


def of_the_authors(parameters, **more):
    return prodigyopt.Prodigy(list(parameters), lr=1.0, safeguard_warmup=True, **more)


@pytest.mark.parametrize("warmup", [0, 10])
def test_prodigy_steps_as_prodigyopt_does(warmup):
    """prodigyopt 1.1.2 of the paper's authors on equal numbers, 80 steps: parameters and d to 1e-6.

    d leaves its start by two orders of magnitude and settles, so what is equal does not stand still.
    """
    own, theirs = factors(), factors()
    mine = Prodigy([{"params": [own[0]]}, {"params": [own[1]]}])
    rising = lambda step: min(1.0, (step + 1) / (warmup + 1))  # noqa: E731
    ours, other = both(mine, own, of_the_authors(theirs), theirs, 80, factor=rising)
    assert ours == pytest.approx(other, rel=1e-6)
    assert ours[-1] > 100 * D0
    assert mine.param_groups[0]["settled"]
    for a, b in zip(own, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-6 * float(b.detach().abs().max()))


def test_a_ratio_of_rates_is_prodigy_on_scaled_parameters():
    """LoRA+: the up factor at 16 times the rate equals prodigyopt on up / 16, whose gradient is 16 times as large.

    By the chain rule; prodigyopt itself refuses groups of different rates. eps acts on another scale, hence 1e-5.
    """
    own, theirs = factors(), factors()
    mine = make_optimizer(BUILT_IN, [([own[0]], 1e-4), ([own[1]], 16e-4)], 1e-4)
    assert [group["lr"] for group in mine.param_groups] == [1.0, pytest.approx(16.0)]
    ours, other = both(mine, own, of_the_authors(theirs), theirs, 60, scales=(1.0, 16.0))
    assert ours == pytest.approx(other, rel=1e-5)
    assert ours[-1] > 100 * D0
    assert torch.allclose(own[0], theirs[0], rtol=1e-5, atol=1e-5)
    assert torch.allclose(own[1], 16 * theirs[1], rtol=1e-5, atol=1e-5)
    refused = prodigyopt.Prodigy([{"params": [theirs[0]]}, {"params": [theirs[1]], "lr": 16.0}])
    with pytest.raises(RuntimeError, match="different lr values"):
        refused.step()


def test_the_first_estimates_of_prodigy_by_hand():
    """One parameter at 0, by the paper's formulas. Its first step is 0.1 / sqrt(0.001) = 3.162 d, uncorrected.

    The gradients are 3 and 40: the numerator is d 40 (3.162 d), the denominator d^2 (sqrt(.999) 3 + 40).
    """
    x = torch.nn.Parameter(torch.tensor([0.0], dtype=torch.float64))
    optimizer = Prodigy([{"params": [x]}])
    x.grad = torch.tensor([3.0], dtype=torch.float64)
    optimizer.step()
    assert found_rate(optimizer) == D0
    first = 0.1 / math.sqrt(0.001)
    assert x.item() == pytest.approx(-first * D0, rel=1e-6)  # eps
    x.grad = torch.tensor([40.0], dtype=torch.float64)
    optimizer.step()
    estimate = 40 * first * D0 / (math.sqrt(0.999) * 3 + 40)
    assert estimate > 2 * D0
    assert found_rate(optimizer) == pytest.approx(estimate, rel=1e-6)


def test_prodigy_goes_on_to_the_bit_after_it_has_settled(tmp_path):
    """What it keeps in its groups goes through a file too: the estimate, and that it has settled."""
    whole, part = factors(), factors()
    one, two = (make_optimizer(BUILT_IN, [([p[0]], 1.0), ([p[1]], 16.0)], 1.0) for p in (whole, part))

    def steps(optimizer, parameters, numbers):
        for step in numbers:
            for parameter, gradient in zip(parameters, gradients_at(parameters, step), strict=True):
                parameter.grad = gradient
            optimizer.step()

    steps(one, whole, range(80))
    steps(two, part, range(60))
    assert two.param_groups[0]["settled"]
    kept = State(60, {}, optimizer_state(two), groups=group_numbers(BUILT_IN, two))
    tensors, meta = pack(kept)
    save_file(tensors, tmp_path / "state.safetensors")
    state = unpack(load_file(tmp_path / "state.safetensors"), meta)
    again = make_optimizer(BUILT_IN, [([part[0]], 1.0), ([part[1]], 16.0)], 1.0)
    restore_optimizer(again, state.optimizer)
    set_group_numbers(again, state.groups)
    steps(again, part, range(60, 80))
    assert all(torch.equal(a, b) for a, b in zip(whole, part, strict=True))
    assert found_rate(again) == found_rate(one)


def test_a_gradient_of_zeros_leaves_all_as_it_is():
    own = factors()
    before = [p.detach().clone() for p in own]
    optimizer = make_optimizer(BUILT_IN, [(list(own), 1.0)], 1.0)
    for parameter in own:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(own, before, strict=True))
    assert found_rate(optimizer) == D0


@pytest.mark.parametrize(
    ("learning_rate", "factor"), [(1e-4, 1.0), (5e-3, 1.0), (0.1, 0.1), (0.5, 0.5), (1.0, 1.0), (0.0, 0.0)]
)
def test_a_rate_of_other_optimisers_is_no_factor(learning_rate, factor):
    """The default 1e-4 left in the widget counts as 1; at 0 nothing moves."""
    assert rate_factor(learning_rate) == factor
    for name in (BUILT_IN, "Prodigy"):
        made = make_optimizer(name, [(list(factors()), learning_rate)], learning_rate)
        assert [group["lr"] for group in made.param_groups] == [factor]


def test_the_text_encoders_rate_is_a_ratio():
    """A tenth of learning_rate is a tenth of what is found, whatever learning_rate is."""
    for learning_rate in (1e-4, 1.0):
        own, text = factors(), factors()
        groups = [(list(own), learning_rate), (list(text), learning_rate / 10)]
        made = make_optimizer(BUILT_IN, groups, learning_rate)
        assert [group["lr"] for group in made.param_groups] == pytest.approx([1.0, 0.1])


def test_muon_steps_matrices_and_adamw_the_rest():
    """Against torch.optim.Muon and torch.optim.AdamW on their own, and the length of Muon's step by hand.

    The step of a matrix [3, 8] has orthonormal rows, times 0.2 sqrt(8): its root mean square is 0.2 lr, within the
    error of Newton and Schulz's five iterations (singular values of .7 to 1.2).
    """
    torch.manual_seed(0)
    matrix, vector, filters = (torch.nn.Parameter(torch.randn(*shape)) for shape in ((3, 8), (5,), (2, 3, 3, 3)))
    row = torch.nn.Parameter(torch.randn(1, 8))
    every = [vector, matrix, row, filters]
    copies = [torch.nn.Parameter(p.detach().clone()) for p in every]
    mine = make_optimizer("Muon", [(every[:2], 1e-2), (every[2:], 3e-2)], 1e-2)
    muon = torch.optim.Muon([copies[1]], lr=1e-2, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(
        [{"params": [copies[0]], "lr": 1e-2}, {"params": copies[2:], "lr": 3e-2}], weight_decay=0.0
    )
    for _ in range(3):
        before = matrix.detach().clone()
        for parameter, copy in zip(every, copies, strict=True):
            parameter.grad = torch.randn_like(parameter)
            copy.grad = parameter.grad.clone()
        for optimizer in (mine, muon, adamw):
            optimizer.step()
        assert 0.7 * 0.2 < (matrix - before).square().mean().sqrt() / 1e-2 < 1.25 * 0.2
    assert all(torch.equal(a, b) for a, b in zip(every, copies, strict=True))
    names = [set(mine.state_dict()["state"][i]) for i in range(4)]
    assert names == [{"step", "exp_avg", "exp_avg_sq"}, {"momentum_buffer"}, *[{"step", "exp_avg", "exp_avg_sq"}] * 2]


def test_muon_needs_a_newer_torch(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(InputError, match=r"optimizer is Muon.*torch 2\.9.*update torch, or choose AdamW"):
        check_optimizer("Muon", CPU)


@pytest.mark.parametrize("name", [name for name, kind in OPTIMIZERS.items() if kind.package])
def test_a_missing_package_is_named_with_the_mend(monkeypatch, name):
    """The error names the widget, the package and what to do; the choice is in the list all the same."""
    kind = OPTIMIZERS[name]
    monkeypatch.setitem(sys.modules, kind.package, None)  # as where it is not installed
    assert name in CHOICES["optimizer"]
    with pytest.raises(InputError) as error:
        check_optimizer(name, CPU)
    for part in (f"optimizer is {name}", f"package {kind.package}", "pip install", f"choose {kind.instead}"):
        assert part in str(error.value)


def test_a_package_that_is_broken_is_no_missing_one(monkeypatch):
    def broken(name):
        raise RuntimeError("no CUDA\nand more")

    monkeypatch.setattr(optimizers.importlib, "import_module", broken)
    with pytest.raises(InputError, match=r"bitsandbytes cannot be loaded \(RuntimeError: no CUDA\); install it anew"):
        check_optimizer("AdamW 8-bit", CPU)


def test_a_package_that_makes_no_step_here(monkeypatch):
    class Lame(schedulefree.AdamWScheduleFree):
        def step(self, closure=None):
            raise NotImplementedError("no kernel")

    monkeypatch.setattr(schedulefree, "AdamWScheduleFree", Lame)
    with pytest.raises(InputError, match=r"schedulefree makes no step on cpu \(NotImplementedError: no kernel\)"):
        check_optimizer("schedule-free AdamW", CPU)


@pytest.mark.parametrize("name", ["AdamW", "Prodigy (built in)", "Muon", "schedule-free AdamW", "Prodigy"])
def test_what_is_installed_passes(name):
    check_optimizer(name, CPU)


def trained(steps, seen=None, scored=True, after=lambda training: None, **changes):
    layer, lora = one_layer(12, 9, rank=3, alpha=3)
    torch.manual_seed(1)
    target = torch.randn(9)
    inputs = torch.randn(64, 5, 12)

    def loss(micro):
        return (layer(inputs[micro]) - target).square().mean()

    def held_out():
        if seen is not None:
            seen.append(copy_of(lora))
        return (layer(inputs[-1]) - target).square().mean().item()

    settings = {"steps": steps, "learning_rate": 1e-2, "batch_size": 1, "seed": 0, "max_grad_norm": 0.0}
    config = TrainConfig(**settings | {"optimizer": "schedule-free AdamW"} | changes)
    training, events = Training(lora, loss, config, held_out if scored else None), []
    with lora.attached():
        for event in training:
            events.append(event)
            after(training)
    return training, lora, events


def test_schedule_free_scores_and_keeps_its_evaluation_weights():
    """By schedulefree 1.4.1's own eval() on the parameters after the last step.

    What is scored and what is the result are x; what goes on training is y, to the bit: scoring changes no number.
    """
    seen = []
    training, lora, _ = trained(20, seen, keep="last")
    training_weights = copy_of(lora)
    result = training.result()
    assert all(torch.equal(tensor, lora.state_dict()[name]) for name, tensor in training_weights.items())
    assert all(torch.equal(result[name], seen[-1][name]) for name in result)
    training._optimizer.eval()
    x = copy_of(lora)
    assert all(torch.equal(result[name], x[name]) for name in result)
    assert not any(torch.equal(x[n], training_weights[n]) for n in x if not n.endswith("alpha"))
    other = trained(20, keep="last", scored=False)[1]
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in training_weights.items())


def test_the_running_mean_of_schedule_free_is_of_its_evaluation_weights():
    """By hand: x after each step by schedulefree's eval(), averaged with the decay min(0.9, n / (n + 9))."""
    weights = []

    def after(training):
        own = copy_of(training.trainable)
        training._optimizer.eval()
        weights.append(copy_of(training.trainable))
        training._optimizer.train()
        training.trainable.load_state_dict(own)

    training, *_ = trained(12, keep="last", ema=0.9, after=after)
    start = one_layer(12, 9, rank=3, alpha=3)[1].state_dict()
    for name, mean in training.result().items():
        wanted = start[name]
        for step, each in enumerate(weights, 1):
            decay = min(0.9, step / (step + 9))
            wanted = decay * wanted + (1 - decay) * each[name]
        assert torch.allclose(mean, wanted, rtol=1e-5, atol=1e-7)


def limited_training(steps, ema=0.0, **more):
    """Schedule-free AdamW towards a change of the norm 14.7, with max_norm 1: (training, adapters, loss of micro)."""
    layer, _ = one_layer(12, 9, rank=3, alpha=3)
    lora = AdapterSet(LoraAdapter, {"a.to_q": layer}, AdapterConfig(3, 3.0, 0), CPU, max_norm=1.0)
    torch.manual_seed(1)
    inputs = torch.randn(64, 12)
    wanted = layer(inputs) + inputs @ (torch.randn(9, 3) @ torch.randn(3, 12)).t()
    settings = {"steps": steps, "learning_rate": 1e-3, "batch_size": 1, "seed": 0, "max_grad_norm": 0.0, "ema": ema}
    config = TrainConfig(**settings | {"optimizer": "schedule-free AdamW", "lr_schedule": "constant", "keep": "last"})

    def loss(micro):
        return (layer(inputs) - wanted).square().mean()

    return Training(lora, loss, config, **more), lora, loss


def test_schedule_free_keeps_to_the_limit_of_the_norm():
    """By hand, the algorithm of Defazio et al. 2024 with a projection after each step: x is the mean of all projected z
    (all steps weigh the same at a constant rate), and y = (1 - beta1) z + beta1 x.

    What is used is then as good as where the gradients are taken. Where y alone is limited, z grows past it, x passes
    through zero, and after 400 of these steps its change has the norm 0.01 and the loss 29.25 of 29.29.
    """
    training, lora, loss = limited_training(400)
    optimizer, sums, beta1 = training._optimizer, [torch.zeros_like(p) for p in training.parameters], 0.9
    with lora.attached():
        start = loss(0).item()
        for event in training:
            inner = [optimizer.state[p]["z"] for p in training.parameters]
            for total, z in zip(sums, inner, strict=True):
                total += z
            for p, z, total in zip(training.parameters, inner, sums, strict=True):
                wanted = (1 - beta1) * z + beta1 * total / event.step
                assert torch.allclose(p, wanted, atol=1e-5)
            assert lora.limited <= 1
        at_y = loss(0).item()
        with training.evaluated():
            at_x = loss(0).item()
            norm = lora["a.to_q"].change_norm().item()
    assert 0.5 < norm <= 1.0 + 1e-5
    assert start - at_x > 0.9 * (start - at_y) > 2.0


def test_a_limited_schedule_free_training_goes_on_to_the_bit():
    """From the state of step 90 of 120, against a run without a stop; the limit acts before and after."""

    def trained_to(until, state=None):
        training, lora, _ = limited_training(120, ema=0.9, until=until, state=state)
        with lora.attached():
            return training, [event.step for event in training if lora.limited]

    whole, limited = trained_to(120)
    half, before = trained_to(90)
    rest, after = trained_to(120, half.state())
    assert before
    assert after
    assert before + after == limited
    assert all(torch.equal(tensor, rest.result()[name]) for name, tensor in whole.result().items())
    assert not all(torch.equal(tensor, half.result()[name]) for name, tensor in whole.result().items())


def test_the_running_mean_keeps_to_the_limit_of_the_norm():
    """By hand: the mean of the factors (4, 1/4) and (1/4, 4), whose products are 1, is (2.125, 2.125): product 4.5."""
    training, lora, _ = limited_training(1, ema=0.9)
    up, down = lora["a.to_q"].up, lora["a.to_q"].down
    for mean in training.average._means:
        mean.zero_()[0, 0] = 2.125
    with training.evaluated():
        assert lora["a.to_q"].change_norm().item() == pytest.approx(1.0)
        assert up[0, 0].item() == pytest.approx(down[0, 0].item()) == pytest.approx(1.0)


def test_schedule_free_has_no_schedule_and_a_warm_up():
    assert schedule_of("schedule-free AdamW", "cosine") == "constant"
    assert schedule_of(BUILT_IN, "cosine") == "cosine"
    _, _, events = trained(10, lr_schedule="cosine", warmup_steps=3)
    rates = [event.learning_rate / 1e-2 for event in events]
    assert rates == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 7)


def test_a_step_tells_the_rate_that_is_found():
    """d of the step times the schedule's factor, of the factor that starts at random."""
    training, _, events = trained(40, optimizer=BUILT_IN, lr_schedule="constant", learning_rate=1e-4)
    rates = [event.learning_rate for event in events]
    assert rates[0] == D0
    assert rates == sorted(rates)
    assert rates[-1] > 10 * D0
    assert training.found_rate >= rates[-1]
    _, _, events = trained(2, optimizer=BUILT_IN, lr_schedule="constant", learning_rate=0.5)
    assert events[0].learning_rate == 0.5 * D0


@pytest.mark.parametrize("groups", ['[{"d": "x"}]', '[{"d": true}]', "[3]", '[{"d": 1e999}]', "7"])
def test_a_damaged_estimate_is_no_state(groups):
    _, meta = pack(State(3, {}, {}, groups=[{"d": 1.0}]))
    damaged = meta["bespoke.state"].replace('[{"d": 1.0}]', groups)
    assert damaged != meta["bespoke.state"]
    assert unpack({}, meta).groups == [{"d": 1.0}]
    with pytest.raises(UnusableState, match="it is no state of a training"):
        unpack({}, {"bespoke.state": damaged})


def test_the_state_of_another_optimiser_is_refused_before_anything_changes():
    """prodigyopt's and our Prodigy keep the same tensors of a matrix that is not zero, but other numbers."""
    training, lora, _ = trained(3, optimizer=BUILT_IN)
    state = training.state()
    assert "groups" in pack(state)[1]["bespoke.state"]
    before = copy_of(lora)
    with pytest.raises(UnusableState, match="keeps other numbers: d, .* in 1 groups; here it keeps d, .* in 2 groups"):
        training.restore(replace(state, groups=state.groups[:1]))
    with pytest.raises(UnusableState, match="other numbers: d, k in 2 groups; here"):
        training.restore(replace(state, groups=[{"d": 1.0, "k": 3}] * 2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in lora.state_dict().items())
    assert "groups" not in pack(trained(3, optimizer="AdamW")[0].state())[1]["bespoke.state"]  # as version 0.1
