"""The memory of a training step: the forecast on fake tensors against real steps, and the choice to offload."""

import ctypes
import dataclasses
import functools
import gc
import itertools
from pathlib import Path

import pytest
import tiny
import torch
from bespoke.nodes.bridge import trainer
from bespoke.nodes.bridge.dataset import conditioning
from bespoke.nodes.bridge.models import target_layers
from bespoke.nodes.bridge.training_model import memory_forecast, offload
from bespoke.nodes.bridge.training_model.denoiser import prepare_for_training
from bespoke.training.adapters import AdapterConfig, AdapterSet, LoraAdapter
from bespoke.training.errors import InputError
from bespoke.training.objective import denoising_loss
from helpers import sprite_set, weights_hash

CPU = torch.device("cpu")


both = pytest.mark.parametrize("models", ["sdxl", "flux"], indirect=True)
savings = pytest.mark.parametrize("saving", [False, True])


def forecast(models, latent, saving, compute=None):
    base, made = models[0].model, []
    one = conditioning.model_conds(base, *conditioning.encode_prompt(models[1], "a red circle"), latent[:1], CPU)

    def learn():
        layers = target_layers(base.diffusion_model, "cross-attention")
        made.append(AdapterSet(LoraAdapter, layers, AdapterConfig(4, 4, 0), CPU))
        return list(made[0].parameters())

    joined = conditioning.join_conds([one] * len(latent))
    return memory_forecast.forecast(
        base,
        latent,
        joined,
        learn,
        compute,
        saving,
        memory_forecast.OPTIMIZER_BYTES["AdamW"],
        lambda: made[0].attached(),
    )


def real_step(models, latent, saving, measure):
    """Run a step in `measure(its frozen and trained tensors)`, after one that allocates every buffer."""
    with prepare_for_training(models[0], "fp32", saving) as denoiser:
        layers = target_layers(denoiser.base.diffusion_model, "cross-attention")
        adapters = AdapterSet(LoraAdapter, layers, AdapterConfig(4, 4, 0), CPU)
        one = conditioning.model_conds(
            denoiser.base, *conditioning.encode_prompt(models[1], "a red circle"), latent[:1], CPU
        )
        joined, sigma, noise = (
            conditioning.join_conds([one] * len(latent)),
            denoiser.sigma(torch.full((len(latent),), 0.5)),
            torch.randn_like(latent),
        )
        for scope in (lambda _: torch.enable_grad(), measure):
            for parameter in adapters.parameters():
                parameter.grad = None
            with (
                adapters.attached(),
                scope([*denoiser.base.parameters(), *denoiser.base.buffers(), *adapters.parameters()]) as measured,
            ):
                denoising_loss(denoiser, latent, noise, sigma, joined).mean().backward()
        return measured


class Allocated:
    """The peak of torch's allocator in the block minus its start, in bytes, with the kernels' buffers."""

    def __init__(self, _tensors):
        self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)

    def __enter__(self):
        self._profile.__enter__()
        return self

    def __exit__(self, *failed):
        self._profile.__exit__(*failed)
        events = (event for event in self._profile.profiler.kineto_results.events() if event.name() == "[memory]")
        changes = [size for _, size in sorted((event.start_ns(), event.nbytes()) for event in events)]
        self.peak = max(itertools.accumulate(changes))


class Resident:
    """The peak of Linux's resident memory in the block minus its start, in bytes."""

    def __init__(self, _tensors):
        pass

    def _status(self, name: str) -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024

    def __enter__(self):
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self._start = self._status("VmRSS")
        return self

    def __exit__(self, *_):
        self.peak = self._status("VmHWM") - self._start


@both
@savings
def test_the_forecast_is_what_torch_allocates_in_a_real_step(models, saving):
    latent = torch.zeros(1, models[0].model.latent_format.latent_channels, 64, 64)
    before = weights_hash(models[0].model)
    forecasted = forecast(models, latent, saving)
    assert weights_hash(models[0].model) == before
    assert real_step(models, latent, saving, Allocated).peak == pytest.approx(forecasted.step, rel=0.05, abs=2e6)
    assert forecasted.weights == sum(t.nbytes for t in (*models[0].model.parameters(), *models[0].model.buffers()))
    assert forecasted.peak() == forecasted.weights + forecasted.trained + forecasted.step
    assert forecasted.step > forecasted.kept


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
@both
def test_the_resident_memory_of_a_real_step_is_the_forecast_and_the_kernels_own(models):
    """1.3 times the forecast for the U-Net and up to 1.9 for Flux, since CPU kernels copy their inputs."""
    latent = torch.zeros(1, models[0].model.latent_format.latent_channels, 64, 64)
    forecasted = forecast(models, latent, False)
    assert 0.9 * forecasted.step < real_step(models, latent, False, Resident).peak < 2 * forecasted.step + 30e6


@pytest.mark.parametrize("models", [pytest.param("sdxl", marks=pytest.mark.slow), "flux"], indirect=True)
def test_checkpointing_and_half_precision_need_less(models):
    latent = torch.zeros(1, models[0].model.latent_format.latent_channels, 32, 32)
    full, checkpointed, half = (
        forecast(models, latent, *options) for options in ((False,), (True,), (False, torch.bfloat16))
    )
    assert checkpointed.kept < 0.3 * full.kept
    assert checkpointed.peak() < full.peak()
    assert half.step < 0.8 * full.step
    matrices = [m.weight for m in models[0].model.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
    assert half.weights - full.weights == half.copies == sum(2 * w.numel() for w in matrices)  # their bfloat16 copies
    numbers = sum(
        4 * (m.in_features + m.out_features)
        for m in target_layers(models[0].model.diffusion_model, "cross-attention").values()
    )
    assert full.trained == numbers * 12  # each with AdamW's two moments; its gradient is part of the step


def test_offloading_where_weights_do_not_fit_and_the_cpus_error(caplog):
    step = memory_forecast.StepMemory(weights=12_000, streamed=500, trained=100, kept=2_000, step=3_000)
    assert (step.peak(), step.peak(offload=True), step.without_weights) == (15_100, 3_600, 3_100)
    assert not offload.must_offload(step, 15_100, can_offload=True)
    assert offload.must_offload(step, 15_099, can_offload=True)
    assert offload.must_offload(step, 3_600, can_offload=True)
    # The CPU: the weights are loaded already.
    assert not offload.must_offload(step, 3_100, can_offload=False, weights_loaded=True)
    copied = dataclasses.replace(step, weights=18_000, copies=6_000)
    assert not offload.must_offload(copied, 9_100, can_offload=False, weights_loaded=True)
    with pytest.raises(InputError):
        offload.must_offload(copied, 9_099, can_offload=False, weights_loaded=True)  # the copies are not made yet
    why = "are free; what lowers it: batch_size 1 with gradient_accumulation"
    with pytest.raises(InputError, match=why):
        offload.must_offload(step, 3_099, can_offload=False, weights_loaded=True)
    for free, can_offload in ((3_599, True), (15_099, False)):  # only a warning on accelerators
        caplog.clear()
        assert offload.must_offload(step, free, can_offload) == can_offload
        assert why in caplog.text
    large = memory_forecast.StepMemory(23_800_000_000, 340_000_000, 60_000_000, 0, 2_900_000_000)
    assert (
        offload.describe_forecast(large, False)
        == "about 26.8 GB at the peak (weights 23.8 GB; step 2.9 GB; learned 60 MB)"
    )
    assert offload.describe_forecast(large, True) == (
        "at least 3.3 GB at the peak (weights 23.8 GB, offloaded as far as they do not fit; step 2.9 GB; learned 60 MB)"
    )


def test_the_node_reports_its_forecast_and_refuses_what_cannot_fit(run_node, monkeypatch):
    models, lines = (tiny.patcher(tiny.SMALLEST), tiny.clip(), tiny.vae()), []
    real = trainer.run_training

    def record_start(task, context):
        lines.append(task.describe_start)
        return real(task, context)

    monkeypatch.setattr(trainer, "run_training", record_start)
    inputs = dict(
        zip(("model", "clip", "vae"), models, strict=True),
        images=sprite_set(2, 2, side=64, colour="teal"),
        steps=1,
        batch_size=1,
        rank=2,
        precision="fp32",
        resume=False,
    )
    weights = sum(t.nbytes for t in models[0].model.parameters())

    def set_available(size):
        monkeypatch.setattr(offload, "available_memory", lambda _device: size)

    set_available(100 * weights)
    run_node("BespokeTrainLora", **inputs)
    cost = type("Cost", (), {"seconds": 1.0, "kept": 0})
    assert "at the peak" not in lines.pop()(cost)  # a small model needs no forecast
    set_available(40 * weights)
    run_node("BespokeTrainLora", **inputs)
    assert "MB beside the model; about" in (line := lines.pop()(cost))
    assert f"MB at the peak (weights {weights / 1e6:.0f} MB; step" in line
    set_available(10**5)
    with pytest.raises(
        InputError,
        match=(
            r"Bespoke Train LoRA: a step needs about \d+ MB and 0 MB are free; what lowers it: gradient_checkpointing, "
            r"batch_size 1"
        ),
    ):
        run_node("BespokeTrainLora", **inputs)
    with pytest.raises(InputError, match=r"what lowers it: batch_size 1"):
        run_node("BespokeTrainLora", gradient_checkpointing=True, **inputs)


def test_a_model_that_reads_values_has_no_forecast(sdxl, monkeypatch):
    monkeypatch.setattr(offload, "available_memory", lambda _device: 10**6)
    before = weights_hash(sdxl[0].model)
    monkeypatch.setattr(sdxl[0].model, "process_timestep", lambda t, **_: t + float(t.sum()))
    assert (
        offload.forecast_if_needed(sdxl[0].model, CPU, lambda: forecast(sdxl, torch.zeros(1, 4, 8, 8), False)) is None
    )
    monkeypatch.undo()
    assert weights_hash(sdxl[0].model) == before


class Caching(torch.nn.Module):
    """Caches tensors as some of ComfyUI's models do, for all instances (Chroma Radiance) or for the next call."""

    @functools.lru_cache(maxsize=4)  # noqa: B019
    def ones(self, width: int, device: torch.device):
        return torch.ones(width, device=device)

    def forward(self, x):
        if getattr(self, "last", None) is None:
            self.last = torch.zeros_like(x[:1])
        return torch.nn.functional.silu(x + self.last) * self.ones(x.shape[-1], x.device)


def test_the_forecast_leaves_no_fake_tensor_in_a_models_caches(sdxl, monkeypatch):
    unet = sdxl[0].model.diffusion_model
    monkeypatch.setitem(unet.time_embed._modules, "1", Caching())
    forecast(sdxl, torch.zeros(1, 4, 8, 8), False)
    y = torch.zeros(1, sdxl[0].model.adm_channels)
    with torch.inference_mode():
        clean = sdxl[0].model.apply_model(
            torch.zeros(1, 4, 8, 8), torch.ones(1), c_crossattn=torch.zeros(1, 4, unet_width(unet)), y=y
        )
    assert type(clean) is torch.Tensor
    assert clean.isfinite().all()


def unet_width(unet) -> int:
    return next(layer.in_features for name, layer in unet.named_modules() if name.endswith("attn2.to_k"))


# --- clips ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frames", [1, pytest.param(5, marks=pytest.mark.slow), 9, pytest.param(17, marks=pytest.mark.slow)]
)
def test_the_forecast_grows_with_frames_as_what_torch_allocates(comfyui, frames):
    """Wan at 64 x 64 cells, of a picture and of 2, 3 and 5 latent frames. The forecast is 13 % above, of each alike."""
    import families

    models = families.made("wan")
    latent = torch.zeros(1, 16, 1 + (frames - 1) // 4, 64, 64)
    forecasted = forecast(models, latent, False)
    peak = real_step(models, latent, False, Allocated).peak
    print(f"\n{frames} frames: forecast {forecasted.step / 1e6:.1f} MB, allocated {peak / 1e6:.1f} MB")
    assert peak <= forecasted.step <= 1.15 * peak


def test_a_clip_that_cannot_fit_names_what_to_lower(comfyui, run_node, monkeypatch):
    """Of frames, size and batch those that fit alone, by the forecast; the refusal comes before a step."""
    import families
    from helpers import image_set
    from moving import clip_of

    model, clip, vae = families.made("wan")
    images = image_set([clip_of(0, 17, (192, 256)), clip_of(1, 17, (192, 256))])
    given = dict(model=model, clip=clip, vae=vae, images=images, steps=1, batch_size=2, rank=2, precision="fp32")
    needed = []
    plan = offload.must_offload

    def remember(step, *rest, **more):
        needed.append(step)
        return plan(step, *rest, **more)

    monkeypatch.setattr(offload, "must_offload", remember)
    monkeypatch.setattr(offload, "FORECAST_FROM", 1e9)
    run_node("BespokeTrainLora", resume=False, **given)
    step = needed[-1].peak() - needed[-1].weights
    monkeypatch.setattr(offload, "available_memory", lambda device: int(0.7 * step))
    with pytest.raises(
        InputError,
        match=r"the largest clip has 17 frames of 256x192 px at batch_size 2, and any one of these fits: frames 5, a "
        r"size of \d+x\d+ px, batch_size 1,.*fewer frames of the clips",
    ):
        run_node("BespokeTrainLora", resume=False, **given)
