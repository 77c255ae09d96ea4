"""Sets of sprites with bad pictures planted among them: wrong captions, foreign pictures and noise."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import sprites
import torch
from bespoke.nodes.bridge.runs.scoring import PictureScorer
from bespoke.nodes.bridge.trainer import Models
from bespoke.nodes.bridge.training_model.denoiser import prepare_for_training
from bespoke.nodes.lora.training.request import LoraData, LoraRequest
from bespoke.nodes.lora.training.technique import LoraTechnique, encode_dataset
from bespoke.training.config import TrainConfig
from bespoke.training.images import TrainingImage
from bespoke.training.picture_scores import PictureLosses, add_losses
from bespoke.training.validation import TIMESTEPS
from helpers import image_set

CLEAN, CAPTION, FOREIGN, NOISE = "clean", "wrong caption", "foreign", "noise"
KINDS = (CAPTION, FOREIGN, NOISE)
SIDE = 128  # px
MOST = 24  # pictures of a set


@dataclass(frozen=True)
class Planted:
    """A set. items: the pictures. kinds: what each is, one of `CLEAN` and `KINDS`."""

    items: list[TrainingImage]
    kinds: list[str]


def all_pictures(seed: int, colour: str | None) -> tuple[list[TrainingImage], list[list[TrainingImage]]]:
    """(24 sprites, for each of `KINDS` two bad ones): what the sets of a seed are made of, see `planted`.

    colour: that all sprites share, which the small model need not know; None for its seven known ones by turns.
    """
    rng = np.random.default_rng(seed)
    good = []
    for i in range(MOST):
        sprite = sprites.random_sprite(
            rng,
            colour or list(sprites.COLOURS)[i % 7],
            sprites.SHAPES[(i + i // 6) % 6],
            list(sprites.GROUNDS)[i // 2 % 2],
        )
        text = f"a {sprite.colour} {sprite.shape} on {sprite.ground}"
        good.append(TrainingImage(f"sprite {i}", torch.from_numpy(np.array(sprites.image(sprite))), text))
    places = _places(seed)
    bad = []
    for kind, numbers in zip(KINDS, places, strict=True):
        own = []
        for number, place in enumerate(numbers):
            item = good[place]
            if kind == CAPTION:
                shape = item.caption.split()[2]
                others = [each.caption for each in good if each.caption.split()[2] != shape]
                own.append(replace(item, caption=others[rng.integers(len(others))]))
            else:
                pixels = _noise(rng) if kind == NOISE else _foreign(rng, (seed + number) % 3)
                own.append(replace(item, pixels=torch.from_numpy(pixels)))
        bad.append(own)
    return good, bad


def planted(seed: int, count: int, good: list, bad: list) -> Planted:
    """`count` of `good`, 12 or 24, with one of each kind of `bad` among 12, and two among 24."""
    items, kinds = list(good[:count]), [CLEAN] * count
    for kind, numbers, own in zip(KINDS, _places(seed), bad, strict=True):
        for place, item in list(zip(numbers, own, strict=True))[: count // 12]:
            items[place], kinds[place] = item, kind
    return Planted(items, kinds)


def _places(seed: int) -> list[tuple[int, int]]:
    """For each kind the places of its two pictures: one among the first twelve, one among the others."""
    rng = np.random.default_rng([seed, 1])
    first, second = rng.permutation(12)[:3], 12 + rng.permutation(12)[:3]
    return [(int(a), int(b)) for a, b in zip(first, second, strict=True)]


def _noise(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def _foreign(rng: np.random.Generator, number: int) -> np.ndarray:
    """A gradient, stripes, or patches of colour: [128, 128, 3] uint8."""
    x, y = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    if number == 0:
        a, b, c = rng.random((3, 3))
        mixed = a * x[..., None] + b * y[..., None] + c * (SIDE - x)[..., None] * y[..., None] / SIDE
        return (255 * mixed / mixed.max()).astype(np.uint8)
    if number == 1:
        angle, waves = 3 * rng.random(), rng.integers(2, 5)
        inside = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi * waves / SIDE) > 0
        return np.where(inside[..., None], rng.integers(0, 256, 3), rng.integers(0, 256, 3)).astype(np.uint8)
    return rng.integers(0, 256, (4, 4, 3)).repeat(SIDE // 4, 0).repeat(SIDE // 4, 1).astype(np.uint8)


def start_rows(small, items: list[TrainingImage]) -> list[PictureLosses]:
    """The rows of a record for the start of a LoRA's training on these pictures, with and without their captions."""
    request, models = LoraRequest(TrainConfig(1, 1e-3, 1, 0), precision="fp32"), Models(*small)
    dataset = encode_dataset(models, LoraData(image_set(items)), request)
    technique = LoraTechnique(request, models, dataset)
    with prepare_for_training(small[0], "fp32") as denoiser:
        technique.prepare(denoiser, None)
        every = range(len(items))
        scorer = PictureScorer(dataset.pictures, every, True, denoiser.device, TIMESTEPS, technique.loss)
        found = scorer.score(True, lambda done, total: True)
    rows: list[PictureLosses] = []
    losses, gains = ({each.picture: getattr(each, name) for each in found} for name in ("loss", "caption_gain"))
    add_losses(rows, 0, losses, held_out=False, caption_gains=gains)
    return rows
