"""The small model works in core's nodes, follows its prompts, and its VAE reconstructs its pictures."""

import math

import numpy as np
import pytest
import sprites
import torch
from helpers import sample
from judge import judge
from PIL import Image


def test_it_is_stock_sd15_to_comfyui(small):
    import comfy.model_base
    import comfy.supported_models

    model, clip, vae = small
    assert isinstance(model.model.model_config, comfy.supported_models.SD15)
    assert model.model.model_type == comfy.model_base.ModelType.EPS
    assert type(clip.cond_stage_model).__name__ == "SD1ClipModel"
    assert type(vae.first_stage_model).__name__ == "TAESD"


def prompt_shares(small, run_node, combinations, each, sheet_file):
    """{attribute: share of pictures} with the colour, shape and ground of the prompt, judged by hue and silhouette."""
    model, clip, vae = small
    right = {"colour": 0, "shape": 0, "ground": 0}
    wrong, count = [], 0
    sheet = Image.new("RGB", (len(combinations) * 64, each * 64))
    for column, (i, j) in enumerate(combinations):
        colour, shape, ground = sprites.GRID_COLOURS[i], sprites.SHAPES[j], ("black", "white")[(i + j) % 2]
        prompt = f"a {colour} {shape} on {ground}"
        for k, picture in enumerate(sample(run_node, model, clip, vae, [prompt], each, steps=14, seed=100 + 6 * i + j)):
            sheet.paste(picture.resize((64, 64)), (column * 64, k * 64))
            seen = judge(picture)
            count += 1
            for attribute, wanted in (("colour", colour), ("shape", shape), ("ground", ground)):
                right[attribute] += getattr(seen, attribute) == wanted
                if getattr(seen, attribute) != wanted:
                    wrong.append(f"{prompt}: {attribute} {getattr(seen, attribute)}")
    sheet.save(sheet_file)
    print(right, count, wrong, sheet_file)
    assert count == each * len(combinations)
    return {attribute: number / count for attribute, number in right.items()}


@pytest.mark.slow
def test_pictures_follow_the_prompt(small, run_node, tmp_path):
    """Each colour and each shape once, core nodes only."""
    share = prompt_shares(small, run_node, list(enumerate((0, 2, 1, 4, 3, 5))), 1, tmp_path / "grid.png")
    assert share["colour"] >= 0.90
    assert share["shape"] >= 0.80


@pytest.mark.slow
def test_pictures_follow_every_prompt(small, run_node, tmp_path):
    """6 colours x 6 shapes, three pictures each, core nodes only."""
    share = prompt_shares(small, run_node, [(i, j) for i in range(6) for j in range(6)], 3, tmp_path / "grid.png")
    assert share["colour"] >= 0.90
    assert share["shape"] >= 0.80
    assert share["ground"] >= 0.75


@pytest.mark.slow
def test_it_has_never_seen_teal_or_a_heart(small, run_node):
    model, clip, vae = small
    teal = [judge(p).colour for p in sample(run_node, model, clip, vae, ["a teal circle on white"], 6, steps=10)]
    heart = [judge(p).shape for p in sample(run_node, model, clip, vae, ["a red heart on white"], 6, steps=10)]
    assert teal.count("teal") <= 1
    assert heart.count("heart") <= 1


@pytest.mark.parametrize("colour", [*sprites.COLOURS, "teal"])
def test_the_vae_gives_its_pictures_back(small, run_node, colour):
    vae = small[2]
    rng = np.random.default_rng(0)
    pictures = [
        sprites.image(sprites.random_sprite(rng, colour, shape, "white")) for shape in (*sprites.SHAPES, "heart")
    ]
    pixels = torch.stack([torch.from_numpy(np.asarray(picture).copy()) for picture in pictures]).float() / 255
    (latent,) = run_node("VAEEncode", pixels=pixels, vae=vae)
    (back,) = run_node("VAEDecode", samples=latent, vae=vae)
    for error in ((back.cpu() - pixels) ** 2).flatten(1).mean(1):
        assert -10 * math.log10(max(float(error), 1e-12)) >= 32


def test_the_judge_reads_every_drawing():
    """The judge does not use the drawing code; on clean drawings it has to be right every time."""
    rng = np.random.default_rng(1)
    for shape in (*sprites.SHAPES, *sprites.UNSEEN_SHAPES):
        for colour in (*sprites.COLOURS, *sprites.UNSEEN_COLOURS):
            for ground in sprites.GROUNDS:
                seen = judge(sprites.image(sprites.random_sprite(rng, colour, shape, ground)))
                assert (seen.colour, seen.shape, seen.ground) == (colour, shape, ground)


def test_the_judge_names_nothing_in_noise_and_blank_pictures():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8))
    assert judge(noise).shape is None
    plain = judge(Image.new("RGB", (128, 128), "white"))
    assert (plain.colour, plain.shape) == (None, None)
