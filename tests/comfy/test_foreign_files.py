"""LoRA files written by other programs' code: each changes the whole model as core's LoraLoader does, or where core
computes another weight than LyCORIS, as the weights do that LyCORIS' own loader makes of the file.

`test_foreign_strengths.py` compares single layers with PEFT's and LyCORIS' own modules, for every kind.
The files are made with diffusers and PEFT, and with LyCORIS, on their own small networks with ComfyUI's layer shapes
and random factors. Where core does not map a file's names, it gets the same numbers under names that it maps, converted
by diffusers' code.
"""

import logging
import re

import foreign
import matrix
import pytest
import safetensors.torch
import tiny
import torch

XL_CONTEXT = 2 * tiny.CONTEXT


@pytest.fixture(scope="module")
def loras(comfyui):
    return comfyui / "models" / "loras"


@pytest.fixture(scope="module")
def bases(comfyui):
    """{"sd15" or "sdxl": (model, clip)} of ComfyUI's own classes, small."""
    return {
        "sd15": (tiny.patcher(), tiny.clip()),
        "sdxl": (tiny.patcher(tiny.SDXL, sdxl=True), tiny.clip(two=True)),
    }


def unet(kind):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    if kind == "sdxl":
        return UNet2DConditionModel(
            block_out_channels=(32, 64, 64),
            layers_per_block=2,
            transformer_layers_per_block=(1, 2, 3),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=XL_CONTEXT,
            attention_head_dim=2,
            use_linear_projection=True,
        )
    return UNet2DConditionModel(
        block_out_channels=(32, 64, 64, 64), layers_per_block=2, cross_attention_dim=tiny.CONTEXT, attention_head_dim=2
    )


def text_encoders(kind):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        hidden_size=tiny.CONTEXT,
        intermediate_size=2 * tiny.CONTEXT,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=tiny.CONTEXT,
    )
    return [CLIPTextModel(config)] + ([CLIPTextModelWithProjection(config)] if kind == "sdxl" else [])


def old_names(tensors):
    """The text encoders' layers with the names before transformers 5, the only ones that core maps."""
    return {
        re.sub(r"(lora_te\d?_)encoder_layers", r"\1text_model_encoder_layers", key): tensor
        for key, tensor in tensors.items()
    }


LYCORIS_LOADER = "LyCORIS"


def with_lycoris(model, clip, lora_name):
    """(model, clip) whose weights are those of LyCORIS' `make_module` and `get_merged_weight` for the file."""
    import comfy.lora
    import comfy.utils
    import folder_paths
    from lycoris.modules import get_module, make_module

    tensors = safetensors.torch.load_file(folder_paths.get_full_path("loras", lora_name))
    layers = {key.split(".")[0] for key in tensors}
    model, clip = model.clone(), clip.clone()
    sides = (
        (model, comfy.lora.model_lora_keys_unet(model.model, {})),
        (clip.patcher, comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})),
    )
    for patcher, names in sides:
        for layer in layers & names.keys():
            bare = foreign.plain(comfy.utils.get_attr(patcher.model, names[layer].removesuffix(".weight")))
            module = make_module(*get_module(tensors, layer), layer, bare)
            with torch.no_grad():
                weight = module.get_merged_weight(shape=bare.weight.shape, device="cpu")[0]
            patcher.add_patches({names[layer]: ("set", (weight,))})
        layers -= names.keys()
    assert not layers
    return model, clip


@pytest.fixture(scope="module")
def outputs(run_node, bases):
    """outputs(kind, loader, **inputs) -> (the model's output, the text encoder's), through a loader node.

    With the loader `LYCORIS_LOADER`, with the weights of LyCORIS' own loader.
    """

    def predict(kind, node, **inputs):
        model, clip = bases[kind]
        if node == LYCORIS_LOADER:
            model, clip = with_lycoris(model, clip, **inputs)
        elif node is not None:
            model, clip, *_ = run_node(node, model=model, clip=clip, strength_model=1.0, strength_clip=1.0, **inputs)
        return tiny.predict(model, context=XL_CONTEXT if kind == "sdxl" else tiny.CONTEXT), tiny.encode(clip)

    return predict


@pytest.fixture(scope="module")
def same(outputs, loras, run_node, bases):
    """same(kind, ours, theirs, text, loader): our node on file `ours` gives the outputs of the loader on `theirs`."""

    def check(kind, ours, theirs, text=True, loader="LoraLoader"):
        bare = outputs(kind, None)
        core = outputs(kind, loader, lora_name=theirs)
        for mode in ("merge", "bypass"):
            mine = outputs(kind, "BespokeInjectLora", lora_name=ours, mode=mode)
            for i in range(1 + text):
                movement = float((core[i] - bare[i]).abs().max())
                assert movement > 1e-3, "the other loader did not apply the file"
                assert float((mine[i] - core[i]).abs().max()) <= 1e-3 * movement, (mode, ("model", "text encoder")[i])
        model, clip = bases[kind]
        return run_node("BespokeInjectLora", model=model, clip=clip, lora_name=ours, strength_model=1.0)[2]

    return check


def save(folder, name, tensors, meta=None):
    safetensors.torch.save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name, meta)
    return name


# --- diffusers and PEFT ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def peft_files(loras):
    """{(kind, with alpha in the metadata): (the file's name, its tensors)} by diffusers' `save_lora_weights`."""
    import diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    made = {}
    for kind in ("sd15", "sdxl"):
        network, encoders = unet(kind), text_encoders(kind)
        network.add_adapter(
            LoraConfig(
                r=4,
                lora_alpha=8,
                init_lora_weights=False,
                target_modules=["to_k", "to_q", "to_v", "to_out.0", "proj_in"],
            )
        )
        for encoder in encoders:
            encoder.add_adapter(
                LoraConfig(
                    r=2, lora_alpha=3, init_lora_weights=False, target_modules=["q_proj", "v_proj", "out_proj", "fc1"]
                )
            )
        parts = {"unet": network, **dict(zip(("text_encoder", "text_encoder_2"), encoders, strict=False))}
        layers = {f"{name}_lora_layers": get_peft_model_state_dict(part) for name, part in parts.items()}
        metas = {f"{name}_lora_adapter_metadata": part.peft_config["default"].to_dict() for name, part in parts.items()}
        pipeline = diffusers.StableDiffusionXLPipeline if kind == "sdxl" else diffusers.StableDiffusionPipeline
        for with_alpha in (False, True):
            name = f"peft-{kind}-{with_alpha}.safetensors"
            pipeline.save_lora_weights(loras, **layers, weight_name=name, **(metas if with_alpha else {}))
            made[kind, with_alpha] = name, safetensors.torch.load_file(loras / name)
    return made


def as_kohya(tensors, scales=None):
    """diffusers' conversion to kohya's names, with the alphas of the training."""
    from diffusers.utils import convert_state_dict_to_kohya

    out = old_names(convert_state_dict_to_kohya(dict(tensors)))
    if not any(key.startswith("lora_te2_") for key in out):
        out = {key.replace("lora_te1_", "lora_te_"): tensor for key, tensor in out.items()}
    for key in out:
        if scales and key.endswith(".alpha"):
            out[key] = torch.tensor(scales["text" if key.startswith("lora_te") else "unet"])
    return out


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_diffusers_of_today(kind, peft_files, same, loras):
    """`unet....attn2.to_k.lora_A.weight`, which core does not map; also without transformers 5's shorter text names."""
    name, tensors = peft_files[kind, False]
    theirs = save(loras, f"kohya-{kind}.safetensors", as_kohya(tensors))
    report = same(kind, name, theirs)
    assert "No alpha in the file: there it acts at strength 1, not at 1/rank." in report
    assert "matched nothing" not in report
    before = {
        re.sub(r"(text_encoder(?:_2)?)\.encoder", r"\1.text_model.encoder", key): tensor
        for key, tensor in tensors.items()
    }
    assert (before.keys() != tensors.keys()) == any(".encoder.layers" in k and ".text_model." not in k for k in tensors)
    same(kind, save(loras, f"before-{kind}.safetensors", before), theirs)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_diffusers_metadata_alpha_is_honoured(kind, peft_files, same, loras):
    name, tensors = peft_files[kind, True]
    theirs = save(loras, f"alpha-{kind}.safetensors", as_kohya(tensors, {"unet": 8.0, "text": 3.0}))
    assert "alpha 8 in most layers" in same(kind, name, theirs)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_kohya_names_by_diffusers_conversion(kind, peft_files, same, loras):
    name = save(
        loras, f"kohya-own-{kind}.safetensors", as_kohya(peft_files[kind, False][1], {"unet": 2.0, "text": 1.0})
    )
    assert "kohya (diffusers' layer names)" in same(kind, name, name)


def test_peft_alone(same, loras):
    """`base_model.model....` by PEFT's `save_pretrained`; core gets the same numbers under kohya's names."""
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(
        unet("sd15"), LoraConfig(r=3, lora_alpha=3, init_lora_weights=False, target_modules=["to_k", "to_v"])
    )
    wrapped.save_pretrained(loras / "peft")
    tensors = safetensors.torch.load_file(loras / "peft" / "adapter_model.safetensors")
    assert all(key.startswith("base_model.model.down_blocks") for key in list(tensors)[:2])
    theirs = as_kohya({key.replace("base_model.model.", "unet."): tensor for key, tensor in tensors.items()})
    same("sd15", "peft/adapter_model.safetensors", save(loras, "peft-kohya.safetensors", theirs), text=False)
    encoder = get_peft_model(
        text_encoders("sd15")[0], LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["q_proj"])
    )
    encoder.save_pretrained(loras / "peft-te")
    text = safetensors.torch.load_file(loras / "peft-te" / "adapter_model.safetensors")
    both = save(loras, "peft-both.safetensors", tensors | text)
    kohya = theirs | as_kohya(
        {key.replace("base_model.model.", "text_encoder."): tensor for key, tensor in text.items()}
    )
    same("sd15", both, save(loras, "peft-both-kohya.safetensors", kohya))


def test_old_diffusers_and_comfys_own_names(peft_files, same, loras, bases):
    """`unet....attn2.processor.to_k_lora.down.weight`, and `diffusion_model.input_blocks...`: core maps both."""
    import comfy.utils

    _, tensors = peft_files["sd15", False]
    attention = {key: tensor for key, tensor in tensors.items() if key.startswith("unet.") and ".attn" in key}
    old = {}
    for key, tensor in attention.items():
        layer, part = re.fullmatch(r"(.*)\.lora_([AB])\.weight", key).groups()
        layer = layer.removesuffix(".0") if layer.endswith("to_out.0") else layer
        at, name = layer.rsplit(".", 1)
        old[f"{at}.processor.{name}_lora.{'down' if part == 'A' else 'up'}.weight"] = tensor
    name = save(loras, "old.safetensors", old)
    assert "No alpha" in same("sd15", name, name, text=False)
    names = comfy.utils.unet_to_diffusers(bases["sd15"][0].model.model_config.unet_config)
    comfy_own = {}
    for key, tensor in attention.items():
        layer, part = re.fullmatch(r"(.*)\.lora_([AB])\.weight", key).groups()
        own = names[layer.removeprefix("unet.") + ".weight"].removesuffix(".weight")
        comfy_own[f"diffusion_model.{own}.lora_{part}.weight"] = tensor
    assert len(comfy_own) == len(attention)
    name = save(loras, "comfy.safetensors", comfy_own)
    same("sd15", name, name, text=False)


# --- LyCORIS --------------------------------------------------------------------------------------------------------

PRESET = """
enable_conv = true
unet_target_module = ["Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"]
unet_target_name = []
text_encoder_target_module = ["CLIPAttention", "CLIPMLP"]
text_encoder_target_name = []
"""
KINDS = {
    "locon": {"algo": "lora"},
    "loha": {"algo": "loha", "use_tucker": True},
    "lokr": {"algo": "lokr", "factor": 4},
    "oft": {"algo": "diag-oft", "rescaled": True},
    "dora": {"algo": "lora", "dora_wd": True},
    "full": {"algo": "full", "train_norm": True},
}
MORE = {
    "locon-tucker": {"algo": "lora", "use_tucker": True},
    "loha-flat": {"algo": "loha"},
    "lokr-whole": {"algo": "lokr", "factor": 4, "full_matrix": True},
    "lokr-both": {"algo": "lokr", "factor": 4, "decompose_both": True, "use_tucker": True},
    "oft-constrained": {"algo": "diag-oft", "constraint": 0.5},
    "boft": {"algo": "boft"},
    "glora": {"algo": "glora"},
    "dylora": {"algo": "dylora"},
    "dora-input": {"algo": "lora", "dora_wd": True, "wd_on_output": False},
    "loha-dora": {"algo": "loha", "dora_wd": True},
    "lokr-dora": {"algo": "lokr", "factor": 4, "dora_wd": True},
}
# Where core computes another weight than LyCORIS, or none: with whose weights ours are compared. LyCORIS' own loader
# cannot make `lokr-both`, and applies alpha / rank twice in the merge of LoHa and LoKr with DoRA, unlike its modules.
# For these the modules are the oracle (`test_foreign_strengths.py`), and both of our modes are compared here.
LOADERS = dict.fromkeys(("oft", "dora", "oft-constrained"), LYCORIS_LOADER) | dict.fromkeys(
    ("lokr-both", "loha-dora", "lokr-dora"), "BespokeInjectLora"
)


@pytest.fixture(scope="module")
def lycoris_file(loras):
    """lycoris_file(kind, name, settings) -> the file's name, written by LyCORIS' `save_weights`."""
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    from lycoris import kohya

    (loras / "preset.toml").write_text(PRESET)

    def make(kind, name, settings):
        # BOFT needs widths that are powers of two, which the text encoders' are not.
        text = [] if settings["algo"] == "boft" else text_encoders(kind)
        text = text[0] if len(text) == 1 else text
        network = kohya.create_network(
            1.0,
            4,
            2.0,
            None,
            text,
            unet(kind),
            conv_dim=4,
            conv_alpha=2.0,
            preset=str(loras / "preset.toml"),
            **settings,
        )
        network.apply_to(text, unet(kind), True, True)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for key, parameter in network.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                # Magnitudes and weights of norms are around 1, rotations around 0.
                parameter.copy_(
                    1 + 0.1 * noise
                    if "dora_scale" in key or "rescale" in key or key.endswith("w_norm")
                    else 0.1 * noise
                )
        path = loras / f"lycoris-{kind}-{name}.safetensors"
        network.save_weights(str(path), torch.float32, {})
        return path.name, bool(text)

    return make


def lycoris(kind, name, settings, lycoris_file, same, loras):
    ours, text = lycoris_file(kind, name, settings)
    tensors = safetensors.torch.load_file(loras / ours)
    theirs = save(loras, f"core-{ours}", old_names(tensors))
    report = same(kind, ours, theirs, text, LOADERS.get(name, "LoraLoader"))
    assert "matched nothing" not in report, report
    return report


@pytest.mark.parametrize("name", matrix.mark_slow(KINDS, set(KINDS) - {"oft", "dora"}))
def test_lycoris(name, lycoris_file, same, loras):
    report = lycoris("sd15", name, KINDS[name], lycoris_file, same, loras)
    assert {"locon": "LoRA", "loha": "LoHa", "lokr": "LoKr", "oft": "OFT", "dora": "DoRA", "full": "full"}[
        name
    ] in report


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_lycoris_more_kinds(name, lycoris_file, same, loras):
    lycoris("sd15", name, MORE[name], lycoris_file, same, loras)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["locon", "loha", "lokr", "oft", "dora"])
def test_lycoris_of_two_text_encoders(name, lycoris_file, same, loras):
    lycoris("sdxl", name, KINDS[name], lycoris_file, same, loras)


def test_a_file_for_the_other_base_is_refused(run_node, bases, lycoris_file, loras):
    """Nothing is applied, and the error names the base of the file and that of the model."""
    name, _ = lycoris_file("sdxl", "other", KINDS["locon"])
    model, clip = bases["sd15"]
    with pytest.raises(ValueError, match=r"Bespoke Inject LoRA: .*wire in the base it was trained on"):
        run_node("BespokeInjectLora", model=model, clip=clip, lora_name=name, strength_model=1.0)
    tensors = safetensors.torch.load_file(loras / name)
    labelled = save(loras, "labelled.safetensors", tensors, {"ss_base_model_version": "sdxl_base_v1-0"})
    with pytest.raises(ValueError, match=r"made for SDXL, and this is SD1\.5"):
        run_node("BespokeInjectLora", model=model, clip=clip, lora_name=labelled, strength_model=1.0)
    assert not model.patches
