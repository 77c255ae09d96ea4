"""The pieces of the picture model's script: drawings, captions, VAE layout, width, text, packing, and resumption.

The oracles: the narrow networks themselves (the wide ones must compute the same), ComfyUI's own classes for the layouts
that a checkpoint must have, and a training without a stop for one with a stop.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parent.parent / "picture_model"
sys.path.append(str(FOLDER))

import figures  # noqa: E402
import picture_judge  # noqa: E402
import picture_model as pm  # noqa: E402
import picture_train  # noqa: E402
import scenes  # noqa: E402
import vae  # noqa: E402

PROMPTS = ["a happy blue cat at night", "a sad star"]


def _figure(**words) -> figures.Figure:
    return figures.Figure(**{"subject": "cat", "colour": "red", "mood": "happy", "ground": "plain", **words})


def _pixels(**words) -> np.ndarray:
    return np.asarray(figures.image(_figure(**words)), int)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("subject", (*figures.SUBJECTS, *figures.UNSEEN_SUBJECTS)),
        ("colour", (*figures.COLOURS, *figures.UNSEEN_COLOURS)),
        ("mood", figures.MOODS),
        ("ground", tuple(scenes.GROUNDS)),
    ],
)
def test_each_word_draws_a_picture_of_its_own(kind, words):
    """Two words of one kind differ in at least 60 of the 16,384 pixels by a fifth of the range."""
    drawn = [_pixels(**{kind: word}) for word in words]
    assert len(set(words)) == len(drawn)
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert (np.abs(one - other).max(-1) > 51).sum() > 60


def test_the_body_has_the_captions_colour():
    """Red, green and blue of a star's arm, where nothing else is drawn, are the colour's within two levels."""
    for name, colour in {**figures.COLOURS, **figures.UNSEEN_COLOURS}.items():
        seen = _pixels(subject="star", colour=name)[60, 40]
        assert np.abs(seen - colour).max() <= 2, name


def test_line_drawings_have_ink_and_paper_alone():
    """Nine of ten pixels of the line style are grey; in the flat style fewer than half are."""
    grey = [np.ptp(_pixels(style=style, ground="meadow"), axis=-1) < 20 for style in ("line", "flat")]
    assert grey[0].mean() > 0.9 > 0.5 > grey[1].mean()


def test_the_kept_out_words_are_in_no_training_caption():
    """4,000 figures of the training's own draw and their captions name no kept-out subject, colour or style."""
    rng = np.random.default_rng(0)
    drawn = [figures.random_figure(rng) for _ in range(4000)]
    said = {word for figure in drawn for word in figures.caption(rng, figure).replace(",", "").split()}
    assert not said & {*figures.UNSEEN_SUBJECTS, *figures.UNSEEN_COLOURS}
    assert {figure.style for figure in drawn} == {"flat"}
    assert {*figures.SUBJECTS, *figures.COLOURS, *figures.MOODS} <= said


def test_a_caption_says_subject_colour_mood_and_ground():
    """By hand."""
    figure = _figure(subject="owl", colour="blue", mood="sad", ground="beach")
    assert figures.say(figure) == "a sad blue owl on the beach"


def _trained_looking(module: torch.nn.Module) -> torch.nn.Module:
    # Zeroes hide mistakes: every weight gets a value, and every bias and norm another.
    torch.manual_seed(1)
    for weight in module.parameters():
        weight.data = torch.randn_like(weight) * 0.05 + (0.02 if weight.ndim == 1 else 0.0)
    return module


def test_taesd_of_comfyui_computes_what_the_narrow_vae_does(comfyui):
    """Oracle: the narrow halves, whose latents are the wide encoder's times SD1.5's 0.18215."""
    from comfy.taesd.taesd import TAESD

    narrow = _trained_looking(vae.Narrow())
    narrow.mean.copy_(torch.tensor([0.3, -0.2, 0.1, 0.5]))
    narrow.deviation.copy_(torch.tensor([1.4, 0.7, 0.3, 1.2]))
    narrow.eval()
    wide = TAESD()
    wide.load_state_dict({k.removeprefix("first_stage_model."): v for k, v in vae.state_dict_of(narrow).items()})
    pictures = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        latents, wide_latents = narrow.encode(pictures), wide.encode(pictures * 2 - 1) * vae.LATENT_SCALE
        assert wide_latents.shape == (1, 4, 4, 6)
        assert torch.allclose(latents, wide_latents, atol=1e-4)
        assert torch.allclose(narrow.decode(latents), wide.decode(latents / vae.LATENT_SCALE) / 2 + 0.5, atol=1e-4)


def test_the_vae_begins_at_the_mean_of_each_cell():
    """Oracle: the picture whose 8x8 cells are replaced by their mean, within half a decibel. Latents are normal."""
    held = vae.Drawings().held_out(4)
    torch.manual_seed(0)
    narrow = vae.Narrow()
    vae.warm(narrow, held)
    with torch.no_grad():
        latents = narrow.encode(held)
    assert torch.allclose(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-3)
    assert torch.allclose(latents.std((0, 2, 3)), torch.ones(4), atol=1e-3)
    cells = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(held, 8), scale_factor=8)
    wanted = float((-10 * ((cells - held) ** 2).flatten(1).mean(1).log10()).mean())
    assert abs(vae.psnr(narrow, held) - wanted) < 0.5


def test_the_wide_unet_computes_what_the_narrow_one_does(comfyui):
    """Oracle: the narrow U-Net, on weights without a zero, at two timesteps and with two prompts."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    narrow = _trained_looking(picture_train.new_unet()).eval()
    wide = UNetModel(**pm.WIDE, device="cpu", dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    wide.load_state_dict(pm.widen(narrow.state_dict()))
    torch.manual_seed(2)
    x, t, context = torch.randn(2, 4, 16, 16), torch.tensor([20, 700]), pm.Text()(PROMPTS)
    with torch.no_grad():
        one, other = narrow(x, t, context=context), wide.eval()(x, t, context=context)
    assert one.abs().max() > 0.1
    assert torch.allclose(one, other, atol=2e-4 * float(one.abs().max()))


def test_the_asset_gives_the_weights_back(tmp_path):
    """Five bits in groups of 128 normal numbers lose less than a tenth of their deviation; the VAE is in fp16."""
    torch.manual_seed(0)
    unet = {"a.weight": torch.randn(512, 256), "a.bias": torch.randn(512)}
    halves = {"decoder.0.weight": torch.randn(4, 4, 3, 3), "deviation": torch.ones(4)}
    pm.pack(unet, halves, tmp_path / "asset.safetensors", {"steps": "1"})
    got_unet, got_halves = pm.unpack(tmp_path / "asset.safetensors")
    assert (got_unet["a.weight"].float() - unet["a.weight"]).square().mean().sqrt() < 0.1
    assert torch.allclose(got_unet["a.bias"].float(), unet["a.bias"], atol=2e-3)
    assert torch.allclose(got_halves["decoder.0.weight"].float(), halves["decoder.0.weight"], atol=2e-3)
    assert (tmp_path / "asset.safetensors").stat().st_size < 512 * 256 * 0.7


@pytest.fixture
def tiny(monkeypatch):
    """Trainings of a second: a narrow net of fewer levels, batches of two, shards of four."""
    for name, value in {"BATCH": 2, "SHARD": 4, "SHARDS_FIRST": 1, "SHARD_STEPS": 1, "SHARDS_LAST": 2}.items():
        monkeypatch.setattr(picture_train, name, value)
    config = {"model_channels": 32, "num_res_blocks": [1, 1], "transformer_depth": [0, 1]}
    config |= {"transformer_depth_output": [0, 0, 1, 1], "channel_mult": [1, 1]}
    monkeypatch.setattr(pm, "NARROW", {**pm.NARROW, **config})


def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(comfyui, tiny, tmp_path):
    """Oracle: four steps without a stop. Two steps, a new process's objects and two more end at the same numbers."""
    text, halves = pm.Text(), vae.Narrow().eval()

    def training(name: str) -> picture_train.Training:
        (tmp_path / name).mkdir(exist_ok=True)
        pool = picture_train.Pool(tmp_path / name / "latents", halves)
        return picture_train.Training(tmp_path / name, pool, text, steps=40)

    whole, first = training("whole"), training("parts")
    losses = [whole.step() for _ in range(4)]
    begun = [first.step() for _ in range(2)]
    first.save()
    second = training("parts")
    assert second.done == 2
    assert begun + [second.step() for _ in range(2)] == losses
    for kind in ("unet", "average"):
        for one, other in zip(getattr(whole, kind).parameters(), getattr(second, kind).parameters(), strict=True):
            assert torch.equal(one, other)
    assert not torch.equal(next(whole.unet.parameters()), next(training("other").unet.parameters()))


def test_the_rate_warms_up_stays_and_falls(comfyui, tiny, tmp_path):
    """By hand: a 300th of the rate at first, all of it from step 300 to 800 of 1000, half of it at 900."""
    training = picture_train.Training(tmp_path, None, None, steps=1000)
    rates = []
    for training.done in (0, 299, 500, 800, 900, 1000):
        rates.append(training.rate() / picture_train.RATE)
    assert rates == pytest.approx([1 / 300, 1, 1, 1, 0.5, 0])


def test_samples_follow_the_ddim_update(comfyui):
    """Oracle: a network that knows the picture. DDIM ends at it from any noise."""
    wanted = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    bar = picture_train.alpha_bar()

    def knows(x, t, context):
        a = bar[t].reshape(-1, 1, 1, 1)
        return (x - a.sqrt() * wanted) / (1 - a).sqrt()

    drawn = picture_train.sample(knows, pm.Text(), ["a cat"], seed=1, steps=5, bf16=False)
    assert torch.allclose(drawn, wanted, atol=1e-3)


def test_the_judge_learns_to_name_drawings():
    """After eight epochs of 192 drawings it names half of their grounds and a third of their colours: three times what
    guesses name."""
    pictures, kinds = picture_judge.drawings(1, 192)
    named = picture_judge.shares(picture_judge.train(pictures, kinds, epochs=8), pictures.float() / 255, kinds)
    assert named["ground"] > 0.5
    assert named["colour"] > 3 / 9


@pytest.mark.slow
def test_comfyui_loads_the_checkpoint_as_sd15(comfyui, tmp_path):
    """ComfyUI's loader finds SD1.5, the VAE and CLIP in one file; its text states are `Text`'s."""
    import comfy.sd
    import comfy.supported_models

    narrow = _trained_looking(picture_train.new_unet()).state_dict()
    path = pm.write_checkpoint(tmp_path / "picture.safetensors", narrow, vae.Narrow().state_dict())
    model, clip, loaded, _ = comfy.sd.load_checkpoint_guess_config(str(path))
    assert type(model.model.model_config) is comfy.supported_models.SD15
    assert type(loaded.first_stage_model).__name__ == "TAESD"
    states = clip.encode_from_tokens(clip.tokenize(PROMPTS[0]))[0]
    assert torch.allclose(states.float(), pm.Text()(PROMPTS[:1]), atol=5e-3)
