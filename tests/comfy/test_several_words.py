"""Several words of one training, and negative words: training, wire, files, inspection, jobs."""

from __future__ import annotations

from pathlib import Path

import encoders
import pytest
import tiny
import torch
from bespoke.nodes.bridge.training_model.pseudo_word import embedding_table, text_encoders, token_ids
from bespoke.nodes.jobs.techniques import TECHNIQUES
from bespoke.training.errors import InputError
from helpers import image_set, sprite_set


@pytest.fixture(scope="module")
def models(comfyui):
    return tiny.patcher(), tiny.clip(), tiny.vae()


def two_words():
    """Pictures of a pink thing that say {tone}, and of rings that say {form}."""
    tone = sprite_set(3, 2, colour="pink", word="{tone}", side=64).items
    return image_set([*tone, *sprite_set(4, 2, shape="ring", word="{form}", side=64).items])


def learn(run_node, models, **changes):
    model, clip, vae = models
    settings = dict(
        name="tone : red\nform : a circle : 2",
        init_text="blue",
        images=two_words(),
        template="captions",
        steps=2,
        batch_size=1,
        learning_rate=1e-2,
        warmup_steps=0,
        seed=0,
        precision="fp32",
        resume=False,
    )
    return run_node("BespokeTrainTextualInversion", model=model, clip=clip, vae=vae, **settings | changes)


@pytest.fixture(scope="module")
def learned(run_node, models):
    return learn(run_node, models, steps=6)


def starts(models):
    """What the two words begin with, from the vocabulary by hand."""
    clip = models[1]
    tokenizer, encoder = text_encoders(clip)["clip_l"]
    table = embedding_table(clip, encoder)
    return {"tone": table[token_ids(tokenizer, "red")], "form": table[token_ids(tokenizer, "a circle")]}


def test_each_word_has_its_start_and_its_count(models, learned):
    _, embedding, word, _, run, report = learned
    assert word == "embedding:tone, embedding:form"
    assert {name: each["clip_l"].shape for name, each in embedding.items()} == {
        "tone": (1, tiny.CONTEXT),
        "form": (2, tiny.CONTEXT),
    }
    assert run.info.trained == 3 * tiny.CONTEXT
    assert "tone, clip_l: length" in report
    assert "form, clip_l vector 2 is nearest to" in report
    for name, start in starts(models).items():
        assert (embedding[name]["clip_l"] - start).abs().max() > 1e-3, name


def test_a_picture_teaches_the_words_of_its_caption_alone(run_node, models):
    """One step on one picture: the other word is where it began, to the bit."""
    _, embedding, *_ = learn(run_node, models, steps=1)
    moved = {name: not torch.equal(embedding[name]["clip_l"], start) for name, start in starts(models).items()}
    assert sorted(moved.values()) == [False, True]


def test_words_are_saved_applied_and_inspected_together(run_node, models, learned, comfyui):
    """Core's CLIPTextEncode of the two files is the clip that the trainer gives, and the one of Apply Embedding."""
    import folder_paths

    clip = models[1]
    trained, embedding, *_ = learned
    (word,) = run_node("BespokeSaveEmbedding", embedding=embedding, name="pair")
    assert word == "embedding:pair-tone, embedding:pair-form"
    folder = Path(folder_paths.get_folder_paths("embeddings")[0])
    assert {path.stem for path in folder.glob("pair*")} == {"pair-tone", "pair-form"}
    with pytest.raises(InputError, match="'pair-tone' is taken"):
        run_node("BespokeSaveEmbedding", embedding=embedding, name="pair")
    on_wire, same = run_node("BespokeApplyEmbedding", clip=clip, embedding=embedding, name="pair")
    assert same == word
    named = clip.clone()
    named.tokenizer = encoders.with_embeddings_folder(clip.tokenizer)
    prompt = "a {} embedding:{}tone and embedding:{}form here".format
    encoded = [
        run_node("CLIPTextEncode", clip=each, text=text)[0][0][0]
        for each, text in (
            (trained, prompt("", "", "")),
            (on_wire, prompt("", "pair-", "pair-")),
            (named, prompt("", "pair-", "pair-")),
        )
    ]
    assert torch.equal(encoded[0], encoded[1])
    assert torch.equal(encoded[0], encoded[2])
    report, plot = run_node("BespokeInspectEmbedding", clip=clip, embedding_name="none", embedding=embedding)
    assert "tone: 1 vector." in report
    assert "form: 2 vectors." in report
    assert len(plot) == 2
    own, _ = run_node("BespokeApplyEmbedding", clip=clip, embedding=embedding, name="")
    (bare,) = run_node("CLIPTextEncode", clip=own, text=prompt("", "", ""))
    assert torch.equal(bare[0][0], encoded[0])


def test_a_job_writes_a_file_for_each_word(learned):
    """What a job's command writes: the same tensors as the save node under the same names."""
    _, embedding, _, _, run, _ = learned
    flat = {f"{name}:{key}": vectors for name, each in embedding.items() for key, vectors in each.items()}
    files = TECHNIQUES["textual inversion"].result_files(flat, run, "pair", {}, (None, None))
    assert set(files) == {"pair-tone", "pair-form"}
    assert torch.equal(files["pair-form"][0]["clip_l"], embedding["form"]["clip_l"])
    assert files["pair-tone"][1]["modelspec.trigger_phrase"] == "embedding:pair-tone"


def test_several_words_are_resumed(run_node, models, runs):
    """Three steps and three more are six, to the bit."""
    _, whole, *_ = learn(run_node, models, steps=6, lr_schedule="constant")
    learn(run_node, models, steps=3, lr_schedule="constant", resume=True)
    _, again, _, _, run, _ = learn(run_node, models, steps=6, lr_schedule="constant", resume=True)
    assert len(run.losses) == 6
    assert all(torch.equal(whole[name]["clip_l"], again[name]["clip_l"]) for name in whole)


def test_what_does_not_go_with_several_words_is_refused(run_node, models):
    for changes, reason in (
        (dict(template="object"), "does not say which picture shows which"),
        (dict(template="negative"), "does not say which picture shows which"),
        (dict(name="tone\nother"), r"hold none of \{tone\}, \{other\}"),
    ):
        with pytest.raises(InputError, match=reason):
            learn(run_node, models, **changes)


def test_a_negative_word(run_node, models):
    """Learned behind the captions; the report says where it goes, and the sample draws with it as the negative."""
    images = sprite_set(3, 3, colour="pink", side=64)
    changes = dict(name="bad", template="negative", init_text="red", images=images, sample_every=2)
    *_, run, report = learn(run_node, models, **changes)
    assert "Put it into the negative prompt" in report
    assert run.info.settings["template"] == "negative"
