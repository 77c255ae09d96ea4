"""The formats of LoRA files, on torch alone."""

import json

import pytest
import torch
from bespoke.training import formats
from bespoke.training.errors import InputError
from run_records import make_run

LAYER = "input_blocks.1.1.transformer_blocks.0.attn2.to_q"
KEY = f"diffusion_model.{LAYER}"
NAMES = {
    KEY: {
        "kohya": "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q",
        "diffusers": "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q",
    }
}


def comfy_lora():
    return {
        f"diffusion_model.{LAYER}.lora_up.weight": torch.randn(6, 2),
        f"diffusion_model.{LAYER}.lora_down.weight": torch.randn(2, 6),
        f"diffusion_model.{LAYER}.alpha": torch.tensor(4.0),
    }


def test_key_formats():
    lora = comfy_lora()
    assert formats.to_format(lora, "comfy", {}) == lora
    kohya = formats.to_format(lora, "kohya", NAMES)
    assert set(kohya) == {f"{NAMES[KEY]['kohya']}.{part}" for part in ("lora_up.weight", "lora_down.weight", "alpha")}
    unnamed = formats.to_format(lora, "kohya", {})
    assert f"lora_unet_{LAYER.replace('.', '_')}.alpha" in unnamed
    with pytest.raises(InputError, match="wire the trainer's run"):
        formats.to_format(lora, "diffusers", {})


def test_diffusers_format_keeps_the_strength_without_alpha():
    lora = comfy_lora()
    diffusers = formats.to_format(lora, "diffusers", NAMES)
    name = NAMES[KEY]["diffusers"]
    assert set(diffusers) == {f"{name}.lora_A.weight", f"{name}.lora_B.weight"}
    delta = diffusers[f"{name}.lora_B.weight"] @ diffusers[f"{name}.lora_A.weight"]
    prefix = f"diffusion_model.{LAYER}"
    assert torch.allclose(delta, 4.0 / 2 * lora[f"{prefix}.lora_up.weight"] @ lora[f"{prefix}.lora_down.weight"])
    back = formats.from_diffusers(diffusers)
    assert set(back) == {f"{NAMES[KEY]['kohya']}.lora_up.weight", f"{NAMES[KEY]['kohya']}.lora_down.weight"}


def test_metadata_for_other_programs():
    run = make_run(
        "lora-1",
        "lora",
        {"steps": 9, "learning_rate": 1e-3, "seed": 5, "loraplus_lr_ratio": 16.0},
        "base.safetensors",
        3,
        trigger="teal",
        tags={"teal": 3},
    )
    run.losses = [1.0] * 9
    meta = formats.metadata(comfy_lora(), run, "my-lora", {"1": {}}, {"nodes": []})
    assert all(isinstance(value, str) for value in meta.values())
    assert (meta["ss_network_dim"], meta["ss_network_alpha"], meta["ss_steps"]) == ("2", "4.0", "9")
    assert json.loads(meta["ss_network_args"]) == {"loraplus_lr_ratio": "16.0"}
    assert meta["ss_sd_model_name"] == "base.safetensors"
    assert json.loads(meta["ss_tag_frequency"]) == {"images": {"teal": 3}}
    assert json.loads(meta["workflow"]) == {"nodes": []}
    assert formats.trigger_words(meta) == "teal"
    assert formats.trigger_words({"ss_tag_frequency": '{"a": {"x": 1, "y": 4}}'}) == "y, x"
    assert formats.trigger_words({"ss_tag_frequency": "[1"}) == ""
