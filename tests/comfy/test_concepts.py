"""Concepts learned on the small model, measured on its pictures: an unseen colour (LoRA), a known colour under a new
word (textual inversion).

The short tests train for a few steps and measure how the figures' colour moved. The slow ones use three seeds and
negative controls and print every number that they judge by (`-s`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import sprites
import torch
from bespoke.nodes.bridge.dataset.conditioning import encode_prompt, join_conds, model_conds
from bespoke.nodes.bridge.dataset.pictures import encode_pictures
from bespoke.nodes.bridge.training_model.denoiser import prepare_for_training
from bespoke.training.config import TrainConfig
from bespoke.training.images import ImageSet, TrainingImage
from bespoke.training.objective import denoising_loss
from bespoke.training.validation import validation_batches, validation_scorer
from helpers import image_set, sample, share, sprite_set, weights_hash
from judge import silhouette
from PIL import Image

TEAL = sprites.UNSEEN_COLOURS["teal"]
NAMED = sprites.COLOURS | sprites.UNSEEN_COLOURS
PROMPTS = ("a {} circle on white", "a {} square on black", "a {} cross on white", "a {} ring on black")
COUNT = 2  # pictures for each prompt: 8 for each seed, 24 in all


def figure(picture) -> np.ndarray:
    """The figure's colour, RGB in 0..255; that of the whole picture where no figure is found."""
    mask, _ = silhouette(picture)
    pixels = np.asarray(picture, float)
    return np.median(pixels[mask] if mask.any() else pixels.reshape(-1, 3), axis=0)


def named(pictures, colour: str) -> float:
    """The share of pictures whose figure is nearer in RGB to this colour than to the other seven of the small world."""
    nearest = [min(NAMED, key=lambda name: np.linalg.norm(figure(picture) - NAMED[name])) for picture in pictures]
    return nearest.count(colour) / len(nearest)


def own_weights(models) -> list[str]:
    """A hash of each model's weights, after ComfyUI has restored what a clone patched."""
    import comfy.model_management

    comfy.model_management.unload_all_models()
    model, clip, vae = models
    return [weights_hash(m) for m in (model.model, clip.cond_stage_model, vae.first_stage_model)]


def distances(pictures, colour) -> list[float]:
    return [float(np.linalg.norm(figure(picture) - colour)) for picture in pictures]


def noise_set(count: int, word: str) -> ImageSet:
    """Pictures of noise, captioned as the concept."""
    rng = np.random.default_rng(5)
    shapes = sprites.SHAPES
    items = [
        TrainingImage(
            f"noise {i}",
            torch.from_numpy(rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)),
            f"a {word} {shapes[i % 6]} on white",
        )
        for i in range(count)
    ]
    return image_set(items)


def test_a_few_steps_bring_the_figures_nearer_to_an_unseen_colour(small, run_node):
    """The same prompts and noises without and with the LoRA; the base's weights do not change."""
    model, clip, vae = small
    before = own_weights(small)
    trained, *_ = run_node(
        "BespokeTrainLora",
        model=model,
        clip=clip,
        vae=vae,
        images=sprite_set(1, 12, colour="teal"),
        steps=40,
        batch_size=2,
        learning_rate=2e-3,
        rank=8,
        alpha=8.0,
        seed=0,
        loss_weighting="debiased",
        resume=False,
    )
    assert own_weights(small) == before
    assert not model.patches
    assert not model.injections
    assert not any(m._forward_hooks for m in model.model.modules())
    prompts = [prompt.format("teal") for prompt in PROMPTS[:3]]
    base, moved = (
        distances(sample(run_node, m, clip, vae, prompts, 1, cfg=1.0, steps=8), TEAL) for m in (model, trained)
    )
    print("distance to teal", np.round(base), np.round(moved))
    assert np.mean(moved) < 0.7 * np.mean(base)


@pytest.mark.slow
def test_importance_sampling_shows_the_loss_of_even_draws_with_less_scatter(small, run_node):
    """The base without training: the same mean, and less scatter from step to step."""
    model, clip, vae = small
    means, scatters = [], []
    for sampling in ("uniform", "importance"):
        *_, run, _, _ = run_node(
            "BespokeTrainLora",
            model=model,
            clip=clip,
            vae=vae,
            images=sprite_set(1, 12, colour="teal"),
            steps=48,
            batch_size=2,
            learning_rate=0.0,
            rank=1,
            alpha=1.0,
            seed=0,
            timestep_sampling=sampling,
            resume=False,
        )
        means.append(np.mean(run.losses))
        scatters.append(np.std(run.losses) / means[-1])
    print("mean loss", np.round(means, 4), "scatter of a step", np.round(scatters, 2))
    assert abs(means[1] / means[0] - 1) < 0.25  # three standard errors of the uniform mean
    assert scatters[1] < 0.75 * scatters[0]


@pytest.mark.slow
def test_a_few_steps_teach_a_word(small, run_node):
    """A colour that the model knows, under a new word that starts from another colour's. The CLIP needs no file."""
    model, clip, vae = small
    before = own_weights(small)
    new_clip, embedding, word, *_ = run_node(
        "BespokeTrainTextualInversion",
        model=model,
        clip=clip,
        vae=vae,
        name="my-pink",
        init_text="red",
        vectors=1,
        images=sprite_set(3, 8, colour="pink", word="{word}"),
        steps=32,
        batch_size=2,
        learning_rate=3e-2,
        seed=0,
        template="captions",
        resume=False,
    )
    assert own_weights(small) == before
    settings = dict(count=1, cfg=1.0, steps=8)
    start = sample(run_node, model, clip, vae, [prompt.format("red") for prompt in PROMPTS[:3]], **settings)
    new = sample(run_node, model, new_clip, vae, [prompt.format(word) for prompt in PROMPTS[:3]], **settings)
    pink = sprites.COLOURS["pink"]
    print("distance to pink", np.round(distances(start, pink)), np.round(distances(new, pink)))
    # Half of it in bfloat16, less in float32.
    assert np.mean(distances(new, pink)) < 0.6 * np.mean(distances(start, pink))
    run_node("BespokeSaveEmbedding", embedding=embedding, name="my-pink")
    (from_file,) = sample(run_node, model, clip, vae, [PROMPTS[0].format(word)], **settings)
    assert from_file.tobytes() == new[0].tobytes()


# --- LoRA: the slow proofs -----------------------------------------------------------------------------------------

CONCEPT = dict(steps=320, batch_size=4, learning_rate=1e-3, rank=8, alpha=8.0, loss_weighting="debiased")


def draw_teal(small, run_node, model, seed: int):
    """The model's pictures for prompts with teal, at the guidance scale that suits it best."""
    prompts = [prompt.format("teal") for prompt in PROMPTS]
    return sample(run_node, model, small[1], small[2], prompts, COUNT, cfg=2.0, steps=12, seed=100 + seed)


def lora_of(small, run_node, seed: int, **changes):
    """(the lowest held-out loss over the base's, the pictures that it draws for teal)."""
    model, clip, vae = small
    settings = dict(
        images=sprite_set(1, 12, colour="teal"), validation_images=sprite_set(77, 2, colour="teal"), resume=False
    )
    trained, _, _, run, *_ = run_node(
        "BespokeTrainLora", model=model, clip=clip, vae=vae, seed=seed, **CONCEPT | settings | changes
    )
    drawn = draw_teal(small, run_node, trained, seed)
    losses = dict(run.held_out)
    return min(loss for step, loss in losses.items() if step) / losses[0], drawn


@pytest.mark.slow
def test_a_lora_teaches_an_unseen_colour(small, run_node, tmp_path):
    """Held-out loss and 24 pictures over three seeds, in cross-attention alone; the colour is the nearest of the small
    world's eight."""
    base_pictures, drawn = [], []
    for seed in (0, 1, 2):
        fall, new = lora_of(small, run_node, seed)
        old = draw_teal(small, run_node, small[0], seed)
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            a.save(tmp_path / f"{seed}-{i}-base.png")
            b.save(tmp_path / f"{seed}-{i}-lora.png")
        print(
            f"\nseed {seed}: held-out loss {fall:.3f} of the base's; teal in {named(old, 'teal'):.0%} of the "
            "base's pictures, "
            f"{named(new, 'teal'):.0%} of the LoRA's (by hue {share(old, colour='teal'):.0%} and "
            f"{share(new, colour='teal'):.0%}); "
            f"distance to teal {np.mean(distances(old, TEAL)):.0f} and {np.mean(distances(new, TEAL)):.0f}; {tmp_path}"
        )
        assert fall <= 0.85
        base_pictures += old
        drawn += new
    assert len(drawn) == 24
    assert named(base_pictures, "teal") <= 0.2
    assert named(drawn, "teal") >= 0.75


@pytest.mark.slow
@pytest.mark.parametrize("control", ["learning rate 0", "noise"])
def test_controls_do_not_teach_a_lora(small, run_node, control):
    changes = (
        {"learning_rate": 0.0, "steps": 20}
        if control == "learning rate 0"
        else {"images": noise_set(12, "teal"), "steps": 60}
    )
    fall, drawn = lora_of(small, run_node, 0, **changes)
    print(f"\n{control}: held-out loss {fall:.3f} of the base's; teal in {named(drawn, 'teal'):.0%} of the pictures")
    assert fall > 0.85
    assert named(drawn, "teal") <= 0.2


# --- textual inversion: the slow proofs -----------------------------------------------------------------------------

UNSEEN = ("a picture of a {word} {shape} on {ground}", "{word} {shape} , {ground} background")
WORD = dict(steps=60, batch_size=2, learning_rate=2e-2, template="captions", init_text="red", vectors=1)


@pytest.fixture(scope="module")
def loss_of(small):
    """loss_of(clip, word): the loss on pictures and in sentences that are not trained with."""
    model, _, vae = small
    pairs = sprites.training_set(np.random.default_rng(99), 3, "pink")
    items = tuple(
        TrainingImage(f"{i}", torch.from_numpy(np.array(image)), text) for i, (image, text) in enumerate(pairs)
    )
    images = image_set(items)
    pictures = encode_pictures(vae, model.model, TrainConfig(1, 0.0, 1, 0), images)

    def loss(clip, word: str) -> float:
        def conds(batch, template):
            _, _, shape, _, ground = items[batch.indices[0]].caption.split()  # "a pink circle on white"
            sentence = template.format(word=word, shape=shape, ground=ground)
            one = model_conds(
                denoiser.base,
                *encode_prompt(clip, sentence),
                pictures.data.latents[batch.indices[0]],
                denoiser.device,
            )
            return join_conds([one] * len(batch.indices))

        with prepare_for_training(model, "fp32") as denoiser, torch.no_grad():
            batches = validation_batches(pictures.data, range(len(items)), denoiser.device)
            scores = [
                validation_scorer(
                    batches,
                    lambda batch: denoising_loss(
                        denoiser, batch.latent, batch.noise, denoiser.sigma(batch.t), conds(batch, template)
                    ),
                )()
                for template in UNSEEN
            ]
        return sum(scores) / len(scores)

    return loss


@pytest.fixture(scope="module")
def bounds(small, loss_of):
    """(the lowest loss without learning, the loss with the word that the model knows)."""
    clip = small[1]
    without = {
        name: loss_of(clip, word)
        for name, word in (("starting word", "red"), ("unknown word", "zorblat"), ("left out", ""))
    }
    oracle = loss_of(clip, "pink")
    print("\nloss of", {name: round(value, 5) for name, value in without.items()}, "oracle", round(oracle, 5))
    return min(without.values()), oracle


def learned_word(small, run_node, seed: int, images: ImageSet, **changes):
    model, clip, vae = small
    new_clip, _, word, *_ = run_node(
        "BespokeTrainTextualInversion",
        model=model,
        clip=clip,
        vae=vae,
        images=images,
        name="hidden-colour",
        seed=seed,
        resume=False,
        **WORD | changes,
    )
    return new_clip, word


def recovery(bounds, loss: float) -> float:
    return (bounds[0] - loss) / (bounds[0] - bounds[1])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_word_recovers_a_hidden_colour(small, run_node, bounds, loss_of, seed):
    """The recovered share of the gap between the two `bounds`, and the colour in pictures."""
    model, clip, vae = small
    assert bounds[1] < 0.9 * bounds[0]  # there is something to recover
    start = sample(
        run_node, model, clip, vae, [prompt.format("red") for prompt in PROMPTS], COUNT, steps=12, seed=100 + seed
    )
    new_clip, word = learned_word(small, run_node, seed, sprite_set(3, 8, colour="pink", word="{word}"))
    drawn = sample(
        run_node, model, new_clip, vae, [prompt.format(word) for prompt in PROMPTS], COUNT, steps=12, seed=100 + seed
    )
    recovered = recovery(bounds, loss_of(new_clip, word))
    base, shown = share(start, colour="pink"), share(drawn, colour="pink")
    print(
        f"\nseed {seed}: recovery {recovered:.2f}; pink in {base:.0%} of the starting word's pictures, {shown:.0%} "
        "of the new word's"
    )
    assert base <= 0.2
    assert shown >= 0.75
    assert recovered >= 0.6


@pytest.mark.slow
@pytest.mark.parametrize("control", ["learning rate 0", "another colour", "noise"])
def test_controls_do_not_teach_a_word(small, run_node, bounds, loss_of, control):
    images = {"another colour": sprite_set(3, 8, colour="blue", word="{word}"), "noise": noise_set(8, "{word}")}
    changes = {"learning_rate": 0.0, "steps": 4} if control == "learning rate 0" else {}
    new_clip, word = learned_word(
        small, run_node, 0, images.get(control) or sprite_set(3, 8, colour="pink", word="{word}"), **changes
    )
    recovered = recovery(bounds, loss_of(new_clip, word))
    print(f"\n{control}: recovery {recovered:.2f}")
    assert recovered < 0.1


@pytest.mark.slow
def test_two_words_at_once_are_not_mixed(small, run_node):
    """A hidden colour and a hidden shape in one run. Each word's pictures show its thing at .9 or more of the share
    that the vocabulary's own word reaches (the oracle), and a prompt with both shows both.

    The pictures of one word have known words for the rest, and never the other word.
    """
    model, clip, vae = small
    tones = sprite_set(3, 8, colour="pink", word="{tone}").items
    images = image_set([*tones, *sprite_set(4, 8, shape="ring", word="{form}").items])
    settings = WORD | {"init_text": "", "steps": 160, "batch_size": 4}
    taught, *_ = run_node(
        "BespokeTrainTextualInversion", model=model, clip=clip, vae=vae, images=images,
        name="tone : red\nform : circle", seed=0, resume=False, **settings,
    )  # fmt: skip
    shares = {}
    for which, text, words in (
        ("oracle", clip, {"tone": "pink", "form": "ring"}),
        ("learned", taught, {"tone": "embedding:tone", "form": "embedding:form"}),
    ):
        tone, form = words["tone"], words["form"]
        for thing, prompts, wanted in (
            ("tone", [f"a {tone} {shape} on white" for shape in ("square", "cross", "circle")], {"colour": "pink"}),
            ("form", [f"a {colour} {form} on black" for colour in ("red", "blue", "green")], {"shape": "ring"}),
            ("both", [f"a {tone} {form} on white"] * 3, {"colour": "pink", "shape": "ring"}),
        ):
            drawn = sample(run_node, model, text, vae, prompts, 2, steps=12, seed=100)
            shares[which, thing] = share(drawn, **wanted)
    print("\n", shares)
    for thing in ("tone", "form", "both"):
        assert shares["oracle", thing] >= 0.8, thing
        assert shares["learned", thing] >= 0.9 * shares["oracle", thing], thing


@pytest.mark.slow
def test_a_negative_word_keeps_away_what_it_was_taught(small, run_node):
    """Pictures on white, whose captions do not say so. Without a ground in the prompt the model draws 15 of 24 on
    white, with the vocabulary's own word as the negative prompt 6: the oracle. The learned word has to reach half of
    that, and the pictures have to stay what the prompt says."""
    model, clip, vae = small
    colours = ("red", "green", "blue", "yellow")
    sprites_of = [item for colour in colours for item in sprite_set(3, 12, colour=colour).items]
    pictures = [item for item in sprites_of if item.caption.endswith("on white")]
    images = image_set([replace(item, caption=item.caption.replace(" on white", "")) for item in pictures])
    taught, _, word, *_ = run_node(
        "BespokeTrainTextualInversion", model=model, clip=clip, vae=vae, images=images, name="unwanted", seed=0,
        resume=False, **WORD | {"template": "negative", "init_text": "background", "steps": 150},
    )  # fmt: skip
    print("\n", len(pictures), "pictures of different colours on white")
    counts = {}
    for negative in ("", word, "white"):
        drawn = [
            picture
            for shape in ("circle", "square", "cross", "ring")
            for picture in sample_against(run_node, (model, taught, vae), f"a blue {shape}", negative)
        ]
        assert len(drawn) == 24
        counts[negative] = [round(24 * share(drawn, ground="white")), round(24 * share(drawn, colour="blue"))]
    print("\non white, and blue, of 24:", counts)
    assert counts[""][0] >= 12
    assert counts["white"][0] <= 0.5 * counts[""][0]
    assert counts[word][0] <= (counts[""][0] + counts["white"][0]) / 2
    assert counts[word][1] >= 0.9 * counts[""][1]


def sample_against(run_node, models, prompt, negative):
    """Six pictures by core's nodes at guidance 2, away from a negative prompt."""
    model, clip, vae = models
    (positive,), (against,) = (run_node("CLIPTextEncode", clip=clip, text=text) for text in (prompt, negative))
    (latent,) = run_node(
        "KSampler", model=model, seed=100, steps=6, cfg=2.0, sampler_name="euler", scheduler="normal", denoise=1.0,
        positive=positive, negative=against, latent_image={"samples": torch.zeros(6, 4, 16, 16)},
    )  # fmt: skip
    (pixels,) = run_node("VAEDecode", vae=vae, samples=latent)
    return [Image.fromarray((picture.numpy() * 255).round().clip(0, 255).astype(np.uint8)) for picture in pixels]
