"""Adapters of convolutions against LyCORIS, PEFT and finite differences; dropout and max_norm against kohya's rules."""

import contextlib

import pytest
import torch
from bespoke.training.adapters import ADAPTERS, AdapterConfig, AdapterSet, LoraAdapter
from bespoke.training.adapters.dropout import Dropout, current_draw, part_of_batch, same_draw_again
from bespoke.training.layer_names.parts import UNKNOWN, layers_of
from random_adapter import gradients, random_adapter
from torch import nn
from torch.nn import functional
from toy_training import copy_of

CPU = torch.device("cpu")
KINDS = ("LoRA", "DoRA", "LoKr", "LoHa")
# A residual block's, a downsampler's, a skip connection's.
CONVOLUTIONS = {
    "3x3": dict(kernel_size=3, padding=1),
    "stride": dict(kernel_size=3, stride=2, padding=1),
    "1x1": dict(kernel_size=1),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_convolution = pytest.mark.parametrize("which", CONVOLUTIONS)


def layer_and_adapter(kind, which="3x3", channels=(6, 8), rank=2, alpha=3.0, factor=-1, bias=True):
    """A frozen convolution with random weights, and an adapter of the kind whose parameters are all random."""
    torch.manual_seed(1)
    layer = nn.Conv2d(*channels, bias=bias, **CONVOLUTIONS[which]).requires_grad_(False)
    return layer, random_adapter(kind, layer, AdapterConfig(rank, alpha, 5, factor))


def close(one, other, tolerance=1e-5):
    return one.shape == other.shape and (one - other).norm() <= tolerance * other.norm()


# --- convolutions -------------------------------------------------------------------------------------------------


@each_kind
@each_convolution
@pytest.mark.parametrize("keep", [False, True])
def test_the_gradient_is_that_of_finite_differences(kind, which, keep):
    """In float64, with rank dropout too. DoRA's norm is a constant in the backward pass (section 4.3 of the paper), so
    its finite differences hold it still."""
    layer, adapter = layer_and_adapter(kind, which, channels=(4, 6))
    layer, adapter = layer.double(), adapter.double()
    if kind == "DoRA":
        norm = adapter._norm(CPU).double()
        adapter._norm = lambda device: norm
    x = torch.randn(2, 4, 4, 5, dtype=torch.float64, requires_grad=True)
    names, values = zip(*adapter.named_parameters(), strict=True)
    mask = torch.rand(2, adapter.dropout_units, dtype=torch.float64).round() * 2 if keep else None

    def run(x, *values):
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(adapter, given, (x, layer(x), mask))

    assert torch.autograd.gradcheck(run, (x, *[value.detach().requires_grad_() for value in values]))


@each_kind
@each_convolution
@pytest.mark.parametrize("rank", [2, 50])
@pytest.mark.parametrize("factor", [-1, 2])
def test_a_step_is_that_of_lycoris(kind, which, rank, factor):
    """Output, gradients, delta and the shapes of all parts, with equal weights, to 1e-5 of their size. DoRA's gradients
    are PEFT's (below): LyCORIS lets one flow through the norm."""
    from lycoris.modules.locon import LoConModule
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule

    layer, adapter = layer_and_adapter(kind, which, (12, 20), rank, 2.0, factor)
    module = {
        "LoHa": lambda: LohaModule("a", layer, lora_dim=rank, alpha=2.0),
        "LoKr": lambda: LokrModule("a", layer, lora_dim=rank, alpha=2.0, factor=factor),
    }.get(kind, lambda: LoConModule("a", layer, lora_dim=rank, alpha=2.0, weight_decompose=kind == "DoRA"))()
    own = adapter.state_dict()
    theirs = {name: value for name, value in module.state_dict().items() if name in own}
    assert {name: value.shape for name, value in theirs.items()} == {name: value.shape for name, value in own.items()}
    assert float(theirs["alpha"]) == pytest.approx(float(own["alpha"]))
    for name, parameter in module.named_parameters():
        parameter.data.copy_(own[name])
    if kind == "DoRA":
        module.dora_scale = nn.Parameter(own["dora_scale"].clone())
    x = torch.randn(2, 12, 6, 5)
    ours = adapter(x, layer(x))
    module.apply_to()
    wanted = layer(x)
    module.restore()
    assert close(ours, wanted)
    merged = functional.conv2d(x, layer.weight + adapter.delta_weight(), layer.bias, layer.stride, layer.padding)
    assert close(merged, wanted)
    if kind != "DoRA":
        names = [name for name, _ in adapter.named_parameters()]
        found = gradients([dict(adapter.named_parameters())[name] for name in names], ours)
        other = gradients([dict(module.named_parameters())[name] for name in names], wanted)
        for name, one, two in zip(names, found, other, strict=True):
            assert close(one, two), name


@pytest.mark.parametrize("kind", ["LoRA", "DoRA"])
@each_convolution
def test_a_step_is_that_of_peft(kind, which):
    """Output, gradients and merged weight with equal weights, to 1e-5 of their size."""
    from peft import LoraConfig, get_peft_model

    layer, adapter = layer_and_adapter(kind, which)
    net = nn.Sequential()
    net.add_module("a", nn.Conv2d(6, 8, **CONVOLUTIONS[which]))
    net.a.load_state_dict(layer.state_dict())
    model = get_peft_model(net, LoraConfig(r=2, lora_alpha=3.0, target_modules=["a"], use_dora=kind == "DoRA"))
    theirs = model.base_model.model.a
    theirs.lora_A["default"].weight.data.copy_(adapter.down)
    theirs.lora_B["default"].weight.data.copy_(adapter.up)
    parameters, others = [adapter.down, adapter.up], [theirs.lora_A["default"].weight, theirs.lora_B["default"].weight]
    if kind == "DoRA":
        vector = theirs.lora_magnitude_vector["default"].weight  # [1, out, 1, 1]
        vector.data.copy_(adapter.dora_scale.transpose(0, 1))
        parameters.append(adapter.dora_scale)
        others.append(vector)
    x = torch.randn(2, 6, 6, 5)
    ours, wanted = adapter(x, layer(x)), theirs(x)
    assert close(ours, wanted)
    for one, two in zip(gradients(parameters, ours), gradients(others, wanted), strict=True):
        assert close(one.view_as(two), two)
    model.merge_adapter()
    merged = theirs.get_base_layer().weight
    assert close(layer.weight + adapter.delta_weight(), merged)


@each_kind
@each_convolution
def test_each_kind_starts_without_effect_and_has_a_state(kind, which):
    layer, _ = layer_and_adapter(kind, which)
    adapters = AdapterSet(ADAPTERS[kind], {"unet.a": layer}, AdapterConfig(2, 3.0, 0), CPU)
    x = torch.randn(2, 6, 6, 5)
    with adapters.attached():
        assert torch.equal(layer(x), adapters._layers["unet.a"]._conv_forward(x, layer.weight, layer.bias))
    for parameter in adapters.parameters():
        nn.init.normal_(parameter)
    state = copy_of(adapters)
    assert not any(UNKNOWN in parts for parts in layers_of(state).values())
    other = AdapterSet(ADAPTERS[kind], {"unet.a": layer}, AdapterConfig(2, 6.0, 1), CPU)
    other.load_state_dict(state)
    assert close(other["unet.a"].delta_weight(), adapters["unet.a"].delta_weight())
    half = layer.bfloat16()
    out = adapters["unet.a"](x.bfloat16(), half(x.bfloat16()), torch.ones(2, adapters["unet.a"].dropout_units))
    assert out.dtype == torch.bfloat16


def test_a_1x1_convolution_goes_on_from_factors_that_are_matrices():
    """Some programs write them as [rank, in] and [out, rank]."""
    _, adapter = layer_and_adapter("LoRA", "1x1")
    state = {part: tensor.flatten(1) if tensor.ndim else tensor for part, tensor in adapter.state_dict().items()}
    converted = adapter.convert_state("a", state)
    assert torch.equal(converted["lora_down.weight"], adapter.down)
    assert torch.equal(converted["lora_up.weight"], adapter.up)


# --- max_norm -----------------------------------------------------------------------------------------------------


def kohyas_max_norm(up, down, alpha, max_norm):
    """The arithmetic of kohya's `apply_max_norm_regularization`, written anew: (up, down)."""
    change = alpha / len(down) * up.flatten(1) @ down.flatten(1)
    norm = change.norm().clamp(min=max_norm / 2)
    ratio = norm.clamp(max=max_norm) / norm
    return up * ratio**0.5, down * ratio**0.5


@pytest.mark.parametrize("kind", ["LoRA", "DoRA"])
@pytest.mark.parametrize("max_norm", [0.5, 2.0, 1e3])
def test_max_norm_is_kohyas(kind, max_norm):
    """On a linear layer and a convolution; what is short enough keeps its bits."""
    conv, _ = layer_and_adapter(kind)
    layers = {"unet.a": conv, "unet.b": nn.Linear(6, 8).requires_grad_(False)}
    adapters = AdapterSet(ADAPTERS[kind], layers, AdapterConfig(2, 3.0, 0), CPU, max_norm=max_norm)
    for parameter in adapters.parameters():
        nn.init.normal_(parameter)
    wanted = {
        name: kohyas_max_norm(one.up.detach(), one.down.detach(), 3.0, max_norm) for name, one in adapters.items()
    }
    adapters.after_step()
    for name, (up, down) in wanted.items():
        equal = torch.equal if max_norm == 1e3 else close
        assert equal(adapters[name].up.detach(), up)
        assert equal(adapters[name].down.detach(), down)
    assert adapters.limited == (0 if max_norm == 1e3 else 2)


@each_kind
@pytest.mark.parametrize("rank", [2, 50])
def test_max_norm_is_the_longest_change_of_each_kind(kind, rank):
    """The direction stays; DoRA's low-rank part is what is limited, as kohya's code finds it."""
    _, adapter = layer_and_adapter(kind, rank=rank)

    def change():
        if isinstance(adapter, LoraAdapter):
            return adapter.low_rank_change(adapter.up, adapter.down).detach()
        return adapter.delta_weight().detach()

    before = change()
    ratio = adapter.limit_norm(0.25)
    assert float(ratio) == pytest.approx(0.25 / float(before.norm()), rel=1e-5)
    assert close(change(), before * (0.25 / before.norm()))


# --- dropout ------------------------------------------------------------------------------------------------------


def dropping_set(kind="LoRA", rank=0.0, module=0.0, layers=None, **more):
    layers = layers or {"unet.a": nn.Linear(6, 8).requires_grad_(False), "unet.b": layer_and_adapter(kind)[0]}
    dropout = Dropout(rank, module)
    adapters = AdapterSet(ADAPTERS[kind], layers, AdapterConfig(4, 4.0, 0), CPU, dropout=dropout, **more)
    torch.manual_seed(2)
    for parameter in adapters.parameters():
        nn.init.normal_(parameter)
    return layers, adapters


def test_rank_dropout_is_kohyas_arithmetic():
    """Each sample's own ranks, times 1 / (1 - p): org + up (down x * mask) * scale / (1 - p)."""
    layers, adapters = dropping_set(rank=0.4)
    x, picture = torch.randn(3, 5, 6), torch.randn(3, 6, 4, 4)
    with adapters.attached(), adapters.dropping(7, 11, [0, 1, 2]):
        masks = {name: current_draw().of_layer(name, x) for name in layers}
        out, of_picture = layers["unet.a"](x), layers["unet.b"](picture)
    linear, conv = adapters["unet.a"], adapters["unet.b"]
    zero_or_one = {name: mask != 0 for name, mask in masks.items()}
    assert all(set(mask.unique().tolist()) <= {0.0, float(torch.tensor(1.0) / (1 - 0.4))} for mask in masks.values())
    wanted = layers["unet.a"](x) + ((x @ linear.down.t()) * zero_or_one["unet.a"][:, None]) @ linear.up.t() / 0.6
    assert torch.allclose(out, wanted, atol=1e-5)
    hidden = functional.conv2d(picture, conv.down, padding=1) * zero_or_one["unet.b"][:, :, None, None]
    wanted = layers["unet.b"](picture) + functional.conv2d(hidden, conv.up) / 0.6
    assert torch.allclose(of_picture, wanted, atol=1e-4)


def test_draws_are_a_function_of_seed_micro_batch_and_position():
    """Not of the process, of what was drawn before, or of the global generator; each comes as often as it should."""
    layers, adapters = dropping_set(rank=0.25, module=0.25)
    x = torch.randn(4, 6)

    def draws(seed, micro, positions):
        torch.rand(3)
        with adapters.dropping(seed, micro, positions):
            found = current_draw()
            return found.keep, found.dropped

    whole, dropped = draws(1, 5, [0, 1, 2, 3])
    half, also_dropped = draws(1, 5, [2, 3])
    assert torch.equal(whole[2:], half)
    assert dropped == also_dropped
    assert not torch.equal(whole, draws(1, 6, [0, 1, 2, 3])[0])
    assert not torch.equal(whole, draws("1/prior", 5, [0, 1, 2, 3])[0])
    many = [draws(1, micro, [0]) for micro in range(800)]
    assert float(torch.cat([keep for keep, _ in many]).mean()) == pytest.approx(1.0, abs=0.03)
    assert sum(len(gone) for _, gone in many) / (len(many) * len(layers)) == pytest.approx(0.25, abs=0.04)
    assert current_draw() is None
    with adapters.attached():
        assert torch.equal(layers["unet.a"](x), adapters["unet.a"](x, nn.Linear.forward(layers["unet.a"], x)))


def test_a_part_of_a_batch_has_its_own_masks():
    _, adapters = dropping_set(rank=0.5)
    x = torch.randn(3, 6)
    with adapters.dropping(1, 2, [0, 1, 2]):
        whole = current_draw().of_layer("unet.a", x)
        with part_of_batch([2, 0]):
            part = current_draw().of_layer("unet.a", x[:2])
            twice = current_draw().of_layer("unet.a", torch.cat([x, x[:1]]))
        assert torch.equal(part, whole[[2, 0]])
        assert torch.equal(twice, whole[[2, 2, 0, 0]])
    with adapters.dropping(1, 2, [0, 1]), pytest.raises(Exception, match="3 rows for a batch of 2.*rank_dropout to 0"):
        current_draw().of_layer("unet.a", x)


def test_layers_whose_rows_are_no_samples_share_a_mask():
    layers = {"text.a": nn.Linear(6, 8).requires_grad_(False)}
    _, adapters = dropping_set(rank=0.5, layers=layers, optional_prefix="text.")
    with adapters.dropping(1, 2, [0, 1]):
        assert current_draw().of_layer("text.a", torch.randn(5, 7, 6)).shape == (1, 4)


def test_module_dropout_leaves_a_layer_as_it_is_and_without_gradient():
    layers, adapters = dropping_set(module=0.5)
    x = torch.randn(2, 6)
    plain, seen = layers["unet.a"](x), set()
    for micro in range(12):
        with adapters.attached(), adapters.dropping(0, micro, [0, 1]):
            gone = "unet.a" in current_draw().dropped
            assert torch.equal(layers["unet.a"](x), plain) == gone
            seen.add(gone)
    assert seen == {True, False}
    assert {id(one) for one in adapters.optional_parameters} == {id(one) for one in adapters.parameters()}


@each_kind
def test_rank_dropout_has_the_gradient_of_the_ranks_that_are_left(kind):
    """A dropped rank of LoRA or DoRA learns nothing from a sample; a dropped output of LoHa or LoKr is the base's."""
    layers, adapters = dropping_set(kind, rank=0.5)
    x = torch.randn(1, 6, 4, 4)
    with adapters.attached(), adapters.dropping(3, 1, [0]):
        keep = current_draw().of_layer("unet.b", x)[0]
        out = layers["unet.b"](x)
    assert 0 < int((keep == 0).sum()) < len(keep)
    if kind in ("LoRA", "DoRA"):
        gradient = gradients([adapters["unet.b"].down], out)[0]
        assert torch.equal(gradient.flatten(1).any(1), keep != 0)
    else:
        assert torch.equal((out == layers["unet.b"](x)).flatten(2).all(2)[0], keep == 0)


@pytest.mark.parametrize("other_thread", [False, True])
def test_the_second_pass_of_a_checkpoint_drops_what_the_first_dropped(other_thread):
    """Computed again in the backward pass, after another call has drawn anew: the gradient is that without one. Also in
    another thread, as autograd runs an accelerator's."""
    from concurrent.futures import ThreadPoolExecutor

    from torch.utils.checkpoint import checkpoint

    layers, adapters = dropping_set(rank=0.5, module=0.3)
    block, x = nn.Sequential(layers["unet.a"], nn.SiLU()), torch.randn(3, 6)

    def run(checkpointed):
        out = 0.0
        with adapters.attached():
            for micro in range(4):
                with adapters.dropping(0, micro, [0, 1, 2]):
                    contexts = lambda: (contextlib.nullcontext(), same_draw_again())  # noqa: E731
                    made = checkpoint(block, x, use_reentrant=False, context_fn=contexts) if checkpointed else block(x)
                    out = out + made * (micro + 1)
            parameters = [adapters["unet.a"].down, adapters["unet.a"].up]
            if not other_thread:
                return gradients(parameters, out)
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(gradients, parameters, out).result()

    for one, other in zip(run(True), run(False), strict=True):
        assert torch.equal(one, other)
