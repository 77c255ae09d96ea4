"""LoRA against arithmetic by hand, and a second kind of adapter through the same loop."""

import hashlib
import math

import pytest
import torch
from bespoke.training.adapters import ADAPTERS, AdapterConfig, AdapterSet, LoraAdapter
from bespoke.training.errors import InputError
from bespoke.training.layer_names.parts import UNKNOWN, layers_of
from bespoke.training.loop import Training
from torch import nn
from toy_training import NAME, BiasAdapter, copy_of, one_layer, train_config

CPU = torch.device("cpu")


def lora(layers, rank=2, alpha=2.0, seed=0, **more):
    return AdapterSet(LoraAdapter, layers, AdapterConfig(rank, alpha, seed), CPU, **more)


def make_layers():
    """Layers whose names are not in alphabetical order; one lies within another."""
    torch.manual_seed(0)
    layers = {"unet.b": nn.Linear(6, 4), "text.a": nn.Linear(5, 3), "unet.b.inner": nn.Linear(4, 4, bias=False)}
    return {name: layer.requires_grad_(False) for name, layer in layers.items()}


# --- LoRA -----------------------------------------------------------------------------------------------------------


def test_initial_values_are_a_function_of_seed_and_layer_name():
    """To the bit: a uniform draw in +-1 / sqrt(in) from the generator of (seed, "down", name), and zeros."""
    adapters = lora(make_layers(), rank=3, seed=11)
    for name, (rows, columns) in {"unet.b": (4, 6), "text.a": (3, 5), "unet.b.inner": (4, 4)}.items():
        digest = hashlib.blake2b(f"11/down/{name}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        bound = 1 / math.sqrt(columns)
        down = torch.rand(3, columns, generator=generator) * 2 * bound - bound
        assert torch.equal(adapters[name].down, down)
        assert torch.equal(adapters[name].up, torch.zeros(rows, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_is_one_fused_multiply_add(dtype):
    """To the bit, in the type of the layer's output."""
    layer, adapters = one_layer()
    nn.init.normal_(adapters[NAME].up)
    x = torch.randn(2, 5, 10, dtype=dtype)
    base = layer.to(dtype)(x)
    down, up = adapters[NAME].down.to(dtype), adapters[NAME].up.to(dtype)
    hidden = (x @ down.T).view(10, 3)
    with adapters.attached():
        adapted = layer(x)
    assert adapted.dtype == dtype
    assert torch.equal(adapted, torch.addmm(base.view(10, 7), hidden, up.T, alpha=2.0).view(2, 5, 7))


def test_adapters_act_while_attached_and_not_afterwards():
    layer, adapters = one_layer()
    x = torch.randn(2, 5, 10)
    base = layer(x)
    with adapters.attached():
        assert torch.equal(layer(x), base)  # up starts at zero
        nn.init.normal_(adapters[NAME].up)
        expected = base + 2.0 * x @ adapters[NAME].down.T @ adapters[NAME].up.T
        assert torch.allclose(layer(x), expected, atol=1e-5)
    assert torch.equal(layer(x), base)
    assert not layer._forward_hooks
    assert sum(p.numel() for p in adapters.parameters()) == 3 * (10 + 7)


def test_the_merge_delta_is_what_the_adapter_adds():
    layer, adapters = one_layer()
    nn.init.normal_(adapters[NAME].up)
    x = torch.randn(5, 10)
    with torch.no_grad(), adapters.attached():
        adapted = layer(x)
    delta = adapters[NAME].delta_weight()
    assert delta.shape == (7, 10)
    assert adapters[NAME].delta_bias() is None
    assert torch.allclose(nn.functional.linear(x, layer.weight + delta, layer.bias), adapted, atol=1e-5)


def test_state_dict_has_the_names_of_files_in_the_order_of_layers():
    adapters = lora(make_layers(), rank=2, alpha=3.0)
    state = adapters.state_dict()
    assert list(state) == [
        f"{name}.{part}"
        for name in ("unet.b", "text.a", "unet.b.inner")
        for part in ("lora_up.weight", "lora_down.weight", "alpha")
    ]
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert state["text.a.alpha"].shape == ()
    assert state["text.a.alpha"].item() == 3.0
    assert list(dict(adapters.named_parameters())) == [key for key in state if not key.endswith("alpha")]
    assert state["text.a.lora_up.weight"].data_ptr() == adapters["text.a"].up.data_ptr()  # no copy, as in torch


def test_state_round_trip_in_half_precision():
    layers = make_layers()
    one, other = lora(layers, seed=1), lora(layers, seed=2)
    for adapter in one:
        nn.init.normal_(adapter.up)
    half = {key: tensor.half() for key, tensor in one.state_dict().items()}
    other.load_state_dict(half)
    for key, tensor in other.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, half[key].float())


def test_another_alpha_is_folded_into_up_and_a_missing_one_is_the_rank():
    layers = {"a": nn.Linear(5, 4)}
    one, other = lora(layers, rank=2, alpha=6.0), lora(layers, rank=2, alpha=3.0)
    nn.init.normal_(one["a"].up)
    state = one.state_dict()
    other.load_state_dict(state)
    assert torch.equal(other["a"].up, one["a"].up * 2)
    assert torch.allclose(other["a"].delta_weight(), one["a"].delta_weight())
    assert other.state_dict()["a.alpha"].item() == 3.0
    del state["a.alpha"]
    other.load_state_dict(state)
    assert torch.equal(other["a"].up, one["a"].up * (2 / 3))


@pytest.mark.parametrize("kind", list(ADAPTERS))
@pytest.mark.parametrize("alpha", [2.1, 0.7, 8 * 10**0.5])
def test_an_own_state_comes_back_to_the_bit(kind, alpha):
    """A state has alpha in float32, which rounds 2.1: the up factor must not be scaled by the rounding.

    Otherwise a resumed run differs from one of one sitting. alpha 8 * 10^0.5 is that of rsLoRA at rank 10.
    """
    adapters = AdapterSet(ADAPTERS[kind], make_layers(), AdapterConfig(2, alpha, 0), torch.device("cpu"))
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(3))
    before = copy_of(adapters)
    adapters.load_state_dict(before)
    assert all(torch.equal(tensor, before[key]) for key, tensor in adapters.state_dict().items())


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing():
    layers = make_layers()
    adapters = lora(layers)
    before, state = copy_of(adapters), copy_of(lora(layers, seed=5))
    more = lora(layers | {"unet.c": nn.Linear(3, 3)}).state_dict()
    with pytest.raises(InputError, match=r"1 layers that are not trained here, such as unet\.c.*choose the targets"):
        adapters.load_state_dict(more)
    with pytest.raises(InputError, match=r"nothing for unet\.b\.inner; choose the targets"):
        adapters.load_state_dict({key: value for key, value in state.items() if not key.startswith("unet.b.inner")})
    with pytest.raises(InputError, match=r"rank 4 at unet\.b and the shape \(4, 4\); \(4, 2\) is wanted: set rank"):
        adapters.load_state_dict(lora(layers, rank=4).state_dict())
    assert all(torch.equal(value, before[key]) for key, value in adapters.state_dict().items())


def test_up_factor_has_16_times_the_learning_rate():
    """LoRA+, also where layers have their own rate. The page shows the rate of the first group as the run's."""
    adapters = lora(make_layers(), rates={"text.": 1e-5})
    unet, text = [adapters["unet.b"], adapters["unet.b.inner"]], [adapters["text.a"]]
    groups = adapters.parameter_groups(1e-3)
    # Saved states refer to parameters by their position in this order.
    expected = [
        ([a.down for a in unet], 1e-3),
        ([a.up for a in unet], 1e-3 * 16),
        ([a.down for a in text], 1e-5),
        ([a.up for a in text], 1e-5 * 16),
    ]
    assert [rate for _, rate in groups] == [rate for _, rate in expected]
    for (parameters, _), (wanted, _) in zip(groups, expected, strict=True):
        assert len(parameters) == len(wanted)
        assert all(one is other for one, other in zip(parameters, wanted, strict=True))


def test_layers_without_gradient_are_allowed_where_optional():
    layers = {"unet.b": nn.Linear(6, 4).requires_grad_(False), "text.a": nn.Linear(6, 4).requires_grad_(False)}

    def steps(prefix):
        adapters = lora(layers, optional_prefix=prefix)
        nn.init.normal_(adapters["unet.b"].up)
        training = Training(adapters, lambda micro: layers["unet.b"](torch.ones(1, 6)).square().mean(), train_config())
        with adapters.attached():
            return len(list(training))

    assert steps("text.") == 3
    with pytest.raises(InputError, match="got no gradient"):
        steps(None)


def test_other_layers_and_empty_targets_are_refused():
    for layer in (nn.Conv1d(3, 4, 3), nn.LayerNorm(4)):
        with pytest.raises(InputError, match=f"c is a {type(layer).__name__}; only linear layers and 2D convolutions"):
            lora({"c": layer})
    for layer in (nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")):
        with pytest.raises(InputError, match=r"c is a convolution with groups.*set conv_rank to 0"):
            lora({"c": layer})
    with pytest.raises(InputError, match="no layer"):
        lora({})


# --- another kind ---------------------------------------------------------------------------------------------------


def test_a_bias_only_adapter_trains_through_the_same_loop():
    """Against arithmetic by hand: SGD on the mean squared distance of a layer's output to a target."""
    layer = nn.Linear(6, 4).requires_grad_(False)
    adapters = AdapterSet(BiasAdapter, {"unet.b": layer}, AdapterConfig(1, 1.0, 0), CPU)
    x, target = torch.randn(5, 6), torch.randn(4)
    base, expected, momentum = layer(x), torch.zeros(4), torch.zeros(4)
    config = train_config(steps=4, optimizer="SGD", learning_rate=0.5, max_grad_norm=0.0)
    losses = []
    with adapters.attached():
        for step in Training(adapters, lambda micro: (layer(x) - target).square().mean(), config):
            losses.append(step.loss)
            gradient = 2 * (base + expected - target).mean(0) / 4
            momentum = 0.9 * momentum + gradient
            expected = expected - 0.5 * momentum
            assert torch.allclose(adapters["unet.b"].diff_b, expected, atol=1e-6)
        assert torch.allclose(layer(x), base + expected, atol=1e-6)
    assert losses[-1] < losses[0]
    assert torch.equal(layer(x), base)
    assert adapters["unet.b"].delta_bias().shape == (4,)


def test_state_of_another_kind_is_checked_and_loaded():
    adapters = AdapterSet(BiasAdapter, make_layers(), AdapterConfig(1, 1.0, 0), CPU)
    assert list(adapters.state_dict()) == ["unet.b.diff_b", "text.a.diff_b", "unet.b.inner.diff_b"]
    state = {key: torch.randn_like(value) for key, value in adapters.state_dict().items()}
    adapters.load_state_dict(state)
    assert all(torch.equal(value, state[key]) for key, value in adapters.state_dict().items())
    with pytest.raises(InputError, match=r"the bias to go on from has the shape \(2,\) at text\.a\.diff_b; \(3,\) is"):
        adapters.load_state_dict(state | {"text.a.diff_b": torch.zeros(2)})
    with pytest.raises(InputError, match=r"the bias to go on from has nothing for text\.a"):
        adapters.load_state_dict({key: value for key, value in state.items() if key != "text.a.diff_b"})
    with pytest.raises(InputError, match=r"1 layers that are not trained here, such as x"):
        adapters.load_state_dict(state | {"x.diff_b": torch.zeros(2)})


def test_the_registry_names_the_kinds():
    assert ADAPTERS["LoRA"] is LoraAdapter
    assert [kind.KIND for kind in ADAPTERS.values()] == list(ADAPTERS)


# --- every kind -----------------------------------------------------------------------------------------------------

every_kind = pytest.mark.parametrize("kind", [*ADAPTERS.values(), BiasAdapter], ids=lambda kind: kind.KIND)


def random_values(adapters):
    """All parameters, drawn anew, so that no zero hides a part."""
    for parameter in adapters.parameters():
        nn.init.normal_(parameter)
    return adapters


@every_kind
def test_each_kind_starts_without_effect_and_then_is_its_deltas(kind):
    layers = make_layers()
    adapters = AdapterSet(kind, layers, AdapterConfig(2, 3.0, 0), CPU)
    inputs = {name: torch.randn(2, 5, layer.in_features) for name, layer in layers.items()}
    with adapters.attached():
        started = {name: layer(inputs[name]) for name, layer in layers.items()}
    assert all(torch.equal(layer(inputs[name]), started[name]) for name, layer in layers.items())
    random_values(adapters)
    for name, layer in layers.items():
        with adapters.attached():
            adapted = layer(inputs[name])
        weight_delta, bias_delta = adapters[name].delta_weight(), adapters[name].delta_bias()
        added = torch.zeros_like(adapted)
        if weight_delta is not None:
            assert weight_delta.shape == layer.weight.shape
            added = added + inputs[name] @ weight_delta.T
        if bias_delta is not None:
            added = added + bias_delta
        assert torch.allclose(adapted, layer(inputs[name]) + added, atol=1e-5)
        half = layer(inputs[name]).bfloat16()
        assert adapters[name](inputs[name].bfloat16(), half).dtype == torch.bfloat16
        adapted.square().mean().backward()
    assert all(parameter.grad is not None for parameter in adapters.parameters())


@every_kind
def test_each_kind_has_initial_values_rates_and_a_state(kind):
    layers, config = make_layers(), AdapterConfig(2, 3.0, 0)
    adapters = AdapterSet(kind, layers, config, CPU)
    alone = AdapterSet(kind, {"text.a": layers["text.a"]}, config, CPU).state_dict()
    assert all(torch.equal(value, adapters.state_dict()[key]) for key, value in alone.items())  # of seed and name alone
    assert {parameter.dtype for parameter in adapters.parameters()} == {torch.float32}
    grouped = [id(parameter) for group, _ in adapters.parameter_groups(1e-3) for parameter in group]
    assert sorted(grouped) == sorted(id(parameter) for parameter in adapters.parameters())  # each is trained, once
    in_files = layers_of(adapters.state_dict())
    assert list(in_files) == list(layers)
    assert not any(UNKNOWN in parts for parts in in_files.values())
    state = copy_of(random_values(adapters))
    other = AdapterSet(kind, layers, AdapterConfig(2, 3.0, 1), CPU)
    other.load_state_dict(state)
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())
