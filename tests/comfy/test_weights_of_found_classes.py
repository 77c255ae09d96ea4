"""Classes that no record describes, with narrow or quantised weights: found, trained, injected and saved as in float32.

The oracle of each gradient is the same network with the weights' numbers as float32, dequantised by comfy-kitchen.
"""

from __future__ import annotations

import json

import comfy.model_management
import comfy.model_patcher
import host_models
import pytest
import torch
from bespoke.nodes.bridge.dataset.conditioning import encode_prompt, learn_layers_of
from bespoke.nodes.bridge.forward_pass.differentiable import DifferentiableFunctions
from bespoke.nodes.bridge.models import TARGETS, discovery, target_layers
from bespoke.nodes.bridge.training_model.denoiser import prepare_for_training
from bespoke.training.errors import InputError
from bespoke.training.objective import denoising_loss
from family_checks import batch, make_adapters, predict, train
from helpers import sprite_set, weights_hash

CPU, FP8 = torch.device("cpu"), torch.float8_e4m3fn
FORMATS = ["fp8", "float8_e4m3fn", "float8_e5m2", "nvfp4", "mxfp8", "int8_tensorwise"]


def quantised(state: dict, format: str) -> dict:
    """A state dict in ComfyUI's form, with the matrices of numbered blocks quantised where the format takes them."""
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    scale = {"scale": "recalculate"} if format in ("float8_e4m3fn", "float8_e5m2", "nvfp4") else {}
    out = {}
    for name, value in state.items():
        layer = name.removesuffix(".weight")
        numbered = any(part.isdigit() for part in name.split("."))
        if value.ndim != 2 or layer == name or not numbered or any(side % 32 for side in value.shape):
            out[name] = value
            continue
        made = QuantizedTensor.from_float(value, QUANT_ALGOS[format]["comfy_tensor_layout"], **scale)
        out |= made.state_dict(name)
        out[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps({"format": format}).encode()), dtype=torch.uint8)
    return out


def loaded(name: str, state: dict, dtype: torch.dtype = torch.float32, quantised: bool = False):
    """A MODEL of a row as ComfyUI's loader makes it for such a file: computed in float32."""
    row = host_models.ROWS[name]
    config = host_models.config_class(name)(dict(row.unet))
    config.unet_config.update({key: value for key, value in row.unet.items() if key in config.unet_config})
    config.quant_config = {"mixed_ops": True} if quantised else None
    config.set_inference_dtype(dtype, torch.float32, device=CPU)
    with torch.inference_mode():  # as in a loader node
        base = config.get_model({}, "", device=CPU)
        missing, _ = base.diffusion_model.load_state_dict({k: v.clone() for k, v in state.items()}, strict=False)
    assert not [key for key in missing if "comfy_quant" not in key]
    for tensor in (*base.diffusion_model.parameters(), *base.diffusion_model.buffers()):
        tensor.requires_grad_(False)
    return comfy.model_patcher.ModelPatcher(base.eval(), CPU, CPU)


def models_of(name: str, format: str):
    """((model, clip, vae) with such weights, the same with their numbers as float32)"""
    from comfy.quant_ops import QUANT_ALGOS

    if host_models.config_class(name) is None:
        pytest.skip(f"this ComfyUI has no {name}")
    if format not in {*QUANT_ALGOS, "fp8"}:
        pytest.skip(f"this ComfyUI has no {format}")
    made = host_models.made(name)
    state = {key: value.clone() for key, value in made[0].model.diffusion_model.state_dict().items()}
    if format == "fp8":
        narrow = loaded(name, {key: value.to(FP8) for key, value in state.items()}, FP8)
    else:
        narrow = loaded(name, quantised(state, format), quantised=True)
    numbers = {
        key: (tensor.dequantize() if hasattr(tensor, "__tensor_flatten__") else tensor).float().clone()
        for key, tensor in narrow.model.diffusion_model.named_parameters()
    }
    assert any(not torch.equal(numbers[key], state[key]) for key in numbers)
    return (narrow, *made[1:]), (loaded(name, state | numbers), *made[1:])


def found(models):
    network = models[0].model.diffusion_model
    learn_layers_of(models[0].model, lambda: encode_prompt(models[1], "a red circle"))
    assert not discovery.why_not_discovered(network)
    return [set(target_layers(network, target)) for target in TARGETS[:3]]


def gradient(models, saving=False):
    with prepare_for_training(models[0], "fp32", saving) as denoiser:
        adapters = make_adapters(denoiser)
        with DifferentiableFunctions():  # LTX-2's own text layers call a kernel without a backward pass
            values = batch(models, denoiser)
        with adapters.attached():
            denoising_loss(denoiser, *values).mean().backward()
        return torch.cat([parameter.grad.flatten() for parameter in adapters.parameters()])


def check(name, format):
    narrow, plain = models_of(name, format)
    assert found(narrow) == found(plain)
    before = weights_hash(narrow[0].model)
    own, expected = gradient(narrow), gradient(plain)
    assert expected.norm() > 0
    assert (own - expected).norm() < 1e-5 * expected.norm()
    assert (gradient(narrow, saving=True) - expected).norm() < 1e-5 * expected.norm()
    assert weights_hash(narrow[0].model) == before


@pytest.mark.parametrize("format", FORMATS)
def test_layers_and_gradient_are_those_of_the_numbers(comfyui, format):
    """Of ERNIE-Image, in each kind of weights that this ComfyUI reads."""
    check("ernie", format)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["fp8", "nvfp4"])
def test_ltx2s_layers_and_gradient_are_those_of_the_numbers(comfyui, format):
    """Its layers for sound get a batch of no tokens."""
    check("ltxav", format)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["fp8", "float8_e4m3fn", "nvfp4"])
@pytest.mark.parametrize("name", [name for name, row in host_models.ROWS.items() if not row.reason])
def test_every_class_is_trained_through_narrow_weights(comfyui, name, format):
    """But for U-Nets and Flux, whose records have tests of their own; Anima's small adapter is made without casts, and
    Chroma Radiance computes its positions in the type of its weights, which ComfyUI itself cannot do in fp8."""
    if name in {"ssd1b", "vega", "koala_700m", "koala_1b", "flux_schnell", "longcat_image", "newbie", "anima"}:
        pytest.skip("another test has it")
    if (name, format) == ("chroma_radiance", "fp8"):
        pytest.skip("ComfyUI cannot compute it")
    check(name, format)


def test_a_lora_of_a_found_class_in_fp8_is_saved_and_injected(run_node):
    """Inject on the fp8 MODEL gives what the trained MODEL gives, and core's loader on the float32 numbers."""
    narrow, plain = models_of("ernie", "fp8")
    trained, lora, _, run, *_ = train(run_node, narrow)
    untrained, ours = (predict(narrow, model)[0] for model in (narrow[0], trained))
    movement = (ours - untrained).abs().max()
    assert movement > 1e-2 * untrained.abs().max()
    file, *_ = run_node("BespokeSaveLora", lora=lora, filename_prefix="test/narrow", run=run, dtype="fp32")
    injected, _, text, *_ = run_node("BespokeInjectLora", model=narrow[0], lora_name=file, strength_model=1.0)
    assert "matched nothing" not in text
    assert (predict(narrow, injected)[0] - ours).abs().max() < 1e-4 * movement
    cores, _ = run_node(
        "LoraLoader", model=plain[0], clip=plain[1], lora_name=file, strength_model=1.0, strength_clip=1.0
    )
    # ComfyUI writes a LoRA into fp8 weights with their own rounding.
    assert (predict(plain, cores)[0] - ours).norm() < 0.5 * (ours - untrained).norm()


# --- GGUF -------------------------------------------------------------------------------------------------------------


class GGMLTensor(torch.Tensor):
    """As ComfyUI-GGUF's: bytes, with the shape of the matrix that they stand for."""

    @property
    def shape(self):
        return self.matrix_shape


class GGMLLayer(torch.nn.Module):
    """As ComfyUI-GGUF's mixin: the matrix is made at each call; here of one byte for a number, around 128."""

    def forward(self, x):
        rows = torch.Tensor(self.weight.as_subclass(torch.Tensor).float() - 128) / 128
        return torch.nn.functional.linear(x, rows.view(self.weight.shape), self.bias)


def test_a_found_class_from_a_gguf_file_is_refused_before_it_is_observed(run_node, monkeypatch):
    """Its layers make their matrix by code of their own, which autograd would keep whole for each layer."""
    import comfy.ops

    class Linear(GGMLLayer, comfy.ops.manual_cast.Linear):
        pass

    if host_models.config_class("ernie") is None:
        pytest.skip("this ComfyUI has no ErnieImage")
    model, clip, vae = host_models.make("ernie")
    network = model.model.diffusion_model
    for name, layer in list(network.named_modules()):
        if isinstance(layer, torch.nn.Linear) and ".0." in name:
            made = Linear(layer.in_features, layer.out_features, bias=False)
            data = (layer.weight.detach() * 128 + 128).clamp(0, 255).byte().flatten().as_subclass(GGMLTensor)
            data.matrix_shape = layer.weight.shape
            made.weight = torch.nn.Parameter(data, requires_grad=False)
            made.weight.matrix_shape = layer.weight.shape
            made.bias = layer.bias
            network.set_submodule(name, made)
    encoded = []
    monkeypatch.setattr(type(clip), "encode_from_tokens_scheduled", lambda *args, **_: encoded.append(args))
    inputs = dict(
        model=model, clip=clip, vae=vae, images=sprite_set(2, 2, side=64, colour="teal"), steps=1, resume=False
    )
    with pytest.raises(InputError, match=r"GGUF file.*safetensors file.*Load Diffusion Model"):
        run_node("BespokeTrainLora", **inputs)
    with pytest.raises(InputError, match="GGUF file"):
        run_node("BespokeTrainTextualInversion", name="word", init_text="dog", **inputs)
    assert not encoded
    assert not discovery.was_observed(network)
