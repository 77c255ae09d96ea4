"""Measures one training, one loop of another program, or one call: its seconds, its memory and its forecast."""

from __future__ import annotations

import contextlib
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import inprocess
import torch
from bespoke.nodes.bridge.dataset import conditioning
from bespoke.nodes.bridge.models import target_layers
from bespoke.nodes.bridge.training_model import offload
from bespoke.nodes.bridge.training_model.denoiser import prepare_for_training
from bespoke.nodes.bridge.training_model.memory_forecast import StepMemory
from bespoke.training.objective import denoising_loss
from helpers import sprite_set

from on_gpu import models

RANK = 16


def wait() -> None:
    """Wait until the GPU has done what was queued."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def clear() -> None:
    """Give back the memory that the allocator keeps, and start its peak anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gb() -> float | None:
    """The peak of torch's allocator on the GPU since `clear`, 10^9 bytes; None without a GPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None


@contextlib.contextmanager
def forecasts() -> Iterator[list[tuple[StepMemory, bool]]]:
    """The list of (forecast, whether weights are offloaded) of the trainings within the block, of small models too."""
    found: list[tuple[StepMemory, bool]] = []
    plain, least = offload.must_offload, offload.FORECAST_FROM

    def noted(step: StepMemory, *args: Any, **more: Any) -> bool:
        found.append((step, plain(step, *args, **more)))
        return found[-1][1]

    offload.must_offload, offload.FORECAST_FROM = noted, 10**12
    try:
        yield found
    finally:
        offload.must_offload, offload.FORECAST_FROM = plain, least


@contextlib.contextmanager
def stamps() -> Iterator[list[tuple[int, float]]]:
    """The list of (step, seconds) at each report of ComfyUI's progress within the block, with the GPU waited for."""
    import comfy.utils

    found: list[tuple[int, float]] = []

    def note(value: int, *_: Any, **__: Any) -> None:
        wait()
        found.append((value, time.perf_counter()))

    comfy.utils.set_progress_bar_global_hook(note)
    try:
        yield found
    finally:
        comfy.utils.set_progress_bar_global_hook(None)


def step_ms(found: list[tuple[int, float]]) -> float | None:
    """The median milliseconds of a step, without the first one; None where fewer than two steps were reported."""
    later = [stamp for stamp in found if stamp[0] >= 1]
    pairs = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(later) if b[0] > a[0]]
    return 1e3 * statistics.median(pairs) if pairs else None


def train(three: tuple[Any, Any, Any], px: int, steps: int, node: str = "BespokeTrainLora", **settings: Any) -> dict:
    """A training by the node, in bfloat16: its row. three: (model, clip, vae)."""
    model, clip, vae = three
    inputs = dict(
        model=model, clip=clip, vae=vae, images=sprite_set(1, 4, colour="teal", side=px), steps=steps, seed=0,
        learning_rate=1e-5, precision="bf16", resume=False,
    )  # fmt: skip
    if node == "BespokeTrainLora":
        inputs |= dict(rank=RANK, alpha=float(RANK))
    clear()
    began = time.perf_counter()
    with forecasts() as found, stamps() as times:
        outputs = inprocess.call_node(node, **inputs | settings)
    row = dict(seconds=time.perf_counter() - began, step_ms=step_ms(times), peak_gb=peak_gb())
    run = next(value for value in outputs if hasattr(value, "start_line"))
    row |= dict(trained=run.info.trained)
    return row | forecast_of(found, row["peak_gb"])


def forecast_of(found: list[tuple[StepMemory, bool]], peak: float | None) -> dict:
    """The columns of the first forecast; empty without one."""
    if not found:
        return {}
    step, offloaded = found[0]
    forecast = step.peak(offloaded) / 1e9
    return dict(forecast_gb=forecast, offloaded=offloaded, off=forecast / peak if peak else None)


def bare(three: tuple[Any, Any, Any], name: str, px: int, batch: int, checkpointing: bool, steps: int) -> dict:
    """Forward and backward of the prepared model alone: no adapter, no optimiser.

    The backward pass goes down to the output of the first layer that a LoRA would have.
    """
    model, clip, _ = three
    clear()
    with prepare_for_training(model, "bf16", checkpointing) as denoiser:
        first = next(iter(target_layers(denoiser.base.diffusion_model, "cross-attention").values()))
        latent = torch.randn(models.latent_shape(name, px, batch), device=denoiser.device)
        prompt = conditioning.encode_prompt(clip, "a red circle")
        one = conditioning.model_conds(denoiser.base, *prompt, latent[:1], denoiser.device)
        joined = conditioning.join_conds([one] * batch)
        sigma, noise = denoiser.sigma(torch.full((batch,), 0.5)), torch.randn_like(latent)
        hook = first.register_forward_hook(lambda _, __, out: out.requires_grad_(True))
        try:
            ms = 1e3 * timed(lambda: denoising_loss(denoiser, latent, noise, sigma, joined).mean().backward(), steps)
        finally:
            hook.remove()
    return dict(step_ms=ms, peak_gb=peak_gb())


def timed(call: Callable[[], Any], count: int, warm: int = 2) -> float:
    """The median seconds of `count` calls after `warm` others, with the GPU waited for."""
    for _ in range(warm):
        call()
    found = []
    for _ in range(count):
        wait()
        began = time.perf_counter()
        call()
        wait()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


@contextlib.contextmanager
def card(gb: float) -> Iterator[float]:
    """Within the block the GPU has no more than `gb` GiB less 8 % (driver, desktop): the rest is taken.

    Gives how much that is, 10^9 bytes, which counts in torch's peak.
    """
    if not torch.cuda.is_available():
        yield 0.0
        return
    clear()
    free, _ = torch.cuda.mem_get_info()
    taken = torch.empty(max(0, free - int(gb * 2**30 * 0.92)), dtype=torch.uint8, device="cuda")
    try:
        yield taken.nbytes / 1e9
    finally:
        del taken
        torch.cuda.empty_cache()
