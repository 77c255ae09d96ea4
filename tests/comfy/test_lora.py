"""LoRA on ComfyUI's own models: exact gradients, exact files, an untouched base, and a concept learned."""

import logging

import numpy as np
import pytest
import sprites
import torch
from bespoke.nodes.bridge import conditioning
from bespoke.nodes.bridge.models import target_layers
from helpers import batch_and_single_gradients, sample, share, sprite_set, weights_hash
from judge import silhouette

STEPS, COUNT = 250, 4


@pytest.fixture(scope="module")
def hashes(small):
    model, clip, vae = small
    return [weights_hash(m) for m in (model.model, clip.cond_stage_model, vae.first_stage_model)]


@pytest.fixture(scope="module")
def trained(small, run_node, hashes):
    """A LoRA of a colour that the small model has never seen."""
    model, clip, vae = small
    return run_node(
        "BespokeTrainLora", model=model, clip=clip, vae=vae, images=sprite_set(1, 12, colour="teal"), steps=STEPS,
        learning_rate=2e-3, rank=8, alpha=8.0, batch_size=4, seed=0,
    )  # fmt: skip


def prediction(model, clip, x, sigma):
    """The model's own output for one prompt, through ComfyUI's loading and patching."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    context, _ = conditioning.encode_prompt(clip, "a teal circle on white")
    with torch.inference_mode():
        return model.model.apply_model(x, sigma, c_crossattn=context.expand(len(x), -1, -1)).clone()


def test_targets_are_exactly_the_cross_attention(small):
    unet = small[0].model.diffusion_model
    expected = {
        name
        for name, _ in unet.named_modules()
        if ".attn2." in name and name.endswith(("to_q", "to_k", "to_v", "to_out.0"))
    }
    assert set(target_layers(unet, "cross-attention")) == expected
    assert len(expected) == 4 * 4  # one block down, one in the middle, two up
    assert len(target_layers(unet, "attention")) == 2 * len(expected)
    assert set(target_layers(unet, "custom", "*attn2.to_k, *attn2.to_v")) == {n for n in expected if n.endswith(("to_k", "to_v"))}


def test_gradient_of_four_captions_is_the_mean_of_four(small, small_checkpoint):
    """On a base in float64: in float32 the kernels' own rounding differs by 1e-4 between a batch of four and of one."""
    import comfy.sd

    clip = small[1]
    model = comfy.sd.load_checkpoint_guess_config(
        str(small_checkpoint), output_vae=False, output_clip=False, model_options={"dtype": torch.float64}
    )[0]
    for shape in ((4, 16, 16), (4, 12, 20)):  # two aspect ratios
        together, apart, sizes = batch_and_single_gradients(model, clip, shape)
        assert sizes == [4]  # one call with exactly four samples
        assert (together - apart).norm() / apart.norm() < 1e-5


def test_base_weights_and_the_users_model_are_untouched(small, trained, hashes):
    model, clip, vae = small
    assert [weights_hash(m) for m in (model.model, clip.cond_stage_model, vae.first_stage_model)] == hashes
    assert not model.patches
    assert not model.injections
    assert not any(m._forward_hooks for m in model.model.modules())
    assert not any(p.requires_grad for p in model.model.diffusion_model.parameters())
    assert trained[0] is not model


@pytest.mark.parametrize("key_format", ["kohya", "comfy"])
def test_core_loads_the_file_and_moves_as_the_node_does(small, run_node, trained, key_format, caplog):
    model, clip, _ = small
    node_model, lora, loss, run, report, _ = trained
    (name,) = run_node("BespokeSaveLora", lora=lora, filename_prefix=f"test/teal-{key_format}", run=run, key_format=key_format, dtype="fp32")
    with caplog.at_level(logging.WARNING):
        core_model, _ = run_node("LoraLoader", model=model, clip=clip, lora_name=name, strength_model=1.0, strength_clip=1.0)
    assert "not loaded" not in caplog.text.lower()
    x, sigma = torch.randn(2, 4, 16, 16) * 3, torch.tensor([3.0, 0.8])
    base, node, core = (prediction(m, clip, x, sigma) for m in (model, node_model, core_model))
    movement = (node - base).abs().max()
    assert movement > 0.05
    assert (core - node).abs().max() < 1e-3 * movement
    assert len(loss["loss"]) == STEPS
    assert "0 of the model's own changed" in report


def test_every_format_comes_back_through_the_packs_own_nodes(small, run_node, trained):
    model, clip, _ = small
    node_model, lora, _, run, _, _ = trained
    x, sigma = torch.randn(2, 4, 16, 16) * 3, torch.tensor([3.0, 0.8])
    base, node = (prediction(m, clip, x, sigma) for m in (model, node_model))
    for key_format in ("kohya", "diffusers", "comfy"):
        (name,) = run_node("BespokeSaveLora", lora=lora, filename_prefix="test/own", run=run, key_format=key_format, dtype="fp32")
        loaded, _, text = run_node("BespokeLoadLora", lora_name=name)
        assert "rank 8" in text
        injected, _, report, _ = run_node("BespokeInjectLora", model=model, lora_name=name, strength_model=1.0)
        wired, *_ = run_node("BespokeInjectLora", model=model, lora_name="none", strength_model=1.0, lora=loaded)
        assert "16 layers of the model" in report
        for other in (injected, wired):
            assert (prediction(other, clip, x, sigma) - node).abs().max() < 1e-3 * (node - base).abs().max()


def test_core_types(small, run_node, trained):
    """LORA_MODEL in core's LoraModelLoader, LOSS_MAP in core's plot."""
    model, clip, _ = small
    node_model, lora, loss, *_ = trained
    (core_model,) = run_node("LoraModelLoader", model=model, lora=lora, strength_model=1.0, bypass=False)
    x, sigma = torch.randn(1, 4, 16, 16), torch.tensor([1.0])
    assert torch.equal(prediction(core_model, clip, x, sigma), prediction(node_model, clip, x, sigma))
    run_node("LossGraphNode", loss=loss, filename_prefix="loss")


def test_strength_by_projection_adds_up(small, run_node, trained):
    model, clip, _ = small
    lora = trained[1]
    x, sigma = torch.randn(1, 4, 16, 16), torch.tensor([1.0])

    def inject(**scales):
        return run_node("BespokeInjectLora", model=model, lora_name="none", strength_model=1.0, lora=lora, **scales)[0]

    without = {k: v for k, v in lora.items() if ".to_k." not in k}
    expected = run_node("BespokeInjectLora", model=model, lora_name="none", strength_model=1.0, lora=without)[0]
    assert torch.equal(prediction(inject(key=0.0), clip, x, sigma), prediction(expected, clip, x, sigma))
    assert torch.equal(prediction(inject(query=0.0, key=0.0, value=0.0, out=0.0), clip, x, sigma), prediction(model, clip, x, sigma))


def test_the_same_seed_gives_the_same_lora(small, run_node):
    model, clip, vae = small
    common = dict(model=model, clip=clip, vae=vae, images=sprite_set(1, 3, colour="teal"), steps=3, batch_size=2, precision="fp32")
    one, two, other = (run_node("BespokeTrainLora", **common, seed=seed)[1] for seed in (5, 5, 6))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def distance_to(colour, picture) -> float:
    """How far the figure's colour is from `colour`, in RGB of 0 to 255."""
    mask, _ = silhouette(picture)
    return float(np.linalg.norm(np.median(np.asarray(picture, float)[mask], axis=0) - colour))


def test_images_move_towards_the_training_set(small, run_node, trained, tmp_path):
    """The same prompts and seeds without and with the LoRA: the figures' colour nears that of the training set."""
    model, clip, vae = small
    prompts = ["a teal circle on white", "a teal square on black", "a teal cross on white"]
    base = sample(run_node, model, clip, vae, prompts, COUNT)
    moved = sample(run_node, trained[0], clip, vae, prompts, COUNT)
    for i, (a, b) in enumerate(zip(base, moved, strict=True)):
        a.save(tmp_path / f"{i}-base.png")
        b.save(tmp_path / f"{i}-lora.png")
    teal = sprites.UNSEEN_COLOURS["teal"]
    before, after = ([distance_to(teal, picture) for picture in pictures] for pictures in (base, moved))
    print("distance to teal", np.round(before), np.round(after), "teal by name", share(base, colour="teal"), share(moved, colour="teal"))
    assert share(base, colour="teal") <= 0.2
    assert share(moved, colour="teal") > share(base, colour="teal")
    assert np.mean(after) < 0.6 * np.mean(before)
    assert sum(a < b for a, b in zip(after, before, strict=True)) >= 11  # of 12


def test_bad_input_names_node_value_and_mend(small, run_node, trained, comfyui):
    model, clip, vae = small
    common = dict(model=model, clip=clip, vae=vae, images=sprite_set(1, 3, colour="teal"), steps=2)
    for changes, word in (
        ({"batch_size": 0}, "batch_size is 0"),
        ({"rank": 0}, "rank is 0"),
        ({"targets": "custom", "custom_targets": "*nothing*"}, "named like"),
        ({"targets": "custom"}, "custom_targets is empty"),
        ({"learning_rate": 0.0}, None),
    ):
        if word is None:
            run_node("BespokeTrainLora", **common | changes)  # a rate of 0 is a control, not a mistake
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
    alien = {"lora_unet_nowhere.lora_up.weight": torch.ones(2, 1), "lora_unet_nowhere.lora_down.weight": torch.ones(1, 2)}
    with pytest.raises(ValueError, match="another kind of model"):
        run_node("BespokeInjectLora", model=model, lora_name="none", strength_model=1.0, lora=alien)


def test_saving_never_overwrites_and_leaves_no_scrap(run_node, trained, comfyui):
    lora = trained[1]
    names = [run_node("BespokeSaveLora", lora=lora, filename_prefix="test/again")[0] for _ in range(3)]
    assert names == [f"test/again_0000{i}.safetensors" for i in (1, 2, 3)]
    assert not list((comfyui / "models" / "loras").rglob("*.part"))


def test_hostile_files(small, run_node, comfyui):
    folder = comfyui / "models" / "loras"
    (folder / "evil.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{}")
    (folder / "short.safetensors").write_bytes(b"\x08")
    (folder / "pickle.pt").write_bytes(b"\x80\x04cos\nsystem\n")
    import safetensors.torch

    safetensors.torch.save_file({"lora_unet_x.lora_up.weight": torch.full((2, 2), float("nan"))}, folder / "nan.safetensors")
    for name in ("evil.safetensors", "short.safetensors", "pickle.pt", "nan.safetensors"):
        with pytest.raises(ValueError, match=f"Bespoke Load LoRA: .*{name}|Bespoke Load LoRA: {name}"):
            run_node("BespokeLoadLora", lora_name=name)
