"""A training on a part of the schedule, and the LoRA used on that part.

The oracles: sd-scripts draws whole timesteps min <= t < max of 1000 (`get_timesteps` in library/train_util.py), whose
noise level on SD1.5's schedule is sqrt((1 - a) / a) of the cumulated alphas a; for flow models Wan's boundary is of the
noise level after the shift (`boundary` of wan_t2v_A14B.py).
"""

from __future__ import annotations

import math

import comfy.patcher_extension
import families
import jobs
import pytest
import tiny
import torch
from bespoke.nodes.bridge.noise_level import noise_level, percents_of
from bespoke.nodes.bridge.training_model.denoiser import prepare_for_training
from bespoke.nodes.jobs.job import read_job
from bespoke.nodes.lora.files import as_file
from bespoke.nodes.lora.named_lora import NamedLora
from bespoke.nodes.lora.training.technique import acting_in
from bespoke.training.adapters import AdapterConfig, AdapterSet, LoraAdapter
from bespoke.training.errors import InputError
from bespoke.training.timestep_range import TimestepRange, range_in
from helpers import max_difference, sprite_set

LOW, HIGH = 0.3, 0.8
SETTINGS = dict(
    steps=4, batch_size=4, learning_rate=1e-2, rank=2, alpha=2.0, seed=5, validation=2, precision="fp32", resume=False
)


def timestep_of_sd15(sigma: float) -> int:
    """The timestep 0..999 whose noise level on SD1.5's schedule is nearest; the schedule is computed here."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    cumulated = torch.cumprod(1 - betas, 0)
    levels = ((1 - cumulated) / cumulated).sqrt()
    found = int((levels.log() - math.log(sigma)).abs().argmin())
    assert levels[found] == pytest.approx(sigma, rel=1e-4)
    return found


def watched(name: str, file: str = "model.safetensors"):
    """(a small model of a family as if loaded from `file`, the noise levels that it has been called at)."""
    model, sigmas = families.made(name)[0].clone(), []
    model.cached_patcher_init = (None, (f"/models/{file}",))

    def note(executor, x, sigma, *args, **kwargs):
        sigmas.extend(sigma.tolist())
        return executor(x, sigma, *args, **kwargs)

    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "note", note)
    return model, sigmas


def train(run_node, name: str, model=None, **changes):
    """The outputs of Train LoRA on a small model of a family."""
    made, clip, vae = families.made(name)
    images = sprite_set(2, 12, side=64, colour="teal")
    given = {"model": model or made, "clip": clip, "vae": vae, "images": images}
    return run_node("BespokeTrainLora", **given | SETTINGS | changes)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["importance", "shifted"])
def test_an_epsilon_model_is_called_at_the_timesteps_of_the_part_alone(run_node, sampling):
    """Timesteps 300 to 799, as sd-scripts draws them with 300 and 800; training, validation and picture scores."""
    model, sigmas = watched("sd15")
    *_, run, report, _ = train(
        run_node,
        "sd15",
        model,
        min_timestep=LOW,
        max_timestep=HIGH,
        timestep_sampling=sampling,
        score_pictures="on" if sampling == "importance" else "off",
        steps=2,
        batch_size=8,
    )
    steps = [timestep_of_sd15(sigma) for sigma in sigmas]
    assert len(steps) >= 2 * 8 + 2 * 2 * 5 + (10 * 2 * 5 if sampling == "importance" else 0)
    assert 300 <= min(steps) < 400
    assert 700 <= max(steps) < 800
    assert run.info.part == TimestepRange(LOW, HIGH)
    assert "timesteps 0.3 to 0.8" in report


@pytest.mark.slow
@pytest.mark.parametrize(("low", "high"), [(0.3, 0.301), (0.999, 1.0), (0.0, 0.001)])
def test_a_part_of_a_single_timestep(run_node, low, high):
    model, sigmas = watched("sd15")
    train(run_node, "sd15", model, min_timestep=low, max_timestep=high, steps=2)
    assert {timestep_of_sd15(sigma) for sigma in sigmas} == {round(low * 1000)}


@pytest.mark.parametrize("name", ["sd3", "wan"])
def test_a_flow_model_is_called_at_the_noise_levels_of_the_part_alone(run_node, name):
    """Sigma after the shift: 3 for SD3, 8 for Wan, whose places 0.3 to 0.8 of the schedule are sigmas 0.77 to 0.97."""
    model, sigmas = watched(name)
    train(run_node, name, model, min_timestep=LOW, max_timestep=HIGH, steps=2, validation=1)
    assert len(sigmas) >= 2 * 4 + 2 * 5
    assert min(sigmas) >= torch.tensor(LOW)
    assert max(sigmas) < torch.tensor(HIGH)
    assert max(sigmas) - min(sigmas) > 0.3  # of 0.5


@pytest.mark.slow
def test_without_limits_the_whole_schedule_is_trained(run_node):
    """The spy sees what the two tests above deny."""
    model, sigmas = watched("sd15")
    given = {"batch_size": 8, "steps": 2, "validation": 0, "timestep_sampling": "uniform"}
    _, lora, _, run, *_ = train(run_node, "sd15", model, **given)
    steps = [timestep_of_sd15(sigma) for sigma in sigmas]
    assert min(steps) < 300
    assert max(steps) >= 800
    assert type(lora) is dict
    assert run.info.timestep_range == ()
    assert not any("timestep_range" in key for key in as_file(lora, run, "x")[1])


@pytest.mark.parametrize(
    ("file", "given", "low", "high"),
    [
        ("wan2.2_t2v_high_noise_14B", {}, 0.875, 1.0),
        ("wan2.2_t2v_low_noise_14B", {}, 0.0, 0.875),
        ("wan2.2_t2v_high_noise_14B", {"min_timestep": 0.95}, 0.95, 1.0),
        ("wan2.2_t2v_high_noise_14B", {"max_timestep": 0.95}, 0.875, 0.95),
        ("wan2.2_t2v_low_noise_14B", {"min_timestep": 0.5, "max_timestep": 0.9}, 0.5, 0.875),
    ],
)
def test_an_expert_gets_its_half_and_of_it_what_is_set(run_node, file, given, low, high):
    model, sigmas = watched("wan", f"{file}.safetensors")
    _, lora, _, run, *_ = train(run_node, "wan", model, steps=1, validation=1, **given)
    assert torch.tensor(low) <= min(sigmas)
    assert max(sigmas) < torch.tensor(high) or high == 1.0
    assert run.info.part == TimestepRange(low, high)
    meta = as_file(lora, run, "x")[1]
    assert meta["modelspec.timestep_range"] == f"{low * 1000:.0f},{high * 1000:.0f}"


def test_a_part_outside_of_the_expert_is_refused(run_node):
    expert = watched("wan", "wan2.2_t2v_high_noise_14B.safetensors")[0]
    with pytest.raises(InputError, match=r"0.5 lies outside of the timesteps 0.875 to 1, .* high-noise expert"):
        train(run_node, "wan", expert, max_timestep=0.5)


def test_the_level_of_every_timestep(comfyui):
    """Of SD1.5's timestep i it is i / 1000, and the schedule's place is the same."""
    sampling = tiny.patcher().model.model_sampling
    levels = noise_level(sampling, sampling.sigmas)
    assert levels.tolist() == [torch.tensor(i / 1000).item() for i in range(1000)]
    with prepare_for_training(tiny.patcher(), "fp32") as denoiser:
        assert denoiser.timesteps_between(0.289, 0.71) == (0.289, 0.71)
    flow = tiny.patcher(flow=True).model.model_sampling
    assert torch.equal(noise_level(flow, flow.sigmas), flow.sigmas)


@pytest.fixture(scope="module")
def trained(run_node):
    """{family: (the LoRA trained on the part, as a file has it; the outputs of the trainer)}."""
    found = {}
    for name in ("sd15", "sd3"):
        outputs = train(run_node, name, min_timestep=LOW, max_timestep=HIGH, validation=0)
        tensors, meta = as_file(outputs[1], outputs[3], "part", key_format="comfy", dtype="fp32")
        found[name] = NamedLora(tensors, "part.safetensors", meta), outputs
    return found


def answers(model, sigmas: list[float]) -> list[torch.Tensor]:
    """A model's answers at noise levels, called as ComfyUI's sampling calls it."""
    import comfy.model_management

    generator = torch.Generator().manual_seed(1)
    channels = model.model.latent_format.latent_channels
    x = torch.randn(1, channels, 8, 8, generator=generator)
    width = {4: tiny.CONTEXT, 16: 4096}[channels]
    more = {} if channels == 4 else {"y": torch.randn(1, 2 * tiny.CONTEXT, generator=generator)}
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
        text = torch.randn(1, 7, width, generator=generator)
        calls = [(torch.tensor([sigma]), {"sigmas": torch.tensor([sigma])}) for sigma in sigmas]
        return [
            model.model.apply_model(x, sigma, c_crossattn=text, transformer_options=options, **more).clone()
            for sigma, options in calls
        ]


def levels_around(name: str, sampling) -> list[tuple[float, bool]]:
    """[(noise level, whether it lies in the part)], the levels next to both ends among them."""
    if name == "sd15":
        steps = [0, 150, 299, 300, 301, 500, 798, 799, 800, 801, 999]
        return [(float(sampling.sigmas[step]), 300 <= step < 800) for step in steps]
    low, high = torch.tensor(LOW), torch.tensor(HIGH)
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    inside = [low, torch.nextafter(low, one), torch.tensor(0.5), torch.nextafter(high, zero)]
    outside = [torch.tensor(0.01), torch.nextafter(low, zero), high, torch.nextafter(high, one), torch.tensor(1.0)]
    return [(float(level), True) for level in inside] + [(float(level), False) for level in outside]


@pytest.mark.parametrize("name", ["sd15", "sd3"])
@pytest.mark.parametrize("mode", ["merge", "trainer"])
def test_through_the_proposed_range_nothing_changes_outside(run_node, trained, name, mode):
    """The difference outside is exactly 0.0, inside it is that of the LoRA; the trainer's model too."""
    base, (lora, outputs) = families.made(name)[0], trained[name]
    given = {"model": base, "lora_name": "none", "strength_model": 1.0, "lora": lora}
    limited = outputs[0] if mode == "trainer" else run_node("BespokeInjectLora", **given, mode=mode)[0]
    everywhere = run_node("BespokeInjectLora", **given, use_range=False)[0]
    sigmas, inside = zip(*levels_around(name, base.model.model_sampling), strict=True)
    found = [answers(model, list(sigmas)) for model in (base, limited, everywhere)]
    for sigma, is_inside, bare, through, whole in zip(sigmas, inside, *found, strict=True):
        assert max_difference(bare, whole) > 0.0
        if is_inside:
            assert max_difference(through, whole) < 1e-3 * max_difference(bare, whole), sigma
        else:
            assert max_difference(through, bare) == 0.0, sigma


def test_the_report_says_the_range_and_the_users_own_wins(run_node, trained):
    base, lora = families.made("sd15")[0], trained["sd15"][0]
    given = {"model": base, "lora_name": "none", "strength_model": 1.0, "lora": lora}
    report = run_node("BespokeInjectLora", **given)[2]
    # By hand: ComfyUI's percent p of SD1.5 is the timestep 999 (1 - p); nearest to 799 from .2, and to 299 from .7 on.
    assert "it acts there alone, start_percent 0.20 to end_percent 0.70" in report
    assert "use_range is off" in run_node("BespokeInjectLora", **given, use_range=False)[2]
    model, _, report, *_ = run_node("BespokeInjectLora", **given, end_percent=0.9)
    assert "start_percent and end_percent are set and count instead" in report
    sigma = float(base.model.model_sampling.sigmas[900])
    assert max_difference(answers(model, [sigma])[0], answers(base, [sigma])[0]) > 0.0
    ordinary = NamedLora(lora, lora.name, {})
    merged, _, report, *_ = run_node("BespokeInjectLora", **given | {"lora": ordinary})
    assert "timesteps" not in report
    assert merged.injections == {}
    assert len(merged.patches) > 0


@pytest.mark.parametrize("mode", ["merge", "bypass"])
def test_a_file_that_can_only_be_merged_acts_as_in_a_graph_from_before(run_node, trained, mode):
    """A weight of another shape (`reshape_weight`) can only be merged. The oracle: the same file without its metadata.

    A range that the user sets is still refused, since that cannot be kept.
    """
    base, (lora, _) = families.made("sd15")[0], trained["sd15"]
    layer = next(key.removesuffix(".lora_up.weight") for key in lora if key.endswith("to_v.lora_up.weight"))
    shape = base.model.state_dict()[f"{layer}.weight"].shape
    own = NamedLora({**lora, f"{layer}.reshape_weight": torch.tensor(shape)}, lora.name, lora.meta)
    given = {"model": base, "lora_name": "none", "strength_model": 1.0, "mode": mode}
    model, _, report, *_ = run_node("BespokeInjectLora", **given, lora=own)
    assert "timesteps 0.3 to 0.8 alone (of 1: 0 is clean, 1 is noise), and acts outside of them too" in report
    assert "to_v changes the weight itself and cannot come and go" in report
    before = run_node("BespokeInjectLora", **given, lora=NamedLora(own, lora.name, {}))[0]
    sigmas = [float(base.model.model_sampling.sigmas[step]) for step in (10, 500, 990)]
    found, expected, bare = (answers(each, sigmas) for each in (model, before, base))
    for one, other, without in zip(found, expected, bare, strict=True):
        assert torch.equal(one, other)
        assert max_difference(one, without) > 0.0
    with pytest.raises(InputError, match=r"cannot come and go between steps; set start_percent to 0"):
        run_node("BespokeInjectLora", **given, lora=own, end_percent=0.5)
    with pytest.raises(InputError, match=r"leave keyframes empty"):
        run_node("BespokeInjectLora", **given, lora=own, keyframes="0.5:0.3")


def test_the_percents_of_a_part_by_hand(comfyui):
    """Flow with the shift s: sigma = s u / (1 + (s - 1) u) at u = 1 - percent, so u = sigma / (s - (s - 1) sigma)."""
    sampling = families.made("wan")[0].model.model_sampling
    shift = float(sampling.shift)
    start, end = percents_of(TimestepRange(0.5, 0.875), sampling)
    assert start == pytest.approx(1 - 0.875 / (shift - (shift - 1) * 0.875), abs=1e-4)
    assert end == pytest.approx(1 - 0.5 / (shift - (shift - 1) * 0.5), abs=1e-4)
    assert percents_of(TimestepRange(0.875, 1.0), sampling)[0] == 0.0
    assert percents_of(TimestepRange(0.0, 0.875), sampling)[1] == 1.0


def test_a_file_of_an_expert_on_its_own_and_on_the_other_one(run_node):
    """musubi-tuner's recommended ranges for Wan 2.2 (docs/wan.md): 875,1000 for the high-noise expert of T2V."""
    high, low = (watched("wan", f"wan2.2_t2v_{name}_noise.safetensors")[0] for name in ("high", "low"))
    _, lora, *_ = train(run_node, "wan", high, steps=1)
    theirs = NamedLora(lora, "musubi.safetensors", {"modelspec.timestep_range": "875,1000"})
    given = {"lora_name": "none", "strength_model": 1.0, "lora": theirs}
    on_high, _, report, *_ = run_node("BespokeInjectLora", model=high, **given)
    assert "no range is set" in report
    assert len(on_high.patches) > 0  # merged, as before
    on_low, _, report, *_ = run_node("BespokeInjectLora", model=low, **given)
    assert "CHANGES NOTHING HERE" in report
    assert on_low.patches == {}


def test_compose_and_save_keep_a_common_part(run_node, trained):
    lora, (_, wired, _, run, *_) = trained["sd15"]
    assert range_in(wired.meta) == TimestepRange(LOW, HIGH)
    other = NamedLora(lora, "other.safetensors", {"modelspec.timestep_range": "300,800"})
    whole = NamedLora(lora, "whole.safetensors", {})
    both, report, _ = run_node("BespokeComposeLoras", loras={"lora0": wired, "lora1": other})
    assert "All were trained on the timesteps 0.3 to 0.8" in report
    assert range_in(as_file(both, None, "x")[1]) == TimestepRange(LOW, HIGH)
    mixed, report, _ = run_node("BespokeComposeLoras", loras={"lora0": lora, "lora1": whole})
    assert "different parts of the schedule (A: 0.3 to 0.8, B: 0 to 1" in report
    assert range_in(as_file(mixed, run, "x")[1]).is_whole
    assert range_in(as_file(dict(lora), run, "x")[1]) == TimestepRange(LOW, HIGH)


@pytest.mark.slow
def test_a_resumed_run_is_that_of_one_sitting(run_node):
    """Bit for bit on the CPU; another part is another run."""
    given = dict(min_timestep=LOW, max_timestep=HIGH, lr_schedule="constant", validation=0, seed=77)
    _, once, _, first, *_ = train(run_node, "sd15", steps=6, **given)
    _, _, _, half, *_ = train(run_node, "sd15", steps=3, **given)
    _, again, _, second, *_ = train(run_node, "sd15", steps=6, **given | {"resume": True})
    assert first.id == half.id == second.id
    assert second.losses == first.losses
    assert all(torch.equal(once[key], again[key]) for key in once)
    *_, other, _, _ = train(run_node, "sd15", steps=1, **given | {"max_timestep": 0.9})
    assert other.id != first.id


@pytest.mark.slow
def test_a_job_carries_the_part(comfyui, run_node):
    folder, _ = jobs.export(run_node, jobs.base_model(comfyui), "jobs/part", min_timestep=LOW, max_timestep=HIGH)
    settings = read_job(jobs.Path(folder)).settings
    assert (settings["min_timestep"], settings["max_timestep"]) == (LOW, HIGH)
    with pytest.raises(InputError, match="not below max_timestep"):
        jobs.export(run_node, jobs.base_model(comfyui), "jobs/none", min_timestep=0.9, max_timestep=HIGH)


@pytest.mark.slow
def test_a_word_is_learned_on_the_part_alone(run_node):
    model, sigmas = watched("sd15")
    _, clip, vae = families.made("sd15")
    *_, run, report = run_node(
        "BespokeTrainTextualInversion",
        model=model,
        clip=clip,
        vae=vae,
        images=sprite_set(2, 12, side=64, colour="teal"),
        name="part-word",
        init_text="red",
        vectors=1,
        learning_rate=1e-3,
        steps=3,
        batch_size=4,
        seed=1,
        precision="fp32",
        resume=False,
        validation=2,
        min_timestep=0.5,
        max_timestep=1.0,
    )
    assert {timestep_of_sd15(sigma) >= 500 for sigma in sigmas} == {True}
    assert run.info.part == TimestepRange(0.5, 1.0)
    assert "the word acts at all of them" in report


@pytest.mark.slow
def test_samples_show_the_lora_on_its_part(comfyui):
    """Attached adapters leave the answers outside of the part as they are, bit for bit; text layers act always."""
    part, levels = TimestepRange(LOW, HIGH), levels_around("sd15", tiny.patcher().model.model_sampling)
    sigmas = [sigma for sigma, _ in levels]
    with prepare_for_training(tiny.patcher(), "fp32") as denoiser, torch.no_grad():
        layers = dict(denoiser.base.diffusion_model.named_modules())
        name = next(name for name in layers if name.endswith("attn2.to_v"))
        adapters = AdapterSet(LoraAdapter, {name: layers[name]}, AdapterConfig(2, 2.0, 0), torch.device("cpu"))
        for parameter in adapters.parameters():
            parameter.fill_(0.1)
        bare = answers(denoiser.patcher, sigmas)
        with adapters.attached():
            whole = answers(denoiser.patcher, sigmas)
            with acting_in(part, denoiser.base, adapters):
                limited = answers(denoiser.patcher, sigmas)
                assert adapters.enabled
    for (sigma, is_inside), *found in zip(levels, bare, whole, limited, strict=True):
        assert max_difference(found[0], found[1]) > 0.0
        assert torch.equal(found[2], found[1] if is_inside else found[0]), sigma
