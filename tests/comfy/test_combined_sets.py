"""Sets that were combined, through the node, the trainer, a resumed run, a job folder and two processes."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import comfy.model_management
import jobs
import pytest
import torch
from bespoke.nodes.bridge.dataset.encoded import EncodedDataset
from bespoke.nodes.bridge.dataset.pictures import Pictures, split_pictures
from bespoke.nodes.bridge.runs.cross_validation import validation_folds
from bespoke.nodes.bridge.runs.report import describe_draws, describe_shared
from bespoke.nodes.bridge.trainer import Models
from bespoke.nodes.images.combination.combine import combine
from bespoke.nodes.jobs.job import Job, read_job
from bespoke.nodes.jobs.job import _encode_dataset as encode_job_dataset
from bespoke.nodes.lora.training.request import LoraData, LoraRequest
from bespoke.nodes.lora.training.technique import encode_dataset
from bespoke.training.config import TrainConfig
from bespoke.training.data import LatentSet, prompts_of
from bespoke.training.images import ImageSet, TrainingImage
from bespoke.training.record import Run, RunInfo
from bespoke.training.timesteps import UniformTimesteps
from combined import RESOLUTIONS, STEPS, TRAIN, WEIGHTS, folder, two_folders


@pytest.fixture(scope="module")
def sets():
    return two_folders()


@pytest.fixture(scope="module")
def images(comfyui, run_node, sets):
    made, preview, report = run_node(
        "BespokeCombineImageSets", sets=sets, weights=WEIGHTS, balance="as they are", resolutions=RESOLUTIONS
    )
    assert preview.ndim == 4
    assert "set0 (cats)" in report
    assert "set1 (dogs)" in report
    return made


@pytest.fixture(scope="module")
def models(comfyui):
    return jobs.base_model(comfyui)


def train(run_node, models, images, **changes):
    given = dict(model=models[0], clip=models[1], vae=models[2], images=images, keep="last", resume=False)
    return run_node("BespokeTrainLora", **given | TRAIN | changes)


@pytest.fixture(scope="module")
def trained(run_node, models, images):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield train(run_node, models, images)
    torch.set_num_threads(threads)


def test_the_node_gives_the_items_of_the_sets(images):
    """2 pictures at two sizes and 3 at one. Their weights: 2.5 over two copies, and 1."""
    found = [(item.source, item.name, item.pixels.shape[0], item.weight) for item in images.items]
    assert found == [("cats", f"{i}.png", side, 1.25) for i in range(2) for side in (128, 64)] + [
        ("dogs", f"{i}.png", 64, 1.0) for i in range(3)
    ]
    assert len(images.copies()) == 5
    assert images.triggers == ["tok cat", "tok dog"]
    assert [item.crop for item in images.items[:2]] == [(0, 32), (0, 16)]


def test_the_report_says_how_often_each_set_was_seen(trained, images):
    """20 draws: 2 x 2.5 to 3 x 1, so 12.5 of the cats and 7.5 of the dogs; a batch of 2 has one size."""
    _, _, _, run, report, _ = trained
    assert "tok cat, tok dog" in report
    line = next(line for line in report.splitlines() if "pictures of cats was seen" in line)
    assert "each of 2 pictures of cats was seen " in line
    assert "each of 3 pictures of dogs was seen " in line
    assert len(run.losses) == STEPS


def pictures_of(images):
    """The pictures of a training without a model: latents of an eighth of the size."""
    latents = [torch.zeros(1, 4, *(side // 8 for side in item.pixels.shape[:2])) for item in images.items]
    items = list(images.items)
    data = LatentSet(latents, [None] * len(items), [item.weight for item in items])
    return Pictures(items, data, list(range(len(items))), [], [], [])


def test_the_draws_of_each_set_by_hand():
    """90 draws: of 9 parts, 4 for each of two pictures, 1 for the third. Of one folder or equal weights, one range."""
    two = {
        "a": ImageSet(tuple(TrainingImage(f"{i}.png", torch.zeros(64, 64, 3), "", source="a") for i in range(2))),
        "b": ImageSet((TrainingImage("0.png", torch.zeros(64, 64, 3), "", source="b"),)),
    }
    config = TrainConfig(90, 1e-3, 1, 0)
    run = Run(RunInfo("lora-0123456789ab", "lora", {}, "base", 3), losses=[0.0] * 90)
    weighted = pictures_of(combine(two, "4\n1").images)
    said = describe_draws(weighted, run, config)
    assert said == "each of 2 pictures of a was seen 40 times, the 1 picture of b was seen 10 times"
    assert describe_draws(pictures_of(combine(two).images), run, config) == "each of 3 pictures was seen 30 times"
    nine = replace(run, losses=[0.0] * 9)
    assert describe_draws(weighted, nine, config).endswith("the 1 picture of b was seen once")
    copies = pictures_of(combine({"a": two["a"], "b": two["a"]}, "4\n1").images)
    assert describe_draws(copies, run, config) == "each of 2 pictures was seen 45 times"


@pytest.mark.parametrize("validation", [1, 2])
def test_no_copy_of_a_held_out_picture_is_trained_on(images, validation):
    """Neither in the folds of 5 pictures nor in the split of 10; the held-out one is the largest copy."""
    sprites = folder("birds", 3, 5, 64, "").items
    birds = ImageSet(tuple(replace(item, pixels=255 - item.pixels) for item in sprites))  # none is a cat or dog
    twice = combine({"a": images, "b": birds}, resolutions="64, 128").images
    for given in (images, twice):
        for seed in range(10):
            config = TrainConfig(5, 1e-3, 1, seed, validation=validation)
            split = split_pictures(list(given.items), LatentSet([], []), (len(given.items), 0, 0), config)
            sides = split.folds or [(split.training_indices, split.held_out_indices)]
            for trained_on, held_out in sides:
                left, right = ([given.items[i].picture for i in side] for side in (trained_on, held_out))
                assert not set(left) & set(right)
                assert len(right) == validation
                assert {given.items[i].pixels.shape[0] for i in held_out if given.items[i].source == "cats"} <= {128}
                rest = {item.picture for item in given.items} - set(right)
                assert set(left) == rest


@pytest.mark.parametrize("shades", [4, 12])
def test_a_picture_that_is_there_twice_is_on_one_side(shades):
    """In the folds of 4 and in the split of 12; each is there 10 times, as ComfyUI's loader repeats kohya's folders.
    A process that has the job's latents and no pixels decides alike.
    """
    pixels = [torch.full((64, 64, 3), shade, dtype=torch.uint8) for shade in range(shades) for _ in range(10)]
    items = [TrainingImage(f"image {n}", each, "") for n, each in enumerate(pixels)]
    config = TrainConfig(5, 1e-3, 1, 0, validation=2)
    data = LatentSet([torch.zeros(1, 4, 8, 8)] * len(items), [None] * len(items))
    here = split_pictures(items, data, (len(items), 0, 0), config)
    assert len(here.folds) == (2 if shades == 4 else 0)
    for trained_on, held_out in here.folds or [(here.training_indices, here.held_out_indices)]:
        assert len(held_out) == 2
        assert len(trained_on) == 10 * (shades - 2)
        assert not {i // 10 for i in held_out} & {i // 10 for i in trained_on}
    material, tensors = encode_job_dataset(EncodedDataset(here, "", "", {}, {}, None))
    material = json.loads(json.dumps(material))
    there = Job(Path(), "lora", {}, {}, None, {}, tensors, material).dataset(config).pictures
    assert there.folds == here.folds
    assert there.held_out_indices == here.held_out_indices


def test_a_validation_set_that_is_trained_on_is_named():
    """By its pixels and by its file, which another resolution does not change; a job's process says the same."""
    shades = [torch.full((64, 64, 3), shade, dtype=torch.uint8) for shade in range(6)]
    trained_on = [TrainingImage(f"{n}.png", shades[n], "", source="a") for n in range(4)]
    scored = [
        TrainingImage("copy.png", shades[1], "", source="b"),
        TrainingImage("3.png", torch.zeros(32, 32, 3, dtype=torch.uint8), "", source="a"),
        TrainingImage("other.png", shades[5], "", source="b"),
    ]
    config, items = TrainConfig(5, 1e-3, 1, 0), trained_on + scored
    data = LatentSet([torch.zeros(1, 4, 8, 8)] * len(items), [None] * len(items))
    here = split_pictures(items, data, (4, 3, 0), config)
    assert here.held_out_indices == [4, 5, 6]
    assert here.held_out_and_trained_on() == ["copy.png", "3.png"]
    assert describe_shared(here)[0].startswith("Held out and trained on: copy.png, 3.png. The held-out loss")
    material, tensors = encode_job_dataset(EncodedDataset(here, "", "", {}, {}, None))
    there = Job(Path(), "lora", {}, {}, None, {}, tensors, json.loads(json.dumps(material))).dataset(config).pictures
    assert there.held_out_and_trained_on() == ["copy.png", "3.png"]
    clean = split_pictures([*trained_on, scored[2]], LatentSet([], []), (4, 1, 0), config)
    assert describe_shared(clean) == describe_shared(split_pictures(trained_on, data, (4, 0, 0), config)) == []


def test_a_fold_names_the_folder_of_what_it_leaves_out(images):
    """Where there are several; "1.png" alone would be two pictures."""
    for given, left_out in ((images.items, "cats/0.png"), (two_folders()["set0"].items, "0.png")):
        pictures = replace(pictures_of(ImageSet(given)), folds=[([1], [0])])
        run = Run(RunInfo("lora-0123456789ab", "lora", {}, "base", 5))
        (fold,) = validation_folds(pictures, TrainConfig(5, 1e-3, 1, 0, validation=1), run)
        assert fold.prefix.startswith(f"training 1 of 2, without {left_out}, to learn")


def test_model_inputs_and_the_largest_latent(images):
    """What SDXL is told of a copy: the size of the file, what was cropped at this size, the size that is trained on."""
    pictures = pictures_of(images)
    assert pictures.largest_index() == 0
    told = [pictures.model_inputs(i) for i in (0, 1)]
    assert told[0] == dict(height=256, width=384, crop_h=0, crop_w=32, target_height=128, target_width=128)
    assert told[1] == dict(height=256, width=384, crop_h=0, crop_w=16, target_height=64, target_width=64)


def test_an_interrupted_training_goes_on_with_the_same_draws(trained, run_node, models, images, at_step):
    at_step(4, comfy.model_management.interrupt_current_processing)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(run_node, models, images)
    again = train(run_node, models, images, resume=True)
    assert again[2]["loss"] == trained[2]["loss"]
    assert all(torch.equal(value, again[1][key]) for key, value in trained[1].items())


@pytest.fixture(scope="module")
def job(run_node, models, images):
    # A process that is not the node's has rounded its saved LoRA to dtype.
    return jobs.copy_of(
        Path(jobs.export(run_node, models, "jobs/two", images=images, validation_images=None, keep="last", **TRAIN)[0]),
        "two-fp32",
        dtype="fp32",
    )


def test_weights_captions_triggers_and_folders_are_in_the_job(job, images):
    """Captions as the prompts that they stand for; what is held out is then decided alike."""
    config = TrainConfig(STEPS, 1e-3, 2, 7, validation=2)
    pictures = read_job(job).dataset(config).pictures
    assert [item.prompts for item in pictures.items] == [item.prompts for item in images.items]
    assert all(len(item.more_captions) == 2 for item in pictures.items)
    for field in ("picture", "name", "source", "weight", "trigger", "original", "crop"):
        assert [getattr(item, field) for item in pictures.items] == [getattr(item, field) for item in images.items]
    assert list(pictures.data.weights) == [item.weight for item in images.items]
    assert [mask is None for mask in pictures.data.masks] == [item.mask is None for item in images.items]
    here = split_pictures(list(images.items), LatentSet([], []), (len(images.items), 0, 0), config)
    assert pictures.folds == here.folds
    assert pictures.folds


def test_the_job_has_the_latents_and_prompts_that_the_node_trains_on(job, models, images):
    """Bit for bit, so that its training is the same one; `test_torchrun` trains it in one process and in two."""
    config = TrainConfig(STEPS, 1e-3, 2, 7)
    theirs = read_job(job).dataset(config)
    ours = encode_dataset(Models(*models), LoraData(images), LoraRequest(config))
    pairs = zip(ours.pictures.data.latents, theirs.pictures.data.latents, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert ours.prompts.keys() == theirs.prompts.keys() > {prompt for item in images.items for prompt in item.prompts}
    assert all(torch.equal(ours.prompts[text][0], theirs.prompts[text][0]) for text in ours.prompts)


def test_every_caption_of_a_picture_is_trained_on(images):
    """Three captions a picture and size, by turns: their counts differ by at most one."""
    said = Counter()
    data = pictures_of(images).data
    config = TrainConfig(400, 1e-3, 2, 7)
    for micro in range(400):
        batch = data.batch(config, micro, torch.device("cpu"), UniformTimesteps())
        said.update(zip(batch.indices, prompts_of(batch, images.items), strict=True))
    for index, item in enumerate(images.items):
        counts = [said[index, prompt] for prompt in item.prompts]
        assert max(counts) - min(counts) <= 1
        assert min(counts) > 20
