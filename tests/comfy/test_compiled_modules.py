"""Compiled modules in the place of a model's own, as KJNodes' older TorchCompile nodes put them there.

The oracle is `comfy.sd.load_lora_for_models` on the model without them: what the LoRA does where its weights have
their names. Compiled modules compute as the modules in them here: only the slow test has them compiled.
"""

import comfy.model_management
import comfy.sd
import pytest
import tiny
import torch
from bespoke.nodes.bridge.dataset import conditioning
from bespoke.nodes.bridge.models import target_layers
from bespoke.nodes.bridge.training_model.denoiser import prepare_for_training
from bespoke.nodes.bridge.wire.compatibility import compatibility_of
from bespoke.training.errors import InputError
from comfy_api.torch_helpers import set_torch_compile_wrapper

PLACES = ("diffusion_model", "diffusion_model.middle_block.1.transformer_blocks.0")


def compiled(model, place):
    made = model.clone()
    made.add_object_patch(place, torch.compile(made.get_model_object(place), backend="eager"))
    return made


@pytest.fixture
def model(comfyui, request):
    """A model of its own, since the names that ComfyUI reads are those of what is loaded."""
    with torch.compiler.set_stance("default" if request.node.get_closest_marker("slow") else "force_eager"):
        yield tiny.patcher(tiny.SMALLEST)
    comfy.model_management.unload_all_models()


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_a_lora_is_never_lost_beside_a_compiled_module(run_node, model, place, loaded):
    lora = tiny.random_lora(tiny.linear_layers(model))
    made = compiled(model, place)
    if loaded:
        tiny.predict(made)
    with pytest.raises(InputError, match=rf"compiled module in the place of {place}.*TorchCompileModel"):
        run_node("BespokeInjectLora", model=made, lora=lora)


@pytest.mark.parametrize("place", PLACES)
def test_a_compiled_clone_that_is_loaded_hides_no_weight_of_the_plain_model(run_node, model, place):
    lora = tiny.random_lora(tiny.linear_layers(model))
    plain = tiny.predict(model)
    expected = tiny.predict(comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0])
    comfy.model_management.unload_all_models()
    assert torch.equal(tiny.predict(compiled(model, place)), plain)  # and it stays loaded
    injected = run_node("BespokeInjectLora", model=model, lora=lora)[0]
    assert torch.equal(tiny.predict(injected), expected)
    assert not torch.equal(expected, plain)


@pytest.mark.parametrize("place", PLACES)
def test_a_training_is_refused_under_a_compiled_module(model, place):
    made = compiled(model, place)
    with pytest.raises(InputError, match=rf"compiled module.*\({place}\)"), prepare_for_training(made, "fp32"):
        pass
    tiny.predict(made)
    with prepare_for_training(model, "fp32") as denoiser:  # the compiled clone is loaded
        layers = target_layers(denoiser.base.diffusion_model, "cross-attention")
    assert len(layers) == 16
    assert not any("_orig_mod" in name for name in layers)


@pytest.mark.slow
def test_a_training_under_cores_compiled_model_has_the_gradients_of_the_plain_one(model):
    made = model.clone()
    set_torch_compile_wrapper(made, backend="eager")
    found = []
    for each in (model, made):
        prompt = conditioning.encode_prompt(tiny.clip(), "a red circle")
        torch.manual_seed(0)
        latent, noise = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
        with prepare_for_training(each, "fp32") as denoiser:
            conds = conditioning.model_conds(denoiser.base, *prompt, latent, denoiser.device)
            layer = dict(denoiser.base.diffusion_model.named_modules())[
                "middle_block.1.transformer_blocks.0.attn2.to_v"
            ]
            moved = torch.zeros(1, 1, tiny.WIDTH, requires_grad=True)
            hook = layer.register_forward_hook(lambda _, args, out, moved=moved: out + moved)
            sigma = denoiser.sigma(torch.tensor([0.4]))
            noisy = denoiser.add_noise(sigma, noise, latent)
            out = denoiser.denoise(noisy, sigma, conditioning.join_conds([conds]))
            found.append((out.detach(), torch.autograd.grad(out.square().mean(), moved)[0]))
            hook.remove()
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert bool(found[0][1].any())
    assert compatibility_of(made).sampling_only == ()


@pytest.mark.parametrize("place", PLACES)
def test_compiling_after_the_lora_loses_it_and_the_refusal_does_not_advise_it(run_node, model, place):
    """The oracle is ComfyUI itself: what a compiling node after the LoRA leaves of it is the LoRA of other layers."""
    layers = tiny.linear_layers(model)
    lora = tiny.random_lora(layers)
    other = {key: value for key, value in lora.items() if not key.startswith(f"{place}.")}
    plain = tiny.predict(model)
    expected = tiny.predict(comfy.sd.load_lora_for_models(model, None, other, 1.0, 0.0)[0])
    injected = run_node("BespokeInjectLora", model=model, lora=lora)[0]
    whole = tiny.predict(injected)
    assert not torch.equal(whole, expected)
    comfy.model_management.unload_all_models()
    left = tiny.predict(compiled(injected, place))
    assert torch.equal(left, expected)
    assert torch.equal(left, plain) == (place == "diffusion_model")
    with pytest.raises(InputError) as refused, prepare_for_training(compiled(model, place), "fp32"):
        pass
    assert "may follow" not in str(refused.value)
    assert "TorchCompileModel" in str(refused.value)
