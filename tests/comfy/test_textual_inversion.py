"""Textual inversion on ComfyUI's own CLIP: gradients, files, unchanged weights, hostile files."""

import math
import pickle
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from bespoke.nodes.bridge.dataset import conditioning
from bespoke.nodes.bridge.training_model.denoiser import prepare_for_training
from bespoke.nodes.bridge.training_model.pseudo_word import clip_with_pseudo_word, embedding_table, text_encoders
from bespoke.nodes.bridge.training_model.text_encoder import prepare_text_encoder
from bespoke.training.objective import denoising_loss
from helpers import sprite_set, weights_hash


def learn(run_node, models, side=64, images=None, **changes):
    """(clip, embedding, prompt_word, loss, run, report) of a short training on sprites."""
    model, clip, vae = models
    images = images or sprite_set(3, 4, colour="pink", word="{word}", side=side)
    settings = dict(
        name="my-pink",
        init_text="red",
        vectors=1,
        steps=3,
        batch_size=2,
        learning_rate=2e-2,
        seed=0,
        template="captions",
        precision="fp32",
        resume=False,
    )
    return run_node(
        "BespokeTrainTextualInversion", model=model, clip=clip, vae=vae, images=images, **settings | changes
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("models", ["sd15", "sdxl"], indirect=True)
def test_no_weight_changes_and_the_models_still_infer(models, run_node, precision):
    """A SHA-256 over every parameter and buffer of U-Net, VAE and CLIP, and the same pictures and prompts as before."""
    model, clip, vae = models

    def outputs():
        text = tiny.encode(clip)
        with torch.inference_mode():
            clean = model.model.apply_model(noise, torch.tensor([2.0]), c_crossattn=text, **pooled)
            return text, clean, vae.decode(noise), vae.encode(torch.full((1, 16, 16, 3), 0.5))

    noise = torch.randn(1, model.model.latent_format.latent_channels, 8, 8)
    pooled = {"y": torch.randn(1, model.model.adm_channels)} if model.model.adm_channels else {}
    parts = (model.model, clip.cond_stage_model, vae.first_stage_model)
    before, outputs_before = [weights_hash(m) for m in parts], outputs()
    frozen = [p.requires_grad for part in parts for p in part.parameters()]
    *_, loss, _, report = learn(run_node, models, precision=precision)
    assert all(math.isfinite(value) for value in loss["loss"])
    assert "0 weights changed (hash equal)" in report
    assert [weights_hash(m) for m in parts] == before
    assert all(torch.equal(a, b) for a, b in zip(outputs_before, outputs(), strict=True))
    assert [p.requires_grad for part in parts for p in part.parameters()] == frozen
    for part in parts:
        assert not any("forward" in vars(m) or m._forward_hooks for m in part.modules())


def test_a_clip_in_half_precision_learns_in_bf16_too(small, run_node):
    """The embedding table is float16, as in most checkpoints; autocast on a CPU does not concatenate it with others."""
    assert text_encoders(small[1])["clip_l"][1].transformer.get_input_embeddings().weight.dtype == torch.float16
    exact, coarse = (
        learn(run_node, small, side=128, precision=precision, steps=1, warmup_steps=0)[1]["clip_l"]
        for precision in ("fp32", "bf16")
    )
    start = embedding_table(small[1], text_encoders(small[1])["clip_l"][1])[small[1].tokenize("red")["l"][0][1][0]]
    similarity = torch.nn.functional.cosine_similarity(exact - start, coarse - start).item()
    assert similarity > 0.8  # one step of AdamW is nearly the gradient's signs
    assert (coarse - start).abs().max() > 1e-3


def test_report_of_a_training(small, run_node):
    """On CLIP-L itself: one vector of it is 768 numbers."""
    model, _, vae = tiny.patcher(tiny.SD15 | {"context_dim": 768}), None, tiny.vae()
    _, embedding, word, loss, run, report = learn(run_node, (model, small[1], vae))
    assert embedding["clip_l"].shape == (1, 768)
    assert word == "embedding:my-pink"
    assert "768 numbers, 3 KB; 0 weights changed (hash equal)" in report
    assert len(loss["loss"]) == 3
    assert run.info.technique == "textual inversion"


@pytest.mark.parametrize("vectors", [1, 4, 8])
@pytest.mark.parametrize("skip", [None, -2])
def test_the_saved_file_is_the_conditioning_of_the_training(small, run_node, vectors, skip):
    """The training's graph, the CLIP output and the file through core's CLIPTextEncode give one conditioning."""
    clip = small[1].clone()
    if skip:
        clip.clip_layer(skip)
    name = f"word-{vectors}-{skip or 1}".replace("--", "-")
    torch.manual_seed(vectors)
    vector = torch.randn(vectors, 768) * 0.02
    new_clip = clip_with_pseudo_word(clip, name, {"clip_l": lambda: vector})
    prompt = f"a photo of a embedding:{name}, on white"
    with prepare_text_encoder(clip, None) as text:
        ((in_training, _),) = text.encode([prompt], new_clip)
    run_node("BespokeSaveEmbedding", embedding={"clip_l": vector}, name=name)
    (from_file,) = run_node("CLIPTextEncode", clip=clip, text=prompt)
    (on_wire,) = run_node("CLIPTextEncode", clip=new_clip, text=prompt)
    assert from_file[0][0].shape == in_training.shape
    assert (from_file[0][0] - in_training).abs().max() < 1e-5
    assert torch.equal(from_file[0][0], on_wire[0][0])
    (without,) = run_node("CLIPTextEncode", clip=clip, text="a photo of a , on white")
    assert (from_file[0][0] - without[0][0]).abs().max() > 0.1


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_gradient_equals_finite_differences(comfyui, family):
    """Of the training's own loss, through U-Net and CLIP, for every vector of every encoder; the U-Net in float64."""
    model, clip, _ = tiny.sdxl() if family == "sdxl" else (tiny.patcher(), tiny.clip(), None)
    model.model.diffusion_model.double().dtype = torch.float64
    torch.manual_seed(0)
    vectors = {}
    for key, (_, encoder) in text_encoders(clip).items():
        table = embedding_table(clip, encoder)
        vectors[key] = torch.nn.Parameter(table[[320, 1000]] * 0.2 / table.norm(dim=-1).median())
    new_clip = clip_with_pseudo_word(clip, "w", {key: (lambda key=key: vectors[key]) for key in vectors})
    channels = model.model.latent_format.latent_channels
    # Not 8x8: at one cell in the lowest level, a group of two channels is normalised to plus and minus one.
    latent, noise = torch.randn(2, channels, 16, 16).double(), torch.randn(2, channels, 16, 16).double()
    with prepare_for_training(model, "fp32") as denoiser, prepare_text_encoder(clip, None) as text:

        def value():
            encoded = text.encode(["a photo of a embedding:w on white", "the embedding:w"], new_clip)
            conds = conditioning.join_conds(
                [conditioning.model_conds(denoiser.base, c, e, latent[:1], denoiser.device) for c, e in encoded]
            )
            sigma = denoiser.sigma(torch.tensor([0.4, 0.8]))
            return denoising_loss(denoiser, latent, noise, sigma, conds).double().mean()

        value().backward()
        for vector in vectors.values():
            # Along the gradient, where float32's rounding in the CLIP is smallest compared with the slope.
            slope = float(vector.grad.norm())
            assert slope > 0
            direction, step = vector.grad / slope, 2e-3
            with torch.no_grad():
                at = []
                for times in (1, -1, 2, -2):
                    vector += times * step * direction
                    at.append(float(value()))
                    vector -= times * step * direction
            # The central difference of fourth order.
            measured = (8 * (at[0] - at[1]) - (at[2] - at[3])) / (12 * step)
            assert slope == pytest.approx(measured, rel=1e-3)


def test_bad_input_names_node_value_and_remedy(sd15, run_node, comfyui):
    model, clip, vae = sd15
    common = dict(
        model=model,
        clip=clip,
        vae=vae,
        images=sprite_set(3, 3, colour="pink", side=64),
        init_text="red",
        name="w",
        steps=1,
    )
    for changes, word in (
        ({"batch_size": 0}, "batch_size is 0"),
        ({"name": "../w"}, "out of the embeddings folder"),
        ({"name": "12"}, "weight"),
        ({"init_text": ""}, "init_text is empty"),
        ({"template": "captions"}, "do not hold {word}"),
    ):
        with pytest.raises(ValueError, match=word) as error:
            run_node("BespokeTrainTextualInversion", **common | changes)
        assert str(error.value).startswith("Bespoke Train Textual Inversion: ")
    vector = {"clip_l": torch.randn(1, 768)}
    run_node("BespokeSaveEmbedding", embedding=vector, name="taken")
    path = comfyui / "models" / "embeddings" / "taken.safetensors"
    first = path.read_bytes()
    with pytest.raises(ValueError, match="is taken; choose another"):
        run_node("BespokeSaveEmbedding", embedding={"clip_l": torch.zeros(1, 768)}, name="taken")
    assert path.read_bytes() == first
    with pytest.raises(ValueError, match="would collide with taken"):
        run_node("BespokeSaveEmbedding", embedding=vector, name="sub/taken")
    run_node(
        "BespokeSaveEmbedding", embedding={"clip_l": torch.zeros(1, 768)}, name="taken", overwrite=True, format="a1111"
    )
    assert path.read_bytes() != first
    with pytest.raises(ValueError, match="name '../x' leads out"):
        run_node("BespokeSaveEmbedding", embedding=vector, name="../x")


def test_apply_and_inspect_embedding(small, run_node, comfyui):
    clip = small[1]
    table = embedding_table(clip, text_encoders(clip)["clip_l"][1])
    tokenizer = text_encoders(clip)["clip_l"][0]
    (cat,) = tokenizer.tokenizer("cat")["input_ids"][1:-1]
    embedding = {"clip_l": table[[cat]] * 3}
    with_word, word = run_node("BespokeApplyEmbedding", clip=clip, embedding=embedding, name="my-cat")
    assert word == "embedding:my-cat"
    (known,) = run_node("CLIPTextEncode", clip=with_word, text="a embedding:my-cat")
    (unknown,) = run_node("CLIPTextEncode", clip=clip, text="a embedding:my-cat")
    assert not torch.equal(known[0][0], unknown[0][0])
    report, plot = run_node("BespokeInspectEmbedding", clip=clip, embedding_name="none", embedding=embedding)
    assert "nearest to cat 1.00" in report
    assert plot.shape[-1] == 3
    run_node("BespokeSaveEmbedding", embedding=embedding, name="my-cat")
    from_file, _ = run_node("BespokeInspectEmbedding", clip=clip, embedding_name="my-cat.safetensors")
    assert "nearest to cat 1.00" in from_file


def test_hostile_embeddings(small, run_node, comfyui, tmp_path):
    """A clear error for each, and no code is run. Among the files is a folder with a file's name."""
    from safetensors.torch import save_file

    folder, witness = comfyui / "models" / "embeddings" / "hostile", tmp_path / "code-ran"
    (folder / "folder.safetensors").mkdir(parents=True)

    class CodeOnLoad:
        def __reduce__(self):
            return Path.touch, (witness,)

    for name in ("pickle.pt", "pickle.bin"):
        (folder / name).write_bytes(pickle.dumps(CodeOnLoad()))
    (folder / "pickle.safetensors").write_bytes(pickle.dumps(CodeOnLoad()))
    (folder / "header.safetensors").write_bytes((2**50).to_bytes(8, "little") + b"{}")
    (folder / "empty.safetensors").write_bytes(b"")
    save_file({"clip_l": torch.full((1, 768), float("nan"))}, folder / "nan.safetensors")
    save_file({"clip_l": torch.full((1, 768), float("inf"))}, folder / "inf.safetensors")
    save_file({"clip_l": torch.zeros(1, 640)}, folder / "narrow.safetensors")
    save_file({"clip_l": torch.zeros(2, 2, 768)}, folder / "deep.safetensors")
    save_file({"clip_l": torch.zeros(1, 768, dtype=torch.int8)}, folder / "ints.safetensors")
    save_file({"clip_l": torch.zeros(0, 768)}, folder / "none.safetensors")
    (folder / "huge.safetensors").write_bytes(b"\0" * (65 * 2**20))
    for name, word in (
        ("pickle.pt", "can run code"),
        ("pickle.bin", "can run code"),
        ("pickle.safetensors", "header"),
        ("header.safetensors", "header"),
        ("empty.safetensors", "cannot be read"),
        ("nan.safetensors", "not finite"),
        ("inf.safetensors", "not finite"),
        ("narrow.safetensors", "768 numbers"),
        ("deep.safetensors", "768 numbers"),
        ("ints.safetensors", "768 numbers"),
        ("none.safetensors", "no vector"),
        ("huge.safetensors", "far more"),
        ("folder.safetensors", "is not in ComfyUI's embeddings folder"),
        ("../../../etc/passwd", "is not in ComfyUI's embeddings folder"),
    ):
        with pytest.raises(ValueError, match=word) as error:
            run_node("BespokeInspectEmbedding", clip=small[1], embedding_name=f"hostile/{name}")
        assert str(error.value).startswith("Bespoke Inspect Embedding: ")
    assert not witness.exists()
    pickle.loads(pickle.dumps(CodeOnLoad()))
    assert witness.exists()  # loading such a pickle does run code
    shutil.rmtree(folder)


def test_folders_among_the_embeddings_are_no_files(run_node, comfyui):
    """A folder with a file's name does not count as a word, and is never overwritten."""
    vector = {"clip_l": torch.ones(1, 768)}
    embeddings = comfyui / "models" / "embeddings"
    for folder in ("some/fish.safetensors", "bird.safetensors"):
        (embeddings / folder).mkdir(parents=True)
    assert run_node("BespokeSaveEmbedding", embedding=vector, name="fish") == ("embedding:fish",)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="is that of a folder; choose another"):
            run_node("BespokeSaveEmbedding", embedding=vector, name="bird", overwrite=overwrite)
    assert (embeddings / "bird.safetensors").is_dir()
    assert not list(embeddings.rglob("*.part"))
    shutil.rmtree(embeddings / "some")
    (embeddings / "bird.safetensors").rmdir()


def test_the_table_of_words_is_that_of_the_wire(comfyui):
    """Oracle: core's merge of two CLIPs at ratio r gives r w1 + (1 - r) w2, whether it is loaded or not."""
    import comfy.model_management
    import nodes

    one, other = tiny.clip(), tiny.clip()
    with torch.no_grad():
        other.cond_stage_model.clip_l.transformer.get_input_embeddings().weight.mul_(-2)
    own = [
        each.cond_stage_model.clip_l.transformer.get_input_embeddings().weight.detach().clone() for each in (one, other)
    ]
    assert not torch.equal(*own)
    merged = nodes.NODE_CLASS_MAPPINGS["CLIPMergeSimple"]().merge(one, other, 0.25)[0]
    expected = 0.25 * own[0].float() + 0.75 * own[1].float()
    table = embedding_table(merged, text_encoders(merged)["clip_l"][1])
    assert torch.allclose(table, expected, atol=1e-6)
    comfy.model_management.load_models_gpu([merged.patcher])
    try:
        assert torch.allclose(embedding_table(merged, text_encoders(merged)["clip_l"][1]), expected, atol=1e-6)
        assert torch.allclose(embedding_table(one, text_encoders(one)["clip_l"][1]), own[0].float(), atol=1e-6)
    finally:
        comfy.model_management.unload_all_models()
