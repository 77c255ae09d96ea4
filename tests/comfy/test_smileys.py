"""LoRA and textual inversion on third-party pictures: OpenMoji's yellow faces. New pictures come nearer to them.

The measure is the distance of a new picture to the nearest face that was held out of training, on either ground. Both
are latents of the small VAE (the mean RGB of each 8x8 px cell in -1..1 and the mean of the three, [4, 16, 16]); the
distance is the root mean square over a latent's numbers; the result is the mean over the pictures. All pictures have
the same noises and sampler. It is compared with two pictures of the base: with the same prompt (for the word: with its
starting word), and with the best prompt in the base's vocabulary, a yellow circle.
"""

from __future__ import annotations

import numpy as np
import pytest
import smileys
import sprites
import torch
from bespoke.training.images import ImageSet, TrainingImage
from helpers import image_set, sample
from model import LATENT_SCALE

COUNT = 4  # pictures for each prompt
SETTINGS = dict(cfg=2.0, steps=12)
LORA = dict(
    steps=240,
    batch_size=4,
    learning_rate=1e-3,
    warmup_steps=10,
    rank=8,
    alpha=8.0,
    timestep_sampling="shifted",
    loss_weighting="debiased",
    ema=0.95,
)
WORD = dict(steps=80, batch_size=4, learning_rate=2e-2, template="captions", vectors=1, loss_weighting="debiased")


def face_set(faces, figure: str) -> ImageSet:
    """A training set of the faces. figure: the word for a face in every caption."""
    pairs = smileys.pictures(faces, figure)
    items = tuple(
        TrainingImage(f"face {i}", torch.from_numpy(np.array(image)), text) for i, (image, text) in enumerate(pairs)
    )
    return image_set(items)


def latents(vae, pictures) -> torch.Tensor:
    """[N, 4 * 16 * 16]"""
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).float() / 255
    return vae.encode(pixels).flatten(1) * LATENT_SCALE


def distance(vae, drawn) -> float:
    """The mean distance of new pictures to the nearest held-out face."""
    unseen = latents(vae, [smileys.image(face, ground) for face in smileys.HELD_OUT for ground in sprites.GROUNDS])
    new = latents(vae, drawn)
    return float(torch.cdist(new, unseen).min(1).values.mean()) / new.shape[1] ** 0.5


def drawn(small, run_node, figure: str, seed: int, model=None, clip=None):
    prompts = [f"a {figure} on {ground}" for ground in sprites.GROUNDS]
    return sample(run_node, model or small[0], clip or small[1], small[2], prompts, COUNT, seed=100 + seed, **SETTINGS)


def measure(vae, shown: dict, seed: int, folder) -> dict[str, float]:
    """{name: distance} of pictures by name; saves the pictures and prints the distances."""
    for name, pictures in shown.items():
        for i, picture in enumerate(pictures):
            picture.save(folder / f"{name}-{i}.png")
    far = {name: distance(vae, pictures) for name, pictures in shown.items()}
    print(
        f"\nseed {seed}: distance to the nearest unseen face",
        {name: round(value, 3) for name, value in far.items()},
        folder,
    )
    return far


def test_the_sprites_are_of_the_small_models_kind():
    """128x128 px, one colour in each cell, the known grounds, yellow in the middle; all different."""
    made = smileys.pictures(smileys.FACES)
    assert len(smileys.TRAINED) == 35
    assert len(smileys.HELD_OUT) == 11
    assert not set(smileys.TRAINED) & set(smileys.HELD_OUT)
    assert len({image.tobytes() for image, _ in made}) == len(made) == 46
    for image, caption in made:
        pixels = np.asarray(image)
        cells = pixels[::8, ::8]
        assert pixels.shape == (128, 128, 3)
        assert np.array_equal(pixels, cells.repeat(8, 0).repeat(8, 1))
        ground = np.array(sprites.GROUNDS[caption.split()[-1]])
        inside = cells[2:14, 2:14]
        border = cells.copy()
        border[2:14, 2:14] = ground
        assert (border == ground).all()
        # OpenMoji's yellow, except in cells with lines.
        yellow = np.abs(inside.astype(int) - (252, 234, 43)).max(-1) < 40
        assert yellow.mean() > 0.2


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_lora_draws_nearer_to_the_set(small, run_node, seed, tmp_path):
    model, clip, vae = small
    trained, *_ = run_node(
        "BespokeTrainLora",
        model=model,
        clip=clip,
        vae=vae,
        images=face_set(smileys.TRAINED, "smiley"),
        seed=seed,
        resume=False,
        **LORA,
    )
    shown = {
        "base": drawn(small, run_node, "smiley", seed),
        "base, yellow circle": drawn(small, run_node, "yellow circle", seed),
        "LoRA": drawn(small, run_node, "smiley", seed, model=trained),
    }
    far = measure(vae, shown, seed, tmp_path)
    assert far["LoRA"] < 0.75 * far["base"]
    assert far["LoRA"] < far["base, yellow circle"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_word_draws_nearer_to_the_set(small, run_node, seed, tmp_path):
    model, clip, vae = small
    new_clip, _, word, *_ = run_node(
        "BespokeTrainTextualInversion",
        model=model,
        clip=clip,
        vae=vae,
        images=face_set(smileys.TRAINED, "{word} circle"),
        name="smiley",
        init_text="red",
        seed=seed,
        resume=False,
        **WORD,
    )
    shown = {
        "starting word": drawn(small, run_node, "red circle", seed),
        "base, yellow circle": drawn(small, run_node, "yellow circle", seed),
        "word": drawn(small, run_node, f"{word} circle", seed, clip=new_clip),
    }
    far = measure(vae, shown, seed, tmp_path)
    assert far["word"] < 0.75 * far["starting word"]
