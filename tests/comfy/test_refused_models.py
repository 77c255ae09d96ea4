"""Models that cannot be trained on pictures and prompts, and that no class of the host is untried."""

from dataclasses import replace

import host_coverage
import host_models
import pytest
import torch
from bespoke.nodes.bridge.dataset import conditioning
from bespoke.nodes.bridge.dataset.pictures import encode_pictures
from bespoke.nodes.bridge.models import check_trainable, refused
from bespoke.training.config import TrainConfig
from bespoke.training.errors import InputError
from bespoke.training.images import TrainingImage
from helpers import image_set


def classes():
    import comfy.model_base

    return vars(comfy.model_base)


@pytest.mark.parametrize("name", list(refused.REASONS))
def test_a_class_is_refused_by_name(comfyui, name):
    """Without its network, which therefore nothing reads: the refusal comes before anything is encoded."""
    kind = classes().get(name)
    if kind is None:
        pytest.skip(f"this ComfyUI has no {name}")
    below = [one for one in classes().values() if isinstance(one, type) and issubclass(one, kind)]
    assert below
    for one in below:
        base = torch.nn.Module.__new__(one)
        with pytest.raises(InputError, match=rf"\({one.__name__}\) cannot be trained here: it "):
            check_trainable(base)


@pytest.mark.parametrize("name", ["CosmosVideo", "CosmosPredict2", "CogVideoX", "WAN21"])
def test_image_to_video_is_refused_where_one_class_is_both(comfyui, name):
    base = torch.nn.Module.__new__(classes()[name])
    torch.nn.Module.__init__(base)
    base.image_to_video = True
    with pytest.raises(InputError, match="it continues a picture that it is given"):
        check_trainable(base)


@pytest.mark.parametrize("name", [name for name, row in host_models.ROWS.items() if row.reason])
def test_a_row_with_a_reason_is_refused_with_it(comfyui, name):
    """By its channels: core gives these the class of Wan's text to video."""
    if host_models.config_class(name) is None:
        pytest.skip("not in this ComfyUI")
    with pytest.raises(InputError, match=host_models.ROWS[name].reason):
        check_trainable(host_models.made(name)[0].model)


def test_a_row_without_a_reason_is_not_refused(comfyui):
    for name, row in host_models.ROWS.items():
        if not row.reason and host_models.config_class(name) is not None:
            assert refused.reason_against(host_models.made(name)[0].model) == "", name


def output_at(models, height, width):
    """PixArt's output for a noisy latent of this size, in cells."""
    base, clip, _ = models
    cond, more = conditioning.encode_prompt(clip, "a photo")
    latent = torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(0))
    conds = conditioning.model_conds(base.model, cond, more, latent, torch.device("cpu"))
    with torch.inference_mode():
        return base.model.apply_model(latent, torch.tensor([1.0]), **conds.tensors())


@pytest.mark.parametrize(("height", "width"), [(32, 32), (8, 56), (32, 34), (8, 58)])
def test_pixart_is_refused_at_the_sizes_at_which_it_divides_by_0(comfyui, height, width):
    """By hand: round((height + width) // 2 / 64) is 0 up to a sum of 65 cells; that the class itself fails at
    the refused sizes alone is shown beside it. Nothing is encoded before: there is no VAE."""
    models = host_models.made("pixart_sigma")
    item = TrainingImage("small", torch.zeros(8 * height, 8 * width, 3, dtype=torch.uint8), "a photo")
    images, config = image_set([item]), TrainConfig(1, 0.0, 1, 0)
    if height + width <= 65:
        with pytest.raises(ZeroDivisionError):
            output_at(models, height, width)
        with pytest.raises(
            InputError, match=rf"'small' of {8 * width}x{8 * height} px cannot be trained with this model \(PixArt\): "
        ):
            encode_pictures(None, models[0].model, config, images)
        prior = image_set([replace(item, pixels=torch.zeros(512, 512, 3, dtype=torch.uint8))])
        with pytest.raises(InputError, match="'small' of"):
            encode_pictures(None, models[0].model, config, prior, prior=images)
    else:
        assert torch.isfinite(output_at(models, height, width)).all()
        pictures = encode_pictures(models[2], models[0].model, config, images)
        assert pictures.data.latents[0].shape == (1, 4, height, width)


def test_pixart_is_refused_at_sides_that_its_squares_do_not_divide(comfyui):
    models = host_models.made("pixart_sigma")
    with pytest.raises(RuntimeError, match="must match the size"):
        output_at(models, 40, 41)
    item = TrainingImage("odd", torch.zeros(320, 328, 3, dtype=torch.uint8), "a photo")
    with pytest.raises(InputError, match="'odd' of 328x320 px cannot be trained.* multiples of 16 px"):
        encode_pictures(None, models[0].model, TrainConfig(1, 0.0, 1, 0), image_set([item]))


def test_pixart_for_256_px_is_refused(comfyui):
    """ComfyUI reads 0 from the file of 16x16 positions (32 // 64), and divides by it: no number comes out."""
    models = host_models.make("pixart_sigma", pe_interpolation=0)
    assert not torch.isfinite(output_at(models, 40, 40)).any()
    with pytest.raises(InputError, match=r"\(PixArt\) cannot be trained here: it is PixArt's model for 256 px"):
        check_trainable(models[0].model)


def test_every_reason_says_what_to_do_instead():
    for name, reason in refused.REASONS.items():
        assert "; train" in reason or "; wire" in reason or "; to train" in reason, name
        assert not reason.endswith("."), name  # it is the end of a message


def test_no_class_of_the_host_is_untried(comfyui, capsys):
    """The oracle is ComfyUI's own list of the classes that it loads."""
    table = host_coverage.table()
    with capsys.disabled():
        print(host_coverage.report(table))
    assert not [config for config, row in table.items() if not row.names and not row.reason]


def test_a_class_that_this_host_lacks_is_refused_by_what_it_is(comfyui):
    """A class derived from Wan's that continues a picture, as ComfyUI 0.33's WAN_Animate2, and one whose latents are
    those of sound, as its MiniMaxMusic3. The oracle is that code: its attribute, and one dimension of a latent."""
    import comfy.model_base
    from comfy.latent_formats import StableAudio1

    class NewWan(comfy.model_base.WAN21):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.image_to_video = True

    class NewSound(comfy.model_base.BaseModel):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.latent_format = StableAudio1()

    assert "continues a picture" in refused.reason_against(NewWan())
    assert "its latents are 1-dimensional" in refused.reason_against(NewSound())
