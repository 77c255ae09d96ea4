"""LoRA on ComfyUI's own models: gradients, and files in every format through core's nodes and the pack's."""

import logging

import pytest
import tiny
import torch
from bespoke.nodes.bridge.models import target_layers
from bespoke.nodes.bridge.training_model.denoiser import prepare_for_training
from bespoke.nodes.bridge.training_model.text_encoder import prepare_text_encoder
from helpers import batch_and_single_gradients, sprite_set

STEPS, LAYERS = 4, 16 * 4  # SD1.5's blocks, and the projections of each one's cross-attention


@pytest.fixture(scope="module")
def trained(sd15, run_node):
    """The outputs of Bespoke Train LoRA after a few steps on a small SD1.5."""
    model, clip, vae = sd15
    return run_node(
        "BespokeTrainLora",
        model=model,
        clip=clip,
        vae=vae,
        images=sprite_set(1, 4, side=64, colour="teal"),
        steps=STEPS,
        learning_rate=2e-2,
        rank=8,
        alpha=8.0,
        batch_size=2,
        seed=0,
        precision="fp32",
        resume=False,
    )


def test_targets_are_exactly_the_cross_attention(sd15):
    unet = sd15[0].model.diffusion_model
    expected = {
        name
        for name, _ in unet.named_modules()
        if ".attn2." in name and name.endswith(("to_q", "to_k", "to_v", "to_out.0"))
    }
    assert set(target_layers(unet, "cross-attention")) == expected
    assert len(expected) == LAYERS
    assert len(target_layers(unet, "attention")) == 2 * len(expected)
    assert set(target_layers(unet, "custom", "*attn2.to_k, *attn2.to_v")) == {
        n for n in expected if n.endswith(("to_k", "to_v"))
    }


def test_inference_mode_weights_are_not_copied(comfyui):
    """ComfyUI loads weights under inference mode. Autograd refuses such tensors; they are not copied."""
    with torch.inference_mode():
        model, clip = tiny.patcher(), tiny.clip()
    own = dict(model.model.diffusion_model.named_parameters())
    assert all(parameter.is_inference() for parameter in own.values())
    addresses = {name: parameter.data_ptr() for name, parameter in own.items()}
    with prepare_for_training(model, "fp32") as denoiser:
        for name, parameter in denoiser.base.diffusion_model.named_parameters():
            assert not parameter.is_inference()
            assert parameter.data_ptr() == addresses[name]
    batch, mean, _ = batch_and_single_gradients(model, clip, (4, 16, 16))
    assert (batch - mean).norm() / mean.norm() < 1e-5
    assert all(own[name] is parameter for name, parameter in model.model.diffusion_model.named_parameters())
    assert all(parameter.data_ptr() == addresses[name] for name, parameter in own.items())
    with prepare_text_encoder(clip, None) as text:
        table = text.model.clip_l.transformer.get_input_embeddings().weight
        assert table.data_ptr() == clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight.data_ptr()
        assert not table.is_inference()


@pytest.mark.slow
def test_gradient_of_four_captions_is_the_mean_of_four(small, small_checkpoint):
    """On a trained base, in float64: in float32, rounding differs by 1e-4 between a batch of four and of one."""
    import comfy.sd

    clip = small[1]
    model = comfy.sd.load_checkpoint_guess_config(
        str(small_checkpoint), output_vae=False, output_clip=False, model_options={"dtype": torch.float64}
    )[0]
    for shape in ((4, 16, 16), (4, 12, 20)):  # two aspect ratios
        batch, mean, sizes = batch_and_single_gradients(model, clip, shape)
        assert sizes == [4]  # one call with exactly four samples
        assert (batch - mean).norm() / mean.norm() < 1e-5


@pytest.mark.parametrize("key_format", ["kohya", "comfy"])
def test_core_loads_the_file_and_moves_as_the_node_does(sd15, run_node, trained, key_format, caplog):
    model, clip, _ = sd15
    node_model, lora, loss, run, report, _ = trained
    name, *_ = run_node(
        "BespokeSaveLora",
        lora=lora,
        filename_prefix=f"test/teal-{key_format}",
        run=run,
        key_format=key_format,
        dtype="fp32",
    )
    with caplog.at_level(logging.WARNING):
        core_model, _ = run_node(
            "LoraLoader", model=model, clip=clip, lora_name=name, strength_model=1.0, strength_clip=1.0
        )
    assert "not loaded" not in caplog.text.lower()
    base, node, core = (tiny.predict(m) for m in (model, node_model, core_model))
    movement = (node - base).abs().max()
    assert movement > 0.05
    assert (core - node).abs().max() < 1e-3 * movement
    assert len(loss["loss"]) == STEPS
    assert "0 of the model's own changed" in report


def test_every_format_round_trips_through_the_packs_nodes(sd15, run_node, trained):
    model = sd15[0]
    node_model, lora, _, run, _, _ = trained
    base, node = (tiny.predict(m) for m in (model, node_model))
    for key_format in ("kohya", "diffusers", "comfy"):
        name, *_ = run_node(
            "BespokeSaveLora", lora=lora, filename_prefix="test/own", run=run, key_format=key_format, dtype="fp32"
        )
        loaded, _, text = run_node("BespokeLoadLora", lora_name=name)
        assert "rank 8" in text
        injected, _, report, *_ = run_node("BespokeInjectLora", model=model, lora_name=name, strength_model=1.0)
        wired, *_ = run_node("BespokeInjectLora", model=model, lora_name="none", strength_model=1.0, lora=loaded)
        assert f"{LAYERS} layers of the model" in report
        for other in (injected, wired):
            assert (tiny.predict(other) - node).abs().max() < 1e-3 * (node - base).abs().max()


def test_core_types(sd15, run_node, trained):
    """LORA_MODEL in core's LoraModelLoader, LOSS_MAP in core's plot."""
    model = sd15[0]
    node_model, lora, loss, *_ = trained
    (core_model,) = run_node("LoraModelLoader", model=model, lora=lora, strength_model=1.0, bypass=False)
    assert torch.equal(tiny.predict(core_model), tiny.predict(node_model))
    run_node("LossGraphNode", loss=loss, filename_prefix="loss")


def test_strength_by_projection_adds_up(sd15, run_node, trained):
    model, lora = sd15[0], trained[1]

    def inject(**scales):
        return run_node("BespokeInjectLora", model=model, lora_name="none", strength_model=1.0, lora=lora, **scales)[0]

    without = {k: v for k, v in lora.items() if ".to_k." not in k}
    expected = run_node("BespokeInjectLora", model=model, lora_name="none", strength_model=1.0, lora=without)[0]
    assert torch.equal(tiny.predict(inject(key=0.0)), tiny.predict(expected))
    assert torch.equal(tiny.predict(inject(query=0.0, key=0.0, value=0.0, out=0.0)), tiny.predict(model))


def test_the_same_seed_gives_the_same_lora(sd15, run_node):
    model, clip, vae = sd15
    images = sprite_set(1, 3, side=64, colour="teal")
    common = dict(model=model, clip=clip, vae=vae, images=images, steps=3, batch_size=2, precision="fp32", resume=False)
    one, two, other = (run_node("BespokeTrainLora", **common, seed=seed)[1] for seed in (5, 5, 6))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_bad_input_names_node_value_and_remedy(sd15, run_node, trained, comfyui):
    model, clip, vae = sd15
    common = dict(model=model, clip=clip, vae=vae, images=sprite_set(1, 3, side=64, colour="teal"), steps=2)
    for changes, word in (
        ({"batch_size": 0}, "batch_size is 0"),
        ({"rank": 0}, "rank is 0"),
        ({"targets": "custom", "custom_targets": "*nothing*"}, "named like"),
        ({"targets": "custom"}, "custom_targets is empty"),
        ({"learning_rate": 0.0}, None),
    ):
        if word is None:
            run_node("BespokeTrainLora", **common | changes)  # a rate of 0 is valid, as a control
            continue
        with pytest.raises(ValueError, match=word) as error:
            run_node("BespokeTrainLora", **common | changes)
        assert str(error.value).startswith("Bespoke Train LoRA: ")
    lora = trained[1]
    before = set((comfyui / "models" / "loras").rglob("*"))
    for prefix in ("../escape", "/etc/lora", "a/../../b", ""):
        with pytest.raises(ValueError, match="Bespoke Save LoRA: the name"):
            run_node("BespokeSaveLora", lora=lora, filename_prefix=prefix)
    assert set((comfyui / "models" / "loras").rglob("*")) == before
    with pytest.raises(ValueError, match="no LoRA is chosen"):
        run_node("BespokeInjectLora", model=model, lora_name="none", strength_model=1.0)
    alien = {
        "lora_unet_nowhere.lora_up.weight": torch.ones(2, 1),
        "lora_unet_nowhere.lora_down.weight": torch.ones(1, 2),
    }
    with pytest.raises(ValueError, match="another kind of model"):
        run_node("BespokeInjectLora", model=model, lora_name="none", strength_model=1.0, lora=alien)


def test_saving_never_overwrites_and_leaves_no_temporary_file(run_node, trained, comfyui):
    lora = trained[1]
    names = [run_node("BespokeSaveLora", lora=lora, filename_prefix="test/again")[0] for _ in range(3)]
    assert names == [f"test/again_0000{i}.safetensors" for i in (1, 2, 3)]
    assert not list((comfyui / "models" / "loras").rglob("*.part"))


def test_damaged_files_are_refused(run_node, comfyui):
    folder = comfyui / "models" / "loras"
    (folder / "evil.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{}")
    (folder / "short.safetensors").write_bytes(b"\x08")
    (folder / "pickle.pt").write_bytes(b"\x80\x04cos\nsystem\n")
    import safetensors.torch

    safetensors.torch.save_file(
        {"lora_unet_x.lora_up.weight": torch.full((2, 2), float("nan"))}, folder / "nan.safetensors"
    )
    for name in ("evil.safetensors", "short.safetensors", "pickle.pt", "nan.safetensors"):
        with pytest.raises(ValueError, match=f"Bespoke Load LoRA: .*{name}|Bespoke Load LoRA: {name}"):
            run_node("BespokeLoadLora", lora_name=name)
