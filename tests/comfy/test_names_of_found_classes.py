"""Names that other programs give the layers of classes that no record describes, as public reports of them have it."""

import importlib
import re

import host_models
import pytest
import torch
from bespoke.nodes.bridge.models.names import by_core
from bespoke.nodes.lora.keys import keys_of

# (row, a name in a file, ComfyUI's layer). The pairs are those of the other program's own module names: Tencent's code
# for HunyuanVideo (musubi-tuner issue 26, ComfyUI issues 6531 and 6664), diffusers' class for Krea 2 and AuraFlow,
# DiffSynth's files for LTX (ComfyUI issue 14349), SimpleTuner's for HiDream (ComfyUI issue 7792).
NAMES = [
    ("hunyuan_video", "lora_unet_double_blocks_0_img_mlp_fc1", "double_blocks.0.img_mlp.0"),
    ("hunyuan_video", "lora_unet_double_blocks_1_txt_mlp_fc2", "double_blocks.1.txt_mlp.2"),
    ("hunyuan_video", "lora_unet_single_blocks_1_modulation_linear", "single_blocks.1.modulation.lin"),
    ("hunyuan_video", "lora_transformer_double_blocks_0_img_attn_qkv", "double_blocks.0.img_attn.qkv"),
    ("hunyuan_video15", "diffusion_model.double_blocks.0.img_attn_qkv", "double_blocks.0.img_attn.qkv"),
    ("hunyuan_video15", "lora_unet_double_blocks_0_img_mlp_fc2", "double_blocks.0.img_mlp.2"),
    ("krea2", "lora_unet_transformer_blocks_0_attn_to_q", "blocks.0.attn.wq"),
    ("krea2", "base_model.model.transformer_blocks.1.attn.to_out.0", "blocks.1.attn.wo"),
    ("ltxav", "transformer_blocks.0.attn1.to_out.0", "transformer_blocks.0.attn1.to_out.0"),
    ("hidream", "lycoris_double_stream_blocks_0_block_attn1_to_q", "double_stream_blocks.0.block.attn1.to_q"),
]


@pytest.mark.parametrize(("row", "name", "layer"), NAMES)
def test_a_name_in_a_file_finds_its_layer(comfyui, row, name, layer):
    if host_models.config_class(row) is None:
        pytest.skip(f"this ComfyUI has no {host_models.ROWS[row].config}")
    found = keys_of(host_models.made(row)[0].model, False).find(name)
    assert found is not None
    assert found[0] == f"diffusion_model.{layer}.weight"


def test_a_fused_layers_rows_are_read_behind_any_prefix(comfyui):
    """PixArt's fused qkv is q, k and v in diffusers:
    rows 0 to d, d to 2d and 2d to 3d of the matrix."""
    base = host_models.made("pixart_sigma")[0].model
    width = base.diffusion_model.blocks[0].attn.qkv.in_features
    for number, letter in enumerate("qkv"):
        for prefix, dot in (("lora_unet_", "_"), ("transformer.", "."), ("base_model.model.", ".")):
            found = keys_of(base, False).find(prefix + dot.join(("transformer_blocks", "0", "attn1", f"to_{letter}")))
            assert found[0] == ("diffusion_model.blocks.0.attn.qkv.weight", (0, number * width, width))


# (row, diffusers' loader of LoRA files for its pipeline, whether that reads the checkpoint's own names)
LOADERS = [
    ("ltxv", "LTXVideo", True),
    ("ltxav", "LTX2", True),
    ("anima", "Anima", True),
    ("ideogram4", "Ideogram4", True),
    ("wan_causal", "Wan", True),
    ("mochi", "Mochi1", False),
    ("cogvideox", "CogVideoX", False),
    ("cosmos", "Cosmos", False),
    ("cosmos_predict2", "Cosmos", False),
]


@pytest.mark.slow
@pytest.mark.parametrize(("row", "loader", "reads"), LOADERS)
def test_names_for_diffusers_are_those_that_it_reads(comfyui, row, loader, reads):
    """The oracle is diffusers' own loader: it keeps what becomes `transformer.` and leaves the rest of a file out."""
    if host_models.config_class(row) is None:
        pytest.skip(f"this ComfyUI has no {host_models.ROWS[row].config}")
    module = importlib.import_module("diffusers.loaders.lora_pipeline")
    base = host_models.made(row)[0].model
    forms, network = by_core(base), base.diffusion_model
    beside = re.compile("audio|adapter|connector")  # parts of other models
    blocks = [name for name in forms if ".0." in name and "att" in name and not beside.search(name)]
    assert blocks
    file = {}
    for name in blocks:
        layer = network.get_submodule(name)
        file[f"diffusion_model.{name}.lora_A.weight"] = torch.zeros(2, layer.in_features)
        file[f"diffusion_model.{name}.lora_B.weight"] = torch.zeros(layer.out_features, 2)
    read = getattr(module, f"{loader}LoraLoaderMixin").lora_state_dict(dict(file))
    read = read[0] if isinstance(read, tuple) else read
    assert all(name.startswith("transformer.") for name in read) is reads
    assert all(("diffusers" in forms[name]) is reads for name in blocks)
