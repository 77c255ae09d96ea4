"""Textual inversion on every family, through each text encoder that it has."""

import math
from dataclasses import replace

import encoders
import families
import pytest
import torch
from bespoke.nodes.bridge.trainer import Models
from bespoke.nodes.bridge.training_model.memory_forecast import StepMemory
from bespoke.nodes.bridge.training_model.pseudo_word import clip_with_pseudo_word, text_encoders
from bespoke.nodes.bridge.training_model.text_encoder import prepare_text_encoder
from bespoke.nodes.textual_inversion.request import InversionRequest
from bespoke.nodes.textual_inversion.technique import TextualInversionTechnique, encode_dataset
from bespoke.training.config import TrainConfig
from bespoke.training.errors import InputError
from helpers import image_set, sprite_set, weights_hash

ENCODERS = {
    "sd15": {"clip_l"},
    "sd2_v": {"clip_h"},
    "sdxl": {"clip_l", "clip_g"},
    "sdxl_refiner": {"clip_g"},
    "inpainting": {"clip_l"},
    "sdxl_inpainting": {"clip_l", "clip_g"},
    "sd3": {"clip_l", "clip_g"},
    "flux": {"clip_l", "t5xxl"},
    "flux_fill": {"clip_l", "t5xxl"},
    "flux2": {"qwen3_4b"},
    "chroma": {"t5xxl"},
    "qwen_image": {"qwen25_7b"},
    "z_image": {"qwen3_4b"},
    "lumina2": {"qwen3_4b"},  # that of Z-Image, see `families.lumina2`
    "wan": {"umt5xxl"},
    "wan22": {"umt5xxl"},
}
# Similar to others here, or in test_textual_inversion.py; what their encoders do is in test_encoder_words.py.
SLOW = {"sd15", "sdxl", "sdxl_inpainting", "flux_fill", "flux2", "chroma", "z_image", "lumina2", "wan", "wan22"}
FAILS_ON_FILES = {"qwen_image"}  # ComfyUI's tokenizer compares each token with a number


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


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in ENCODERS])
def test_a_family_learns_a_word(run_node, name):
    """No weight changes, each encoder's vector changes, and core's CLIPTextEncode of the file equals the training."""
    model, clip, vae = families.made(name)
    clip = clip.clone()
    clip.tokenizer = encoders.with_embeddings_folder(clip.tokenizer)
    models = model, clip, vae
    before = [weights_hash(part) for part in (model.model, clip.cond_stage_model)]
    learned_clip, embedding, word, loss, _, report = learn(run_node, models)
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
        shared = [at for at in own if not at.startswith("clip_")]
        assert all(theirs[at] is own[at] for at in shared)
    file = f"my-pink-{name.replace('_', '-')}"
    run_node("BespokeSaveEmbedding", embedding=embedding, name=file)
    if name in FAILS_ON_FILES:
        assert "A prompt does not read it from a file" in report
        from_file = run_node("CLIPTextEncode", clip=learned_clip, text=prompt)[0]
    else:
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

    tokenizer, encoder = text_encoders(clip)[key]
    return embedding_table(clip, encoder)[token_ids(tokenizer, "red")]


def test_a_tokenizer_without_a_folder_is_told_of(run_node):
    """Qwen-Image's own class: the report says that files are not read, and the node's clip reads the word."""
    models = families.made("qwen_image")
    clip, _, word, _, _, report = learn(run_node, models, steps=1)
    assert (
        "A prompt does not read it from a file: ComfyUI gives the tokenizer of qwen25_7b no embeddings folder" in report
    )
    with torch.no_grad():
        (found,) = run_node("CLIPTextEncode", clip=clip, text=f"a photo of a {word}")
        (plain,) = run_node("CLIPTextEncode", clip=models[1], text="a photo of a red")
    assert found[0][0].shape == plain[0][0].shape
    assert (found[0][0] - plain[0][0]).abs().max() > 1e-3
    with pytest.raises(InputError, match="encoders is 'CLIP only' and the text encoder .* holds no CLIP"):
        learn(run_node, models, encoders="CLIP only")


def test_the_forecast_is_that_of_the_longest_caption(comfyui):
    """Qwen 3 is called with as many tokens as a prompt has: ten times as many words keep some ten times as much."""
    models = Models(*families.made("z_image"))
    config = TrainConfig(steps=1, learning_rate=1e-3, batch_size=1, seed=0)
    wanted = InversionRequest(config, name="w", init_text="red", template="captions", vectors=2)

    def memory(captions):
        items = sprite_set(3, len(captions), side=64, colour="pink").items
        said = [replace(item, caption=caption) for item, caption in zip(items, captions, strict=True)]
        dataset = encode_dataset(models, image_set(said), wanted)
        technique = TextualInversionTechnique(wanted, models, dataset)
        return technique.with_encoders(StepMemory(0, 0, 0, 0, 0), 1, None).kept

    short, long = "a {word} here", "a {word} here" + " and a thing" * 9
    assert memory([short, long]) == memory([long]) == memory([long, short])
    assert 4 * memory([short]) < memory([long]) < 12 * memory([short])


def test_clip_only_is_the_training_of_earlier_versions(run_node):
    """Flux with T5 left out: the same vectors as T5 without a gradient gives, and another run than with T5."""
    models = families.made("flux")
    _, alone, _, _, run, _ = learn(run_node, models, encoders="CLIP only")
    _, both, _, _, other, _ = learn(run_node, models)
    assert set(alone) == {"clip_l"}
    assert set(both) == {"clip_l", "t5xxl"}
    assert run.info.id != other.info.id
