"""Several sample prompts: each picture is the one that ComfyUI's own nodes give with the prompt's options."""

from pathlib import Path

import pytest
import tiny
import torch
from bespoke.nodes.bridge.runs.samples import SamplerSettings, latent_for, settings_for
from bespoke.nodes.bridge.runs.store import RunStore
from bespoke.nodes.jobs.job import read_job
from bespoke.nodes.jobs.source import Source
from bespoke.nodes.jobs.techniques import TECHNIQUES
from bespoke.training.config import TrainConfig
from bespoke.training.errors import InputError
from bespoke.training.sample_prompts import SamplePrompt
from comfy_api.latest import io
from helpers import sprite_set
from PIL import Image

GRAPH = {
    "9": {
        "class_type": "KSampler",
        "inputs": {"steps": 2, "cfg": 1.5, "sampler_name": "euler", "scheduler": "simple", "seed": 3},
    }
}
TWO = "a teal circle\na red ring --n a blue circle --w 96 --h 80 --d 7 --l 3 --s 3"


@pytest.fixture(scope="module")
def models(comfyui):
    return tiny.patcher(tiny.SMALLEST), tiny.clip(), tiny.vae()


def train(run_node, models, node="BespokeTrainLora", **changes):
    model, clip, vae = models
    settings = dict(
        images=sprite_set(2, 4, side=64, colour="teal"),
        steps=2,
        batch_size=1,
        seed=5,
        precision="fp32",
        resume=False,
        sample_every=2,
        learning_rate=1e-2,
        hidden={io.Hidden.prompt: GRAPH},
    )
    own = dict(rank=2, alpha=2.0) if node == "BespokeTrainLora" else dict(name="w", init_text="red")
    return run_node(node, model=model, clip=clip, vae=vae, **settings | own | changes)


def pictures_of(run):
    store = RunStore(run.id)
    return {name: Image.open(store.sample_path(name)).convert("RGB") for _, name in run.samples}


def drawn_by_core(run_node, models, positive, negative, width, height, **sampling):
    """What KSampler and VAE Decode give of the base, as bytes."""
    model, clip, vae = models
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (positive, negative))
    latent = {"samples": torch.zeros(1, 4, height // 8, width // 8)}
    given = dict(model=model, positive=positive, negative=negative, latent_image=latent, denoise=1.0)
    samples = run_node("KSampler", sampler_name="euler", scheduler="simple", **given, **sampling)[0]["samples"]
    return (vae.decode(samples)[0].clamp(0, 1) * 255).round().to(torch.uint8).numpy().tobytes()


def test_each_prompt_is_drawn_as_core_draws_it_and_the_first_as_if_it_were_alone(models, run_node):
    _, lora, _, run, *_ = train(run_node, models, sample_prompt=TWO)
    drawn = pictures_of(run)
    assert run.samples == [(0, "000000.png"), (0, "000000_02.png"), (2, "000002.png"), (2, "000002_02.png")]
    assert RunStore(run.id).record().samples == run.samples
    first = drawn_by_core(run_node, models, "a teal circle", "", 64, 64, seed=3, steps=2, cfg=1.5)
    second = drawn_by_core(run_node, models, "a red ring", "a blue circle", 96, 80, seed=7, steps=3, cfg=3.0)
    assert drawn["000000.png"].tobytes() == first
    assert drawn["000000_02.png"].size == (96, 80)
    assert drawn["000000_02.png"].tobytes() == second
    assert drawn["000002_02.png"].tobytes() != second  # the LoRA changes it
    _, plain, _, alone, *_ = train(run_node, models, sample_prompt="a teal circle")
    assert alone.id == run.id  # what is drawn is no part of a run's identity
    assert all(torch.equal(plain[key], value) for key, value in lora.items())
    single = pictures_of(alone)
    assert list(single) == ["000000.png", "000002.png"]
    assert all(single[name].tobytes() == drawn[name].tobytes() for name in single)


def test_base_and_result_are_of_one_prompt_where_a_run_goes_on_with_another(models, run_node):
    """The base is drawn anew with the prompt of now, as core's nodes draw it. A run without a step to do keeps its
    pictures and what they show."""
    train(run_node, models, sample_prompt="a teal circle")
    *_, run, report, _ = train(run_node, models, sample_prompt="a red ring", resume=True, steps=4)
    assert run.samples == [(0, "000000.png"), (4, "000004.png")]
    assert pictures_of(run)["000000.png"].tobytes() == drawn_by_core(
        run_node, models, "a red ring", "", 64, 64, seed=3, steps=2, cfg=1.5
    )
    assert "Samples up to step 2 showed another sample_prompt and are left out." in report
    *_, again, _, _ = train(run_node, models, sample_prompt="a blue ring", resume=True, steps=4)
    assert again.samples == run.samples
    assert again.info.settings["sample_prompt"] == "a red ring"


def test_a_word_stands_in_each_prompt(models, run_node):
    """The second prompt has the word, so only its picture changes with the training."""
    own = dict(sample_prompt="a red ring\n{word} --n a red ring", learning_rate=0.5)
    *_, run, _ = train(run_node, models, node="BespokeTrainTextualInversion", **own)
    drawn = pictures_of(run)
    assert list(drawn) == ["000000.png", "000000_02.png", "000002.png", "000002_02.png"]
    assert drawn["000000.png"].tobytes() == drawn["000002.png"].tobytes()
    assert drawn["000000_02.png"].tobytes() != drawn["000002_02.png"].tobytes()


@pytest.mark.parametrize("node", ["BespokeTrainLora", "BespokeTrainTextualInversion"])
def test_an_option_that_is_not_known_is_refused_before_anything_is_encoded(models, run_node, node):
    with pytest.raises(Exception, match="line 2 of sample_prompt has --ar, which is not read"):
        train(run_node, models, node=node, sample_prompt="a cat\na dog --ar 3:2")


def test_the_size_is_in_cells_of_the_models_latents():
    """A picture of 64 x 96 px in 4 x 6 cells has cells of 16 px."""
    like = torch.ones(1, 16, 1, 4, 6)
    assert latent_for(SamplePrompt("a"), like, (64, 96)) is like
    assert latent_for(SamplePrompt("a", width=128), like, (64, 96)).shape == (1, 16, 1, 4, 8)
    assert latent_for(SamplePrompt("a", width=128, height=256), like, (64, 96)).shape == (1, 16, 1, 16, 8)
    with pytest.raises(InputError, match=r"--h 72, and pictures of this model are multiples of 16 px; write 64"):
        latent_for(SamplePrompt("a", height=72), like, (64, 96))
    base = SamplerSettings(20, 7.0, "euler", "normal", 5)
    assert settings_for(SamplePrompt("a"), base) == base
    assert settings_for(SamplePrompt("a", seed=0, cfg=0.0, steps=1), base) == SamplerSettings(
        1, 0.0, "euler", "normal", 0
    )


def test_a_job_has_every_text_of_its_samples(models, run_node, monkeypatch):
    source = Source("checkpoint", ("a.safetensors",), ("0" * 64,))
    monkeypatch.setattr("bespoke.nodes.jobs.export.source_of", lambda patcher, role: source)
    given = dict(sample_every=0, hidden={}, folder="several-prompts")
    folder, _ = train(run_node, models, node="BespokeExportLoraJob", rank=2, alpha=2.0, sample_prompt=TWO, **given)
    job = read_job(Path(folder))
    assert job.settings["sample_prompt"] == TWO
    dataset = job.dataset(TrainConfig(2, 1e-2, 1, 5))
    assert {"a teal circle", "a red ring", "a blue circle", ""} <= set(dataset.prompts)
    assert TECHNIQUES["lora"].request(TrainConfig(2, 1e-2, 1, 5), sample_prompt=TWO).sample_prompt == TWO
