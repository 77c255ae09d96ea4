"""LoRAs of pairs: what a training tells a model of each source, what it refuses, and that all of a training works."""

from dataclasses import replace

import edit_models
import pytest
import torch
from bespoke.nodes.bridge.dataset.captions import CaptionConditioning
from bespoke.nodes.bridge.models import check_trainable
from bespoke.nodes.bridge.models.second_picture import source_encoding
from bespoke.nodes.bridge.trainer import Models
from bespoke.nodes.bridge.training_model.denoiser import prepare_for_training
from bespoke.nodes.lora.training.request import LoraData, LoraRequest
from bespoke.nodes.lora.training.technique import encode_dataset
from bespoke.training.config import TrainConfig
from bespoke.training.errors import InputError
from helpers import image_set

CONFIG = TrainConfig(1, 1e-3, 1, 0)


def encoded(name, images, **changes):
    kind = edit_models.MODELS[name]
    models = kind.make()
    request = LoraRequest(CONFIG, **(kind.settings or {}) | changes)
    return models, encode_dataset(Models(*models), LoraData(images), request)


def by_core(run_node, kind, models, item, like):
    """The keyword arguments of the network's call that ComfyUI's own sampling makes of the nodes' conditioning.

    like: a latent of the shape that is sampled.
    """
    import comfy.samplers
    from comfy.sampler_helpers import convert_cond

    base = models[0].model
    positive = convert_cond(kind.chain(run_node, *models, item.caption, item))
    with torch.inference_mode():
        noise = torch.zeros_like(like)
        made = comfy.samplers.encode_model_conds(base.extra_conds, positive, noise, torch.device("cpu"), "positive")
        return {key: value.process_cond(batch_size=1, area=None).cond for key, value in made[0]["model_conds"].items()}


def equal(ours, theirs):
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    return ours == theirs


FAST = {"ip2p", "kontext", "inpainting", "wan_i2v"}  # one of each kind
each = pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in edit_models.MODELS]
)


@each
def test_the_conditioning_is_that_of_cores_nodes(run_node, name):
    """Bit for bit: the oracle is a graph of core's nodes for this model, read by core's sampling."""
    kind = edit_models.MODELS[name]
    images = edit_models.pairs(masks=kind.masks)
    models, dataset = encoded(name, images)
    with prepare_for_training(models[0], "fp32") as denoiser:
        captions = CaptionConditioning(denoiser, dataset.pictures, models[1], None, dataset.prompts)
        ours = [captions.of_batch([i], [item.caption]).tensors() for i, item in enumerate(images.items)]
    for item, tensors, latent in zip(images.items, ours, dataset.pictures.data.latents, strict=True):
        theirs = by_core(run_node, kind, models, item, latent)
        assert tensors.keys() == theirs.keys()
        assert {key for key in tensors if not equal(tensors[key], theirs[key])} == set()


def test_a_pair_of_wan_is_a_film_from_its_source_to_its_result(comfyui):
    """Two latent frames, by core's VAE of the five frames: the first is that of the source alone, which the model is
    given, and the mask says that it is known (0) and the other is not (1)."""
    images = edit_models.pairs(1)
    (model, _, vae), dataset = encoded("wan_i2v", images)
    item, latent = images.items[0], dataset.pictures.data.latents[0]
    film = torch.stack([item.control, item.pixels, item.pixels, item.pixels, item.pixels]).float() / 255
    with torch.inference_mode():
        assert torch.equal(latent, model.model.process_latent_in(vae.encode(film)))
        source = model.model.process_latent_in(vae.encode(item.control[None].float() / 255))
    assert latent.shape[2] == 2
    assert torch.allclose(latent[:, :, :1], source, atol=1e-5)
    assert dataset.pictures.told[0]["concat_mask"].mean((0, 1, 3, 4)).tolist() == [0.0, 1.0]


# --- whole trainings --------------------------------------------------------------------------------------------------


def train(run_node, models, images, **more):
    given = dict(steps=4, batch_size=2, rank=2, alpha=2.0, learning_rate=1e-3, seed=1, precision="fp32", resume=False)
    model, clip, vae = models
    return run_node("BespokeTrainLora", model=model, clip=clip, vae=vae, images=images, **given | more)


@pytest.fixture(scope="module")
def ip2p(comfyui):
    return edit_models.ip2p()


@pytest.mark.slow
@pytest.mark.parametrize("name", list(edit_models.MODELS))
def test_a_training_of_each_kind_reads_its_sources(run_node, name):
    """Two pairs in a batch: other sources give other losses, and the LoRA learns."""
    kind = edit_models.MODELS[name]
    models, images = kind.make(), edit_models.pairs(masks=kind.masks)
    swapped = image_set([replace(item, control=255 - item.control) for item in images.items])
    given = (kind.settings or {}) | {"steps": 1, "score_pictures": "off"}
    _, lora, loss, *_ = train(run_node, models, images, **given)
    _, _, other, *_ = train(run_node, models, swapped, **given)
    assert loss["loss"][0] != other["loss"][0]
    assert torch.isfinite(torch.tensor(loss["loss"])).all()
    assert any(bool(tensor.any()) for key, tensor in lora.items() if "lora_up" in key)


@pytest.mark.parametrize("name", ["kontext", pytest.param("qwen_edit_plus", marks=pytest.mark.slow)])
def test_pairs_of_two_sizes_and_single_pictures_share_a_set(run_node, name):
    """ai-toolkit 441 (sources of several sizes), 480, 588 and musubi-tuner 682 (all or some without a source)."""
    kind = edit_models.MODELS[name]
    one, other = edit_models.pairs(1), edit_models.pairs(2, size=(96, 64), seed=3)
    single = replace(other.items[1], name="c.png", control=None)
    models, images = kind.make(), image_set([one.items[0], replace(other.items[0], name="b.png"), single])
    for each in (images, edit_models.without_seconds(images)):
        _, lora, loss, *_ = train(run_node, models, each, steps=2, batch_size=3, score_pictures="off")
        assert torch.isfinite(torch.tensor(loss["loss"])).all()
        assert any(bool(tensor.any()) for key, tensor in lora.items() if "lora_up" in key)


def mirrored_set(images):
    from bespoke.nodes.images.folder import mirrored

    return image_set([one for item in images.items for one in (item, mirrored(item))])


def test_a_training_gives_the_network_each_source_with_its_result(run_node, ip2p):
    """The network's last four channels at each call are the source's latent, by the VAE's arithmetic, of the picture
    whose noisy latent is in the first four: which one is known by its size. With masks, flips, two buckets, varied
    captions, validation and samples."""
    from bespoke.training.caption_variants import CaptionVariants

    model, _, vae = ip2p
    one, other = edit_models.pairs(2, masks=True), edit_models.pairs(2, size=(96, 64), seed=3)
    rule = CaptionVariants(" ", True, 0, 0.0, (), 3, (), ())
    items = [replace(item, name=f"b{item.name}", variants=rule) for item in other.items]
    images = mirrored_set(image_set([*one.items, *items]))
    with torch.inference_mode():
        known = [vae.encode(item.control[None].float() / 255).clone() for item in images.items]
    seen = set()

    def record(_module, args):
        for noisy in args[0]:
            found = [i for i, latent in enumerate(known) if torch.equal(latent[0], noisy[4:])]
            assert found, "channels of no source"
            seen.update(found)

    hook = model.model.diffusion_model.register_forward_pre_hook(record)
    try:
        _, lora, loss, run, report, _ = train(
            run_node, ip2p, images, steps=8, validation_images=one, sample_every=4, sample_prompt="make it 0"
        )
    finally:
        hook.remove()
    assert seen == set(range(8))
    assert len(loss["loss"]) == 8
    assert run.held_out
    assert "came with further channels of its input (InstructPixToPixConditioning)" in report
    assert any(bool(tensor.any()) for key, tensor in lora.items() if "lora_up" in key)


def test_another_source_is_another_training(run_node, ip2p):
    """The losses depend on the sources, and a run on other sources does not resume this one."""
    images = edit_models.pairs(2)
    swapped = image_set([replace(item, control=item.pixels) for item in images.items])
    *_, run, _, _ = train(run_node, ip2p, images)
    *_, other, _, _ = train(run_node, ip2p, swapped)
    assert run.losses != other.losses
    assert run.id != other.id


def test_an_interrupted_training_of_pairs_resumes_to_the_same_numbers(run_node, ip2p):
    images = edit_models.pairs(3)
    train(run_node, ip2p, images, steps=3, seed=5, lr_schedule="constant", resume=True)
    _, resumed, _, run, *_ = train(run_node, ip2p, images, steps=6, seed=5, lr_schedule="constant", resume=True)
    _, plain, _, other, *_ = train(run_node, ip2p, images, steps=6, seed=5, lr_schedule="constant")
    assert run.losses == other.losses
    assert all(torch.equal(resumed[key], plain[key]) for key in plain)


def test_a_job_has_what_the_node_has(comfyui, tmp_path):
    """The model inputs and the prompts of each picture are the same, bit for bit, for each kind."""
    import jobs
    from bespoke.nodes.bridge.runs.samples import SamplerSettings
    from bespoke.nodes.jobs.job import ExportedModel, JobContents, read_job, write_job
    from bespoke.nodes.jobs.source import source_of
    from bespoke.nodes.jobs.techniques import job_technique

    exported = {"model": ExportedModel(source_of(jobs.base_model(comfyui)[0], "model"), {}, {})}
    for name in ("kontext", "inpainting"):
        images = edit_models.pairs(masks=edit_models.MODELS[name].masks)
        _, dataset = encoded(name, images)
        request = LoraRequest(CONFIG)
        contents = JobContents("lora", request.settings(), dataset, exported, {}, SamplerSettings())
        write_job(tmp_path / name, contents)
        back = read_job(tmp_path / name).dataset(CONFIG)
        job_technique("lora").check_request(request, back)
        assert back.pictures.how == dataset.pictures.how != ""
        assert back.pictures.sample_item.name == dataset.pictures.sample_item.name
        for index in range(2):
            ours, theirs = back.pictures.model_inputs(index), dataset.pictures.model_inputs(index)
            assert ours.keys() == theirs.keys()
            assert all(equal(ours[key], theirs[key]) for key in ours)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ip2p", "flux_control", "wan_i2v"])
def test_a_model_that_needs_a_second_picture_names_the_mend(comfyui, name):
    """Without pairs; with them it is trained. Of a set where some have none, all of these are named."""
    base = edit_models.MODELS[name].make()[0].model
    with pytest.raises(InputError, match=r"or wire in a set of pairs.*Bespoke Pair Image Sets.*Bespoke Image Folder"):
        check_trainable(base)
    check_trainable(base, pairs=True)
    images = edit_models.pairs(4)
    items = [item if number in (0, 2) else replace(item, control=None) for number, item in enumerate(images.items)]
    with pytest.raises(InputError, match=r"needs a second picture of each, and 2 of 4 have none: 1\.png, 3\.png; give"):
        encoded(name, image_set(items))


def test_a_model_that_takes_no_second_picture_refuses_pairs(comfyui):
    import families

    models = families.made("sd15")
    with pytest.raises(
        InputError, match=r"has a second picture for '0\.png', and this model .* is given none; wire in an edit"
    ):
        encode_dataset(Models(*models), LoraData(edit_models.pairs()), LoraRequest(CONFIG))


@pytest.mark.parametrize(
    ("name", "wanted", "words"),
    [
        ("ip2p", "reference latent", "is given the second picture as further channels"),
        ("kontext", "Qwen edit", "which is for Qwen-Image-Edit, and this model is a Flux"),
    ],
)
def test_an_encoding_of_another_model_is_refused(comfyui, name, wanted, words):
    with pytest.raises(InputError, match=words):
        encoded(name, edit_models.pairs(), source_encoding=wanted)


@pytest.mark.parametrize("node", ["BespokeTrainTextualInversion", "BespokeTrainSlider"])
def test_a_trainer_without_pairs_names_the_one_with_them(run_node, ip2p, node):
    """Such a set would be refused here, so the mend is the trainer that takes it."""
    model, clip, vae = ip2p
    images = {"images": edit_models.without_seconds(edit_models.pairs()), "name": "w", "init_text": "red"}
    with pytest.raises(ValueError, match="or train a LoRA for it with Bespoke Train LoRA on a set of pairs"):
        run_node(node, model=model, clip=clip, vae=vae, **images if "Inversion" in node else {})


def test_an_encoding_without_second_pictures_is_refused(comfyui):
    plain = edit_models.without_seconds(edit_models.pairs())
    with pytest.raises(InputError, match="source_encoding is 'reference latent', and no picture of the set has a"):
        source_encoding(edit_models.MODELS["kontext"].make()[0].model, "reference latent", plain.items)


def test_a_source_that_the_hole_would_hide_is_refused(comfyui):
    """Without a mask everything is the hole: by core's node the model would be given grey in place of the source."""
    images = edit_models.pairs(2, masks=True)
    items = [images.items[0], replace(images.items[1], mask=None)]
    with pytest.raises(InputError, match=r"1 of 2 pictures have no mask, .*: 1\.png; give each a mask"):
        encoded("inpainting", image_set(items))


def test_textual_inversion_refuses_pairs(run_node):
    import tiny

    with pytest.raises(InputError, match="this trainer takes none; train a LoRA on the pairs"):
        run_node(
            "BespokeTrainTextualInversion", model=tiny.patcher(), clip=tiny.clip(), vae=tiny.vae(),
            images=edit_models.pairs(), name="w", init_text="red",
        )  # fmt: skip


def test_masks_of_a_set_without_pairs_are_the_holes_of_an_inpainting_model(run_node):
    """The oracle is core's InpaintModelConditioning on the picture itself with its mask; a set without masks keeps the
    grey hole of the whole picture, and masks make another run than the loss's weights alone did."""
    import families

    models = families.made("inpainting")
    images = edit_models.without_seconds(edit_models.pairs(masks=True))
    data = LoraData(images)
    dataset = encode_dataset(Models(*models), data, LoraRequest(CONFIG))
    item = images.items[0]
    text = run_node("CLIPTextEncode", clip=models[1], text="a")[0]
    masked = run_node(
        "InpaintModelConditioning", positive=text, negative=text, vae=models[2], mask=item.mask[None],
        pixels=item.pixels[None].float() / 255, noise_mask=True,
    )[0]  # fmt: skip
    inputs = dataset.pictures.model_inputs(0)
    for key in ("concat_latent_image", "concat_mask"):
        assert torch.equal(inputs[key], masked[0][1][key])
    assert dataset.fingerprint != data.fingerprint()
    plain = image_set([replace(item, mask=None) for item in images.items])
    whole = encode_dataset(Models(*models), LoraData(plain), LoraRequest(CONFIG))
    assert bool((whole.pictures.model_inputs(0)["concat_mask"] == 1).all())
    assert whole.fingerprint == LoraData(plain).fingerprint()
