"""What other nodes have put on a MODEL whose class no record describes: trained as it is sampled, or refused.

The oracle is ComfyUI's sampler, called once for each noise level, and finite differences for the gradient
(`wire_training.compare`).
"""

from __future__ import annotations

import odd_networks
import pytest
import tiny
import torch
import wire_training
from bespoke.nodes.bridge.models import discovery
from bespoke.nodes.bridge.trainer import Models
from helpers import sprite_set
from host_models import config_class, make
from odd_networks import ODD


def patched_queries(q, k, v, **_):
    return {"q": q * 0.5, "v": v * 1.5}


def without_graph(q, k, v, **_):
    return {"q": q.detach() * 0.5, "k": k.detach(), "v": v.detach()}


def replaced_block(args, extra):
    out = extra["original_block"](args)
    return {**out, "img": out["img"] * torch.linspace(0.5, 1.5, out["img"].shape[-1])}


def halved(executor, *args, **kwargs):
    return executor(*args, **kwargs) * 0.5


def with_lora(model):
    import comfy.sd

    lora = tiny.random_lora(tiny.linear_layers(model, "attn"))
    return comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0]


def with_patch(function, name="attn1_patch"):
    def add(model):
        made = model.clone()
        made.set_model_patch(function, name)
        return made

    return add


def with_block(model):
    made = model.clone()
    made.set_model_patch_replace(replaced_block, "dit", "double_block", 1)
    return made


def with_wrapper(kind):
    def add(model):
        import comfy.patcher_extension

        made = model.clone()
        made.add_wrapper_with_key(getattr(comfy.patcher_extension.WrappersMP, kind), "test", halved)
        return made

    return add


def with_forward(place):
    def add(model):
        made = model.clone()
        layer = made.get_model_object(f"diffusion_model.{place}")
        made.add_object_patch(
            f"diffusion_model.{place}.forward", lambda *args, **kw: type(layer).forward(layer, *args, **kw) * 0.5
        )
        return made

    return add


# (what the MODEL carries, the class, what adds it, what comes of it)
CASES = [
    ("LoRA", "krea2", with_lora, "equal"),
    ("patch of attention", "krea2", with_patch(patched_queries), "equal"),
    ("patch of an attention's output", "krea2", with_patch(lambda out, _: out * 0.5, "attn1_output_patch"), "equal"),
    ("patch without a backward pass", "krea2", with_patch(without_graph), "refused"),
    ("wrapper of the network", "krea2", with_wrapper("DIFFUSION_MODEL"), "equal"),
    ("wrapper of the model", "krea2", with_wrapper("APPLY_MODEL"), "equal"),
    ("replaced block", "ltxv", with_block, "equal"),
    ("replaced function of a block", "ltxv", with_forward("transformer_blocks.0"), "equal"),
    ("replaced function, a class of no host", "", with_forward("parts.1"), "equal"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("carried", "name", "add", "kind"), CASES, ids=[case[0] for case in CASES])
def test_it_is_trained_as_it_is_sampled_or_refused(comfyui, run_node, tmp_path, carried, name, add, kind):
    if name and config_class(name) is None:
        pytest.skip(f"this ComfyUI has no {name}")
    model, clip, vae = make(name) if name else odd_networks.make(ODD["exponentials"])
    plain = Models(model, clip, vae)
    made = Models(add(model), clip, vae)
    with torch.inference_mode():
        verdict = wire_training.compare(made, made, tmp_path, "lora", (plain, ""))
    assert verdict.kind == kind, str(verdict)
    assert verdict.effect > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("place", ["diffusion_model", "diffusion_model.parts.0", "diffusion_model.parts.0.forward"])
def test_what_a_loaded_clone_carries_is_not_observed(run_node, monkeypatch, place):
    """The layers are counted by hand in the class. ComfyUI leaves the object patches of what was sampled last in the
    base model, which all clones share: here a compiled network, a compiled block, and a block that has no result."""
    import comfy.model_management

    monkeypatch.setattr(discovery, "_by_structure", {})  # no other test's network of this class
    model, clip, vae = odd_networks.make(ODD["exponentials"])
    other = model.clone()
    with torch.compiler.set_stance("force_eager"):
        if place.endswith("forward"):
            other.add_object_patch(place, lambda *_: None)
        else:
            other.add_object_patch(place, torch.compile(other.get_model_object(place), backend="eager"))
        comfy.model_management.load_models_gpu([other])
        _, lora, *_ = run_node(
            "BespokeTrainLora", model=model, clip=clip, vae=vae, images=sprite_set(2, 2, side=64, colour="teal"),
            steps=1, batch_size=1, rank=2, precision="fp32", resume=False, targets="attention",
        )  # fmt: skip
    comfy.model_management.unload_all_models()
    layers = {key.removesuffix(".lora_up.weight") for key in lora if key.endswith("lora_up.weight")}
    attention = ODD["exponentials"].attention
    assert layers == {f"diffusion_model.parts.{number}.{name}" for number in range(2) for name in attention}
