"""Train Word and LoRA: both gradients, each half against its own trainer, resume, finish and jobs."""

import shutil
from dataclasses import replace
from pathlib import Path

import comfy.model_management
import jobs
import pytest
import safetensors.torch
import tiny
import torch
from bespoke.nodes.bridge.evidence.facts import what_is_trained
from bespoke.nodes.bridge.runs.context import RunContext
from bespoke.nodes.bridge.runs.cross_validation import final_fold
from bespoke.nodes.bridge.runs.store import RunStore, request_finish
from bespoke.nodes.bridge.trainer import Models, prepared
from bespoke.nodes.lora.training.preserve import untriggered_prompt
from bespoke.nodes.lora.training.request import LoraData
from bespoke.nodes.word_and_lora.request import WordAndLoraRequest
from bespoke.nodes.word_and_lora.technique import WordAndLoraTechnique, encode_dataset
from bespoke.training.config import TrainConfig
from bespoke.training.errors import InputError
from bespoke.training.loop import GRADIENT_SCALE
from helpers import image_set, sprite_set, weights_hash
from run_records import Shown

NODE, NAME, WORD = "BespokeTrainWordAndLora", "my-teal", "bundle_emb.my-teal.clip_l"
OUTPUTS = ("model", "clip", "lora", "embedding", "prompt_word", "loss", "run", "report")
PROMPT = "a embedding:my-teal circle on white"


@pytest.fixture(scope="module")
def models(comfyui):
    """(model, clip, vae): SD1.5's classes with one level of the U-Net."""
    return tiny.patcher(tiny.SMALLEST), tiny.clip(), tiny.vae()


def request(models, **changes):
    model, clip, vae = models
    settings = dict(
        images=sprite_set(3, 4, colour="teal", word="{word}", side=64), name=NAME, init_text="green", rank=4, alpha=4.0,
        learning_rate=1e-3, word_learning_rate=2e-2, steps=6, batch_size=2, seed=0, precision="fp32", keep="last",
        score_pictures="off", resume=False,
    )  # fmt: skip
    return dict(model=model, clip=clip, vae=vae) | settings | changes


def train(run_node, models, **changes):
    """{output: value}."""
    return dict(zip(OUTPUTS, run_node(NODE, **request(models, **changes)), strict=True))


@pytest.fixture(scope="module")
def whole(models, run_node):
    """A training of six steps whose word rests after three."""
    return train(run_node, models, word_until=0.5)


def vectors(result):
    return result["embedding"][NAME]["clip_l"]


def same(one, other):
    return (
        torch.equal(vectors(one), vectors(other))
        and one["loss"] == other["loss"]
        and all(torch.equal(tensor, other["lora"][key]) for key, tensor in one["lora"].items())
    )


def encoded(clip):
    return clip.encode_from_tokens(clip.tokenize(PROMPT), return_pooled=True)[0]


def test_what_comes_out(models, whole):
    """The outputs agree with one another, and no weight of the models has changed."""
    assert whole["prompt_word"] == f"embedding:{NAME}"
    assert whole["lora"].words == {NAME: whole["embedding"][NAME]}
    assert not any(key.startswith("bundle") for key in whole["lora"])
    assert whole["run"].info.technique == "word and lora"
    assert whole["run"].info.trigger == f"embedding:{NAME}"
    assert what_is_trained(whole["run"]) == "word, 1 vector, and LoRA, rank 4, alpha 4, cross-attention"
    assert "Trained in the first 3 steps only, and kept as they were after them." in whole["report"]
    assert "clip_l vector 1 is nearest to" in whole["report"]
    moved = encoded(whole["clip"]) - encoded(models[1])
    assert moved.abs().max() > 1e-2
    assert (tiny.predict(whole["model"]) - tiny.predict(models[0])).abs().max() > 1e-3


def test_no_weight_changes(models, run_node):
    parts = (models[0].model, models[1].cond_stage_model, models[2].first_stage_model)
    comfy.model_management.unload_all_models()
    before = [weights_hash(part) for part in parts]
    train(run_node, models, steps=2, train_text_encoder=True)
    comfy.model_management.unload_all_models()
    assert [weights_hash(part) for part in parts] == before


@pytest.mark.parametrize("text", [False, True], ids=["unet", "text encoder too"])
def test_both_gradients_are_those_of_finite_differences(models, tmp_path, text):
    """Central differences of the loss along a random direction of each set of parameters, after a few steps.

    The adapters' up factors are set to random numbers first: at zero the down factors would have no gradient.
    """
    config = TrainConfig(steps=2, learning_rate=1e-3, batch_size=2, seed=0)
    wanted = WordAndLoraRequest(
        config, rank=4, alpha=4.0, precision="fp32", init_text="green", name=NAME, train_text_encoder=text
    )
    loaded, images = Models(*models), sprite_set(3, 4, colour="teal", word="{word}", side=64)
    dataset = encode_dataset(loaded, LoraData(images), wanted)
    technique = WordAndLoraTechnique(wanted, loaded, dataset)
    context = RunContext(store=lambda run_id: RunStore(run_id, tmp_path), display=lambda run_id, last: Shown())
    with prepared(technique, loaded, dataset, context) as (trainer, run):
        fold = final_fold(dataset.pictures, config, run, [])
        with trainer.attached_training(fold, True) as training:
            trainable, draw = training.trainable, torch.Generator().manual_seed(1)
            adapters = list(trainable.adapters.parameters())
            word = list(trainable.word.vectors.values())
            with torch.no_grad():
                for parameter in adapters:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
            (training.loss(0) * GRADIENT_SCALE).backward()
            for group in (adapters, word):
                directions = [torch.randn(parameter.shape, generator=draw) for parameter in group]
                slope = sum(
                    (parameter.grad * direction).sum()
                    for parameter, direction in zip(group, directions, strict=True)
                    if parameter.grad is not None
                )
                expected = central(training, group, directions, 2e-3)
                assert float(slope) / GRADIENT_SCALE == pytest.approx(expected, rel=2e-2)


@torch.no_grad()
def central(training, parameters, directions, step):
    losses = []
    for sign in (1, -2):
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.add_(sign * step * direction)
        losses.append(float(training.loss(0).double()))
    for parameter, direction in zip(parameters, directions, strict=True):
        parameter.add_(step * direction)
    return (losses[0] - losses[1]) / (2 * step)


def test_without_an_adapter_that_acts_the_word_is_that_of_its_own_trainer(models, run_node):
    """The oracle is Train Textual Inversion. With alpha 0 the adapters have neither an effect nor a gradient."""
    changes = dict(learning_rate=2e-2, steps=4, timestep_sampling="importance")
    together = train(run_node, models, alpha=0.0, **changes)
    given = request(models, template="captions", **changes)
    for name in ("rank", "alpha", "word_learning_rate"):
        del given[name]
    _, alone, _, loss, *_ = run_node("BespokeTrainTextualInversion", **given)
    assert torch.equal(vectors(together), alone["clip_l"])
    assert together["loss"] == loss


def test_with_a_word_at_rest_the_lora_is_that_of_its_own_trainer(models, run_node):
    """The oracle is Train LoRA on captions that say the word which the new one starts from and stays at."""
    together = train(run_node, models, word_until=0.0, init_text="green")
    given = request(models, images=sprite_set(3, 4, colour="teal", word="green", side=64))
    for name in ("name", "init_text", "word_learning_rate"):
        del given[name]
    _, alone, loss, *_ = run_node("BespokeTrainLora", **given)
    assert together["loss"]["loss"] == pytest.approx(loss["loss"], rel=1e-4)
    apart = sum((together["lora"][key] - alone[key]).square().sum() for key in alone)
    size = sum(alone[key].square().sum() for key in alone if "up" in key)
    assert apart < 1e-4 * size


@pytest.mark.parametrize(
    "step",
    [pytest.param(2, marks=pytest.mark.slow, id="while the word learns"), pytest.param(4, id="while it rests")],
)
def test_an_interrupted_run_goes_on_to_the_same_bits(models, run_node, whole, at_step, step):
    at_step(step, comfy.model_management.interrupt_current_processing)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(run_node, models, word_until=0.5)
    record = RunStore(whole["run"].id).record()
    assert record.state == "interrupted"
    assert step <= len(record.losses) < 6
    assert same(train(run_node, models, word_until=0.5, resume=True), whole)


def test_finish_early_hands_on_what_was_learned_so_far(models, run_node, whole, at_step):
    """Up to the step that ends it, the run is the one without an end on the same schedule."""
    at_step(2, lambda: request_finish(whole["run"].id))
    early = train(run_node, models, word_until=0.5)
    done = len(early["loss"]["loss"])
    assert early["run"].state == "kept"
    assert 2 <= done < 6
    assert early["loss"]["loss"] == whole["loss"]["loss"][:done]
    assert same(train(run_node, models, word_until=0.5, resume=True), early)


def test_captions_without_the_word_are_refused(models, run_node):
    """The mend is one that this node has: it has no template of its own."""
    with pytest.raises(InputError, match=r"Train Word and LoRA: 4 captions do not hold \{word\}.*Folder to template"):
        train(run_node, models, images=sprite_set(3, 4, colour="teal", side=64))


def test_the_leak_is_measured_at_the_captions_without_the_word(models):
    """Their trigger is the word, so that `a {word} circle` is compared at `a circle`."""
    wanted = WordAndLoraRequest(TrainConfig(steps=1, learning_rate=1e-3, batch_size=1, seed=0), init_text="green")
    images = sprite_set(3, 2, colour="teal", word="{word}", side=64)
    dataset = encode_dataset(Models(*models), LoraData(images), wanted)
    assert [untriggered_prompt(item) for item in dataset.pictures.items] == [
        item.caption.replace("{word} ", "") for item in images.items
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "Prodigy (built in)"}, "finds one learning rate"),
        ({"optimizer": "Muon"}, "a word is vectors; choose AdamW"),
        ({"optimizer": "schedule-free AdamW", "word_until": 0.5}, "set word_until to 1, or choose AdamW"),
        ({"name": "my.cat"}, "up to the first dot; give a name without"),
        ({"word_until": 1.5}, "word_until is 1.5; give a number from 0 to 1"),
        ({"init_text": ""}, "init_text is empty"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_trained_is_refused(models, run_node, changes, message):
    with pytest.raises(InputError, match=message):
        train(run_node, models, **changes)


# --- several words ---------------------------------------------------------------------------------------------------

NAMES = dict(name="tone\nform", init_text="blue")
TWO = dict(name="tone : red\nform : a circle : 2", init_text="blue", batch_size=1, lr_schedule="constant", rank=2)
BOTH = "a embedding:tone and embedding:form here"


def tone_and_form(said="{}"):
    """Pictures of a pink thing that say {tone}, of rings that say {form}, and one that says both.

    said: how a caption says a word, such as with quotation marks.
    """
    tone = sprite_set(3, 2, colour="pink", word=said.format("{tone}"), side=64).items
    form = sprite_set(4, 2, shape="ring", word=said.format("{form}"), side=64).items
    return image_set([*tone, *form, replace(form[0], name="both.png", caption="a {tone} thing by a {form}")])


@pytest.fixture(scope="module")
def pair(models, run_node):
    """Four steps on two words, with a sample image before the first and after the last step."""
    changes = TWO | dict(images=tone_and_form(), steps=4, sample_every=4, sample_prompt="a {form} in {tone}.")
    return train(run_node, models, **changes)


def test_two_words_in_one_run(models, pair, run_node, comfyui):
    """What comes out by hand; one file holds both words, and Inject LoRA gives the trainer's own conditioning."""
    shapes = {
        word: {key: tuple(each.shape) for key, each in parts.items()} for word, parts in pair["embedding"].items()
    }
    assert shapes == {"tone": {"clip_l": (1, tiny.CONTEXT)}, "form": {"clip_l": (2, tiny.CONTEXT)}}
    assert pair["prompt_word"] == "embedding:tone, embedding:form"
    assert what_is_trained(pair["run"]).startswith("2 words, 3 vectors, and LoRA, rank 2")
    name, *_ = run_node("BespokeSaveLora", lora=pair["lora"], run=pair["run"], filename_prefix="two", dtype="fp32")
    found = safetensors.torch.load_file(comfyui / "models" / "loras" / name)
    assert sorted(key for key in found if "bundle" in key) == ["bundle_emb.form.clip_l", "bundle_emb.tone.clip_l"]
    _, clip, *_ = run_node("BespokeInjectLora", model=models[0], clip=models[1], lora_name=name, strength_model=1.0)
    assert torch.equal(tiny.encode(clip, BOTH), tiny.encode(pair["clip"], BOTH))
    assert not torch.equal(tiny.encode(clip, BOTH), tiny.encode(clip, "a and here"))


def test_two_words_are_resumed_to_the_same_bits(models, run_node):
    """Two steps and two more are four."""
    changes = TWO | dict(images=tone_and_form())
    whole = train(run_node, models, steps=4, **changes)
    train(run_node, models, steps=2, resume=True, **changes)
    again = train(run_node, models, steps=4, resume=True, **changes)
    assert again["loss"] == whole["loss"]
    for word, parts in whole["embedding"].items():
        assert torch.equal(parts["clip_l"], again["embedding"][word]["clip_l"])
    assert all(torch.equal(again["lora"][key], tensor) for key, tensor in whole["lora"].items())


def test_words_with_marks_beside_them_are_learned(models, run_node):
    """ComfyUI reads a name up to white space; in quotation marks it would leave the word out."""
    result = train(run_node, models, **TWO | dict(images=tone_and_form('"{}"'), steps=4))
    assert "moved 0.000 from its start" not in result["report"]


def test_the_leak_is_measured_without_any_of_two_words(models):
    """Of a caption that says both, neither is left; a validation set need not say both."""
    wanted = WordAndLoraRequest(TrainConfig(steps=1, learning_rate=1e-3, batch_size=1, seed=0), **NAMES)
    images = tone_and_form()
    pictures = encode_dataset(Models(*models), LoraData(images, image_set(images.items[:1])), wanted).pictures
    assert untriggered_prompt(pictures.items[4]) == "a thing by a"
    assert "{" not in "".join(map(untriggered_prompt, pictures.items))


def test_two_words_of_which_one_is_held_out_whole_are_refused(models):
    """One of ten pictures says {form}. With five held out the seeds 0 to 3 do and do not hold it out."""
    tone = sprite_set(3, 9, colour="pink", word="{tone}", side=64).items
    data = LoraData(image_set([*tone, replace(tone_and_form().items[2], name="form.png")]))
    outcomes = set()
    for seed in range(4):
        config = TrainConfig(steps=1, learning_rate=1e-3, batch_size=1, seed=seed, validation=5)
        try:
            encode_dataset(Models(*models), data, WordAndLoraRequest(config, **NAMES))
            outcomes.add("trained")
        except InputError as error:
            outcomes.add(str(error).partition(" is held")[0])
    assert outcomes == {"trained", "every picture that says {form}"}


@pytest.mark.parametrize(
    ("which", "text"),
    [("all", True), *(pytest.param(*each, marks=pytest.mark.slow) for each in (("all", False), ("CLIP only", True)))],
)
def test_two_words_for_the_encoders_of_flux(flux, run_node, which, text):
    """CLIP-L and T5 in one graph with the LoRA: each word moves, no weight does, and the file gives all of it."""
    before = weights_hash(flux[1].cond_stage_model)
    changes = TWO | dict(images=tone_and_form(), steps=4, encoders=which, train_text_encoder=text)
    result = train(run_node, flux, **changes)
    keys = {"clip_l", "t5xxl"} if which == "all" else {"clip_l"}
    assert {word: set(parts) for word, parts in result["embedding"].items()} == {"tone": keys, "form": keys}
    assert weights_hash(flux[1].cond_stage_model) == before
    assert "moved 0.000 from its start" not in result["report"]
    name, *_ = run_node("BespokeSaveLora", lora=result["lora"], run=result["run"], filename_prefix="flux", dtype="fp32")
    _, clip, *_ = run_node("BespokeInjectLora", model=flux[0], clip=flux[1], lora_name=name, strength_model=1.0)
    ours, theirs = (each.encode_from_tokens(each.tokenize(BOTH), return_pooled=True) for each in (clip, result["clip"]))
    assert all(torch.allclose(*each, atol=1e-6) for each in zip(ours, theirs, strict=True))


def test_the_forecast_of_two_words_has_the_encoders_that_learn(flux):
    """T5 is in it where it learns: its bytes by hand, and what its pass keeps."""

    def memory(which):
        config = TrainConfig(steps=2, learning_rate=1e-3, batch_size=1, seed=0)
        wanted = WordAndLoraRequest(config, rank=2, precision="fp32", encoders=which, **NAMES)
        dataset = encode_dataset(Models(*flux), LoraData(tone_and_form()), wanted)
        return WordAndLoraTechnique(wanted, Models(*flux), dataset).step_memory(1, None)

    every, clips = memory("all"), memory("CLIP only")
    t5 = flux[1].cond_stage_model.t5xxl
    assert every.weights - clips.weights == sum(each.numel() * each.element_size() for each in t5.parameters())
    assert every.kept > clips.kept


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_the_command_learns_as_the_node_does(comfyui, run_node, one_thread, small_checkpoint, count, tmp_path):
    """By one process the file is the node's to the bit; by two the sums have another order."""
    shutil.copy(small_checkpoint, comfyui / "models" / "checkpoints" / small_checkpoint.name)
    loaded = run_node("CheckpointLoaderSimple", ckpt_name=small_checkpoint.name)
    given = request(loaded, word_until=0.5)
    result = dict(zip(OUTPUTS, run_node(NODE, **given), strict=True))
    name, *_ = run_node("BespokeSaveLora", lora=result["lora"], run=result["run"], filename_prefix=f"jobs/word-{count}")
    folder, report = run_node("BespokeExportWordAndLoraJob", folder=f"jobs/word-and-lora-{count}", **given)
    assert "clip: " in report
    forks = jobs.Ranks(comfyui, tmp_path)
    try:
        made, meta = jobs.result(forks.train(Path(folder), count))
    finally:
        forks.close()
    theirs, told = jobs.read(comfyui / "models" / "loras" / name)
    assert WORD in made
    if count == 1:
        assert all(torch.equal(made[key], theirs[key]) for key in theirs)
        differ = {"modelspec.date", "modelspec.title", "ss_output_name"}
        assert {k: v for k, v in meta.items() if k not in differ} == {k: v for k, v in told.items() if k not in differ}
    else:
        assert jobs.distance(theirs, made) < 1e-2
