"""Gradients through half, fp8, quantised, patched and offloaded weights are as exact as through float32."""

import contextlib
import gc
import json
import weakref

import pytest
import tiny
import torch
from bespoke.nodes.bridge import identity
from bespoke.nodes.bridge.dataset import conditioning
from bespoke.nodes.bridge.models import target_layers
from bespoke.nodes.bridge.training_model import denoiser as bridge
from bespoke.nodes.bridge.training_model.pseudo_word import clip_with_pseudo_word
from bespoke.nodes.bridge.training_model.text_encoder import attention_layers, prepare_text_encoder
from bespoke.training.errors import InputError
from bespoke.training.measure import measure_step
from bespoke.training.objective import denoising_loss
from helpers import sprite_set, weights_hash
from random_lora import random_lora

CPU = torch.device("cpu")
PLAIN = [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
QUANTISED = [
    "float8_e4m3fn", "float8_e5m2", "int8_tensorwise", "int8_tensorwise rotated", "nvfp4", "mxfp8", "convrot_w4a4",
    "scaled_fp8",
]  # fmt: skip
# Settings of a format that its file states; the numbers of a small layer.
SETTINGS = {
    "int8_tensorwise rotated": {"convrot": True, "convrot_groupsize": 64},
    "convrot_w4a4": {"convrot_groupsize": 64},
}
U_NET, FLUX = (4, tiny.SD15), (16, tiny.FLUX)  # latent channels, configuration


def base_of(config: dict, quant_config=None, dtype=torch.float32, manual=None):
    """A ComfyUI BaseModel without weights, for weights of `dtype` that are cast to `manual`."""
    import comfy.model_base
    import comfy.supported_models

    flux = config.get("image_model") == "flux"
    known = (comfy.supported_models.Flux if flux else comfy.supported_models.SD15)(dict(config))
    known.quant_config = quant_config
    known.set_inference_dtype(dtype, manual, device=CPU)
    with torch.inference_mode():  # as in a loader node
        return (comfy.model_base.Flux if flux else comfy.model_base.BaseModel)(known, device=CPU)


def patcher_of(base, state):
    import comfy.model_patcher

    with torch.inference_mode():
        missing, unexpected = base.diffusion_model.load_state_dict(
            {k: v.clone() for k, v in state.items()}, strict=False
        )
    assert not [name for name in (*missing, *unexpected) if "comfy_quant" not in name]
    base.diffusion_model.requires_grad_(False)
    return comfy.model_patcher.ModelPatcher(base.eval(), CPU, CPU)


def quantised(state: dict, format: str) -> dict:
    """A quantised state dict in ComfyUI's form: the larger matrices, each with its scales."""
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    settings, format = SETTINGS.get(format, {}), format.split()[0]
    out = {}
    for name, value in state.items():
        layer = name.removesuffix(".weight")
        if value.ndim != 2 or "blocks." not in name:
            out[name] = value
        elif format == "scaled_fp8":  # the older kind, which ComfyUI converts
            scale = value.abs().max() / 448
            out |= {name: (value / scale).to(torch.float8_e4m3fn), f"{layer}.scale_weight": scale}
        else:
            scale = {"scale": "recalculate"} if format in ("float8_e4m3fn", "float8_e5m2", "nvfp4") else {}
            scale |= {"per_channel": True} if settings.get("convrot") else {}
            made = QuantizedTensor.from_float(value, QUANT_ALGOS[format]["comfy_tensor_layout"], **scale, **settings)
            out |= made.state_dict(name)
            stated = json.dumps({"format": format, **settings})
            out[f"{layer}.comfy_quant"] = torch.tensor(list(stated.encode()), dtype=torch.uint8)
    if format == "scaled_fp8":
        import comfy.utils

        out["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
        out, _ = comfy.utils.convert_old_quants(out, model_prefix="", metadata={})
    return out


def dequantised(base) -> dict:
    """The model's weights as float32 numbers."""
    own = dict(base.diffusion_model.named_parameters()) | dict(base.diffusion_model.named_buffers())
    return {
        name: (t.dequantize() if hasattr(t, "dequantize") and hasattr(t, "__tensor_flatten__") else t).float().clone()
        for name, t in own.items()
    }


def conds_of(base, config, count: int):
    generator = torch.Generator().manual_seed(1)
    flux = config.get("image_model") == "flux"
    cond = torch.randn(1, 12, config["context_in_dim"] if flux else config["context_dim"], generator=generator)
    extra = {"pooled_output": torch.randn(1, config["vec_in_dim"], generator=generator)} if flux else {}
    one = conditioning.model_conds(base, cond, extra, torch.zeros(1, base.latent_format.latent_channels, 8, 12), CPU)
    return conditioning.join_conds([one] * count)


def gradient(model, kind, precision="fp32", saving=False, targets="attention + feed-forward"):
    """(the adapters' gradient in one vector, the bytes that the graph keeps)."""
    channels, config = kind
    with bridge.prepare_for_training(model, precision, saving) as denoiser:
        adapters = random_lora(target_layers(denoiser.base.diffusion_model, targets))
        generator = torch.Generator().manual_seed(0)
        latent, noise = torch.randn(2, 2, channels, 8, 12, generator=generator)
        given = denoiser.sigma(torch.tensor([0.3, 0.7])), conds_of(denoiser.base, config, 2)

        def loss():
            return denoising_loss(denoiser, latent, noise, *given).mean()

        with adapters.attached():
            kept = measure_step(
                loss, [*denoiser.base.parameters(), *denoiser.base.buffers()], adapters.parameters()
            ).kept
            loss().backward()
        return torch.cat([p.grad.flatten() for p in adapters.parameters()]), kept


def relative_error(a, b) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def states(comfyui):
    """{configuration's id: a float32 state dict of about unit gain}."""
    out = {}
    for kind in (U_NET, FLUX):
        base = tiny.flux()[0].model if kind is FLUX else tiny.patcher().model
        out[id(kind[1])] = {k: v.clone() for k, v in base.diffusion_model.state_dict().items()}
    return out


# --- types in files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [U_NET, FLUX], ids=["U-Net", "Flux"])
@pytest.mark.parametrize("dtype", PLAIN, ids=str)
def test_gradients_through_half_and_fp8_weights_are_those_of_their_float32_values(states, kind, dtype):
    """UNETLoader's weight_dtype: the weights stay in that type and are cast at each call."""
    config = kind[1] | {"dtype": dtype}
    model = patcher_of(
        base_of(config, dtype=dtype, manual=torch.float32), {k: v.to(dtype) for k, v in states[id(kind[1])].items()}
    )
    plain = patcher_of(base_of(kind[1] | {"dtype": torch.float32}), dequantised(model.model))
    before = weights_hash(model.model)
    (own, kept), (expected, kept_plain) = gradient(model, (kind[0], config)), gradient(plain, kind)
    assert {p.dtype for p in model.model.diffusion_model.parameters()} == {dtype}
    assert relative_error(own, expected) < 1e-5
    assert kept < 1.02 * kept_plain  # no cast weight is kept for the backward pass
    assert weights_hash(model.model) == before
    assert relative_error(gradient(model, (kind[0], config), saving=True)[0], expected) < 1e-5


@pytest.mark.parametrize("format", QUANTISED)
def test_a_quantised_weight_is_read_as_comfyui_merges_a_patch_into_it(states, format):
    """In float32, not in the type that the model computes in: bit for bit what `calculate_weight` is given. Inspect
    LoRA reads it so too; ComfyUI's `get_key_patches` fails on a quantised model."""
    from bespoke.nodes.bridge.wire.effective import weight_of, weights_of
    from bespoke.nodes.lora.inspection.inspect import inspect
    from bespoke.nodes.lora.named_lora import NamedLora
    from comfy.model_management import cast_to_device
    from comfy.model_patcher import get_key_weight
    from comfy.quant_ops import QUANT_ALGOS

    if format.split()[0] not in {*QUANT_ALGOS, "scaled_fp8"}:
        pytest.skip(f"this ComfyUI has no {format}")
    state = {name: value.bfloat16() for name, value in states[id(tiny.FLUX)].items()}
    model = patcher_of(base_of(tiny.FLUX, {"mixed_ops": True}, torch.bfloat16), quantised(state, format))
    name = "diffusion_model.double_blocks.0.img_attn.qkv.weight"
    weight, _, convert = get_key_weight(model.model, name)
    assert hasattr(weight, "_layout_cls")
    merged = convert(cast_to_device(weight, CPU, torch.float32, copy=True), inplace=True)
    assert merged.dtype == torch.float32
    found = next(each for each in weights_of(model) if each.name == name)
    for each in (found, weight_of(model, name)):
        assert torch.equal(each.own_value(), merged)
        assert torch.equal(torch.cat(list(each.parts())), merged)
    lora = tiny.random_lora({"double_blocks.0.img_attn.qkv": tuple(merged.shape)})
    ((projection,), _) = inspect(NamedLora(lora, "one", {}), model)
    assert projection.base == pytest.approx(float(merged.norm()))


@pytest.mark.parametrize("format", QUANTISED)
def test_gradients_through_quantised_weights_are_those_of_their_float32_values(states, format):
    """ComfyUI's quantised models. Cards that multiply in their type round the activations too; trainings do not."""
    from comfy.quant_ops import QUANT_ALGOS

    if format.split()[0] not in {*QUANT_ALGOS, "scaled_fp8"}:
        pytest.skip(f"this ComfyUI has no {format}")
    quant = {"mixed_ops": True}
    model = patcher_of(
        base_of(tiny.FLUX, quant, torch.float32, torch.float32), quantised(states[id(tiny.FLUX)], format)
    )
    layer = model.model.diffusion_model.double_blocks[0].img_attn.qkv
    assert hasattr(layer.weight, "_layout_cls")
    plain = patcher_of(base_of(tiny.FLUX), dequantised(model.model))
    assert (
        relative_error(
            dequantised(model.model)["double_blocks.0.img_attn.qkv.weight"],
            states[id(tiny.FLUX)]["double_blocks.0.img_attn.qkv.weight"],
        )
        > 1e-3
    )
    before = identity.checksum(model)
    quick = [m for m in model.model.modules() if hasattr(m, "_full_precision_mm")]
    for module in quick:
        module._full_precision_mm = False  # as on such a card
    (own, kept), (expected, kept_plain) = gradient(model, FLUX), gradient(plain, FLUX)
    assert relative_error(own, expected) < 1e-5
    assert kept < 1.02 * kept_plain
    assert quick
    assert not any(module._full_precision_mm for module in quick)
    assert identity.checksum(model) == before
    layer.weight._qdata.view(torch.uint8)[0, 0] += 1
    assert identity.checksum(model) != before  # the checksum reads the stored bits


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn], ids=str)
def test_autocast_gradient_equals_that_of_comfyuis_casts(states, dtype, monkeypatch):
    """Narrow weights in bfloat16 products: ComfyUI's layers and autocast alone would keep a second model."""
    state = {k: v.to(dtype) for k, v in states[id(tiny.SD15)].items()}
    model = patcher_of(base_of(tiny.SD15 | {"dtype": dtype}, dtype=dtype, manual=torch.float32), state)
    own, kept = gradient(model, U_NET, "bf16")
    monkeypatch.setattr(bridge, "frozen_layers", lambda *_: contextlib.nullcontext(lambda: None))
    theirs, kept_theirs = gradient(model, U_NET, "bf16")
    assert relative_error(own, theirs) < 1e-6
    matrices = sum(2 * p.numel() for p in model.model.parameters() if p.ndim > 1)  # as bfloat16
    assert kept < kept_theirs - 0.4 * matrices  # those above the first adapter, which the backward pass reaches


def test_the_node_trains_on_an_fp8_model_and_its_lora_acts_there(states, run_node):
    config = tiny.SD15 | {"dtype": torch.float8_e4m3fn}
    state = {k: v.to(torch.float8_e4m3fn) for k, v in states[id(tiny.SD15)].items()}
    model = patcher_of(base_of(config, dtype=torch.float8_e4m3fn, manual=torch.float32), state)
    before, plain = weights_hash(model.model), tiny.predict(model)
    trained, *_ = run_node(
        "BespokeTrainLora",
        model=model,
        clip=tiny.clip(),
        vae=tiny.vae(),
        images=sprite_set(2, 2, side=64, colour="teal"),
        steps=3,
        batch_size=1,
        rank=2,
        learning_rate=1e-1,
        precision="fp32",
        resume=False,
    )
    assert weights_hash(model.model) == before
    assert torch.equal(tiny.predict(model), plain)
    assert (tiny.predict(trained) - plain).abs().max() > 1e-3


@pytest.mark.parametrize("format", QUANTISED)
def test_a_lora_is_extracted_from_quantised_weights_as_from_their_numbers(states, format):
    """The difference of the dequantised weights, whole; a layer whose numbers are equal is not in the LoRA."""
    from bespoke.nodes.lora.extraction.extract import extract
    from bespoke.nodes.lora.extraction.request import Request
    from comfy.quant_ops import QUANT_ALGOS

    if format.split()[0] not in {*QUANT_ALGOS, "scaled_fp8"}:
        pytest.skip(f"this ComfyUI has no {format}")
    name = "double_blocks.0.img_attn.qkv.weight"
    before, after = states[id(tiny.FLUX)], dict(states[id(tiny.FLUX)])
    after[name] = before[name] + 0.3 * torch.randn(before[name].shape, generator=torch.Generator().manual_seed(1))
    base, tuned = (
        patcher_of(base_of(tiny.FLUX, {"mixed_ops": True}, torch.float32, torch.float32), quantised(state, format))
        for state in (before, after)
    )
    wanted = (dequantised(tuned.model)[name].double() - dequantised(base.model)[name].double()).flatten(1)
    lora = extract(tuned, base, Request(rank=4096)).lora
    layer = f"diffusion_model.{name.removesuffix('.weight')}"
    assert {*lora} == {f"{layer}{part}" for part in (".lora_up.weight", ".lora_down.weight", ".alpha")}
    found = lora[f"{layer}.lora_up.weight"].double() @ lora[f"{layer}.lora_down.weight"].double()
    assert float((found - wanted).norm() / wanted.norm()) < 1e-4


def flux_clip_with_quantised_t5():
    """A small CLIP of Flux with a quantised T5."""
    import comfy.sd
    import comfy.text_encoders.flux as text

    plain = tiny.flux()[1].cond_stage_model
    state = {
        f"blocks.{k}" if ".layer." in k and "relative" not in k else k: v
        for k, v in plain.t5xxl.transformer.state_dict().items()
    }
    state = {k.removeprefix("blocks."): v for k, v in quantised(state, "float8_e4m3fn").items()}

    class Target:
        params: dict = {}  # noqa: RUF012 (what ComfyUI's own targets are)
        clip, tokenizer = staticmethod(text.flux_clip(t5_quantization_metadata={"mixed_ops": True})), text.FluxTokenizer

    with torch.inference_mode():
        return comfy.sd.CLIP(
            Target, model_options=tiny.text_options(), state_dict=[plain.clip_l.transformer.state_dict(), state]
        )


def test_a_word_is_learned_with_a_quantised_t5(comfyui, run_node):
    """No gradient flows through the T5: it is not copied, and the conditioning is that of the user's CLIP."""
    clip = flux_clip_with_quantised_t5()
    t5 = clip.cond_stage_model.t5xxl
    assert sum(hasattr(getattr(layer, "weight", None), "_layout_cls") for layer in t5.modules()) == 7
    expected, _ = conditioning.encode_prompt(clip, "a red circle")
    before = identity.checksum(clip.patcher)
    with prepare_text_encoder(clip, None) as text:
        assert all(a is b for a, b in zip(text.model.t5xxl.parameters(), t5.parameters(), strict=True))
        assert torch.equal(text.encode(["a red circle"], clip)[0][0], expected)
        assert not any(p.is_inference() for p in text.model.clip_l.transformer.parameters())
        clip.cond_stage_model.to(CPU)  # as when the model takes the card: quantised layers get new tensors
        assert all(a is b for a, b in zip(text.model.t5xxl.parameters(), t5.parameters(), strict=True))
    model, _, vae = tiny.flux()
    images = sprite_set(2, 2, side=64, colour="teal")
    *_, run, _ = run_node(
        "BespokeTrainTextualInversion",
        model=model,
        clip=clip,
        vae=vae,
        images=images,
        name="word",
        init_text="red",
        steps=2,
        batch_size=1,
        precision="fp32",
        resume=False,
    )
    assert len(run.losses) == 2
    assert identity.checksum(clip.patcher) == before


def test_a_quantised_clip_equals_its_dequantised_weights(comfyui):
    import comfy.sd
    import comfy.text_encoders.flux as text

    plain = tiny.flux()[1]
    own = plain.cond_stage_model
    state = {k.replace("layers.", "blocks."): v for k, v in own.clip_l.transformer.state_dict().items()}
    state = {k.replace("blocks.", "layers."): v for k, v in quantised(state, "float8_e4m3fn").items()}

    class Target:
        params: dict = {}  # noqa: RUF012 (what ComfyUI's own targets are)
        clip, tokenizer = staticmethod(text.flux_clip()), text.FluxTokenizer

    with torch.inference_mode():
        options = tiny.text_options() | {"quantization_metadata": {"mixed_ops": True}}
        clip = comfy.sd.CLIP(Target, model_options=options, state_dict=[state, own.t5xxl.transformer.state_dict()])
        for name, layer in clip.cond_stage_model.clip_l.transformer.named_modules():
            if hasattr(layer, "_full_precision_mm"):
                layer._full_precision_mm = False  # as on a card that multiplies in this type
                own.clip_l.transformer.get_submodule(name).weight.copy_(
                    layer.weight.dequantize() if hasattr(layer.weight, "_layout_cls") else layer.weight
                )
    gradients = []
    for one in (clip, plain):
        vector = torch.nn.Parameter(
            torch.randn(
                1,
                own.clip_l.transformer.get_input_embeddings().weight.shape[1],
                generator=torch.Generator().manual_seed(0),
            )
        )
        with prepare_text_encoder(one, None) as prepared:
            ((_, extra),) = prepared.encode(
                ["a embedding:word"], clip_with_pseudo_word(one, "word", {"clip_l": lambda vector=vector: vector})
            )
            extra["pooled_output"].square().sum().backward()
            layers = attention_layers(prepared.model)
        gradients.append(vector.grad.flatten())
    assert relative_error(*gradients) < 1e-5
    assert len(layers) == len(attention_layers(clip.cond_stage_model)) == 4 * own.clip_l.transformer.num_layers


class Handle:
    """A native handle like comfy-aimdo's: its owner frees it, so a copy would free it twice."""

    def __init__(self, freed: list):
        self.freed = freed

    def __deepcopy__(self, _memo):
        return Handle(self.freed)

    def __del__(self):
        self.freed.append(self)


def dynamic(clip, make, freed):
    """The CLIP under dynamic VRAM, which only cards have: patches are applied at each cast, each layer has a handle."""
    import comfy.model_patcher

    class Dynamic(comfy.model_patcher.ModelPatcher):
        def is_dynamic(self):
            return True

        def loaded_ram_size(self):
            return 0

        def load(self, *_args, **_kwargs):
            for key in self.patches:
                layer = self.model.get_submodule(key.removesuffix(".weight"))
                layer.comfy_cast_weights, layer.weight_lowvram_function = (
                    True,
                    comfy.model_patcher.LowVramPatch(key, self.patches),
                )
                layer._v = Handle(freed)

    patches, clip.patcher = clip.patcher.patches, Dynamic(clip.cond_stage_model, CPU, CPU)
    clip.patcher.patches, clip.patcher.cached_patcher_init = patches, make and (make, ())
    return clip


def test_under_dynamic_vram_a_text_encoder_is_reloaded_with_its_patches(comfyui):
    layer = "clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"
    plain, other, freed = tiny.clip(), tiny.clip(), []
    change = {
        layer: (
            "diff",
            (
                torch.randn(
                    plain.cond_stage_model.get_parameter(layer).shape, generator=torch.Generator().manual_seed(0)
                ),
            ),
        )
    }
    for clip in (plain, other):
        clip.add_patches(change, 1.0)
    unpatched, _ = conditioning.encode_prompt(tiny.clip(), "a red circle")
    expected, _ = conditioning.encode_prompt(plain, "a red circle")
    assert relative_error(unpatched, expected) > 1e-2
    clip = dynamic(other, lambda disable_dynamic: tiny.clip().patcher, freed)
    clip.load_model()
    with prepare_text_encoder(clip, None) as text:
        assert relative_error(text.encode(["a red circle"], clip)[0][0], expected) < 1e-5
        del text
    gc.collect()
    assert not freed
    with (
        pytest.raises(InputError, match=r"CLIP's weights .*ComfyUI's own checkpoint or CLIP loader"),
        prepare_text_encoder(dynamic(tiny.clip(), None, []), None),
    ):
        pass


def test_layers_of_other_packs_read_their_own_weights(states, comfyui):
    """The meaning of their `weight` is their own, here half of the weight; the gradient follows their code."""
    import comfy.ops

    class Doubling(comfy.ops.manual_cast.Linear):
        def forward_comfy_cast_weights(self, x):
            return torch.nn.functional.linear(x, 2 * self.weight, self.bias)

    state, name = dict(states[id(tiny.SD15)]), "middle_block.1.transformer_blocks.0.ff.net.2"
    expected, _ = gradient(patcher_of(base_of(tiny.SD15 | {"dtype": torch.float32}), state), U_NET)
    base = base_of(tiny.SD15 | {"dtype": torch.float32})
    rows, columns = state[f"{name}.weight"].shape
    base.diffusion_model.get_submodule(name.rpartition(".")[0])[2] = Doubling(columns, rows)
    state[f"{name}.weight"] = state[f"{name}.weight"] / 2
    assert relative_error(gradient(patcher_of(base, state), U_NET)[0], expected) < 1e-6


# --- patched by other nodes ----------------------------------------------------------------------------------------


def test_changes_of_other_nodes_are_trained_on(states, run_node, comfyui):
    """With LoraLoader and ModelMergeSimple, the gradient is that of a model with these weights in its file."""
    from safetensors.torch import save_file

    state, second = states[id(tiny.SD15)], tiny.patcher(seed=5)
    first = patcher_of(base_of(tiny.SD15 | {"dtype": torch.float32}), state)
    lora = tiny.random_lora(tiny.linear_layers(first, "attn2"))
    save_file(lora, comfyui / "models" / "loras" / "wire.safetensors")
    (changed, _) = run_node(
        "LoraLoader", model=first, clip=tiny.clip(), lora_name="wire.safetensors", strength_model=0.7, strength_clip=0.0
    )
    (changed,) = run_node("ModelMergeSimple", model1=changed, model2=second, ratio=0.25)
    assert relative_error(gradient(changed, U_NET)[0], gradient(first, U_NET)[0]) > 0.1

    baked = {k: v.clone() for k, v in state.items()}
    for name in tiny.linear_layers(first, "attn2"):
        up, down = (lora[f"diffusion_model.{name}.lora_{part}.weight"] for part in ("up", "down"))
        baked[f"{name}.weight"] += 0.7 * (2.0 / 4) * up @ down
    other = second.model.diffusion_model.state_dict()
    baked = {k: 0.25 * v + 0.75 * other[k] for k, v in baked.items()}
    expected = gradient(patcher_of(base_of(tiny.SD15 | {"dtype": torch.float32}), baked), U_NET)[0]
    assert relative_error(gradient(changed, U_NET)[0], expected) < 1e-4
    assert not first.patches


def test_prediction_type_and_shift_are_those_of_the_wire(states, run_node):
    unet = patcher_of(base_of(tiny.SD15 | {"dtype": torch.float32}), states[id(tiny.SD15)])
    (v,) = run_node("ModelSamplingDiscrete", model=unet, sampling="v_prediction", zsnr=False)
    flux = patcher_of(base_of(tiny.FLUX), states[id(tiny.FLUX)])
    (shifted,) = run_node("ModelSamplingSD3", model=flux, shift=5.0)
    with bridge.prepare_for_training(v, "fp32") as denoiser:
        assert denoiser.prediction == "v"
    with bridge.prepare_for_training(unet, "fp32") as denoiser:
        assert denoiser.prediction == "epsilon"
    t = torch.tensor([0.25, 0.5, 0.75])
    with bridge.prepare_for_training(shifted, "fp32") as denoiser:
        assert torch.allclose(denoiser.sigma(t), 5 * t / (1 + 4 * t), atol=2e-3)


# --- offloaded ------------------------------------------------------------------------------------------------------


def offload(work, _leave_free) -> None:
    """As ComfyUI where weights do not fit: the layers are unloaded and cast their weight at each call."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([work])
    work.partially_unload(CPU, 10**12)


@pytest.mark.parametrize("kind", [U_NET, FLUX], ids=["U-Net", "Flux"])
@pytest.mark.parametrize("saving", [False, True])
def test_offloaded_weights_give_the_same_gradients_and_are_not_kept(states, kind, saving, monkeypatch, run_node):
    """ComfyUI's partly loaded model on the CPU alone, with a LoRA that it applies at each call."""
    import comfy.lora
    import comfy.model_management

    model = patcher_of(base_of(kind[1] | {"dtype": torch.float32}), states[id(kind[1])])
    patched = model.clone()
    layers = tiny.linear_layers(model, "attn2.to_k" if kind is U_NET else "img_attn.qkv")
    lora = tiny.random_lora(layers)
    known = {f"diffusion_model.{name}": f"diffusion_model.{name}.weight" for name in layers}
    assert patched.add_patches(comfy.lora.load_lora(lora, known), 0.8)
    whole, kept_whole = gradient(patched, kind, saving=saving)
    comfy.model_management.unload_all_models()
    before = weights_hash(model.model)

    monkeypatch.setattr(bridge, "_load", offload)
    with bridge.prepare_for_training(patched, "fp32", saving) as denoiser:
        cast = [
            layer
            for layer in denoiser.base.modules()
            if isinstance(layer, torch.nn.Linear) and layer.comfy_cast_weights
        ]
        assert len(cast) > 10
        assert sum(len(layer.weight_function) for layer in cast) == len(layers)
    offloaded, kept = gradient(patched, kind, saving=saving)
    assert relative_error(offloaded, whole) < 1e-5
    assert kept < 1.02 * kept_whole
    monkeypatch.undo()
    comfy.model_management.unload_all_models()
    assert weights_hash(model.model) == before
    for layer in model.model.modules():
        assert not {"forward", "forward_comfy_cast_weights", "prev_comfy_cast_weights"} & set(vars(layer))
    assert relative_error(gradient(patched, kind, saving=saving)[0], whole) < 1e-6  # nothing has changed


def test_weights_streamed_through_one_buffer_give_the_same_gradients(states, monkeypatch):
    """As ComfyUI on a card: each layer's weight is copied over the one before. Here the buffer is in CPU memory."""
    import comfy.ops

    kind, state = FLUX, states[id(tiny.FLUX)]
    model = patcher_of(base_of(tiny.FLUX), state)
    expected, _ = gradient(model, kind)
    buffer, cast = torch.empty(max(v.numel() for v in state.values())), comfy.ops.cast_bias_weight

    def streamed(*args, **kwargs):
        weight, *rest = cast(*args, **kwargs)
        if weight.ndim < 2:  # norms: a training keeps them on the card
            return weight, *rest
        return buffer[: weight.numel()].view(weight.shape).copy_(weight), *rest

    monkeypatch.setattr(bridge, "_load", offload)
    monkeypatch.setattr(comfy.ops, "cast_bias_weight", streamed)
    assert relative_error(gradient(model, kind)[0], expected) < 1e-6
    monkeypatch.setattr(bridge, "frozen_layers", lambda *_: contextlib.nullcontext(lambda: None))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradient(model, kind)  # the buffer has been overwritten


def replace_data(module):
    """Replace the data of the parameters as `Module.to` another device does."""
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()


@pytest.mark.parametrize("kind", [U_NET, FLUX], ids=["U-Net", "Flux"])
def test_weights_moved_outside_inference_mode_give_the_same_gradient(states, kind):
    """Loaded in inference mode and moved outside of it, they are no inference tensors and autograd still does not save
    them."""
    state = states[id(kind[1])]
    model = patcher_of(base_of(kind[1] | {"dtype": torch.float32}), state)
    expected, _ = gradient(model, kind)
    with torch.inference_mode(False):
        replace_data(model.model)
    assert not any(p.is_inference() for p in model.model.parameters())
    before = {name: id(p) for name, p in model.model.named_parameters()}
    assert torch.equal(gradient(model, kind)[0], expected)
    assert {name: id(p) for name, p in model.model.named_parameters()} == before


def test_weights_unloaded_during_a_training_are_freed(states):
    """A sample's VAE or a prompt's CLIP may need the card; references to the old weights would keep a second model."""
    model = patcher_of(base_of(tiny.SD15 | {"dtype": torch.float32}), states[id(tiny.SD15)])
    unet = model.model.diffusion_model
    unet.time_embed[2].bias = unet.time_embed[0].bias  # one parameter in two layers
    before, own = weights_hash(model.model), {name: id(p) for name, p in unet.named_parameters()}
    storages = [weakref.ref(p.untyped_storage()) for p in unet.parameters()]
    with bridge.prepare_for_training(model, "fp32") as denoiser:
        storages += [weakref.ref(p.untyped_storage()) for p in unet.parameters()]
        assert weights_hash(model.model) == before
        replace_data(denoiser.base)
        gc.collect()
        assert not any(storage() for storage in storages)
        with torch.inference_mode():
            replace_data(denoiser.base)
        denoiser.reload()  # weights that moved in inference mode need new views
        assert not any(p.is_inference() for p in unet.parameters())
        assert unet.time_embed[2].bias is unet.time_embed[0].bias
    assert weights_hash(model.model) == before
    assert {name: id(p) for name, p in unet.named_parameters()} == own


@pytest.mark.parametrize("first", ["whole", "offloaded"])
def test_weights_that_move_between_steps_give_the_same_gradient(states, first, monkeypatch):
    """A sample image or a text encoder may unload the model, which may then be loaded fully or offloaded."""
    import comfy.model_management

    model = patcher_of(base_of(tiny.SD15 | {"dtype": torch.float32}), states[id(tiny.SD15)])
    expected, _ = gradient(model, U_NET)
    if first == "offloaded":
        monkeypatch.setattr(bridge, "_load", offload)
    with bridge.prepare_for_training(model, "fp32") as denoiser:
        monkeypatch.undo()
        layers = target_layers(denoiser.base.diffusion_model, "attention + feed-forward")
        adapters = random_lora(layers)
        generator = torch.Generator().manual_seed(0)
        latent, noise = torch.randn(2, 2, 4, 8, 12, generator=generator)
        given = denoiser.sigma(torch.tensor([0.3, 0.7])), conds_of(denoiser.base, tiny.SD15, 2)
        for move in (denoiser.patcher.detach, lambda: denoiser.patcher.partially_unload(CPU, 10**12), lambda: None):
            with torch.inference_mode():
                move()
            denoiser.reload()
            with adapters.attached():
                denoising_loss(denoiser, latent, noise, *given).mean().backward()
            assert relative_error(torch.cat([p.grad.flatten() for p in adapters.parameters()]), expected) < 1e-6
            for p in adapters.parameters():
                p.grad = None
    comfy.model_management.unload_all_models()
    assert relative_error(gradient(model, U_NET)[0], expected) < 1e-6


def test_an_error_in_another_packs_callback_restores_comfyui(states):
    import comfy.model_management
    import comfy.patcher_extension

    def stop(_patcher):
        raise ValueError("not today")

    model = patcher_of(base_of(tiny.SD15 | {"dtype": torch.float32}), states[id(tiny.SD15)])
    model.add_callback(comfy.patcher_extension.CallbacksMP.ON_PRE_RUN, stop)
    with pytest.raises(ValueError, match="not today"), bridge.prepare_for_training(model, "fp32"):
        pass
    assert not comfy.model_management.in_training  # it would change every later sampling


# --- what is refused ------------------------------------------------------------------------------------------------


class GGMLTensor(torch.Tensor):
    """A tensor with the name of ComfyUI-GGUF's class, whose clone and detach also return the tensor itself."""

    def clone(self, *_args, **_kwargs):
        return self

    def detach(self, *_args, **_kwargs):
        return self


class GGMLLayer(torch.nn.Module):
    """A class with the name of ComfyUI-GGUF's mixin for layers that read such weights."""

    comfy_cast_weights = True


def test_a_gguf_model_is_refused_with_a_remedy(run_node, comfyui):
    import comfy.ops

    class Linear(GGMLLayer, comfy.ops.manual_cast.Linear):
        pass

    model = tiny.patcher(tiny.SMALLEST)
    attention = next(m for name, m in model.model.named_modules() if name.endswith("attn2"))
    own = attention.to_k
    attention.to_k = Linear(own.in_features, own.out_features, bias=False)
    attention.to_k.weight = torch.nn.Parameter(own.weight.detach().as_subclass(GGMLTensor), requires_grad=False)
    inputs = dict(
        model=model,
        clip=tiny.clip(),
        vae=tiny.vae(),
        images=sprite_set(2, 2, side=64, colour="teal"),
        steps=1,
        resume=False,
    )
    with pytest.raises(InputError, match=r"Bespoke Train LoRA: .*GGUF file.*safetensors file.*Load Diffusion Model"):
        run_node("BespokeTrainLora", **inputs)
    with pytest.raises(InputError, match="GGUF file"):
        run_node("BespokeTrainTextualInversion", name="word", init_text="dog", **inputs)


def test_a_model_that_scales_its_input_before_a_quantised_matrix_is_refused(comfyui, run_node):
    """ComfyUI multiplies the input with `pre_quant_scale` before it adds W and the LoRA: W (s x) + B A (s x)."""
    model = tiny.patcher(tiny.SMALLEST)
    attention = next(m for name, m in model.model.named_modules() if name.endswith("attn2"))
    attention.to_k.pre_quant_scale = torch.nn.Parameter(torch.ones(tiny.CONTEXT), requires_grad=False)
    images = sprite_set(2, 2, side=64, colour="teal")
    inputs = dict(model=model, clip=tiny.clip(), vae=tiny.vae(), images=images, steps=1, resume=False)
    with pytest.raises(InputError, match=r"attn2\.to_k\.pre_quant_scale.*load the same model from a bf16 or fp8 file"):
        run_node("BespokeTrainLora", **inputs)
    with pytest.raises(InputError, match="pre_quant_scale"):
        run_node("BespokeTrainTextualInversion", name="word", init_text="dog", **inputs)
