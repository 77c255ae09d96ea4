"""A LoRA merged into a checkpoint: Inject LoRA (merge) into core's Save Checkpoint, weights equal bit for bit."""

from __future__ import annotations

import pytest
import safetensors.torch
import tiny
import torch

LAYER = "middle_block.1.transformer_blocks.0.attn2.to_k"
TEXT = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"


def test_the_saved_checkpoint_has_the_merged_weights(run_node, comfyui, small):
    """The oracle: the weights that ComfyUI has in memory while the injected model is loaded, bit for bit, and for one
    layer of each model W + strength * alpha / rank * up down by hand."""
    import comfy.model_management

    model, clip, vae = small
    lora = tiny.random_lora(tiny.linear_layers(model), 4, 2.0, size=0.2)
    layer = clip.cond_stage_model.get_submodule(TEXT)
    rows, columns = layer.weight.shape
    generator = torch.Generator().manual_seed(0)
    lora[f"text_encoders.{TEXT}.lora_up.weight"] = torch.randn(rows, 2, generator=generator) / 30
    lora[f"text_encoders.{TEXT}.lora_down.weight"] = torch.randn(2, columns, generator=generator) / 30
    base = {
        name: weight.detach().clone()
        for name, weight in (
            (LAYER, model.model.diffusion_model.get_submodule(LAYER).weight),
            (TEXT, layer.weight),
        )
    }
    given = dict(model=model, clip=clip, lora=lora, lora_name="none", strength_model=0.8, strength_clip=0.5)
    injected, injected_clip, *_ = run_node("BespokeInjectLora", **given)
    run_node("CheckpointSave", model=injected, clip=injected_clip, vae=vae, filename_prefix="merged/small")
    (path,) = (comfyui / "output" / "merged").glob("*.safetensors")
    saved = safetensors.torch.load_file(path)
    comfy.model_management.load_models_gpu([injected, injected_clip.patcher])
    compared = 0
    for key, weight in injected.model.diffusion_model.state_dict().items():
        assert torch.equal(saved[f"model.diffusion_model.{key}"], weight), key
        compared += 1
    for key, weight in injected_clip.cond_stage_model.state_dict().items():
        name = "cond_stage_model." + key.removeprefix("clip_l.")
        if name in saved:
            assert torch.equal(saved[name], weight), key
            compared += 1
    assert compared > 300
    for name, strength, at, scale in (
        (f"model.diffusion_model.{LAYER}.weight", 0.8, f"diffusion_model.{LAYER}", 0.5),
        (f"cond_stage_model.{TEXT.removeprefix('clip_l.')}.weight", 0.5, f"text_encoders.{TEXT}", 1.0),
    ):
        change = strength * scale * lora[f"{at}.lora_up.weight"] @ lora[f"{at}.lora_down.weight"]
        wanted = base[LAYER if LAYER in name else TEXT].float() + change
        assert (saved[name].float() - wanted).norm() < 5e-4 * wanted.norm()  # half of the last bit of fp16
        assert change.norm() > 20 * 5e-4 * wanted.norm()
    comfy.model_management.unload_all_models()
    for name, weight in base.items():
        owner = model.model.diffusion_model if name == LAYER else clip.cond_stage_model
        assert torch.equal(owner.get_submodule(name).weight, weight), "the base has changed"


@pytest.mark.parametrize("mode", ["merge", "bypass"])
def test_a_lora_beside_the_weights_is_not_in_the_checkpoint(run_node, comfyui, small, mode):
    """What the help page says: mode merge is in the file, mode bypass is not."""
    model, clip, vae = small
    lora = tiny.random_lora({LAYER: tiny.linear_layers(model)[LAYER]}, 4, 2.0, size=0.2)
    injected = run_node("BespokeInjectLora", model=model, lora=lora, lora_name="none", strength_model=1.0, mode=mode)[0]
    run_node("CheckpointSave", model=injected, clip=clip, vae=vae, filename_prefix=f"merged-{mode}/small")
    (path,) = (comfyui / "output" / f"merged-{mode}").glob("*.safetensors")
    with safetensors.safe_open(path, "pt") as file:
        saved = file.get_tensor(f"model.diffusion_model.{LAYER}.weight")
    import comfy.model_management

    comfy.model_management.unload_all_models()
    same = torch.equal(saved, model.model.diffusion_model.get_submodule(LAYER).weight)
    assert same == (mode == "bypass")
