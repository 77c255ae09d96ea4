"""Caption Variants through ComfyUI: a training with variants is resumed, exported and shared out bit for bit.

The oracle is the same training in one go, in the graph.
"""

import json
from dataclasses import replace
from pathlib import Path

import comfy.model_management
import jobs
import pytest
import torch
from bespoke.nodes.jobs.job import _decode_picture, _encode_picture, read_job
from bespoke.nodes.lora.training import technique
from bespoke.training.config import TrainConfig
from bespoke.training.data import LatentSet, prompts_of
from bespoke.training.timesteps import UniformTimesteps
from helpers import image_set, sprite_set

TAGS = ("grey sky", "flat", "small (toy)", "no text")


def tagged(word="teal", count=5):
    """Sprites whose captions are tags, behind the trigger `word`."""
    items = sprite_set(2, count, side=64, colour="teal").items
    captions = [", ".join([word, item.caption, *TAGS[: 1 + number % 4]]) for number, item in enumerate(items)]
    return image_set(
        replace(item, caption=caption, trigger=word if word == "teal" else "")
        for item, caption in zip(items, captions, strict=True)
    )


def request(run_node, models, images=None, **varied):
    """The inputs of a short training. varied: those of Caption Variants."""
    images, _ = run_node("BespokeCaptionVariants", images=images or tagged(), **{"drop_tags": 0.2} | varied)
    model, clip, vae = models
    given = dict(steps=6, batch_size=2, seed=7, learning_rate=1e-2, precision="fp32", caption_dropout=0.1, keep="last")
    return given | dict(model=model, clip=clip, vae=vae, images=images)


LORA = ("BespokeTrainLora", dict(rank=2, alpha=2.0))
TEXT = ("BespokeTrainLora", dict(rank=2, alpha=2.0, train_text_encoder=True))
WORD = ("BespokeTrainTextualInversion", dict(name="variants", init_text="red", template="captions"))


@pytest.mark.parametrize(
    ("trainer", "variants"),
    [
        pytest.param(LORA, 8, marks=pytest.mark.slow, id="LoRA"),
        pytest.param(TEXT, 0, marks=pytest.mark.slow, id="text encoder"),
        pytest.param(WORD, 0, id="word"),
    ],
)
def test_a_training_is_resumed_to_the_bit(sd15, run_node, at_step, trainer, variants):
    name, settings = trainer
    images = tagged("a {word}") if trainer is WORD else tagged()
    given = request(run_node, sd15, images, variants=variants) | settings
    if trainer is WORD:
        del given["caption_dropout"]  # it has none: a caption holds the word
    whole = run_node(name, **given, resume=False)
    at_step(3, comfy.model_management.interrupt_current_processing)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run_node(name, **given, resume=False)
    again = run_node(name, **given)
    learned, resumed = whole[1], again[1]
    assert learned.keys() == resumed.keys()
    assert all(torch.equal(learned[key], resumed[key]) for key in learned)
    (run,) = (value for value in whole if hasattr(value, "losses"))
    (run_again,) = (value for value in again if hasattr(value, "losses"))
    assert run.losses == run_again.losses
    assert run.id == run_again.id
    plain = run_node(name, **given | {"images": images}, resume=False)
    assert any(not torch.equal(learned[key], plain[1][key]) for key in learned)  # the variants are what is trained on
    (run_plain,) = (value for value in plain if hasattr(value, "losses"))
    assert run_plain.id != run.id
    assert run_plain.info.tags == run.info.tags  # each tag once a caption, whatever the variants


def test_a_new_variant_at_each_draw_needs_the_text_encoder(sd15, run_node):
    with pytest.raises(Exception, match="variants 0 for 'sprite 0'.*variants to 8, or switch train_text_encoder on"):
        run_node("BespokeTrainLora", **request(run_node, sd15, variants=0))


def test_only_the_variants_that_are_trained_on_are_encoded(sd15, run_node, monkeypatch):
    """2 free tags have 2 orders, more have more than 4. Validation pictures have one prompt each; "" is encoded too."""
    encoded = []

    def encode_prompts(clip, texts, real=technique.encode_prompts):
        encoded.append(set(texts))
        return real(clip, texts)

    monkeypatch.setattr(technique, "encode_prompts", encode_prompts)
    given = request(run_node, sd15, variants=4, drop_tags=0.0)
    scored, _ = run_node("BespokeCaptionVariants", images=tagged("red", 2), variants=8)
    _, _, _, run, *_ = run_node("BespokeTrainLora", **given | {"steps": 2, "validation_images": scored}, resume=False)
    items = given["images"].items
    assert [len(item.texts) for item in items] == [2, 4, 4, 4, 2]
    trained = {text for item in items for text in item.prompts}
    assert encoded[0] == {"", *trained, *(item.prompt for item in scored.items)}
    assert f"; {len(encoded[0])} prompts encoded, 0 MB" in run.start_line


# --- jobs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(comfyui):
    return jobs.base_model(comfyui)


CONFIG = TrainConfig(steps=12, learning_rate=1e-3, seed=5, batch_size=4)


def drawn(items, data):
    """The prompts of every batch of a training."""
    batches = [data.batch(CONFIG, micro, torch.device("cpu"), UniformTimesteps()) for micro in range(CONFIG.steps)]
    return [prompts_of(batch, items) for batch in batches]


def test_a_job_draws_what_the_graph_draws(run_node, models):
    given = request(run_node, models)
    folder, report = run_node("BespokeExportLoraJob", **given, folder="jobs/variants")
    dataset = read_job(Path(folder)).dataset(CONFIG)
    made, items = drawn(dataset.pictures.items, dataset.pictures.data), given["images"].items
    assert made == drawn(items, dataset.pictures.data)
    prompts = {prompt for item in items for prompt in item.prompts}
    assert len(prompts) > 20
    assert f"{len(prompts) + 1} encoded prompts" in report  # with the empty one
    assert {prompt for one in made for prompt in one} <= prompts <= set(dataset.prompts)


def test_a_new_variant_at_each_draw_survives_a_job_folder(run_node, sd15):
    """Through JSON, as material.json has it. "small (toy)" is text, so it is varied before its brackets are escaped."""
    items = request(run_node, sd15, variants=0, keep_tags="flat, no text", append="x")["images"].items
    read = [_decode_picture(json.loads(json.dumps(_encode_picture(item)))) for item in items]
    data = LatentSet([torch.zeros(1, 4, 8, 8)] * len(items), [None] * len(items))
    made = drawn(read, data)
    assert made == drawn(items, data)
    assert len({prompt for one in made for prompt in one}) > 20
    assert any(r"small \(toy\)" in prompt for one in made for prompt in one)


@pytest.mark.slow
def test_a_job_in_one_and_two_processes_learns_what_the_graph_learns(comfyui, run_node, models, tmp_path):
    """One process: every tensor bit for bit. Two: the losses but for the order of sums, so the draws are the same."""
    given = request(run_node, models) | dict(steps=12, batch_size=4, optimizer="SGD", learning_rate=0.2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in the order of the job's process
    try:
        _, lora, _, run, *_ = run_node("BespokeTrainLora", **given, resume=False)
    finally:
        torch.set_num_threads(threads)
    name, *_ = run_node("BespokeSaveLora", lora=lora, run=run, filename_prefix="jobs/variants", dtype="fp32")
    folder, _ = run_node("BespokeExportLoraJob", **given, folder="jobs/variants-trained")
    forks = jobs.Ranks(comfyui, tmp_path)
    try:
        one = forks.train(jobs.copy_of(Path(folder), "variants-1", dtype="fp32"), 1)
        two = forks.train(jobs.copy_of(Path(folder), "variants-2", dtype="fp32"), 2)
    finally:
        forks.close()
    theirs, metadata = jobs.read(comfyui / "models" / "loras" / name)
    made, metadata_of_job = jobs.result(one)
    assert all(torch.equal(made[key], theirs[key]) for key in theirs)
    assert metadata_of_job["ss_tag_frequency"] == metadata["ss_tag_frequency"]
    assert jobs.losses(one) == run.losses
    assert jobs.losses(two) == pytest.approx(run.losses, rel=1e-4)
    assert jobs.distance(made, jobs.result(two)[0]) < 1e-5
