"""Train Slider on a small network: the objective and its gradient by hand, resuming, pairs, and what the file says.

The oracle of the objective is the bare network with the LoRA's change added to its weights by hand, and the papers'
equations on its predicted noise.
"""

import math
from dataclasses import replace
from pathlib import Path

import comfy.model_management
import jobs
import pytest
import safetensors
import tiny
import torch
from bespoke.nodes.bridge.dataset.conditioning import encode_prompts
from bespoke.nodes.bridge.runs.context import RunContext
from bespoke.nodes.bridge.runs.samples import SamplerSettings
from bespoke.nodes.bridge.runs.store import RunStore
from bespoke.nodes.bridge.trainer import Models, prepared, train
from bespoke.nodes.lora.slider import evidence
from bespoke.nodes.lora.slider.dataset import encode_slider_dataset
from bespoke.nodes.lora.slider.pairs import how_matched, paired
from bespoke.nodes.lora.slider.request import SliderData, SliderRequest
from bespoke.nodes.lora.slider.technique import SliderTechnique
from bespoke.training.config import TrainConfig
from bespoke.training.data import Batch
from bespoke.training.distributed import StopRequest
from bespoke.training.errors import InputError
from bespoke.training.images import ImageSet
from bespoke.training.slider import DENOISING_GUIDANCE, DENOISING_STEPS
from helpers import image_set, sprite_set

WORDS = dict(target="a circle", more="a red circle", less="a blue circle", guidance=1.5, resolution=64)
ERASE = dict(target="a red circle", more="", less="", guidance=1.5, resolution=64, mode="erase")
TIMES = [0.35, 0.8]


@pytest.fixture(scope="module")
def models(comfyui):
    return Models(tiny.patcher(tiny.SMALLEST), tiny.clip(), tiny.vae())


@pytest.fixture(autouse=True)
def short_evidence(monkeypatch):
    for name, value in (("SEEDS", 1), ("MOST_STEPS", 1), ("LEVELS", (0.5,)), ("SLIDER_STRENGTHS", (-1.0, 0.0, 1.0))):
        monkeypatch.setattr(evidence, name, value)


def sets(count=2):
    """Pairs of pictures: the second has other colours."""
    positive = sprite_set(3, count, side=64, colour="red")
    return positive, image_set([replace(item, pixels=item.pixels.roll(1, -1)) for item in positive.items])


def technique(
    models, images=(None, None), resume=False, steps=4, checkpointing=False, settings=None, **words
) -> SliderTechnique:
    given = {"score_pictures": "off", "timestep_sampling": "uniform", "gradient_checkpointing": checkpointing}
    config = TrainConfig(steps, 2e-2, 2, 7, **given | (settings or {}))
    request = SliderRequest(config, rank=2, alpha=2.0, precision="fp32", resume=resume, **words)
    with torch.inference_mode():  # as in ComfyUI
        return SliderTechnique(request, models, encode_slider_dataset(models, SliderData(*images), request))


def batch_of(made, indices) -> Batch:
    data = made._dataset.pictures.data
    latent = torch.cat([data.latents[index] for index in indices])
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(11))
    return Batch(indices, indices, latent, noise, torch.tensor(TIMES), None, [0, 1], 2, seed=7, number=3)


def fill(adapters):
    with torch.no_grad():
        for number, parameter in enumerate(adapters.parameters()):
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))


def losses_of(made, models, work):
    """`work(loss function, adapters)` in a context in which adapters with random numbers are attached."""
    with torch.inference_mode(), prepared(made, models, made._dataset) as _:
        adapters = made.new_trainable()
        fill(adapters)
        with made.attached(adapters):
            return work(made.loss, adapters), {name: own.delta_weight().detach() for name, own in adapters.items()}


class Bare:
    """The network's own predicted noise, at a strength of changes that are added to its weights."""

    def __init__(self, models, changes):
        self.base, self.clip = models.model.model, models.clip
        self.changes = {name.removeprefix("diffusion_model."): change for name, change in changes.items()}

    def level(self, t):
        return (torch.tensor(t) * 1000).long().clamp(max=999)

    def sigma(self, t):
        return float(self.base.model_sampling.sigmas[self.level(t)])

    def epsilon(self, noisy, t, prompt, strength=0.0):
        network = self.base.diffusion_model
        context = encode_prompts(self.clip, [prompt])[prompt][0]
        weights = {name: network.get_submodule(name).weight for name in self.changes}
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        with torch.no_grad():
            try:
                for name, weight in weights.items():
                    weight += strength * self.changes[name]
                scaled = noisy / (1 + self.sigma(t) ** 2) ** 0.5
                return network(scaled, self.level(t).reshape(1).float(), context=context)
            finally:
                for name, weight in weights.items():
                    weight.copy_(before[name])

    def denoised(self, noise, t, prompt):
        """DDIM from timestep 1 to `t`: x' = x0 + sigma' eps, with classifier-free guidance."""
        at, noisy = 1.0, self.sigma(1.0) * noise
        for step in range(1, DENOISING_STEPS + 1):
            if at <= t:
                break
            to = max(t, 1 - step / DENOISING_STEPS)
            with_prompt, without = (self.epsilon(noisy, at, text) for text in (prompt, ""))
            eps = without + DENOISING_GUIDANCE * (with_prompt - without)
            noisy = noisy - self.sigma(at) * eps + self.sigma(to) * eps
            at = to
        return noisy


def words_by_hand(bare, batch):
    """|eps_{+-1}(x, c_t) - (eps(x, c_t) +- eta (eps(x, c_+) - eps(x, c_-)))|^2, both signs (Concept Sliders, eq. 7)."""
    out = []
    for noise, t in zip(batch.noise, TIMES, strict=True):
        x = bare.denoised(noise[None], t, WORDS["target"])
        own, more, less = (bare.epsilon(x, t, WORDS[name]) for name in ("target", "more", "less"))
        out.append(0.0)
        for sign in (1.0, -1.0):
            wanted = own + sign * WORDS["guidance"] * (more - less)
            out[-1] += (bare.epsilon(x, t, WORDS["target"], sign) - wanted).square().mean().item()
    return out


def erase_by_hand(bare, batch):
    """|eps'(x, c) - (eps(x) - eta (eps(x, c) - eps(x)))|^2 (Erasing Concepts, eq. 7)."""
    out = []
    for noise, t in zip(batch.noise, TIMES, strict=True):
        x = bare.denoised(noise[None], t, ERASE["target"])
        plain, with_prompt = bare.epsilon(x, t, ""), bare.epsilon(x, t, ERASE["target"])
        wanted = plain - ERASE["guidance"] * (with_prompt - plain)
        out.append((bare.epsilon(x, t, ERASE["target"], 1.0) - wanted).square().mean().item())
    return out


def pairs_by_hand(bare, batch, data):
    """|eps_{+1}(x_A) - n|^2 + |eps_{-1}(x_B) - n|^2 with one noise n (Concept Sliders, eq. 9)."""
    out = []
    for row, (noise, t) in enumerate(zip(batch.noise, TIMES, strict=True)):
        first = batch.indices[row] % 2  # of 2 pairs: items 0 and 1 are positive, 2 and 3 negative
        out.append(0.0)
        for sign, index in ((1.0, first), (-1.0, first + 2)):
            noisy = data.latents[index] + bare.sigma(t) * noise
            out[-1] += (bare.epsilon(noisy, t, "a circle", sign) - noise).square().mean().item()
    return out


# --- the objective ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["words", "erase", "pairs"])
def test_objective_and_gradient_by_hand(models, kind):
    """The loss is the papers', and its gradient that of central differences along a random direction."""
    images = sets() if kind == "pairs" else (None, None)
    words = {"words": WORDS, "erase": ERASE, "pairs": dict(target="a circle")}[kind]
    made = technique(models, images, **words)
    batch = batch_of(made, [0, 3] if kind == "pairs" else [0, 0])

    def work(loss, adapters):
        parameters = list(adapters.parameters())
        found = loss(batch)
        gradients = torch.autograd.grad(found.sum(), parameters)
        ways = [torch.randn(p.shape, generator=torch.Generator().manual_seed(50 + i)) for i, p in enumerate(parameters)]
        slope, step = sum(float((g * way).sum()) for g, way in zip(gradients, ways, strict=True)), 1e-3
        sums = []
        for side in (step, -2 * step):
            with torch.no_grad():
                for parameter, way in zip(parameters, ways, strict=True):
                    parameter += side * way
                sums.append(float(loss(batch).double().sum()))
        with torch.no_grad():
            for parameter, way in zip(parameters, ways, strict=True):
                parameter += step * way
        return found.detach(), slope, (sums[0] - sums[1]) / (2 * step)

    (found, slope, difference), changes = losses_of(made, models, work)
    bare, data = Bare(models, changes), made._dataset.pictures.data
    by_hand = {"words": words_by_hand, "erase": erase_by_hand, "pairs": lambda *a: pairs_by_hand(*a, data)}[kind]
    with torch.inference_mode():
        assert found.tolist() == pytest.approx(by_hand(bare, batch), rel=2e-4)
    assert slope == pytest.approx(difference, rel=1e-2)


def test_checkpointing_gives_the_same_gradient(models):
    """A block that is computed again in the backward pass is at the strength of its first pass."""

    def gradients(checkpointing):
        made = technique(models, checkpointing=checkpointing, **WORDS)
        batch = batch_of(made, [0, 0])
        found, _ = losses_of(
            made, models, lambda loss, own: torch.autograd.grad(loss(batch).sum(), list(own.parameters()))
        )
        return found

    for plain, again in zip(gradients(False), gradients(True), strict=True):
        assert torch.allclose(plain, again, rtol=1e-4, atol=1e-7)


def test_preserve_is_added_to_both_ends_and_held_to_the_base(models):
    made = technique(models, preserve="a square\n\na cross", **WORDS)
    batch = batch_of(made, [0, 0])

    def work(_, adapters):
        kept = made.preservation_loss(batch).detach()
        with torch.no_grad():
            for parameter in adapters.parameters():
                parameter.zero_()
        return made._drawn_ends(batch), kept, made.preservation_loss(batch).detach()

    (ends, kept, without), _ = losses_of(made, models, work)
    assert {end for pair in ends for end in pair} <= {
        f"a {colour} circle, a {shape}" for colour in ("red", "blue") for shape in ("square", "cross")
    }
    assert all(more.split(", ")[1] == less.split(", ")[1] for more, less in ends)
    assert (kept > 1e-6).all()
    assert torch.equal(without, torch.zeros(2))


def test_what_else_changed_is_measured_in_the_part_that_is_trained(models):
    """The ratio by hand: the root of |eps_{+-1} - eps|^2 at the prompt of preserve over that at target, at t = 0.95 of
    a training of 0.9 to 1. Adapters do not act at t = 0.5, where a training of the whole schedule is measured."""
    made = technique(models, settings={"min_timestep": 0.9}, preserve="a square", **WORDS)

    def work(_, adapters):
        drift = made.drift(SamplerSettings(), [])
        return drift._others_in_words(), drift._noises(0).cpu()

    (said, noise), changes = losses_of(made, models, work)
    bare, t, found = Bare(models, changes), 0.95, {}
    with torch.inference_mode():
        for prompt in ("a circle", "a square"):
            x = bare.denoised(noise, t, prompt)
            plain = bare.epsilon(x, t, prompt)
            moves = [(bare.epsilon(x, t, prompt, sign) - plain).square().mean().item() for sign in (1.0, -1.0)]
            found[prompt] = sum(moves) / 2
    by_hand = (found["a square"] / found["a circle"]) ** 0.5
    assert f"moved {by_hand:.2f} times as far" in said


# --- a run ------------------------------------------------------------------------------------------------------------


def run(made, models, context=None):
    with torch.inference_mode():
        return train(made, models, made._dataset, context)


def test_interrupted_and_resumed_is_the_run_at_once(models, runs):
    models = Models(models.model, models.clip)  # without samples
    at_once = run(technique(models, **WORDS), models)
    asked = iter([StopRequest.CONTINUE] * 2 + [StopRequest.ABORT])
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(technique(models, **WORDS), models, RunContext(stop_request=lambda run_id: next(asked)))
    assert RunStore(at_once.run.id).state().step == 2
    resumed = run(technique(models, resume=True, **WORDS), models)
    assert resumed.run.losses == at_once.run.losses
    assert resumed.run.notes == at_once.run.notes
    assert all(torch.equal(resumed.learned[name], part) for name, part in at_once.learned.items())


def test_a_result_whose_measurement_was_interrupted_is_measured_when_it_is_queued_again(models, runs, monkeypatch):
    """No step is left then, and a run that was measured is not measured again."""
    models = Models(models.model, models.clip)
    measure, calls = evidence.SliderEvidence._score, []

    def score(self, latent):
        calls.append(0)
        if len(calls) == 1:
            raise comfy.model_management.InterruptProcessingException
        return measure(self, latent)

    monkeypatch.setattr(evidence.SliderEvidence, "_score", score)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(technique(models, steps=1, **WORDS), models)
    again = run(technique(models, steps=1, resume=True, **WORDS), models)
    assert [note for note in again.run.notes if note.startswith("slider:")]
    count = len(calls)
    third = run(technique(models, steps=1, resume=True, **WORDS), models)
    assert third.run.notes == again.run.notes
    assert len(calls) == count


def test_the_node_draws_strips_and_its_file_says_the_range(models, run_node, runs, monkeypatch, comfyui):
    import folder_paths
    from comfy_api.latest import io
    from PIL import Image

    sampler = {"steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "seed": 0}

    monkeypatch.setattr(evidence, "useful_range", lambda scores, errors: (-1.0, 1.0))
    _, lora, loss, record, report, _ = run_node(
        "BespokeTrainSlider", model=models.model, clip=models.clip, vae=models.vae, steps=2, rank=2, alpha=2.0,
        learning_rate=1e-2, sample_every=2, precision="fp32", resume=False, **WORDS,
        hidden={io.Hidden.prompt: {"1": {"class_type": "KSampler", "inputs": sampler}}},
    )  # fmt: skip
    assert len(loss["loss"]) == 2
    assert record.info.images == 0
    assert report.startswith(
        "A slider of 'a circle': strength 1 is towards 'a red circle', -1 towards 'a blue circle'."
    )
    assert "useful from -1 to 1; what else changed was not measured" in report
    assert [step for step, _ in record.samples] == [0, 0, 2, 2]
    with Image.open(RunStore(record.id).sample_path(record.samples[-1][1])) as strip:
        assert strip.width == 5 * 64  # -2, -1, 0, 1, 2
    folder = RunStore(record.id).folder
    assert (folder / "card.jpg").is_file()
    assert not (folder / "training_sheet.jpg").exists()  # there are no pictures
    name, _ = run_node("BespokeSaveLora", lora=dict(lora), filename_prefix="slider/s", run=record)
    with safetensors.safe_open(folder_paths.get_full_path("loras", name), "pt") as file:
        assert file.metadata()["bespoke.useful_strengths"] == "-1,1"

    def told(strength):
        return run_node("BespokeInjectLora", model=models.model, lora=lora, lora_name="none", strength_model=strength)[
            2
        ]

    assert "A slider: strengths from -1 to 1 were found useful when it was trained." in told(1.0)
    assert "outside of" not in told(1.0)
    assert "strength_model is 2, outside of the useful strengths -1 to 1." in told(2.0)


def test_pairs_of_two_sizes_are_trained_with_accumulated_gradients(models):
    """ai-toolkit 227 (pairs crash in its step), sliders 54 (its trainer squeezes each picture to 256 x 256)."""
    positive, negative = (list(each.items) for each in sets(2))
    positive[1], negative[1] = (replace(each[1], pixels=each[1].pixels[:, :32]) for each in (positive, negative))
    images = ImageSet(tuple(positive)), ImageSet(tuple(negative))
    made = run(technique(models, images, settings={"gradient_accumulation": 2}, target="a thing"), models)
    assert len(made.run.losses) == 4
    assert all(math.isfinite(loss) for loss in made.run.losses)


@pytest.mark.parametrize(
    ("settings", "pairs"),
    [
        pytest.param({"optimizer": "Prodigy (built in)"}, 0, marks=pytest.mark.slow),
        ({"optimizer": "Prodigy (built in)"}, 2),
        pytest.param({"optimizer": "Muon"}, 2, marks=pytest.mark.slow),
        pytest.param({"ema": 0.5}, 0, marks=pytest.mark.slow),
        pytest.param({"ema": 0.5, "validation": 2, "keep": "best"}, 12, marks=pytest.mark.slow),
    ],
)
def test_optimisers_an_average_and_the_best_step_work(models, settings, pairs):
    """They change what is learned. pairs: how many; 0 is a training on words."""
    given = dict(WORDS, target="a thing") if pairs else WORDS
    images = sets(pairs) if pairs else (None, None)
    plain = run(technique(models, images, steps=3, **given), models)
    at_once = run(technique(models, images, steps=3, settings=settings, **given), models)
    assert all(bool(part.isfinite().all()) for part in at_once.learned.values())
    assert any(not torch.equal(plain.learned[name], part) for name, part in at_once.learned.items())
    assert any(bool(part.any()) for name, part in at_once.learned.items() if "lora_up" in name)
    if "validation" in settings:
        assert at_once.run.held_out


# --- what is refused --------------------------------------------------------------------------------------------------


def named(*names, side=8):
    items = sprite_set(3, len(names), side=side, colour="red").items
    return [replace(item, name=name) for item, name in zip(items, names, strict=True)]


def other(items):
    return ImageSet(tuple(replace(item, pixels=255 - item.pixels) for item in items))


def test_pairs_are_matched_by_name_or_by_order():
    ours = named("a.png", "b.png", "c.png")
    theirs = other([replace(ours[2], name="c.webp"), replace(ours[0], name="A.JPG"), replace(ours[1], name="b.png")])
    items = paired(ImageSet(tuple(ours)), theirs, "a thing (red)")
    assert [item.name for item in items] == ["a.png", "b.png", "c.png"] * 2
    assert {item.prompt for item in items} == {"a thing (red)"}
    for one, second in zip(items[:3], items[3:], strict=True):
        assert torch.equal(one.pixels, 255 - second.pixels)
    by_order = paired(ImageSet(tuple(ours)), other([replace(item, name=f"x{i}") for i, item in enumerate(ours)]), "")
    assert torch.equal(by_order[1].pixels, 255 - by_order[4].pixels)
    assert by_order[4].prompt == ours[1].prompt


def test_names_are_matched_in_any_writing_and_the_very_same_name_comes_first():
    """Capitals, the two forms of an accent in Unicode (NFC, NFD), names with dots, and mirrored copies."""
    names = ["Caf\u00e9.PNG", "img.1", "img.2", "a.png", "A.png", "b.png", "b.png (mirrored)"]
    others = ["b.jpg (mirrored)", "A.png", "b.jpg", "img.2", "a.png", "cafe\u0301.png", "img.1"]
    drawn = named(*names)
    of = dict(zip(names, drawn, strict=True))
    of |= {"cafe\u0301.png": drawn[0], "b.jpg": drawn[5], "b.jpg (mirrored)": drawn[6]}
    theirs = other([replace(of[name], name=name) for name in others])
    items = paired(ImageSet(tuple(drawn)), theirs, "")
    for one, second in zip(items[:7], items[7:], strict=True):
        assert torch.equal(one.pixels, 255 - second.pixels), one.name
    assert how_matched(ImageSet(tuple(drawn)), theirs) == "The pictures of 7 pairs were matched by name."


def test_pairs_by_order_are_named_in_the_report():
    ours, theirs = named("a.png", "b.png"), other(named("x.png", "y.png"))
    assert how_matched(ImageSet(tuple(ours)), theirs) == (
        "No name is in both sets, so the pictures were matched by order: a.png with x.png, b.png with y.png."
    )


def test_other_names_make_other_pairs_and_another_run(models):
    """The pixels of both sets are the same, and which picture belongs to which is not."""
    ours = named("a.png", "b.png", side=64)
    theirs = other(ours)
    swapped = ImageSet(tuple(replace(item, name=ours[1 - i].name) for i, item in enumerate(theirs.items)))
    made = [technique(models, (ImageSet(tuple(ours)), each), target="a circle") for each in (theirs, swapped)]
    assert made[0]._dataset.fingerprint != made[1]._dataset.fingerprint


def test_pairs_that_do_not_fit_are_all_named():
    ours = named("a.png", "b.png", "c.png", "d.png")
    with pytest.raises(InputError, match=r"3 pictures have no other of that name: b .*c .*d "):
        paired(ImageSet(tuple(ours)), other(ours[:1]), "")
    with pytest.raises(InputError, match="4 pictures and negative_images 1, and no name is in both"):
        paired(ImageSet(tuple(ours)), other(named("z.png")), "")
    small = other(named("a.png", "b.png", "c.png", "d.png", side=16))
    with pytest.raises(InputError, match=r"4 pairs have two sizes: a.png \(8 x 8\) and a.png \(16 x 16\), b.png"):
        paired(ImageSet(tuple(ours)), small, "")
    with pytest.raises(InputError, match="4 pairs are one picture twice: a.png, b.png, c.png, d.png"):
        paired(ImageSet(tuple(ours)), ImageSet(tuple(ours)), "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": " "}, "target is empty"),
        ({"more": "", "less": ""}, "more and less are both empty"),
        ({"less": "a red circle"}, "more and less are both 'a red circle'"),
        ({"mode": "erase", "more": "a circle"}, "more is 'a circle', the target itself"),
        ({"mode": "undo"}, "mode is 'undo'; choose one of slider, erase"),
        ({"guidance": 0.0}, "guidance is 0.0; give a number from 0.1 to 100"),
        ({"resolution": 66}, "resolution is 66, and this model's pictures are multiples of 8 px; give 64"),
    ],
)
def test_words_that_tell_nothing_are_refused(models, changes, message):
    with pytest.raises(InputError, match=message):
        technique(models, **WORDS | changes)


def test_what_needs_a_vae_or_pictures_says_so(models):
    config = TrainConfig(2, 1e-2, 1, 0, sample_every=1)
    without = Models(models.model, models.clip)
    with pytest.raises(InputError, match="sample_every is not 0 and vae is not"):
        encode_slider_dataset(without, SliderData(), SliderRequest(config, **WORDS))
    request, images = SliderRequest(TrainConfig(2, 1e-2, 1, 0, validation=2), **WORDS), sets()
    with pytest.raises(InputError, match="validation is 2, and a training on words"):
        encode_slider_dataset(models, SliderData(), request)
    with pytest.raises(InputError, match="positive_images is wired and negative_images is not"):
        SliderData(positive=images[0])
    with pytest.raises(InputError, match="mode is erase, which learns from words"):
        encode_slider_dataset(models, SliderData(*images), SliderRequest(config, **ERASE))


# --- as a job ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("others", "words"),
    [
        (("a.jpg", "b.jpg"), "The pictures of 2 pairs were matched by name."),
        (("x.png", "y.png"), "so the pictures were matched by order: a.png with x.png, b.png with y.png."),
    ],
)
def test_the_export_of_a_job_says_how_pairs_are_matched(comfyui, run_node, others, words):
    model, clip, vae = jobs.base_model(comfyui)
    ours, theirs = named("a.png", "b.png", side=64), other(named(*others, side=64))
    _, report = run_node(
        "BespokeExportSliderJob", model=model, clip=clip, vae=vae, folder="jobs/pairs", target="a circle", more="",
        less="", positive_images=ImageSet(tuple(ours)), negative_images=theirs, steps=1, precision="fp32",
    )  # fmt: skip
    assert report.endswith(words)


@pytest.mark.slow
def test_a_job_gives_the_file_of_the_node(comfyui, run_node, runs, tmp_path, monkeypatch):
    """A flow model, from its file, in another process: every tensor bit for bit, and all metadata but the date."""
    monkeypatch.undo()  # the other process measures with the usual numbers
    model, clip, _ = jobs.base_model(comfyui)
    given = dict(
        model=model, clip=clip, steps=3, batch_size=2, rank=2, alpha=2.0, learning_rate=1e-2, precision="fp32", **WORDS,
        preserve="a square", targets="attention",
    )  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _, lora, _, record, *_ = run_node("BespokeTrainSlider", resume=False, **given)
    finally:
        torch.set_num_threads(threads)
    name, *_ = run_node("BespokeSaveLora", lora=lora, run=record, filename_prefix="jobs/slider")
    theirs, said = jobs.read(comfyui / "models" / "loras" / name)
    folder, report = run_node("BespokeExportSliderJob", folder="jobs/slider", **given)
    assert "clip: " not in report
    forks = jobs.Ranks(comfyui, tmp_path)
    try:
        made, meta = jobs.result(forks.train(Path(folder), 1))
    finally:
        forks.close()
    assert made.keys() == theirs.keys()
    assert all(torch.equal(made[key], theirs[key]) for key in theirs)
    date = "modelspec.date"
    assert {k: v for k, v in meta.items() if k != date} == {k: v for k, v in said.items() if k != date}
