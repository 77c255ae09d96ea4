"""Each kind of adapter through the nodes: trained, saved, resumed, and read by ComfyUI and by the format's program."""

import json

import pytest
import tiny
import torch
from bespoke.training.adapters import ADAPTERS
from bespoke.training.errors import InputError
from bespoke.training.layer_names.parts import TRAINED_PARTS, layers_of
from helpers import sprite_set
from safetensors import safe_open
from safetensors.torch import load_file

KINDS = list(ADAPTERS)
each = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def smallest(comfyui):
    return tiny.patcher(tiny.SMALLEST), tiny.clip(), tiny.vae()


def train(run_node, models, kind, **changes):
    model, clip, vae = models
    settings = dict(
        steps=4, batch_size=2, rank=2, alpha=1.0, learning_rate=2e-2, seed=5, precision="fp32", resume=False,
        targets="attention + feed-forward", adapter=kind,
    )  # fmt: skip
    images = sprite_set(2, 4, side=64, colour="teal")
    return run_node("BespokeTrainLora", model=model, clip=clip, vae=vae, images=images, **settings | changes)


def movement(one, other):
    return (one - other).abs().max()


def saved(run_node, comfyui, lora, run, name, **settings):
    import folder_paths

    file, *_ = run_node(
        "BespokeSaveLora", lora=lora, filename_prefix=f"kinds/{name}", run=run, dtype="fp32", **settings
    )
    return file, folder_paths.get_full_path("loras", file)


@each
def test_a_training_writes_the_parts_of_its_kind_and_says_so(run_node, smallest, comfyui, kind):
    _, lora, _, run, report, _ = train(run_node, smallest, kind)
    for parts in layers_of(lora).values():
        assert {*parts} <= {*TRAINED_PARTS[kind]}
    assert report.startswith(f"{kind} of rank 2, alpha 1 (strength alpha/rank = 0.5) on 40 layers ")
    assert "NOTHING WAS LEARNED" not in report
    _, path = saved(run_node, comfyui, lora, run, kind)
    with safe_open(path, "pt") as file:
        meta = file.metadata()
    assert meta["ss_network_module"] == ("networks.lora" if kind == "LoRA" else "lycoris.kohya")
    args = json.loads(meta.get("ss_network_args", "{}"))
    assert args.get("algo") == {"LoRA": None, "DoRA": "lora", "LoKr": "lokr", "LoHa": "loha"}[kind]


@each
def test_the_trained_model_is_the_base_with_the_deltas(run_node, smallest, comfyui, kind):
    """The oracle is `delta_weight`, which PEFT and LyCORIS are compared with in test_adapter_kinds.py of the unit
    tests. The MODEL of the trainer, Inject from the file, and for all kinds but DoRA core's loader give the same."""
    import comfy.model_management
    from bespoke.training.adapters import AdapterConfig, AdapterSet

    comfy.model_management.unload_all_models()
    trained, lora, _, run, *_ = train(run_node, smallest, kind)
    network = smallest[0].model.diffusion_model
    names = [name.removeprefix("diffusion_model.") for name in layers_of(lora)]
    layers = {f"diffusion_model.{name}": network.get_submodule(name) for name in names}
    adapters = AdapterSet(ADAPTERS[kind], layers, AdapterConfig(2, 1.0, 0), torch.device("cpu"))
    adapters.load_state_dict(lora)
    plain = tiny.predict(smallest[0])
    deltas = {f"{name}.weight": ("diff", (adapters[name].delta_weight().detach(),)) for name in layers}
    by_hand = smallest[0].clone()
    by_hand.add_patches(deltas)
    wanted = tiny.predict(by_hand)
    moved = movement(wanted, plain)
    assert moved > 1e-2 * plain.abs().max()
    assert movement(tiny.predict(trained), wanted) < 1e-4 * moved
    for form in ("kohya", "comfy"):
        file, _ = saved(run_node, comfyui, lora, run, f"{kind}-{form}", key_format=form)
        injected, *_ = run_node("BespokeInjectLora", model=smallest[0], lora_name=file, strength_model=1.0)
        assert movement(tiny.predict(injected), wanted) < 1e-4 * moved
        if kind != "DoRA":
            cores, _ = run_node(
                "LoraLoader", model=smallest[0], clip=smallest[1], lora_name=file, strength_model=1.0, strength_clip=1.0
            )
            assert movement(tiny.predict(cores), wanted) < 1e-4 * moved


@pytest.mark.parametrize("kind", ["LoRA", "LoKr", "LoHa"])  # LyCORIS' DoRA: test_foreign_strengths.py
def test_lycoris_reads_the_file(run_node, smallest, comfyui, kind):
    """Every layer of the file, with the change that `delta_weight` gives. Its own reader, and layers of these names."""
    from bespoke.training.adapters import AdapterConfig
    from lycoris import create_lycoris_from_weights

    _, lora, _, run, *_ = train(run_node, smallest, kind)
    _, path = saved(run_node, comfyui, lora, run, f"lycoris-{kind}")
    network, net, adapters = smallest[0].model.diffusion_model, torch.nn.Module(), {}
    for name, parts in layers_of(lora).items():
        layer = network.get_submodule(name.removeprefix("diffusion_model."))
        plain = torch.nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
        plain.load_state_dict(layer.state_dict())
        known = run.info.names[name]["kohya"].removeprefix("lora_unet_")
        net.add_module(known, plain)
        adapters[known] = ADAPTERS[kind].for_layer(name, plain, AdapterConfig(2, 1.0, 0), torch.device("cpu"))
        adapters[known].load_state_dict({part.removeprefix("."): tensor for part, tensor in parts.items()})
    weights = {key.replace("lora_unet_", "lycoris_"): tensor for key, tensor in load_file(path).items()}
    wrapper, _ = create_lycoris_from_weights(1.0, None, net, weights)
    assert len(wrapper.loras) == len(adapters) == 40
    for module in wrapper.loras:
        name = module.lora_name.removeprefix("lycoris_")
        layer, x = getattr(net, name), torch.randn(3, getattr(net, name).in_features)
        wanted = torch.nn.functional.linear(x, layer.weight + adapters[name].delta_weight(), layer.bias)
        plain = layer(x)
        module.apply_to()
        assert (layer(x) - wanted).norm() < 1e-5 * (wanted - plain).norm() + 1e-5
        module.restore()


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_ends_on_the_same_bits(run_node, smallest, runs, kind):
    whole = train(run_node, smallest, kind, steps=4, resume=False)[1]
    train(run_node, smallest, kind, steps=2, resume=True, lr_schedule="constant")
    again = train(run_node, smallest, kind, steps=4, resume=True, lr_schedule="constant")[1]
    straight = train(run_node, smallest, kind, steps=4, resume=False, lr_schedule="constant")[1]
    assert all(torch.equal(again[key], straight[key]) for key in straight)
    assert whole.keys() == straight.keys()


@each
def test_a_training_goes_on_from_its_own_kind(run_node, smallest, kind):
    """With another alpha too, the effect is the same at the start."""
    first = train(run_node, smallest, kind)
    plain, before = tiny.predict(smallest[0]), tiny.predict(first[0])
    for alpha in (1.0, 3.0):
        model, *_ = train(run_node, smallest, kind, lora=first[1], alpha=alpha, steps=1, learning_rate=1e-12)
        assert movement(tiny.predict(model), before) < 1e-4 * movement(before, plain)
    others = [other for other in KINDS if other != kind and (kind, other) != ("LoRA", "DoRA")]
    for other in others:
        with pytest.raises(InputError, match="the LoRA to go on from is no"):
            train(run_node, smallest, other, lora=first[1], steps=1)


def test_dora_goes_on_from_a_lora(run_node, smallest):
    first = train(run_node, smallest, "LoRA")
    plain, before = tiny.predict(smallest[0]), tiny.predict(first[0])
    model, *_ = train(run_node, smallest, "DoRA", lora=first[1], steps=1, learning_rate=1e-12)
    assert movement(tiny.predict(model), before) < 1e-4 * movement(before, plain)


@pytest.mark.parametrize(("name", "value"), [("weight_function", [lambda weight: weight * 2]), ("scale_weight", 2.0)])
def test_dora_is_refused_where_a_layer_computes_with_more_than_its_weight(name, value):
    """As ComfyUI patches an offloaded weight at each call: the norm would be that of another matrix."""
    from bespoke.nodes.lora.training.technique import _check_own_weights

    layers = {"a": torch.nn.Linear(3, 4), "b": torch.nn.Linear(3, 4)}
    _check_own_weights(layers)
    setattr(layers["b"], name, value)
    with pytest.raises(InputError, match="adapter is DoRA.*1 layers, such as b, are.*choose adapter LoRA"):
        _check_own_weights(layers)


def test_rslora_is_a_larger_alpha(run_node, smallest):
    """alpha / sqrt(rank) at rank 4 and alpha 2 is 1: the same as alpha 4 without it, to the bit."""
    one = train(run_node, smallest, "LoRA", rank=4, alpha=2.0, rslora=True)
    two = train(run_node, smallest, "LoRA", rank=4, alpha=4.0)
    assert all(torch.equal(one[1][key], two[1][key]) for key in two[1])
    assert "strength alpha/root of rank = 1)" in one[4]


def test_the_report_says_where_a_lokr_has_no_alpha(run_node, smallest):
    """By LyCORIS' own module: for a layer whose larger block is whole its scale is 1, whatever alpha is."""
    from lycoris.modules.lokr import LokrModule

    _, lora, _, _, report, *_ = train(run_node, smallest, "LoKr", rank=4, alpha=2.0, steps=1)
    network, scales = smallest[0].model.diffusion_model, []
    for name in layers_of(lora):
        layer = network.get_submodule(name.removeprefix("diffusion_model."))
        plain = torch.nn.Linear(layer.in_features, layer.out_features)
        scales.append(float(LokrModule("a", plain, lora_dim=4, alpha=2.0).scale))
    whole = scales.count(1.0)
    assert 0 < whole <= len(scales) == 40
    assert set(scales) <= {0.5, 1.0}
    assert f"{whole} of 40 layers have a strength of 1 instead: rank 4" in report
    assert "instead" not in train(run_node, smallest, "LoKr", rank=4, alpha=4.0, steps=1)[4]


@pytest.mark.parametrize("kind", ["LoKr", "LoHa"])
def test_diffusers_names_are_refused_where_diffusers_reads_no_such_kind(run_node, smallest, kind):
    _, lora, _, run, *_ = train(run_node, smallest, kind, steps=1)
    with pytest.raises(InputError, match=f"diffusers reads no {kind}.*choose kohya"):
        run_node("BespokeSaveLora", lora=lora, filename_prefix="kinds/no", run=run, key_format="diffusers")


@pytest.mark.parametrize("value", [0, -2])
def test_a_factor_that_divides_nothing_is_refused(run_node, smallest, value):
    with pytest.raises(InputError, match=f"lokr_factor is {value}; give -1, or 1 or more"):
        train(run_node, smallest, "LoKr", lokr_factor=value)


@each
def test_the_memory_of_a_step_is_forecast(smallest, kind):
    """On fake tensors, with the kind's own forward pass. LoHa and LoKr keep no copy of the layers' weights."""
    from bespoke.nodes.bridge.trainer import Models
    from bespoke.nodes.lora.training.request import LoraData, LoraRequest
    from bespoke.nodes.lora.training.technique import LoraTechnique, encode_dataset
    from bespoke.training.config import TrainConfig

    models = Models(*smallest)
    request = LoraRequest(TrainConfig(steps=3, learning_rate=1e-3, batch_size=2, seed=5), adapter=kind, rank=2)
    dataset = encode_dataset(models, LoraData(sprite_set(2, 4, side=64, colour="teal")), request)
    memory = LoraTechnique(request, models, dataset).step_memory(2, None)
    plain = LoraTechnique(LoraRequest(request.train, rank=2), models, dataset).step_memory(2, None)
    assert memory.trained > 0
    assert memory.kept < 1.5 * plain.kept


@pytest.mark.parametrize(("dtype", "most"), [("fp16", 1e-3), ("bf16", 5e-3)])
def test_a_half_precision_file_keeps_a_small_change_of_dora(comfyui, dtype, most):
    """The file's parts through LyCORIS' own module and by equation 5 of the paper, in float64: the change is 0.3 % of
    the weight, and the file's is the trained one but for the rounding of two factors.

    With the magnitude in the file's own type it is off by 6 % in fp16 and 49 % in bf16.
    """
    from bespoke.nodes.lora.files import as_file
    from bespoke.training.adapters import AdapterConfig
    from lycoris.modules.locon import LoConModule

    torch.manual_seed(0)
    layer = torch.nn.Linear(320, 320, bias=False).requires_grad_(False)
    base = layer.weight.double()
    adapter = ADAPTERS["DoRA"].for_layer("a", layer, AdapterConfig(10, 8 * 10**0.5, 0), torch.device("cpu"))
    adapter.up.data.normal_()
    change = adapter.low_rank_change(adapter.up, adapter.down).detach()
    adapter.up.data *= 0.003 * layer.weight.norm() / change.norm()
    adapter.dora_scale.data *= 1 + 0.001 * torch.randn(320, 1)
    trained = adapter.delta_weight().detach()
    tensors, _ = as_file({f"diffusion_model.a.{k}": v for k, v in adapter.state_dict().items()}, None, "x", dtype=dtype)
    parts = {key.removeprefix("lora_unet_a."): tensor for key, tensor in tensors.items()}
    assert {part: str(tensor.dtype) for part, tensor in parts.items() if part != "dora_scale"} == dict.fromkeys(
        ("lora_up.weight", "lora_down.weight", "alpha"), {"fp16": "torch.float16", "bf16": "torch.bfloat16"}[dtype]
    )
    up, down, alpha, magnitude = (
        parts[part].double() for part in ("lora_up.weight", "lora_down.weight", "alpha", "dora_scale")
    )
    changed = base + alpha / 10 * up @ down
    by_hand = magnitude * changed / changed.norm(dim=1, keepdim=True) - base
    assert (by_hand - trained).norm() < most * trained.norm()
    module = LoConModule("a", layer, lora_dim=10, alpha=float(parts["alpha"]), weight_decompose=True)
    module.lora_up.weight.data.copy_(parts["lora_up.weight"])
    module.lora_down.weight.data.copy_(parts["lora_down.weight"])
    module.dora_scale = torch.nn.Parameter(parts["dora_scale"])
    x = torch.randn(7, 320)
    plain = layer(x)
    module.apply_to()
    moved = layer(x) - plain
    module.restore()
    assert (moved - x @ trained.t()).norm() < (most + 1e-3) * (x @ trained.t()).norm()


def test_peft_computes_a_half_precision_file_of_dora(comfyui):
    """PEFT's layer in bf16 with the parts in the types of the file, as diffusers loads them, against equation 5 of the
    paper by hand."""
    from bespoke.nodes.lora.files import as_file
    from bespoke.training.adapters import AdapterConfig
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from run_records import make_run

    torch.manual_seed(0)
    layer = torch.nn.Linear(12, 20).requires_grad_(False)
    adapter = ADAPTERS["DoRA"].for_layer("a", layer, AdapterConfig(3, 3.0, 0), torch.device("cpu"))
    adapter.up.data.normal_()
    adapter.dora_scale.data *= 1.2
    names = {"diffusion_model.a": {"diffusers": "unet.a"}}
    lora = {f"diffusion_model.a.{k}": v for k, v in adapter.state_dict().items()}
    tensors, _ = as_file(lora, make_run("a", "lora", {}, "base", 1, names=names), "x", "diffusers", "bf16")
    net = torch.nn.Sequential()
    net.add_module("a", torch.nn.Linear(12, 20))
    net.a.load_state_dict(layer.state_dict())
    model = get_peft_model(net, LoraConfig(r=3, lora_alpha=3.0, target_modules=["a"], use_dora=True)).bfloat16()
    state = {key.replace("unet.", "base_model.model."): tensor for key, tensor in tensors.items()}
    assert {str(tensor.dtype) for tensor in state.values()} == {"torch.bfloat16", "torch.float32"}
    found = set_peft_model_state_dict(model, state, low_cpu_mem_usage=True)
    assert not found.unexpected_keys
    x = torch.randn(4, 12)
    wanted = torch.nn.functional.linear(x, layer.weight + adapter.delta_weight(), layer.bias)
    out = model(x.bfloat16())
    assert out.dtype == torch.bfloat16
    assert (out.float() - wanted).norm() < 0.02 * wanted.norm()
