"""Wan 2.2's experts are trained on their own noise levels. The oracle is Wan's configuration: the boundary is 0.875."""

from pathlib import PurePosixPath
from types import SimpleNamespace

import comfy.patcher_extension
import families
import pytest
import torch
from bespoke.nodes.bridge.models import experts, wan
from bespoke.nodes.bridge.models.experts import noise_range
from bespoke.nodes.bridge.training_model.denoiser import prepare_for_training
from bespoke.training.errors import InputError
from helpers import sprite_set

HIGH, LOW, WHOLE = (0.875, 1.0), (0.0, 0.875), (0.0, 1.0)
FILES = {
    "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors": HIGH,
    "wan2.2_t2v_low_noise_14B_fp16.safetensors": LOW,
    "Wan2.2-T2V-A14B-HighNoise-Q8_0.safetensors": HIGH,
    "Wan2.2-T2V-A14B-LowNoise.safetensors": LOW,
    "Wan2_2-T2V-A14B_HIGH_fp8_e4m3fn_scaled_KJ.safetensors": HIGH,
    "Wan2_2-T2V-A14B-LOW_fp8_e4m3fn_scaled_KJ.safetensors": LOW,
    "wan22 t2v low.safetensors": LOW,
    "high_noise_model/diffusion_pytorch_model.safetensors": HIGH,
    "low_noise_model/diffusion_pytorch_model.safetensors": LOW,
    "wan2.1_t2v_14B_fp16.safetensors": WHOLE,
    "wan2.1_t2v_1.3B_low_vram.safetensors": WHOLE,
    "wan2.2_t2v_14B.safetensors": WHOLE,
    "wan2.2_high_and_low_noise.safetensors": WHOLE,
    "wan2.2_ti2v_5B_fp16.safetensors": WHOLE,
    "highnoises.safetensors": WHOLE,
    "yellow_noise.safetensors": WHOLE,
    "anything.safetensors": WHOLE,
}


def wan_of_width(monkeypatch, width=5120):
    monkeypatch.setattr(wan, "fits", lambda model: True)
    return SimpleNamespace(dim=width)


@pytest.mark.parametrize(("name", "expected"), FILES.items())
def test_the_expert_is_told_by_the_name(monkeypatch, name, expected):
    levels = noise_range(wan_of_width(monkeypatch), PurePosixPath("/models") / name)
    assert (levels.low, levels.high) == expected
    assert levels.is_whole == (expected == WHOLE)
    if expected != WHOLE:
        expert = "high-noise" if expected == HIGH else "low-noise"
        assert f"Wan 2.2's {expert} expert" in levels.note


def test_the_experts_of_image_to_video_change_at_another_level(monkeypatch):
    """`boundary` of wan_i2v_A14B.py is 0.900. They read 36 channels and predict 16."""
    monkeypatch.setattr(wan, "fits", lambda model: True)
    model = SimpleNamespace(dim=5120, in_dim=36, out_dim=16)
    high, low = (noise_range(model, PurePosixPath(f"wan2.2_i2v_{name}_noise.safetensors")) for name in ("high", "low"))
    assert (high.low, high.high, low.low, low.high) == (0.9, 1.0, 0.0, 0.9)


def test_a_name_that_does_not_tell_is_said(monkeypatch):
    """Of the 14B models only: 5B and 1.3B have no experts, and a name with 2.1 tells."""
    large, small = wan_of_width(monkeypatch), wan_of_width(monkeypatch, 3072)
    for path in (None, PurePosixPath("mine.safetensors"), PurePosixPath("wan2.2_t2v_14B.safetensors")):
        assert "does not say which" in noise_range(large, path).note
        assert noise_range(small, path).note == ""
    assert noise_range(large, PurePosixPath("wan2.1_t2v_14B_fp16.safetensors")).note == ""


def test_other_models_with_such_a_name_are_trained_on_all_levels(comfyui):
    model = families.made("flux")[0]
    assert noise_range(model.model.diffusion_model, PurePosixPath("high_noise.safetensors")) == experts.NoiseRange()


def named(name, sigmas):
    """A small Wan model as if it was loaded from a file of this name. It appends the noise levels of its calls."""
    model = families.made("wan")[0].clone()
    model.cached_patcher_init = (None, (f"/models/{name}",))

    def note(executor, x, sigma, *args, **kwargs):
        sigmas.extend(sigma.tolist())
        return executor(x, sigma, *args, **kwargs)

    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "note", note)
    return model


@pytest.mark.parametrize(
    ("name", "low", "high", "sampling"),
    [
        ("wan2.2_t2v_high_noise_14B", 0.875, 1.0, "uniform"),
        ("wan2.2_t2v_high_noise_14B", 0.875, 1.0, "importance"),
        ("wan2.2_t2v_high_noise_14B", 0.875, 1.0, "logit-normal"),
        ("wan2.2_t2v_low_noise_14B", 0.0, 0.875, "uniform"),
        ("wan2.1_t2v_14B", 0.0, 1.0, "uniform"),
    ],
)
def test_training_and_validation_stay_in_the_experts_part(run_node, name, low, high, sampling):
    sigmas, (_, clip, vae) = [], families.made("wan")
    *_, report, _ = run_node(
        "BespokeTrainLora",
        model=named(f"{name}.safetensors", sigmas),
        clip=clip,
        vae=vae,
        images=sprite_set(2, 12, side=64, colour="teal"),
        steps=4,
        batch_size=4,
        rank=1,
        alpha=1.0,
        seed=5,
        validation=2,
        precision="fp32",
        timestep_sampling=sampling,
        resume=False,
    )
    assert len(sigmas) >= 16 + 2 * 10
    assert low <= min(sigmas)
    assert max(sigmas) <= high
    assert ("Wan 2.2's" in report) == (name != "wan2.1_t2v_14B")
    if name == "wan2.1_t2v_14B":  # the levels of both
        assert min(sigmas) < 0.7
        assert max(sigmas) > 0.95
    if name == "wan2.2_t2v_high_noise_14B":
        assert "noise levels from 0.875 up" in report
        assert max(sigmas) - min(sigmas) > 0.08  # of 0.125


def test_the_timesteps_of_noise_levels(comfyui):
    """By hand: Wan's shift s is 8, sigma = s t / (1 + (s - 1) t), so t = sigma / (s - (s - 1) sigma)."""
    with prepare_for_training(families.made("wan")[0], "fp32") as denoiser:
        sampling = denoiser.base.model_sampling
        shift = float(sampling.shift)
        first, last = denoiser.timesteps_between(0.875, 1.0)
        assert last == 1.0
        assert first == pytest.approx(0.875 / (shift - (shift - 1) * 0.875), abs=2e-3)
        assert float(denoiser.sigma(torch.tensor([first]))) >= 0.875
        assert float(denoiser.sigma(torch.tensor([first - 1e-4]))) < 0.875
        assert denoiser.timesteps_between(0.0, 0.875) == (0.0, first)
        with pytest.raises(InputError, match="take the node away that changes its sampling"):
            denoiser.timesteps_between(0.0, 1e-9)
