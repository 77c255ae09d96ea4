"""Layer names: each program's spelling of a layer gives one common name, and only one package has the prefixes."""

import ast
from pathlib import Path

import pytest
import torch
from bespoke.nodes.lora import kinds
from bespoke.nodes.lora.kinds.full import OF_BIAS, OF_WEIGHT
from bespoke.training.layer_names import parts, spelling
from bespoke.training.layer_names.blocks import file_block, place

ROOT = Path(__file__).parents[2]
OWN = "input_blocks.4.1.transformer_blocks.0.attn2.to_k"
DIFFUSERS = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
TABLE = spelling.unet_table({f"{DIFFUSERS}.weight": f"{OWN}.weight", f"{DIFFUSERS}.bias": f"{OWN}.bias"})
TEXT = "text_model.encoder.layers.3.self_attn.q_proj"


@pytest.mark.parametrize(
    "name",
    [
        f"diffusion_model.{OWN}",
        f"transformer.{OWN}",
        "lora_unet_" + OWN.replace(".", "_"),
        "lora_unet_" + DIFFUSERS.replace(".", "_"),
        "lycoris_" + OWN.replace(".", "_"),
        f"unet.{DIFFUSERS}",
        f"base_model.model.{DIFFUSERS}",
        f"base_model.model.unet.{DIFFUSERS}",
    ],
)
def test_a_unet_layer_has_one_common_name(name):
    common = spelling.common_name(spelling.comfy_known_name(name), TABLE)
    assert common == f"diffusion_model.{OWN}"
    assert place(common) == ("in.4 (down.1)", "cross key")
    assert spelling.common_name(common, TABLE) == common


@pytest.mark.parametrize(
    ("name", "common", "block"),
    [
        ("lora_te_" + TEXT.replace(".", "_"), "te.", "text"),
        ("lora_te1_" + TEXT.replace(".", "_"), "te.", "text"),
        ("lora_te2_" + TEXT.replace(".", "_"), "te2.", "text 2"),
        (f"text_encoder.{TEXT}", "te.", "text"),
        (f"text_encoder_2.{TEXT}", "te2.", "text 2"),
        (f"text_encoders.clip_g.transformer.{TEXT}", "te2.", "text 2"),
        ("text_encoder." + TEXT.removeprefix("text_model."), "te.", "text"),
        ("base_model.model." + TEXT.removeprefix("text_model."), "te.", "text"),
        ("lora_te2_" + TEXT.removeprefix("text_model.").replace(".", "_"), "te2.", "text 2"),
    ],
)
def test_a_text_encoder_layer_has_one_common_name(name, common, block):
    found = spelling.common_name(spelling.comfy_known_name(spelling.with_text_model(name)), TABLE)
    assert found == common + TEXT
    assert spelling.is_text_encoder(found)
    assert file_block(found) == block


@pytest.mark.parametrize(
    ("layer", "row", "column"),
    [
        ("lora_unet_layers_3_attention_to_q", "layers.3", "self query"),
        ("lora_transformer_layers_3_attention_to_out_0", "layers.3", "self out"),
        ("lora_unet_layers_3_attention_qkv", "layers.3", "fused qkv"),
        ("lora_unet_layers_3_feed_forward_w1", "layers.3", "feed-forward"),
        ("lycoris_blocks_7_attn2_to_k", "blocks.7", "cross key"),
        ("lora_unet_blocks_7_cross_attn_k", "blocks.7", "cross key"),
        ("lora_unet_blocks_7_ffn_0", "blocks.7", "feed-forward"),
        ("lora_unet_double_blocks_2_img_attn_qkv", "double_blocks.2", "fused qkv"),
        ("lora_unet_double_blocks_2_txt_mlp_0", "double_blocks.2", "feed-forward"),
        ("lora_transformer_transformer_blocks_5_attn_add_k_proj", "transformer_blocks.5", "cross key"),
    ],
)
def test_a_name_with_underscores_has_its_place_in_an_overview(layer, row, column):
    assert place(spelling.common_name(layer, TABLE)) == (row, column)


@pytest.mark.parametrize(
    ("layer", "program"),
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in", "kohya (diffusers' layer names)"),
        ("lora_unet_layers_3_attention_to_q", "kohya (diffusers' layer names)"),
        ("lora_unet_input_blocks_4_1_proj_in", "kohya (the checkpoint's layer names)"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "kohya"),
        ("oft_unet_input_blocks_4_1_proj_in", "kohya (OFT)"),
        ("unet.down_blocks.0.attentions.0.proj_in", "diffusers"),
        ("unet.down_blocks.0.attentions.0.attn1.processor.to_q", "diffusers"),
        ("transformer.transformer_blocks.0.attn.to_q", "diffusers"),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1", "diffusers"),
        ("transformer_blocks.0.attn.to_q", "diffusers, without a prefix"),
        ("base_model.model.down_blocks.0.attentions.0.proj_in", "PEFT"),
        ("unet.base_model.model.down_blocks.0.attentions.0.proj_in", "PEFT"),
        ("lycoris_input_blocks_4_1_proj_in", "LyCORIS"),
        ("lora_transformer_layers_0_attention_to_q", "OneTrainer"),
        ("diffusion_model.layers.0.attention.qkv", "ComfyUI"),
        ("blocks.0.self_attn.q", "names of its own"),
    ],
)
def test_the_program_of_a_name(layer, program):
    assert spelling.program_names([layer]) == program


def test_the_text_encoders_names_do_not_count_beside_kohyas_others():
    layers = ["lora_te_text_model_encoder_layers_0_mlp_fc1"] * 3 + ["lora_unet_mid_block_attentions_0_proj_in"]
    assert spelling.program_names(layers) == "kohya (diffusers' layer names)"


@pytest.mark.parametrize(
    ("ending", "part"),
    [
        (".lora_up.weight", parts.UP),
        (".lora_A.weight", parts.DOWN),
        (".lora_B.my-adapter.weight", parts.UP),
        ("_lora.down.weight", parts.DOWN),
        (".lora.up.weight", parts.UP),
        (".lora_linear_layer.down.weight", parts.DOWN),
        (".lora_magnitude_vector.default.weight", parts.DORA_SCALE),
        (".lora_B.bias", parts.PEFT_UP_BIAS),
        (".lora_B.default.bias", parts.PEFT_UP_BIAS),
        (".lora_up.bias", parts.PEFT_UP_BIAS),
        (".hada_w1_a", parts.HADA_W1_A),
        (".alpha", parts.ALPHA),
    ],
)
def test_every_spelling_of_a_part(ending, part):
    assert parts.split_key("a.lora_b.c" + ending) == ("a.lora_b.c", part)
    assert parts.split_key(ending + ".other") == (ending + ".other", parts.UNKNOWN)


def test_every_part_belongs_to_a_kind():
    named = {parts.ALPHA, parts.DORA_SCALE, parts.NEW_SHAPE, parts.RESCALE, *OF_WEIGHT, *OF_BIAS, *kinds.MATRICES}
    known = {
        value
        for name, value in vars(parts).items()
        if name.isupper() and not name.startswith(("_", "PEFT")) and isinstance(value, str)
    }
    assert known - {parts.UNKNOWN} == named
    assert all(parts.split_key("x" + part) == ("x", part) for part in named)


def test_the_table_names_each_kind():
    """One layer of each kind, recognised by its parts."""
    matrix = torch.zeros(2, 2)
    layers = {
        "LoRA": (parts.UP, parts.DOWN),
        "LoHa": (parts.HADA_W1_A,),
        "LoKr": (parts.LOKR_W2,),
        "GLoRA": (parts.GLORA_A1,),
        "DoRA": (parts.UP, parts.DOWN, parts.DORA_SCALE),
        "full": (parts.DIFF,),
    }
    found = {kinds.kind_of(dict.fromkeys(names, matrix)).name for names in layers.values()}
    found |= {kinds.kind_of({parts.OFT_BLOCKS: torch.zeros(shape)}).name for shape in ((2, 2, 2), (1, 2, 2, 2))}
    assert found == {kind.name for kind in kinds.KINDS}


def _texts(tree: ast.AST) -> set[str]:
    """All strings of a module except docstrings."""
    described = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, described) and node.body and isinstance(node.body[0], ast.Expr)
    }
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
    }


def test_prefixes_are_in_one_package():
    starts = ("text_encoder.", *(value for name, value in vars(spelling).items() if name.endswith("_PREFIX")))
    anywhere = ("lora_unet_", "lora_te", "base_model.model.", "lycoris_", "lora_transformer_")
    found = {
        f"{path.relative_to(ROOT)}: {text!r}"
        for folder in ("nodes", "training")
        for path in (ROOT / folder).rglob("*.py")
        if path.parent.name != "layer_names"
        for text in _texts(ast.parse(path.read_text("utf-8")))
        if text.startswith(starts) or any(prefix in text for prefix in anywhere)
    }
    assert not found
