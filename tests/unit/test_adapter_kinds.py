"""DoRA, LoKr and LoHa against the programs that define them, PEFT and LyCORIS, and against finite differences."""

import pytest
import torch
from bespoke.training.adapters import ADAPTERS, AdapterConfig, DoraAdapter
from bespoke.training.adapters.lokr import factorization
from bespoke.training.errors import InputError
from random_adapter import gradients, random_adapter
from torch import nn

CPU = torch.device("cpu")
KINDS = ("LoRA", "DoRA", "LoKr", "LoHa")


def layer_and_adapter(kind, sizes=(12, 20), rank=3, alpha=2.0, factor=-1, bias=True):
    """A frozen layer with random weights, and an adapter of the kind whose parameters are all random."""
    torch.manual_seed(1)
    layer = nn.Linear(*sizes, bias=bias).requires_grad_(False)
    return layer, random_adapter(kind, layer, AdapterConfig(rank, alpha, 5, factor))


# --- the mathematics ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_finite_differences(kind, bias):
    """In float64. DoRA's norm is a constant in the backward pass (section 4.3 of the paper), so its finite differences
    hold it still too."""
    layer, adapter = layer_and_adapter(kind, sizes=(6, 8), rank=2, bias=bias)
    layer, adapter = layer.double(), adapter.double()
    if kind == "DoRA":
        norm = adapter._norm(CPU).double()
        adapter._norm = lambda device: norm
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    names, values = zip(*adapter.named_parameters(), strict=True)

    def output(x, *parameters):
        return torch.func.functional_call(adapter, dict(zip(names, parameters, strict=True)), (x, layer(x)))

    assert torch.autograd.gradcheck(output, (x, *values), atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 7, 12, 64, 127, 250, 320, 360, 640, 768, 1024, 1280, 3072, 5120])
def test_axes_are_divided_as_lycoris_divides_them(size):
    from lycoris.functional.general import factorization as theirs

    for factor in (-1, 1, 2, 3, 4, 5, 7, 8, 16, 100):
        if factor <= size:
            assert factorization(size, factor) == theirs(size, factor), factor


# --- a step of the reference program ------------------------------------------------------------------------------


def lycoris_module(kind, layer, adapter, rank, alpha, factor):
    """LyCORIS' module of the same kind and size, with the adapter's numbers."""
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule

    if kind == "LoHa":
        module = LohaModule("a", layer, lora_dim=rank, alpha=alpha)
    else:
        module = LokrModule("a", layer, lora_dim=rank, alpha=alpha, factor=factor)
    own = adapter.state_dict()
    theirs = {name: value for name, value in module.state_dict().items() if name in own}
    assert {name: tuple(value.shape) for name, value in theirs.items()} == {
        name: tuple(value.shape) for name, value in own.items()
    }
    assert float(theirs["alpha"]) == pytest.approx(float(own["alpha"]))
    module.load_state_dict({name: value.clone() for name, value in own.items()}, strict=False)
    return module


@pytest.mark.parametrize("sizes", [(12, 20), (64, 64), (5, 7)])
@pytest.mark.parametrize(
    ("kind", "rank", "factor"), [("LoHa", 3, -1), ("LoKr", 2, -1), ("LoKr", 2, 4), ("LoKr", 50, 4)]
)
def test_a_step_is_that_of_lycoris(kind, rank, factor, sizes):
    """Output and gradients with equal weights, to 1e-5 of their size."""
    layer, adapter = layer_and_adapter(kind, sizes, rank, 2.0, factor)
    module = lycoris_module(kind, layer, adapter, rank, 2.0, factor)
    x = torch.randn(4, 3, sizes[0])
    ours = adapter(x, layer(x))
    module.apply_to()
    theirs = layer(x)
    module.restore()
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()
    names = [name for name, _ in adapter.named_parameters()]
    own = gradients([dict(adapter.named_parameters())[name] for name in names], ours)
    other = gradients([dict(module.named_parameters())[name] for name in names], theirs)
    for name, one, two in zip(names, own, other, strict=True):
        assert (one - two).norm() < 1e-5 * two.norm(), name
    # Not `get_diff_weight`, which multiplies a LoHa's scale a second time.
    merged = nn.functional.linear(x, layer.weight + adapter.delta_weight(), layer.bias)
    assert (merged - theirs).norm() < 1e-5 * theirs.norm()


@pytest.mark.parametrize("bias", [False, True])
def test_a_step_of_dora_is_that_of_peft(bias):
    """Output and gradients with equal weights, to 1e-5 of their size."""
    from peft import LoraConfig, get_peft_model

    layer, adapter = layer_and_adapter("DoRA", rank=3, alpha=2.0, bias=bias)
    net = nn.Sequential()
    net.add_module("a", nn.Linear(12, 20, bias=bias))
    net.a.load_state_dict(layer.state_dict())
    model = get_peft_model(net, LoraConfig(r=3, lora_alpha=2.0, target_modules=["a"], use_dora=True))
    theirs = model.base_model.model.a
    theirs.lora_A["default"].weight.data.copy_(adapter.down)
    theirs.lora_B["default"].weight.data.copy_(adapter.up)
    theirs.lora_magnitude_vector["default"].weight.data.copy_(adapter.dora_scale.flatten())
    x = torch.randn(4, 3, 12)
    ours, wanted = adapter(x, layer(x)), theirs(x)
    assert (ours - wanted).norm() < 1e-5 * wanted.norm()
    own = gradients([adapter.down, adapter.up, adapter.dora_scale], ours)
    vector = theirs.lora_magnitude_vector["default"].weight
    other = gradients([theirs.lora_A["default"].weight, theirs.lora_B["default"].weight, vector], wanted)
    for one, two in zip(own, other, strict=True):
        assert (one.view_as(two) - two).norm() < 1e-5 * two.norm()
    model.merge_adapter()
    merged = theirs.get_base_layer().weight
    assert (layer.weight + adapter.delta_weight() - merged).norm() < 1e-5 * merged.norm()


def test_dora_takes_the_weight_of_a_device_without_a_kernel_for_dequantize():
    """By torch's own table of kernels: MPS and XPU have none, and so has the meta device, on which this is tried."""
    table = torch._C._dispatch_has_kernel_for_dispatch_key
    assert not any(table("aten::dequantize.self", device) for device in ("MPS", "XPU", "Meta"))
    layer, adapter = layer_and_adapter("DoRA")
    assert torch.equal(adapter._base(), layer.weight)
    layer.to("meta")
    assert adapter._base().shape == layer.weight.shape
    layer.weight = nn.Parameter(torch.quantize_per_tensor(torch.ones(20, 12), 0.5, 0, torch.qint8), False)
    assert torch.equal(adapter._base(), torch.ones(20, 12))


def test_dora_goes_on_from_a_lora_without_a_change():
    """A LoRA has no magnitude: the one that keeps its weight as it is is taken."""
    layer, lora = layer_and_adapter("LoRA")
    adapter = DoraAdapter.for_layer("a", layer, AdapterConfig(3, 2.0, 9), CPU)
    adapter.load_state_dict(adapter.convert_state("a", lora.state_dict()))
    assert torch.allclose(adapter.delta_weight(), lora.delta_weight(), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_alpha_of_one_number_in_a_list_is_that_number(kind):
    """Some programs write alpha as [1]; by hand, twice the alpha is twice the change."""
    layer, adapter = layer_and_adapter(kind, rank=2)
    state = {name: tensor.clone() for name, tensor in adapter.state_dict().items()} | {"alpha": torch.tensor([4.0])}
    other = ADAPTERS[kind].for_layer("a", layer, AdapterConfig(2, 2.0, 9), CPU)
    other.load_state_dict(other.convert_state("a", state))
    wanted = adapter.delta_weight() * 2
    if kind == "DoRA":
        changed = layer.weight + 2 * adapter.low_rank_change(adapter.up, adapter.down)
        wanted = adapter.dora_scale * changed / changed.norm(dim=1, keepdim=True) - layer.weight
    assert torch.allclose(other.delta_weight(), wanted, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_layers_keep_their_type(kind):
    layer, adapter = layer_and_adapter(kind)
    x = torch.randn(2, 12).bfloat16()
    out = adapter(x, layer.bfloat16()(x))
    assert out.dtype == torch.bfloat16
    assert all(gradient.dtype == torch.float32 for gradient in gradients(list(adapter.parameters()), out.float()))


@pytest.mark.parametrize(
    ("kind", "rank", "factor", "words"),
    [
        ("LoKr", 1, -1, r"the shape \(5, 2\) at a.lokr_w2_a; \(5, 1\) is wanted: set rank and lokr_factor"),
        ("LoKr", 8, -1, r"no lokr_w2 at a; \(5, 4\) is wanted: set rank and lokr_factor"),
        ("LoKr", 2, 2, r"the shape .* at a.lokr_w1; .* is wanted: set rank and lokr_factor"),
        ("LoHa", 3, -1, r"the shape \(20, 2\) at a.hada_w1_a; \(20, 3\) is wanted: set rank to its rank"),
    ],
)
def test_a_state_of_another_rank_is_refused_with_the_setting_to_change(kind, rank, factor, words):
    """It had said to choose other targets, or to wire in another model, which mends nothing."""
    _, of_file = layer_and_adapter(kind, rank=2)
    _, adapter = layer_and_adapter(kind, rank=rank, factor=factor)
    with pytest.raises(InputError, match=words):
        adapter.convert_state("a", of_file.state_dict())
