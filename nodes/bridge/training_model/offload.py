"""Whether a training step fits into the device's memory, and whether weights must be offloaded for that."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

import comfy.model_base
import comfy.model_management
import torch

from ....training.errors import InputError
from .memory_forecast import StepMemory

MEMORY_ADVICE = "batch_size 1 with gradient_accumulation, a smaller resolution of the pictures"
FORECAST_FROM = 50  # a model below 1/50 of the available memory gets no forecast


@dataclass(frozen=True)
class OffloadPlan:
    """How a MODEL is loaded for a training.

    leave_free: bytes of device memory to keep free of weights, None to load them all; see `prepare_for_training`.
    summary: the forecast, appended to the line before the first step; empty without a forecast.
    """

    leave_free: int | None = None
    summary: str = ""


def plan_offload(
    model,
    make_forecast: Callable[[], StepMemory],
    advice: str = MEMORY_ADVICE,
    what_fits: Callable[[Callable[[StepMemory], bool]], str] = lambda fits: "",
) -> OffloadPlan:
    """How to load a MODEL for a training.

    make_forecast: gives the memory of one step. advice: what a user can change to need less memory, for the error.
    what_fits: names, for the error, values with which a step fits; it is given a function that tells whether one does.
    Raises `InputError` where the step cannot fit, see `must_offload`.
    """
    device = model.load_device
    step = forecast_if_needed(model.model, device, make_forecast)
    if step is None:
        return OffloadPlan()
    given = available_memory(device), supports_offload(device), device.type == "cpu"

    def fits(other: StepMemory) -> bool:
        return _needed(other, *given) <= given[0]

    if not fits(step):
        with contextlib.suppress(Exception):  # as in `forecast_if_needed`; the error says the rest
            advice = ", ".join(part for part in (what_fits(fits), advice) if part)
    offload = must_offload(step, *given, advice)
    return OffloadPlan(step.without_weights if offload else None, f"; {describe_forecast(step, offload)}")


def forecast_if_needed(
    base: comfy.model_base.BaseModel, device: torch.device, make_forecast: Callable[[], StepMemory]
) -> StepMemory | None:
    """The forecast, or None for a small model and for a model whose code fails on fake tensors (as where it reads a
    tensor's values)."""
    if comfy.model_management.module_size(base) * FORECAST_FROM < available_memory(device):
        return None
    try:
        return make_forecast()
    except Exception as error:  # any kind: code of other packs runs here on fake tensors, which it was not written for
        logging.info("Bespoke: no forecast of the memory for a %s (%s)", type(base).__name__, error)
        return None


def available_memory(device: torch.device) -> int:
    """Bytes that a training may use: what is free on the device and what ComfyUI's loaded models there would free."""
    free = int(comfy.model_management.get_free_memory(device))  # pyright: ignore[reportArgumentType]
    if device.type != "cpu":
        loaded = (m for m in comfy.model_management.current_loaded_models if m.device == device and m.model is not None)
        free += sum(m.model_loaded_memory() for m in loaded) - comfy.model_management.extra_reserved_memory()
    return int(free)


def supports_offload(device: torch.device) -> bool:
    """Whether ComfyUI can keep weights in the computer's memory while the model runs on this device."""
    states = comfy.model_management.VRAMState
    return device.type != "cpu" and comfy.model_management.vram_state in (
        states.NO_VRAM,
        states.LOW_VRAM,
        states.NORMAL_VRAM,
    )


def must_offload(
    step: StepMemory, free: int, can_offload: bool, weights_loaded: bool = False, advice: str = MEMORY_ADVICE
) -> bool:
    """Whether weights must be offloaded for the step to fit into `free` bytes.

    can_offload: whether ComfyUI can offload on this device. weights_loaded: the weights are in this memory already, as
    on the CPU. advice: what a user can change, for the error.

    Where the step does not fit in any way, the CPU raises `InputError`, since the system would end the whole server.
    An accelerator reports by itself when its memory is full, so there the forecast is only logged as a warning.
    """
    if _needed(step, free, False, weights_loaded) <= free:
        return False
    needed = _needed(step, free, can_offload, weights_loaded)
    if needed <= free:
        return True
    message = (
        f"a step needs about {format_bytes(needed)}{' with the weights offloaded' if can_offload else ''} and "
        f"{format_bytes(free)} are free; what lowers it: {advice}"
    )
    if weights_loaded:
        raise InputError(message)
    logging.warning("Bespoke: %s. It is tried all the same", message)
    return can_offload


def _needed(step: StepMemory, free: int, can_offload: bool, weights_loaded: bool) -> int:
    """The bytes that a step needs: with the weights offloaded where it must be and can be; see `must_offload`."""
    needed = step.peak() - (step.weights - step.copies if weights_loaded else 0)
    return step.peak(offload=True) if can_offload and needed > free else needed


def describe_forecast(step: StepMemory, offload: bool) -> str:
    """The forecast in words, for the line before the first step."""
    weights = format_bytes(step.weights) + (", offloaded as far as they do not fit" if offload else "")
    return (
        f"{'at least' if offload else 'about'} {format_bytes(step.peak(offload))} at the peak (weights {weights}; step "
        f"{format_bytes(step.step)}; learned {format_bytes(step.trained)})"
    )


def format_bytes(size: int) -> str:
    """`size` bytes in GB from 0.1 GB on, else in MB (10^6 bytes)."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
