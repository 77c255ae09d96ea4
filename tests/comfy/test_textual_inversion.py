"""A new word on ComfyUI's own CLIP: true gradients, the file equals the training, weights untouched, a concept learned."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from bespoke.nodes.bridge.text import clip_with_word, encoders, opened_text, vocabulary
from helpers import sample, share, sprite_set, weights_hash

COUNT = 4


@pytest.fixture(scope="module")
def learned(small, run_node):
    """The colour pink under a new name, begun at another colour's word. The model knows pink: the word is hidden."""
    model, clip, vae = small
    before = [weights_hash(m) for m in (model.model, clip.cond_stage_model, vae.first_stage_model)]
    out = run_node(
        "BespokeTrainTextualInversion", model=model, clip=clip, vae=vae, name="my-pink", init_text="red", vectors=1,
        images=sprite_set(3, 8, colour="pink", word="{word}"), steps=80, batch_size=2, learning_rate=2e-2, seed=0,
        template="captions",
    )  # fmt: skip
    after = [weights_hash(m) for m in (model.model, clip.cond_stage_model, vae.first_stage_model)]
    return before, after, out


def test_no_weight_changed(learned, small):
    before, after, _ = learned
    assert before == after
    assert not any("forward" in vars(m) for m in small[1].cond_stage_model.modules())


def test_the_report_says_what_happened(learned):
    _, embedding, word, loss, run, report = learned[2]
    assert embedding["clip_l"].shape == (1, 768)
    assert word == "embedding:my-pink"
    assert "768 numbers, 3 KB; 0 weights changed" in report
    assert len(loss["loss"]) == 80
    assert run.technique == "textual inversion"


@pytest.mark.parametrize("vectors", [1, 4, 8])
@pytest.mark.parametrize("skip", [None, -2])
def test_the_saved_file_is_the_conditioning_of_the_training(small, run_node, vectors, skip):
    """Trained graph, CLIP on the wire and file through core's own CLIPTextEncode: one conditioning."""
    clip = small[1].clone()
    if skip:
        clip.clip_layer(skip)
    name = f"word-{vectors}-{skip or 1}".replace("--", "-")
    torch.manual_seed(vectors)
    vector = torch.randn(vectors, 768) * 0.02
    speaking = clip_with_word(clip, name, {"clip_l": lambda: vector})
    prompt = f"a photo of a embedding:{name}, on white"
    with opened_text(clip, None) as text:
        ((in_training, _),) = text.encode([prompt], speaking)
    run_node("BespokeSaveEmbedding", embedding={"clip_l": vector}, name=name)
    (from_file,) = run_node("CLIPTextEncode", clip=clip, text=prompt)
    (on_wire,) = run_node("CLIPTextEncode", clip=speaking, text=prompt)
    assert from_file[0][0].shape == in_training.shape
    assert (from_file[0][0] - in_training).abs().max() < 1e-5
    assert torch.equal(from_file[0][0], on_wire[0][0])
    (without,) = run_node("CLIPTextEncode", clip=clip, text="a photo of a , on white")
    assert (from_file[0][0] - without[0][0]).abs().max() > 0.1


def test_gradient_equals_finite_differences(small):
    clip = small[1]
    vector = torch.nn.Parameter(vocabulary(encoders(clip)["clip_l"][1])[[320]].clone())
    speaking = clip_with_word(clip, "w", {"clip_l": lambda: vector})
    torch.manual_seed(0)
    weights = torch.randn(1, 77, 768)
    with opened_text(clip, None) as text:

        def value():
            return (text.encode(["a photo of a embedding:w on white"], speaking)[0][0] * weights).double().sum() / 77

        value().backward()
        # Along the gradient itself, where float32's rounding is smallest beside the slope.
        direction = vector.grad / vector.grad.norm()
        analytic = float(vector.grad.norm())
        step = 1e-3
        with torch.no_grad():
            vector += step * direction
            up = value()
            vector -= 2 * step * direction
            down = value()
    assert analytic == pytest.approx(float(up - down) / (2 * step), rel=1e-3)


def test_the_word_makes_its_concept_where_the_starting_word_does_not(small, run_node, learned):
    model, clip, vae = small
    knowing, embedding, *_ = learned[2]
    (word,) = run_node("BespokeSaveEmbedding", embedding=embedding, name="my-pink", run=learned[2][4])
    shapes = ("circle on white", "square on black", "cross on white")
    start = sample(run_node, model, clip, vae, [f"a red {s}" for s in shapes], COUNT)
    new = sample(run_node, model, clip, vae, [f"a {word} {s}" for s in shapes], COUNT)
    assert share(start, colour="pink") <= 0.2
    assert share(new, colour="pink") >= 0.75
    one = sample(run_node, model, knowing, vae, [f"a {word} circle on white"], COUNT)
    assert list(one[0].getdata()) == list(new[0].getdata())  # the CLIP on the wire needs no file


def test_bad_input_names_node_value_and_mend(small, run_node, comfyui):
    model, clip, vae = small
    common = dict(model=model, clip=clip, vae=vae, images=sprite_set(3, 3, colour="pink"), init_text="red", name="w", steps=1)
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
    run_node("BespokeSaveEmbedding", embedding={"clip_l": torch.zeros(1, 768)}, name="taken", overwrite=True, format="a1111")
    assert path.read_bytes() != first
    with pytest.raises(ValueError, match="name '../x' leads out"):
        run_node("BespokeSaveEmbedding", embedding=vector, name="../x")


def test_a_word_on_the_wire_and_its_neighbours(small, run_node, comfyui):
    clip = small[1]
    table = vocabulary(encoders(clip)["clip_l"][1])
    tokenizer = encoders(clip)["clip_l"][0]
    (cat,) = tokenizer.tokenizer("cat")["input_ids"][1:-1]
    embedding = {"clip_l": table[[cat]] * 3}
    knowing, word = run_node("BespokeApplyEmbedding", clip=clip, embedding=embedding, name="my-cat")
    assert word == "embedding:my-cat"
    (said,) = run_node("CLIPTextEncode", clip=knowing, text="a embedding:my-cat")
    (unsaid,) = run_node("CLIPTextEncode", clip=clip, text="a embedding:my-cat")
    assert not torch.equal(said[0][0], unsaid[0][0])
    report, plot = run_node("BespokeInspectEmbedding", clip=clip, embedding_name="none", embedding=embedding)
    assert "nearest to cat 1.00" in report
    assert plot.shape[-1] == 3
    run_node("BespokeSaveEmbedding", embedding=embedding, name="my-cat")
    from_file, _ = run_node("BespokeInspectEmbedding", clip=clip, embedding_name="my-cat.safetensors")
    assert "nearest to cat 1.00" in from_file


def test_hostile_embeddings(small, run_node, comfyui, tmp_path):
    """A clear error for each, and no code run. The files lie in a folder of their own, beside one that looks like a file."""
    from safetensors.torch import save_file

    folder, witness = comfyui / "models" / "embeddings" / "hostile", tmp_path / "code-ran"
    (folder / "folder.safetensors").mkdir(parents=True)

    class Runs:
        def __reduce__(self):
            return Path.touch, (witness,)

    for name in ("pickle.pt", "pickle.bin"):
        (folder / name).write_bytes(pickle.dumps(Runs()))
    (folder / "pickle.safetensors").write_bytes(pickle.dumps(Runs()))
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
        ("pickle.pt", "can run code"), ("pickle.bin", "can run code"), ("pickle.safetensors", "header"),
        ("header.safetensors", "header"), ("empty.safetensors", "cannot be read"), ("nan.safetensors", "not finite"),
        ("inf.safetensors", "not finite"), ("narrow.safetensors", "768 numbers"), ("deep.safetensors", "768 numbers"),
        ("ints.safetensors", "768 numbers"), ("none.safetensors", "no vector"), ("huge.safetensors", "far more"),
        ("folder.safetensors", "is not in ComfyUI's embeddings folder"), ("../../../etc/passwd", "is not in ComfyUI's embeddings folder"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=word) as error:
            run_node("BespokeInspectEmbedding", clip=small[1], embedding_name=f"hostile/{name}")
        assert str(error.value).startswith("Bespoke Inspect Embedding: ")
    assert not witness.exists()
    pickle.loads(pickle.dumps(Runs()))
    assert witness.exists()  # the pickles do run code where they are read as such
    shutil.rmtree(folder)


def test_folders_among_the_embeddings_are_no_files(run_node, comfyui):
    """A folder of a file's name is no name that is taken by a word, and is never written over."""
    vector = {"clip_l": torch.ones(1, 768)}
    embeddings = comfyui / "models" / "embeddings"
    for folder in ("some/fish.safetensors", "bird.safetensors"):
        (embeddings / folder).mkdir(parents=True)
    assert run_node("BespokeSaveEmbedding", embedding=vector, name="fish") == ("embedding:fish",)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="is a folder's; choose another"):
            run_node("BespokeSaveEmbedding", embedding=vector, name="bird", overwrite=overwrite)
    assert (embeddings / "bird.safetensors").is_dir()
    assert not list(embeddings.rglob("*.part"))
    shutil.rmtree(embeddings / "some")
    (embeddings / "bird.safetensors").rmdir()
