"""The conditioning of each family besides its prompt (SDXL's sizes, masked pictures), and models that are refused."""

import families
import pytest
import tiny
import torch
from bespoke.nodes.bridge.dataset import conditioning
from bespoke.nodes.bridge.dataset.captions import CaptionConditioning
from bespoke.nodes.bridge.dataset.pictures import encode_pictures
from bespoke.nodes.bridge.models import check_trainable
from bespoke.nodes.bridge.training_model.denoiser import prepare_for_training
from bespoke.nodes.images.batch import image_set
from bespoke.nodes.images.folder import FolderRequest, read_folder
from bespoke.training.config import TrainConfig
from bespoke.training.errors import InputError
from bespoke.training.images import ImageSet
from bespoke.training.objective import denoising_loss
from bespoke.training.timesteps import UniformTimesteps
from helpers import sprite_set
from PIL import Image
from random_lora import random_lora

CONFIG = TrainConfig(steps=4, learning_rate=1e-3, batch_size=2, seed=3, timestep_sampling="uniform")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> ImageSet:
    """Pictures of several sizes, as the folder node reads them: (file's size -> size trained at)."""
    folder = tmp_path_factory.mktemp("mixed")
    generator = torch.Generator().manual_seed(0)
    for name, (width, height) in {"a": (400, 250), "b": (160, 128), "c": (128, 160), "d": (130, 131)}.items():
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a picture {name}")
    return read_folder(FolderRequest(folder, resolution=144, flip=True))


# --- SDXL: sizes and crops --------------------------------------------------------------------------------------------


def test_a_folder_records_original_size_and_crop(mixed):
    sizes = {item.name: (item.original, item.crop, tuple(item.pixels.shape[:2])) for item in mixed.items}
    assert sizes == {
        # (height, width) of the file; (top, left) cut from the scaled picture; (height, width) trained at
        # 104:168 is .619 and 250:400 .625, nearer than any other size of 80 to 100 % of the area; scaled by .42 to
        # 105x168
        "a.png": ((250, 400), (0, 0), (104, 168)),
        "a.png (mirrored)": ((250, 400), (0, 0), (104, 168)),
        "b.png": ((128, 160), (0, 0), (128, 160)),
        "b.png (mirrored)": ((128, 160), (0, 0), (128, 160)),
        "c.png": ((160, 128), (0, 0), (160, 128)),
        "c.png (mirrored)": ((160, 128), (0, 0), (160, 128)),
        "d.png": ((131, 130), (0, 0), (128, 128)),
        "d.png (mirrored)": ((131, 130), (0, 0), (128, 128)),
    }
    batch = image_set(torch.rand(1, 133, 140, 3), "a picture").items[0]
    assert (batch.original, batch.crop, tuple(batch.pixels.shape[:2])) == ((133, 140), (2, 2), (128, 136))


def embedded(base, *numbers) -> torch.Tensor:
    return torch.cat([base.embedder(torch.tensor([float(n)])) for n in numbers], dim=1)


def prompts_of(models, denoiser, images) -> tuple:
    model, clip, vae = models
    pictures = encode_pictures(vae, model.model, CONFIG, images)
    return pictures, CaptionConditioning(
        denoiser, pictures, clip, None, conditioning.encode_prompts(clip, pictures.prompts)
    )


def test_sdxls_conditioning_has_each_pictures_size_crop_and_target(comfyui, mixed):
    models = families.made("sdxl")
    with prepare_for_training(models[0], "fp32") as denoiser:
        pictures, prompts = prompts_of(models, denoiser, mixed)
        for index, item in enumerate(pictures.items):
            y = prompts.of_batch([index], [item.caption]).tensors()["y"]
            pooled = conditioning.encode_prompt(models[1], item.caption)[1]["pooled_output"]
            height, width = item.pixels.shape[:2]
            own = embedded(models[0].model, *item.original, *item.crop, height, width)
            assert torch.allclose(y, torch.cat([pooled, own], dim=1), atol=1e-6)
        # In a batch of one size each picture has its own conditioning; here only the captions differ.
        joined = prompts.of_batch([0, 1], [pictures.items[0].caption, ""]).tensors()["y"]
        assert torch.equal(joined[:1], prompts.of_batch([0], [pictures.items[0].caption]).tensors()["y"])
        assert not torch.equal(joined[0], joined[1])


def test_the_refiners_conditioning_has_size_crop_and_aesthetic_score(comfyui, mixed):
    models = families.made("sdxl_refiner")
    with prepare_for_training(models[0], "fp32") as denoiser:
        pictures, prompts = prompts_of(models, denoiser, mixed)
        item = pictures.items[0]
        y = prompts.of_batch([0], [item.caption]).tensors()["y"]
        pooled = conditioning.encode_prompt(models[1], item.caption)[1]["pooled_output"]
        assert torch.allclose(
            y, torch.cat([pooled, embedded(models[0].model, *item.original, *item.crop, 6.0)], dim=1), atol=1e-6
        )


def test_sdxls_network_gets_scaled_latents_and_sizes_at_every_step(run_node, mixed, monkeypatch):
    """The network's inputs x and y in a run over mixed sizes, against arithmetic."""
    models = families.made("sdxl")
    model, clip, vae = models
    known = {tuple(item.pixels.shape[:2]): (*item.original, *item.crop) for item in mixed.items}
    calls = []

    def record(_module, args, kwargs):
        if torch.is_grad_enabled():
            calls.append((args[0].detach().clone(), kwargs["y"].detach().clone()))

    hook = model.model.diffusion_model.register_forward_pre_hook(record, with_kwargs=True)
    run_node(
        "BespokeTrainLora",
        model=model,
        clip=clip,
        vae=vae,
        images=mixed,
        steps=6,
        batch_size=2,
        rank=2,
        alpha=2.0,
        learning_rate=1e-3,
        seed=5,
        precision="fp32",
        resume=False,
    )
    hook.remove()
    seen = set()
    for x, y in calls:
        size = (x.shape[-2] * 8, x.shape[-1] * 8)
        seen.add(size)
        assert torch.allclose(
            y[:, -6 * 256 :], embedded(model.model, *known[size], *size).expand(len(x), -1), atol=1e-6
        )
    assert len(seen) > 1
    pictures = encode_pictures(vae, model.model, CONFIG, mixed)
    for item, latent in zip(pictures.items, pictures.data.latents, strict=True):
        with torch.inference_mode():
            plain = vae.encode(item.pixels[None].float() / 255)
        assert torch.allclose(latent, plain * 0.13025, rtol=1e-5)


def test_sdxls_gradient_over_mixed_sizes_is_the_mean_of_single_gradients(comfyui, mixed):
    """And the size of another bucket's picture gives another gradient."""
    models = families.made("sdxl")
    with prepare_for_training(models[0], "fp32") as denoiser:
        pictures, prompts = prompts_of(models, denoiser, mixed)
        from bespoke.nodes.bridge.models import target_layers

        adapters = random_lora(target_layers(denoiser.base.diffusion_model, "cross-attention"), 2, denoiser.device)

        def gradient(indices, conds):
            latent = torch.cat([pictures.data.latents[i] for i in indices])
            noise = torch.stack(
                [torch.randn(latent.shape[1:], generator=torch.Generator().manual_seed(i)) for i in indices]
            )
            sigma = denoiser.sigma(torch.tensor([0.3 + 0.1 * i for i in indices]))
            with adapters.attached():
                denoising_loss(denoiser, latent, noise, sigma, conds).mean().backward()
            out = torch.cat([p.grad.flatten() for p in adapters.parameters()])
            for p in adapters.parameters():
                p.grad = None
            return out

        items = pictures.items
        pair = [i for i, item in enumerate(items) if item.name.startswith("a.png")]
        joint = gradient(pair, prompts.of_batch(pair, [items[i].caption for i in pair]))
        mean = sum(gradient([i], prompts.of_batch([i], [items[i].caption])) for i in pair) / len(pair)
        assert (joint - mean).norm() < 1e-5 * mean.norm()
        other = next(i for i, item in enumerate(items) if item.name == "b.png")
        wrong = gradient(pair, prompts.of_batch([other, other], [items[i].caption for i in pair]))
        assert (joint - wrong).norm() > 1e-3 * mean.norm()


# --- inpainting checkpoints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["inpainting", "sdxl_inpainting", "flux_fill"])
def test_an_inpainting_model_reads_a_fully_masked_picture(run_node, name):
    """Equal to core's InpaintModelConditioning with a mask of ones."""
    models = families.made(name)
    model, clip, vae = models
    images = sprite_set(2, 2, side=64, colour="teal")
    with prepare_for_training(model, "fp32") as denoiser:
        _, prompts = prompts_of(models, denoiser, images)
        ours = prompts.of_batch([0, 1], [images.items[0].caption, ""]).tensors()["c_concat"]
    (positive,) = run_node("CLIPTextEncode", clip=clip, text="a red circle")
    pixels = images.items[0].pixels[None].float() / 255
    masked, *_ = run_node(
        "InpaintModelConditioning",
        positive=positive,
        negative=positive,
        vae=vae,
        pixels=pixels,
        mask=torch.ones(1, 64, 64),
        noise_mask=True,
    )
    cond, extra = masked[0]
    with torch.inference_mode():
        made = model.model.extra_conds(
            cross_attn=cond, **extra, noise=torch.zeros(1, *families.latent_shape(model.model)[:1], 8, 8), device="cpu"
        )
        theirs = made["c_concat"].cond.clone()
    assert ours.shape == (2, *theirs.shape[1:])
    assert torch.allclose(ours, theirs.expand_as(ours), atol=1e-6)
    mask, picture = (ours[:, :1], ours[:, 1:]) if "inpainting" in name else (ours[:, 16:], ours[:, :16])
    assert bool((mask == 1).all())
    assert torch.allclose(picture, model.model.process_latent_in(extra["concat_latent_image"]), atol=1e-6)


# --- prediction types of sampling nodes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampling", "prediction"), [("lcm", "epsilon"), ("v_prediction", "v"), ("eps", "epsilon"), ("x0", "x0")]
)
def test_the_prediction_type_on_the_wire_is_trained(run_node, sampling, prediction):
    """LCM's network predicts the noise. Its sampling adds a share of x to the clean latent that is too small to
    change the loss."""
    model, clip, _ = families.made("sd15")
    (wired,) = run_node("ModelSamplingDiscrete", model=model, sampling=sampling, zsnr=False)
    with prepare_for_training(wired, "fp32") as denoiser:
        assert denoiser.prediction == prediction
        latent, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        sigma = denoiser.sigma(torch.tensor([0.0, 0.5, 0.99]))
        cond, extra = conditioning.encode_prompt(clip, "a red circle")
        conds = conditioning.join_conds(
            [conditioning.model_conds(denoiser.base, cond, extra, latent[:1], denoiser.device)] * 3
        )
        s = sigma.reshape(-1, 1, 1, 1)
        with torch.no_grad():
            loss = denoising_loss(denoiser, latent, noise, sigma, conds)
            scale = (s**2 + 1) ** 0.5
            out = denoiser.base.diffusion_model(
                (latent + s * noise) / scale,
                denoiser.base.model_sampling.timestep(sigma).float(),
                context=conds.tensors()["c_crossattn"],
                transformer_options=denoiser._call._options(sigma),
            )
        target = {"epsilon": noise, "v": (noise - s * latent) / scale, "x0": latent}[prediction]
        assert torch.allclose(loss, (out - target).square().flatten(1).mean(1), rtol=1e-3)


# --- refused models ---------------------------------------------------------------------------------------------------


def test_models_that_need_more_than_pictures_and_prompts_are_refused(comfyui):
    import comfy.model_base
    import comfy.supported_models as known

    control = known.Flux(tiny.FLUX | {"in_channels": 32}).get_model({}, "", device=families.CPU)
    video = known.WAN21_I2V(families.WAN | {"in_dim": 36}).get_model({}, "", device=families.CPU)
    depth = comfy.model_base.Lotus(known.SD15(dict(tiny.SMALLEST)), device=families.CPU)
    for base, words in (
        (control, r"\(Flux\) cannot be trained here: it is steered by a control picture"),
        (video, r"\(WAN21\) cannot be trained here: it continues a picture that it is given"),
        (depth, r"\(Lotus\) cannot be trained here: it makes its result of a picture in one step"),
    ):
        with pytest.raises(InputError, match=words):
            check_trainable(base)
    for name in families.FAMILIES:
        check_trainable(families.made(name)[0].model)


@pytest.mark.parametrize("node", ["BespokeTrainLora", "BespokeTrainTextualInversion"])
def test_both_trainers_refuse_such_a_model(run_node, node):
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models as known

    base = comfy.model_base.Lotus(known.SD15(dict(tiny.SMALLEST)), device=families.CPU)
    model = comfy.model_patcher.ModelPatcher(base, families.CPU, families.CPU)
    more = {"name": "w", "init_text": "red"} if "Textual" in node else {}
    with pytest.raises(InputError, match="cannot be trained here: it makes its result of a picture"):
        run_node(
            node, model=model, clip=tiny.clip(), vae=tiny.vae(), images=sprite_set(2, 2, side=64, colour="teal"), **more
        )


def test_the_vae_of_another_model_is_an_error(run_node):
    model, clip, _ = families.made("z_image")
    common = dict(model=model, clip=clip, images=sprite_set(2, 2, side=64, colour="teal"), steps=1)
    with pytest.raises(
        InputError, match="the VAE makes latents of 4 channels in 4 dimensions, and this model's have 16 in 4"
    ):
        run_node("BespokeTrainLora", vae=tiny.vae(4), **common)
    with pytest.raises(
        InputError, match="latents of 16 channels in 5 dimensions, and this model's have 16 in 4; wire in the VAE"
    ):
        run_node("BespokeTrainLora", vae=families.wan_vae(), **common)


def test_masks_of_latents_with_frames(comfyui):
    """The loss mask of a picture for a model with latents [B, C, frames, H, W]."""
    model, _, vae = families.made("wan")
    mask = torch.zeros(2, 64, 64)
    mask[:, :32] = 1.0
    images = image_set(torch.rand(2, 64, 64, 3), "a\nb", masks=mask)
    pictures = encode_pictures(vae, model.model, CONFIG, images)
    assert [tuple(latent.shape) for latent in pictures.data.latents] == [(1, 16, 1, 8, 8)] * 2
    batch = pictures.data.batch(CONFIG, 0, torch.device("cpu"), UniformTimesteps())
    assert batch.mask.shape == (2, 1, 1, 8, 8)
    assert batch.mask[0, 0, 0].sum(1).tolist() == [8.0] * 4 + [0.0] * 4


# --- fused layers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "queries"), [("z_image", 256), ("lumina2", 96)])
def test_the_rows_of_a_fused_layers_query(run_node, name, queries):
    """The query is a third of Z-Image's layer and half of Lumina 2's, which has fewer keys than queries."""
    import comfy.lora

    model = families.made(name)[0]
    layer = "layers.0.attention.qkv"
    weight = model.model.diffusion_model.get_submodule(layer).weight
    lora = tiny.random_lora({layer: tuple(weight.shape)})
    scoped, *_ = run_node(
        "BespokeInjectLora", model=model, lora_name="none", lora=lora, strength_model=1.0, key=0.0, value=0.0
    )
    key = f"diffusion_model.{layer}.weight"
    change = comfy.lora.calculate_weight(scoped.patches[key], torch.zeros_like(weight), key)
    assert bool((change[:queries].abs().sum(1) > 0).all())
    assert not bool(change[queries:].any())
