"""Pictures that nobody here drew: OpenMoji's yellow faces teach a LoRA and a word, and new pictures come nearer to
them.

The measure: of each new picture, the distance to the nearest of the faces that no training saw, on either ground; both
as latents of the small VAE (the mean RGB of each 8x8 px cell in -1..1 and the mean of the three, [4, 16, 16]), root
mean
square over the numbers of a latent; then the mean over the pictures. Same noises, same sampler. Two bounds are beside
it: the base asked with the very prompt (for the word: with the word it began at), and the base asked as well as its
vocabulary allows, for a yellow circle.
"""

from __future__ import annotations

import numpy as np
import pytest
import smileys
import sprites
import torch
from bespoke.nodes.images.folder import fingerprint
from bespoke.training.images import ImageSet, TrainingImage
from helpers import sample
from model import LATENT_SCALE

COUNT = 4  # pictures a prompt
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


def image_set(faces, figure: str) -> ImageSet:
    """figure: what every caption calls a face."""
    pairs = smileys.pictures(faces, figure)
    items = tuple(
        TrainingImage(f"face {i}", torch.from_numpy(np.array(image)), text) for i, (image, text) in enumerate(pairs)
    )
    return ImageSet(items, "", fingerprint(items))


def latents(vae, pictures) -> torch.Tensor:
    """[N, 4 * 16 * 16]"""
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).float() / 255
    return vae.encode(pixels).flatten(1) * LATENT_SCALE


def distance(vae, drawn) -> float:
    """Of new pictures to the nearest unseen face, mean."""
    unseen = latents(vae, [smileys.image(face, ground) for face in smileys.HELD_OUT for ground in sprites.GROUNDS])
    new = latents(vae, drawn)
    return float(torch.cdist(new, unseen).min(1).values.mean()) / new.shape[1] ** 0.5


def drawn(small, run_node, figure: str, seed: int, model=None, clip=None):
    prompts = [f"a {figure} on {ground}" for ground in sprites.GROUNDS]
    return sample(run_node, model or small[0], clip or small[1], small[2], prompts, COUNT, seed=100 + seed, **SETTINGS)


def test_the_sprites_are_of_the_small_models_kind():
    """128x128, one colour a cell, on its grounds, yellow and in the middle; and no two alike."""
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
        paper = np.array(sprites.GROUNDS[caption.split()[-1]])
        inside = cells[2:14, 2:14]
        border = cells.copy()
        border[2:14, 2:14] = paper
        assert (border == paper).all()
        yellow = (
            np.abs(inside.astype(int) - (252, 234, 43)).max(-1) < 40
        )  # OpenMoji's, apart from lines that share a cell
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
        images=image_set(smileys.TRAINED, "smiley"),
        seed=seed,
        resume=False,
        **LORA,
    )
    shown = {
        "base": drawn(small, run_node, "smiley", seed),
        "base, yellow circle": drawn(small, run_node, "yellow circle", seed),
        "LoRA": drawn(small, run_node, "smiley", seed, model=trained),
    }
    far = {name: distance(vae, pictures) for name, pictures in shown.items()}
    keep(shown, tmp_path)
    print(
        f"\nseed {seed}: distance to the nearest unseen face",
        {name: round(value, 3) for name, value in far.items()},
        tmp_path,
    )
    assert far["LoRA"] < 0.75 * far["base"]
    assert far["LoRA"] < far["base, yellow circle"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_word_draws_nearer_to_the_set(small, run_node, seed, tmp_path):
    model, clip, vae = small
    knowing, _, word, *_ = run_node(
        "BespokeTrainTextualInversion",
        model=model,
        clip=clip,
        vae=vae,
        images=image_set(smileys.TRAINED, "{word} circle"),
        name="smiley",
        init_text="red",
        seed=seed,
        resume=False,
        **WORD,
    )
    shown = {
        "starting word": drawn(small, run_node, "red circle", seed),
        "base, yellow circle": drawn(small, run_node, "yellow circle", seed),
        "word": drawn(small, run_node, f"{word} circle", seed, clip=knowing),
    }
    far = {name: distance(vae, pictures) for name, pictures in shown.items()}
    keep(shown, tmp_path)
    print(
        f"\nseed {seed}: distance to the nearest unseen face",
        {name: round(value, 3) for name, value in far.items()},
        tmp_path,
    )
    assert far["word"] < 0.75 * far["starting word"]


def keep(shown, folder) -> None:
    for name, pictures in shown.items():
        for i, picture in enumerate(pictures):
            picture.save(folder / f"{name}-{i}.png")
