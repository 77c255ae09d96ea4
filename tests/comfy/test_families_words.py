"""Textual inversion on every family: a training on those with a CLIP, an error on the others."""

import math

import families
import pytest
import torch
from bespoke.nodes.bridge.training_model.pseudo_word import clip_encoders, clip_with_pseudo_word
from bespoke.nodes.bridge.training_model.text_encoder import prepare_text_encoder
from bespoke.training.errors import InputError
from helpers import sprite_set, weights_hash

ENCODERS = {
    "sd15": {"clip_l"},
    "sd2_v": {"clip_h"},
    "sdxl": {"clip_l", "clip_g"},
    "sdxl_refiner": {"clip_g"},
    "inpainting": {"clip_l"},
    "sdxl_inpainting": {"clip_l", "clip_g"},
    "sd3": {"clip_l", "clip_g"},
    "flux": {"clip_l"},
    "flux_fill": {"clip_l"},
}
SLOW = {"sd15", "sdxl", "sdxl_inpainting", "flux_fill"}  # similar to others here, or in test_textual_inversion.py
WITHOUT = [name for name in families.FAMILIES if name not in families.WITH_CLIP]


def learn(run_node, models, **changes):
    model, clip, vae = models
    settings = dict(
        name="my-pink",
        init_text="red",
        steps=3,
        batch_size=2,
        learning_rate=2e-2,
        seed=0,
        template="captions",
        precision="fp32",
        resume=False,
    )
    images = sprite_set(3, 4, colour="pink", word="{word}", side=64)
    return run_node(
        "BespokeTrainTextualInversion", model=model, clip=clip, vae=vae, images=images, **settings | changes
    )


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in families.WITH_CLIP]
)
def test_a_family_with_a_clip_learns_a_word(run_node, name):
    """No weight changes, each encoder's vector changes, and core's CLIPTextEncode of the file equals the training."""
    model, clip, vae = families.made(name)
    clip = clip.clone()
    clip.tokenizer = with_embeddings_folder(clip.tokenizer)
    models = model, clip, vae
    before = [weights_hash(part) for part in (model.model, clip.cond_stage_model)]
    _, embedding, word, loss, _, report = learn(run_node, models)
    assert [weights_hash(part) for part in (model.model, clip.cond_stage_model)] == before
    assert "0 weights changed (hash equal)" in report
    assert set(embedding) == ENCODERS[name]
    assert all(math.isfinite(value) for value in loss["loss"])
    for key, vectors in embedding.items():
        start = initial_vectors(clip, key)
        assert (vectors - start).abs().max() > 1e-3, key
    tokenizer = clip_with_pseudo_word(
        clip, "my-pink", {key: (lambda vectors=vectors: vectors) for key, vectors in embedding.items()}
    )
    prompt = f"a photo of a {word} on white"
    with prepare_text_encoder(clip, None) as text, torch.no_grad():
        ((in_training, extra),) = text.encode([prompt], tokenizer)
        # The weights of other encoders are not copied: a T5 is many times a CLIP's size.
        own, theirs = dict(clip.cond_stage_model.named_parameters()), dict(text.model.named_parameters())
        shared = [at for at in own if at.split(".")[0] not in ENCODERS[name]]
        assert all(theirs[at] is own[at] for at in shared)
        assert any(at.startswith("t5xxl") for at in shared) == ("flux" in name)
    file = f"my-pink-{name.replace('_', '-')}"
    run_node("BespokeSaveEmbedding", embedding=embedding, name=file)
    (from_file,) = run_node("CLIPTextEncode", clip=clip, text=prompt.replace("my-pink", file))
    cond, theirs = from_file[0]
    assert (cond - in_training).abs().max() < 1e-5 * in_training.abs().max()
    if extra.get("pooled_output") is not None:
        assert (theirs["pooled_output"] - extra["pooled_output"]).abs().max() < 1e-5 * extra[
            "pooled_output"
        ].abs().max()


def initial_vectors(clip, key):
    """The vectors that a word starts with: those of `red`."""
    from bespoke.nodes.bridge.training_model.pseudo_word import embedding_table, token_ids

    tokenizer, encoder = clip_encoders(clip)[key]
    return embedding_table(clip, encoder)[token_ids(tokenizer, "red")]


def with_embeddings_folder(tokenizer):
    """The tokenizer with ComfyUI's embeddings folder, as a checkpoint loader makes it."""
    import copy

    import comfy.sd1_clip
    import folder_paths

    out = copy.copy(tokenizer)
    for attribute, one in list(vars(tokenizer).items()):
        if isinstance(one, comfy.sd1_clip.SDTokenizer):
            copied = copy.copy(one)
            copied.embedding_directory = folder_paths.get_folder_paths("embeddings")
            setattr(out, attribute, copied)
    return out


@pytest.mark.parametrize("name", WITHOUT)
def test_a_family_without_a_clip_says_why_not(run_node, name):
    """T5 and language models have no CLIP embedding table."""
    models = families.made(name)
    with pytest.raises(
        InputError, match=r"Bespoke Train Textual Inversion: the text encoder \(\w+\) holds no CLIP"
    ) as error:
        learn(run_node, models)
    assert "a pseudo-word is a row of CLIP's table of words" in str(error.value)
    assert "train a LoRA" in str(error.value)
