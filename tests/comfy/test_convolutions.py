"""Adapters of a U-Net's convolutions through the nodes: which layers, the files, and the programs that read them."""

import json

import pytest
import tiny
import torch
from bespoke.nodes.bridge.models import TARGETS, target_layers
from bespoke.training.adapters import ADAPTERS
from bespoke.training.errors import InputError
from bespoke.training.layer_names.parts import layers_of
from helpers import sprite_set
from safetensors import safe_open
from safetensors.torch import load_file

KINDS = list(ADAPTERS)
each = pytest.mark.parametrize("kind", KINDS)
ALL = "attention + feed-forward"
# Of `tiny.SMALLEST`, by hand: 4 transformers of 10 + 2 layers, 5 residual blocks of 3, 2 with a skip connection.
LAYERS = 4 * 12 + 5 * 3 + 2


@pytest.fixture(scope="module")
def smallest(comfyui):
    return tiny.patcher(tiny.SMALLEST), tiny.clip(), tiny.vae()


def train(run_node, models, kind="LoRA", **changes):
    model, clip, vae = models
    settings = dict(
        steps=3, batch_size=2, rank=4, alpha=2.0, conv_rank=2, learning_rate=2e-2, seed=5, precision="fp32",
        resume=False, targets=ALL, adapter=kind,
    )  # fmt: skip
    images = sprite_set(2, 4, side=64, colour="teal")
    return run_node("BespokeTrainLora", model=model, clip=clip, vae=vae, images=images, **settings | changes)


@pytest.fixture(scope="module")
def trained(run_node, smallest):
    """{kind: what the trainer gave}, each trained once."""
    found = {}

    def of(kind):
        if kind not in found:
            found[kind] = train(run_node, smallest, kind)
        return found[kind]

    return of


def movement(one, other):
    return (one - other).abs().max()


def saved(run_node, lora, run, name, **settings):
    import folder_paths

    file, *_ = run_node("BespokeSaveLora", lora=lora, filename_prefix=f"conv/{name}", run=run, dtype="fp32", **settings)
    return file, folder_paths.get_full_path("loras", file)


# --- which layers -------------------------------------------------------------------------------------------------


def network_of(kind):
    """SD1.5's or SDXL's U-Net in its real layout, on no device."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    sd15 = tiny.SD15 | {"model_channels": 320, "channel_mult": [1, 2, 4, 4], "context_dim": 768, "num_heads": 8}
    sdxl = tiny.SDXL | {
        "model_channels": 320, "channel_mult": [1, 2, 4], "context_dim": 2048, "num_heads": -1, "num_head_channels": 64,
        "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "transformer_depth_middle": 10, "adm_in_channels": 2816, "num_classes": "sequential",
    }  # fmt: skip
    config = {"sd15": sd15, "sdxl": sdxl}[kind]
    return UNetModel(**config, device="meta", operations=comfy.ops.disable_weight_init)


@pytest.mark.parametrize(("kind", "lora", "locon"), [("sd15", 160, 278), ("sdxl", 700, 788)])
def test_the_layers_are_those_of_kohyas_conv_dim(comfyui, kind, lora, locon):
    """By hand from sd-scripts' rule. SD1.5: 16 transformers of 10 + 2 layers, 22 residual blocks of 3 layers, 14 with a
    skip connection, 3 down- and 3 upsamplers: 192 + 86. SDXL: 70 blocks of 10 layers, 11 transformers of 2 more, 17
    residual blocks of 3, 11 with a skip connection, 2 and 2: 722 + 66. These are the numbers that kohya's log shows."""
    network = network_of(kind)
    assert len(target_layers(network, ALL)) == lora
    found = target_layers(network, ALL, convolutions=True)
    assert len(found) == locon
    kernels = [max(getattr(layer, "kernel_size", [0])) for layer in found.values()]
    assert kernels.count(3) == {"sd15": 22 * 2 + 6, "sdxl": 17 * 2 + 4}[kind]
    assert not {"input_blocks.0.0", "out.2", "time_embed.0"} & set(found)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_every_layer_has_a_name_in_files(comfyui, kind):
    """kohya's for SD1.5 are diffusers', which ComfyUI's table gives: `down_blocks_0_resnets_0_conv1`."""
    from bespoke.nodes.bridge.models import file_names

    base = (tiny.sdxl()[0] if kind == "sdxl" else tiny.patcher(tiny.SD15)).model
    names = file_names(base)
    found = target_layers(base.diffusion_model, ALL, convolutions=True)
    assert {*found} <= {*names}
    first = names["input_blocks.1.0.in_layers.2"]
    assert first["diffusers"] == "unet.down_blocks.0.resnets.0.conv1"
    kohya = "down_blocks_0_resnets_0_conv1" if kind == "sd15" else "input_blocks_1_0_in_layers_2"
    assert first["kohya"] == f"lora_unet_{kohya}"
    known = {one.removeprefix("unet.") for forms in names.values() for one in [forms["diffusers"]]}
    assert {
        "down_blocks.0.downsamplers.0.conv",
        "up_blocks.0.upsamplers.0.conv",
        "up_blocks.0.resnets.0.conv_shortcut",
    } <= known


def test_style_and_content_blocks_are_b_loras(comfyui):
    """B-LoRA's `blora_utils.py`: to_q, to_k, to_v, to_out.0 of the attentions of up_blocks.0.attentions.0 (content) and
    .1 (style). The names are taken to ComfyUI's by its own table."""
    import comfy.utils

    network = network_of("sdxl")
    table = comfy.utils.unet_to_diffusers(
        tiny.SDXL | {"transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10]}
    )  # fmt: skip
    blocks = {"content blocks": "up_blocks.0.attentions.0.", "style blocks": "up_blocks.0.attentions.1."}
    for targets, block in blocks.items():
        wanted = {
            own.removesuffix(".weight")
            for theirs, own in table.items()
            if theirs.startswith(block) and ".attn" in theirs and theirs.endswith(".weight")
        }
        assert {*target_layers(network, targets)} == wanted
        assert len(wanted) == 80
    both = target_layers(network, "style + content blocks")
    assert {*both} == {name for targets in blocks for name in target_layers(network, targets)}
    assert all(name.startswith("output_blocks.1.1.") for name in target_layers(network, "style blocks"))


@pytest.mark.slow
def test_style_and_content_are_trained_together_and_used_apart(run_node, comfyui):
    """B-LoRA's way, with the names of its files and the blocks of Inject LoRA."""
    models = tiny.sdxl()
    lora, run = train(run_node, models, targets="style + content blocks", conv_rank=0, steps=1)[1:4:2]
    layers = {f"diffusion_model.{name}" for name in target_layers(models[0].model.diffusion_model, "style blocks")}
    assert {name for name in layers_of(lora) if ".output_blocks.1.1." in name} == layers
    assert {run.info.names[name]["diffusers"].split(".transformer")[0] for name in layers} == {
        "unet.up_blocks.0.attentions.1"
    }
    style, *_ = run_node("BespokeInjectLora", model=models[0], lora=lora, strength_model=1.0, blocks="out.1")
    assert {key.removesuffix(".weight") for key in style.patches} == layers
    content, *_ = run_node("BespokeInjectLora", model=models[0], lora=lora, strength_model=1.0, blocks="out.0")
    assert {key.removesuffix(".weight") for key in content.patches} == {*layers_of(lora)} - layers


def test_blocks_and_convolutions_are_refused_where_there_are_none(comfyui):
    import families

    sd15, flux = network_of("sd15"), families.made("flux")[0].model.diffusion_model
    for network in (sd15, flux):
        for targets in TARGETS[4:]:
            with pytest.raises(InputError, match=f"targets is '{targets[:5]}.*published for SDXL alone"):
                target_layers(network, targets)
    with pytest.raises(InputError, match="conv_rank is for .* of U-Nets.*a Flux has none.*conv_rank to 0"):
        target_layers(flux, ALL, convolutions=True)
    with pytest.raises(InputError, match="conv_rank adds convolutions of the whole U-Net; set conv_rank to 0"):
        target_layers(network_of("sdxl"), "style blocks", convolutions=True)
    custom = target_layers(sd15, "custom", "*in_layers.2, *attn2.to_k", convolutions=True)
    assert len(custom) == 22 + 16
    assert len(target_layers(sd15, "custom", "*in_layers.2, *attn2.to_k")) == 16


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@each
def test_the_trained_model_is_the_base_with_the_deltas(run_node, smallest, trained, kind):
    """The oracle is `delta_weight`, which PEFT and LyCORIS are compared with in the unit tests. The trainer's MODEL,
    Inject from the file and, for all kinds but DoRA, core's LoraLoader give the same."""
    model, lora, _, run, report, _ = trained(kind)
    assert "NOTHING WAS LEARNED" not in report
    assert f"(strength alpha/rank = 0.5), 3x3 convolutions of rank 2 on {LAYERS} layers" in report
    deltas = {f"{name}.weight": ("diff", (delta,)) for name, delta in deltas_of(smallest, lora, kind).items()}
    plain, by_hand = tiny.predict(smallest[0]), smallest[0].clone()
    by_hand.add_patches(deltas)
    wanted = tiny.predict(by_hand)
    moved = movement(wanted, plain)
    assert moved > 1e-2 * plain.abs().max()
    assert movement(tiny.predict(model), wanted) < 1e-4 * moved
    for form in ("kohya", "comfy", *(["diffusers"] if kind in ("LoRA", "DoRA") else [])):
        file, _ = saved(run_node, lora, run, f"{kind}-{form}", key_format=form)
        injected, *_ = run_node("BespokeInjectLora", model=smallest[0], lora_name=file, strength_model=1.0)
        assert movement(tiny.predict(injected), wanted) < 1e-4 * moved, form
        if kind != "DoRA" and form != "diffusers":  # core reads diffusers' older names only
            cores, _ = run_node(
                "LoraLoader", model=smallest[0], clip=smallest[1], lora_name=file, strength_model=1.0, strength_clip=1.0
            )
            assert movement(tiny.predict(cores), wanted) < 1e-4 * moved, form


def deltas_of(models, lora, kind):
    """{layer: the change of its weight} by the adapters of what was learned."""
    from bespoke.nodes.lora.training.request import LoraRequest
    from bespoke.training.adapters import AdapterSet
    from bespoke.training.config import TrainConfig

    network = models[0].model.diffusion_model
    request = LoraRequest(TrainConfig(1, 0.0, 1, 0), rank=4, alpha=2.0, conv_rank=2, adapter=kind, targets=ALL)
    layers = request.layers(network)
    configs = {f"diffusion_model.{name}": config for name, config in request.own_configs(layers).items()}
    layers = {f"diffusion_model.{name}": layer for name, layer in layers.items()}
    adapters = AdapterSet(ADAPTERS[kind], layers, request.adapter_config, torch.device("cpu"), configs=configs)
    adapters.load_state_dict(lora)
    return {name: adapter.delta_weight().detach() for name, adapter in adapters.items()}


@each
def test_lycoris_reads_the_file(run_node, smallest, trained, kind):
    """Every layer of the file, with the change that `delta_weight` gives, in LyCORIS' own reader; LoRA and DoRA as its
    LoCon. kohya's LoRA has the same parts and the strength alpha / rank of each layer."""
    from lycoris import create_lycoris_from_weights

    _, lora, _, run, *_ = trained(kind)
    _, path = saved(run_node, lora, run, f"lycoris-{kind}")
    network, net = smallest[0].model.diffusion_model, torch.nn.Module()
    names = {}
    for name in layers_of(lora):
        layer = network.get_submodule(name.removeprefix("diffusion_model."))
        plain = _plain(layer)
        names[run.info.names[name]["kohya"].removeprefix("lora_unet_")] = name
        net.add_module(run.info.names[name]["kohya"].removeprefix("lora_unet_"), plain)
    weights = {key.replace("lora_unet_", "lycoris_"): tensor for key, tensor in load_file(path).items()}
    with torch.no_grad():
        wrapper, _ = create_lycoris_from_weights(1.0, None, net, weights)
    assert len(wrapper.loras) == len(names) == LAYERS
    deltas = deltas_of(smallest, lora, kind)
    for module in wrapper.loras:
        name = module.lora_name.removeprefix("lycoris_")
        layer, delta = getattr(net, name), deltas[names[name]]
        x = torch.randn(2, layer.weight.shape[1], *((5, 6) if layer.weight.ndim == 4 else ()))
        plain, before = layer(x), layer.weight.data
        layer.weight.data = before + delta
        wanted = layer(x)
        layer.weight.data = before
        module.apply_to()
        assert (layer(x) - wanted).norm() < 1e-5 * (wanted - plain).norm() + 1e-5 * plain.norm()
        module.restore()


def _plain(layer):
    """The layer as torch's own class, with its weights."""
    bias = layer.bias is not None
    if isinstance(layer, torch.nn.Conv2d):
        made = torch.nn.Conv2d(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, bias=bias
        )
    else:
        made = torch.nn.Linear(layer.in_features, layer.out_features, bias)
    made.load_state_dict(layer.state_dict())
    return made


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["LoRA", "DoRA"])
def test_diffusers_reads_its_file(run_node, smallest, trained, kind):
    """Every key, in diffusers' own U-Net with the base's weights, through its loader and PEFT: the merged weights are
    the base's with the change that `delta_weight` gives. The alphas are in the factors, and diffusers takes the ranks
    (PEFT's `rank_pattern`) from the shapes."""
    from diffusers import UNet2DConditionModel

    _, lora, _, run, *_ = trained(kind)
    _, path = saved(run_node, lora, run, f"diffusers-{kind}", key_format="diffusers")
    unet = UNet2DConditionModel(
        block_out_channels=(32,), layers_per_block=1, cross_attention_dim=48, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), norm_num_groups=32,
    ).requires_grad_(False)  # fmt: skip
    network = smallest[0].model.diffusion_model
    names = {forms["diffusers"].removeprefix("unet."): name for name, forms in run.info.names.items()}
    before = {}
    for theirs, name in names.items():
        before[theirs] = network.get_submodule(name.removeprefix("diffusion_model.")).weight.detach().clone()
        unet.get_submodule(theirs).weight.data.copy_(before[theirs])
    tensors = load_file(path)
    unet.load_lora_adapter(tensors, prefix="unet")
    loaded = {key for key, _ in unet.named_parameters() if "lora_" in key}
    assert len(loaded) == len(tensors)
    unet.fuse_lora()
    deltas = deltas_of(smallest, lora, kind)
    for theirs, name in names.items():
        merged = unet.get_submodule(theirs).get_base_layer().weight
        rounding = 1e-6 * before[theirs].norm()
        assert (merged - before[theirs] - deltas[name]).norm() < 1e-5 * deltas[name].norm() + rounding, name


def test_the_metadata_is_kohyas(run_node, smallest):
    """`ss_network_dim` is that of the linear layers, and the rest in `ss_network_args`, as sd-scripts writes them."""
    _, lora, _, run, *_ = train(run_node, smallest, rank_dropout=0.1, module_dropout=0.2, max_norm=1.5, steps=1)
    _, path = saved(run_node, lora, run, "meta")
    with safe_open(path, "pt") as file:
        meta = file.metadata()
    args = json.loads(meta["ss_network_args"])
    assert (meta["ss_network_module"], meta["ss_network_dim"], meta["ss_network_alpha"]) == (
        "networks.lora",
        "4",
        "2.0",
    )
    assert {name: float(args[name]) for name in ("conv_dim", "conv_alpha", "rank_dropout", "module_dropout")} == {
        "conv_dim": 2, "conv_alpha": 1.0, "rank_dropout": 0.1, "module_dropout": 0.2,
    }  # fmt: skip
    assert meta["ss_scale_weight_norms"] == "1.5"


@each
def test_inspect_and_compose_read_the_convolutions(run_node, smallest, trained, kind):
    model, lora, _, run, *_ = trained(kind)
    file, _ = saved(run_node, lora, run, f"read-{kind}")
    report = next(text for text in run_node("BespokeInspectLora", lora_name=file) if isinstance(text, str))
    assert f"{LAYERS} layers" in report
    if kind != "DoRA":  # its change depends on the base, so it cannot be added up
        halves = run_node("BespokeComposeLoras", loras={"lora0": lora, "lora1": lora}, strengths="0.25\n0.75")[0]
        injected, *_ = run_node("BespokeInjectLora", model=smallest[0], lora=halves, strength_model=1.0)
        plain, wanted = tiny.predict(smallest[0]), tiny.predict(model)
        assert movement(tiny.predict(injected), wanted) < 1e-4 * movement(wanted, plain)


@pytest.mark.slow
@each
def test_the_memory_of_a_step_is_forecast(smallest, kind):
    """On fake tensors. The trained numbers are those of the real adapters; 12 bytes each with AdamW's two moments."""
    from bespoke.nodes.bridge.trainer import Models
    from bespoke.nodes.lora.training.request import LoraData, LoraRequest
    from bespoke.nodes.lora.training.technique import LoraTechnique, encode_dataset
    from bespoke.training.config import TrainConfig

    request = LoraRequest(TrainConfig(3, 1e-3, 2, 5), rank=4, conv_rank=2, adapter=kind, targets=ALL)
    dataset = encode_dataset(Models(*smallest), LoraData(sprite_set(2, 4, side=64, colour="teal")), request)
    memory = LoraTechnique(request, Models(*smallest), dataset).step_memory(2, None)
    network, config = smallest[0].model.diffusion_model, request.adapter_config
    configs = request.own_configs(request.layers(network))
    cpu, numbers = torch.device("cpu"), 0
    for name, layer in request.layers(network).items():
        adapter = ADAPTERS[kind].for_layer(name, layer, configs.get(name, config), cpu)
        numbers += sum(parameter.numel() for parameter in adapter.parameters())
    assert memory.trained == 12 * numbers


# --- going on -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@each
def test_a_training_goes_on_from_its_own_file(run_node, smallest, trained, kind):
    """Read back from the file in kohya's names, with another alpha too: the effect is the same at the start."""
    first, lora, _, run, *_ = trained(kind)
    file, _ = saved(run_node, lora, run, f"on-{kind}")
    read, *_ = run_node("BespokeLoadLora", lora_name=file)
    plain, before = tiny.predict(smallest[0]), tiny.predict(first)
    for alpha in (2.0, 3.0):
        again, *_ = train(run_node, smallest, kind, lora=read, alpha=alpha, steps=1, learning_rate=1e-12)
        assert movement(tiny.predict(again), before) < 1e-4 * movement(before, plain)
    if kind == "LoRA":
        with pytest.raises(InputError, match="has rank 2 at .*set conv_rank to its rank"):
            train(run_node, smallest, kind, lora=read, conv_rank=1, steps=1)
        with pytest.raises(InputError, match="layers that are not trained here"):
            train(run_node, smallest, kind, lora=read, conv_rank=0, steps=1)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "checkpointing"), [("LoRA", False), ("LoRA", True), ("LoHa", False)])
def test_a_resumed_run_with_dropout_ends_on_the_same_bits(run_node, smallest, runs, kind, checkpointing):
    """Its draws are of the step, not of what was drawn before."""
    own = dict(
        lr_schedule="constant", rank_dropout=0.3, module_dropout=0.2, max_norm=0.05, batch_size=2,
        gradient_checkpointing=checkpointing,
    )  # fmt: skip
    train(run_node, smallest, kind, steps=2, resume=True, **own)
    again = train(run_node, smallest, kind, steps=4, resume=True, **own)
    straight = train(run_node, smallest, kind, steps=4, resume=False, **own)
    assert all(torch.equal(again[1][key], straight[1][key]) for key in straight[1])
    assert "were left out at random in training; what is saved has all" in straight[4]
    assert "change was longer than max_norm 0.05 in " in straight[4]


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing_of_dropout(run_node, smallest):
    """The second pass of a block drops what the first has dropped. With prior pictures two calls wait for it."""
    own = dict(rank_dropout=0.4, module_dropout=0.2, steps=3, prior_images=sprite_set(9, 4, side=64, colour="red"))
    plain = train(run_node, smallest, **own)[1]
    again = train(run_node, smallest, **own, gradient_checkpointing=True)[1]
    without = train(run_node, smallest, **own | dict(rank_dropout=0.0, module_dropout=0.0))[1]
    for key in plain:
        assert torch.allclose(plain[key], again[key], atol=1e-5), key
    assert any(not torch.allclose(plain[key], without[key], atol=1e-3) for key in plain)


def test_a_batch_that_is_called_sample_by_sample_drops_the_same(run_node, smallest):
    """Another node's wrapper may read the noise level, so that each sample of a batch has a call of its own. Its check
    of the gradients runs without dropout: no layer is missed there."""
    own = dict(rank_dropout=0.4, module_dropout=0.3, steps=3, optimizer="SGD", learning_rate=0.1)
    wrapped = smallest[0].clone()
    wrapped.set_model_unet_function_wrapper(lambda call, args: call(args["input"], args["timestep"], **args["c"]))
    plain = train(run_node, smallest, **own)[1]
    again = train(run_node, (wrapped, *smallest[1:]), **own)[1]
    without = train(run_node, smallest, **own | dict(rank_dropout=0.0, module_dropout=0.0))[1]
    for key in plain:
        assert torch.allclose(plain[key], again[key], atol=1e-5), key
    assert any(not torch.allclose(plain[key], without[key], atol=1e-4) for key in plain)


def test_a_text_encoder_drops_too(run_node, smallest):
    """The rows of its layers are the prompts of a step, not its pictures; the two runs draw the same."""
    own = dict(train_text_encoder=True, rank_dropout=0.4, optimizer="SGD", learning_rate=0.1, steps=2)
    one, other = (train(run_node, smallest, **own)[1] for _ in range(2))
    without = train(run_node, smallest, **own | dict(rank_dropout=0.0))[1]
    text = [key for key in one if key.startswith("text_encoders.") and "lora_up" in key]
    assert text
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert any(bool(one[key].any()) for key in text)
    assert any(not torch.equal(one[key], without[key]) for key in text)


def test_validation_and_the_result_have_no_dropout(run_node, smallest):
    """The start scores the same with and without; so does the first step's state, which nothing was trained into."""

    others = sprite_set(30, 2, side=64, colour="teal")

    def scores(**changes):
        run = train(run_node, smallest, steps=2, validation_images=others, learning_rate=1e-12, **changes)[3]
        return [loss for _, loss in run.held_out]

    assert scores() == pytest.approx(scores(rank_dropout=0.5, module_dropout=0.5), rel=1e-6)


# --- ranks of their own -------------------------------------------------------------------------------------------


def test_layers_have_the_rank_and_alpha_of_their_line(run_node, smallest):
    """In kohya's and diffusers' file, read by core: rank 6 with alpha 3, rank 3 with the strength of the rest, 4."""
    lines = "*attn2.*, *attn2.to_k : 6 : 3\n*attn2.to_v:3,"
    model, lora, _, run, report, _ = train(run_node, smallest, targets="custom", conv_rank=0, custom_targets=lines)
    found = {}
    for name, parts in layers_of(lora).items():
        found.setdefault(name.rpartition(".attn2.")[2], set()).add(
            (parts[".lora_down.weight"].shape[0], float(parts[".alpha"]))
        )
    assert found == {"to_q": {(4, 2.0)}, "to_k": {(6, 3.0)}, "to_v": {(3, 1.5)}, "to_out.0": {(4, 2.0)}}
    assert ", 8 layers with their own rank on 16 layers (custom)" in report
    wanted, plain = tiny.predict(model), tiny.predict(smallest[0])
    for form in ("kohya", "diffusers"):
        file, _ = saved(run_node, lora, run, f"ranks-{form}", key_format=form)
        found = [run_node("BespokeInjectLora", model=smallest[0], lora_name=file, strength_model=1.0)[0]]
        if form == "kohya":
            found += run_node("LoraLoaderModelOnly", model=smallest[0], lora_name=file, strength_model=1.0)
        assert all(movement(tiny.predict(one), wanted) < 1e-4 * movement(wanted, plain) for one in found)
    alphas = [
        float(value) for key, value in load_file(saved(run_node, lora, run, "alphas")[1]).items() if "alpha" in key
    ]
    assert sorted(set(alphas)) == [1.5, 2.0, 3.0]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("*attn2.to_k : x", r"'\*attn2.to_k : x', which cannot be read; write a pattern, or pattern : rank"),
        ("*attn2.to_k : 4.5", "cannot be read"),
        ("*attn2.to_k : 4 : 2 : 1", "cannot be read"),
        (" : 4", "cannot be read"),
        ("*attn2.to_k : 0", r"rank in the line '\*attn2.to_k : 0' of custom_targets is 0; give a number from 1 to"),
        ("*attn2.to_k : 4 : nan", "alpha in the line .* is nan; give a number"),
        ("*attn2.to_k : 4 : -1", "alpha in the line .* is -1.0; give a number"),
        (" ,\n ", "custom_targets is empty"),
    ],
)  # fmt: skip
def test_a_line_that_is_wrong_is_named(run_node, smallest, line, error):
    with pytest.raises(InputError, match=error):
        train(run_node, smallest, targets="custom", custom_targets=line, conv_rank=0)


def test_settings_at_their_defaults_are_not_written(smallest):
    from bespoke.nodes.lora.training.request import LoraRequest
    from bespoke.training.config import TrainConfig

    train = TrainConfig(1, 0.0, 1, 0)
    names = {"conv_rank", "rank_dropout", "module_dropout", "max_norm"}
    assert not names & {*LoraRequest(train).settings()}
    assert names <= {*LoraRequest(train, conv_rank=1, rank_dropout=0.1, module_dropout=0.1, max_norm=1.0).settings()}
    for name, value in (("rank_dropout", 1.0), ("module_dropout", -0.1), ("max_norm", -1.0), ("conv_rank", -1)):
        with pytest.raises(InputError, match=f"{name} is {value}; give a number from 0 to"):
            LoraRequest(train, **{name: value})
