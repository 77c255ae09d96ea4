"""A MODEL on the wire as the `Denoiser` that a training needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sd
import torch
from torch import Tensor

from ....training.adapters.dropout import part_of_batch
from ....training.errors import InputError
from ....training.objective import EDM_DATA, Denoiser, Prediction
from ..dataset.conditioning import ModelConds
from ..noise_level import noise_level
from ..wire.compatibility import Compatibility, check_compatibility, compatibility_of
from ..wire.weights import is_gguf, smoothed_layer
from .autograd_views import autocast_for, autograd_views, check_reloadable
from .backward_pass import prepared_for_backward
from .compiled_blocks import BlockCompiler, backend_for
from .frozen_linear import frozen_layers
from .inference_tensors import normal_tensors
from .sampling_call import SamplingCall, frozen_modules

_PREDICTIONS: dict[type, Prediction] = {
    comfy.model_sampling.EPS: "epsilon",
    comfy.model_sampling.V_PREDICTION: "v",
    comfy.model_sampling.CONST: "flow",
    comfy.model_sampling.X0: "x0",
    comfy.model_sampling.COSMOS_RFLOW: "velocity",
    comfy.model_sampling.EDM: "edm",
}
# v of a latent whose variance the noising keeps (CogVideoX); a host before 0.24 lacks it.
_KEEPS_VARIANCE = getattr(comfy.model_sampling, "V_PREDICTION_DDPM", None)
if _KEEPS_VARIANCE is not None:
    _PREDICTIONS[_KEEPS_VARIANCE] = "v"


def prediction_of(model_sampling) -> Prediction:
    """What the model's network predicts, from the class that turns its output into a clean latent.

    Raises `InputError` for a prediction type that no loss is known for.
    """
    rule = next(kind for kind in type(model_sampling).__mro__ if "calculate_denoised" in vars(kind))
    if rule.__name__ == "LCM" and issubclass(rule, comfy.model_sampling.EPS):
        # ModelSamplingDiscrete's: the clean latent of a noise prediction, mixed with x by less than 1e-5 at every noise
        # level that this sampling has.
        return "epsilon"
    if rule not in _PREDICTIONS:
        raise InputError(
            f"the model's prediction type {rule.__name__} cannot be trained here; "
            "wire in a model that predicts noise, v or flow, without a sampling node that changes that"
        )
    if _PREDICTIONS[rule] == "edm" and model_sampling.sigma_data != EDM_DATA:
        raise InputError(
            f"this model's EDM sampling is for latents of the standard deviation {model_sampling.sigma_data:g}, and "
            f"only {EDM_DATA:g} can be trained here; remove the node that changes its sampling"
        )
    return _PREDICTIONS[rule]


class ComfyDenoiser:
    """ComfyUI's `BaseModel` behind the `Denoiser` protocol. Made by `prepare_for_training`.

    patcher: the clone of the user's MODEL that is trained on. autocast: makes the context of the compute dtype. reload:
    the functions that bring the weights to the device, as many as are to be there, and prepare them for autograd.
    compute: the dtype that matrices are multiplied in, or None for the model's own. normal: see `normal_tensors`.
    compiler: of the blocks; None where they are not to be compiled.
    """

    prediction: Prediction

    def __init__(
        self,
        patcher: comfy.model_patcher.ModelPatcher,
        autocast: Callable[[], AbstractContextManager[Any]],
        reload: Sequence[Callable[[], None]],
        compute: torch.dtype | None = None,
        normal: Callable[[], AbstractContextManager[Any]] = nullcontext,
        compiler: BlockCompiler | None = None,
    ):
        base, device = patcher.model, patcher.load_device
        self.patcher, self.base, self.device, self.autocast = patcher, base, device, autocast
        self.compute, self._normal, self.compiler = compute, normal, compiler
        # A context without what a technique attaches for the steps alone; samples are drawn in it.
        self.without_steps_only: Callable[[], AbstractContextManager[None]] = nullcontext
        self.prediction = prediction_of(base.model_sampling)
        self._reload = reload
        # The training schedule as a table: discrete models have one noise level per timestep, flow models a fine grid.
        self._sigmas = base.model_sampling.sigmas.detach().float().clone().to(device)  # [T], rising
        self._call = SamplingCall(patcher, self._sigmas)
        self.compatibility: Compatibility = self._call.compatibility  # what other nodes have put on the MODEL

    def without_code(self) -> AbstractContextManager[None]:
        """A context in which the model is called without the patches and wrappers of other nodes."""
        return self._call.without_code()

    def sigma(self, t: Tensor) -> Tensor:
        """The noise levels [B] at timesteps `t` [B] in 0..1 of the training schedule: 0 clean, 1 noise."""
        index = (t.to(self.device) * len(self._sigmas)).long().clamp(0, len(self._sigmas) - 1)
        return self._sigmas[index]

    def timesteps_between(self, low: float, high: float) -> tuple[float, float]:
        """(from, to) in 0..1: the places t of the schedule with `low` <= level < `high`, or <= 1 where `high` is 1.

        low, high: levels as `noise_level` gives them. Raises `InputError` where there are none.
        """
        levels = noise_level(self.base.model_sampling, self._sigmas)  # [T], rising
        edges = torch.searchsorted(levels, torch.tensor([low, high], dtype=levels.dtype)).tolist()
        first = edges[0]
        last = len(levels) if high >= 1 else edges[1]
        if first >= last:
            raise InputError(
                f"the model's timesteps go from {levels[0]:g} to {levels[-1]:g} of 1, and it is trained on those from "
                f"{low:g} to {high:g} only; widen min_timestep to max_timestep, or take the node away that changes its "
                "sampling"
            )
        return first / len(levels), last / len(levels)

    def add_noise(self, sigma: Tensor, noise: Tensor, latent: Tensor) -> Tensor:
        """`latent` [B, C, ...] with `noise` of the same shape, at the noise levels `sigma` [B].

        As the network reads it: CogVideoX has no `calculate_input`, and its sampling scales what `noise_scaling` gives.
        """
        levels = sigma.reshape(-1, *[1] * (latent.ndim - 1))
        noisy = self.base.model_sampling.noise_scaling(levels, noise, latent)
        keeps = _KEEPS_VARIANCE is not None and isinstance(self.base.model_sampling, _KEEPS_VARIANCE)
        return noisy / (levels**2 + 1).sqrt() if keeps else noisy

    def denoise(self, noisy: Tensor, sigma: Tensor, conditioning: ModelConds) -> Tensor:
        """The model's estimate of the clean latent [B, C, ...].

        One call of the model, or one for each length of prompts where the model cannot batch several lengths, and one
        for each noise level where code on the wire may read it.
        """
        if conditioning.by_length:
            parts: list[Tensor] = []
            for rows, conds in conditioning.by_length:
                with part_of_batch(rows):
                    parts.append(self.denoise(noisy[rows], sigma[rows], conds))
            order = torch.tensor([row for rows, _ in conditioning.by_length for row in rows])
            return torch.cat(parts)[order.argsort().to(noisy.device)]
        with self.autocast(), self._normal():
            return self._call(self.base, noisy, sigma, conditioning)

    def move_to(self, device: torch.device) -> None:
        """Compute on `device` from now on; the caller has moved the base's weights there."""
        self.device, self._sigmas = device, self._sigmas.to(device)
        self.autocast = autocast_for(device, self.compute)

    def reload(self) -> None:
        """Bring the weights back to the device, ready for the next step, after something else has used the model."""
        for prepare in self._reload:
            prepare()
        self.patcher.pre_run()

    def release(self) -> None:
        """Let go of the patcher; `denoise` and `reload` cannot be called afterwards.

        Whatever still holds the denoiser would keep the patcher, a clone of the user's, until Python collects cycles.
        When a clone and its parent are collected together, ComfyUI does not see which patcher owns the loaded weights,
        and collects garbage at every further load of any model.
        """
        del self.patcher, self._call
        self._reload = ()


if TYPE_CHECKING:
    _holds_the_protocol: type[Denoiser] = ComfyDenoiser


def compute_type(base: comfy.model_base.BaseModel, device: torch.device, precision: str) -> torch.dtype | None:
    """The dtype that matrices are multiplied in, or None for the model's own.

    precision: "fp32", "bf16", "fp16" or "auto". `auto` is bfloat16 for float32 and float16 weights where the device has
    fast bfloat16, since it is faster and, unlike float16, does not lose small gradients; otherwise the model's own.
    Raises `InputError` for fp32 where the model computes in a narrower dtype.
    """
    own = base.get_dtype_inference()
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    if wanted is None:
        if own == torch.bfloat16:
            return None
        return torch.bfloat16 if _has_fast_bf16(device) else None
    if wanted == torch.float32 and own == torch.float64:
        return None  # float64 is more exact
    if wanted == torch.float32 and own != torch.float32:
        raise InputError(
            f"precision is fp32 and the model computes in {own}; start ComfyUI with --force-fp32 or choose 'auto'"
        )
    return None if wanted == own else wanted


def wider_precision(base: comfy.model_base.BaseModel, compute: torch.dtype | None) -> str:
    """What to change, so that fewer numbers overflow; "" where matrices are multiplied in float32 or float64 already.

    compute: what `compute_type` gave.
    """
    own = base.get_dtype_inference()
    if (compute or own) in (torch.float32, torch.float64):
        return ""
    if own in (torch.float32, torch.float64):
        return "choose precision fp32"
    return "start ComfyUI with --force-fp32 and choose precision fp32"


def _has_fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


@contextmanager
def prepare_for_training(
    model: comfy.model_patcher.ModelPatcher,
    precision: str = "auto",
    gradient_checkpointing: bool = False,
    leave_free: int | None = None,
    compile: bool = False,
) -> Iterator[ComfyDenoiser]:
    """The MODEL loaded as it is on the wire (patches, shifts, wrappers), frozen, with gradients able to flow.

    Works on a clone of the patcher; after the block every weight is the same object with the same bits. The block runs
    outside of inference mode with gradients enabled. leave_free: load only as many weights as leave that many bytes of
    the device free, and stream the others layer by layer at each call; None loads all. compile: compile the blocks
    where that can be done; the denoiser's `compiler` says what became of it. Raises `InputError` for a model
    whose weights cannot be trained through.
    """
    check_wire(model)
    check_reloadable(model, "MODEL", "diffusion model")
    with torch.inference_mode(False), torch.enable_grad():
        patcher = model.clone(disable_dynamic=True)  # evictable weights could change while autograd has saved them
        _load(patcher, leave_free)
        base, device = patcher.model, patcher.load_device
        compute = compute_type(base, device, precision)
        normal, wire = normal_tensors(patcher), compatibility_of(patcher)
        compiler = BlockCompiler(*backend_for(device, wire.code, leave_free is not None)) if compile else None
        was_training = comfy.model_management.in_training
        comfy.model_management.in_training = True
        try:
            patcher.pre_run()  # runs other packs' callbacks too
            with (
                frozen_modules(wire.modules),
                frozen_layers(base, compute) as freeze,
                autograd_views(base, device, compute) as make_views,
                prepared_for_backward(base.diffusion_model, gradient_checkpointing, normal, compiler),
            ):
                reload = (partial(_load, patcher, leave_free), freeze, make_views)
                denoiser = ComfyDenoiser(patcher, autocast_for(device, compute), reload, compute, normal, compiler)
                try:
                    yield denoiser
                finally:
                    denoiser.release()
        finally:
            comfy.model_management.in_training = was_training
            patcher.cleanup()


def _load(patcher: comfy.model_patcher.ModelPatcher, leave_free: int | None) -> None:
    # Further models, which other nodes' code calls; clones for more devices do a sampling's work, not a training's.
    further = [each for each in patcher.get_nested_additional_models() if not each.is_multigpu_base_clone]
    comfy.model_management.load_models_gpu(
        [patcher, *further], memory_required=leave_free or 0, force_full_load=leave_free is None
    )


def check_wire(model: comfy.model_patcher.ModelPatcher, clip: comfy.sd.CLIP | None = None) -> None:
    """Raise `InputError` for a MODEL or CLIP with which a training would be wrong: see `check_not_gguf`,
    `check_not_smoothed`, `check_compatibility`.
    """
    check_not_gguf(model)
    check_not_smoothed(model)
    check_compatibility(model, clip)


def check_not_gguf(model: comfy.model_patcher.ModelPatcher) -> None:
    """Raise `InputError` for a model from a GGUF file: its layers dequantise weights by themselves, without a
    gradient."""
    if is_gguf(model):
        raise InputError(
            "this MODEL comes from a GGUF file, whose weights cannot be trained through; load the same model from a "
            "safetensors file (fp8 is nearly as small) with Load Diffusion Model, train, and use the LoRA on the "
            "GGUF model"
        )


def check_not_smoothed(model: comfy.model_patcher.ModelPatcher) -> None:
    """Raise `InputError` for a model whose layers scale their input before the quantised matrix (Lin et al. 2023, arXiv
    2306.00978).

    ComfyUI adds a LoRA to that matrix, so its numbers would be multiplied with the scaled input: one that is trained on
    the plain input acts otherwise there, and one trained on the scaled input acts otherwise on every other file.
    """
    layer = smoothed_layer(model)
    if layer is not None:
        raise InputError(
            f"this MODEL's layers scale their input before a quantised matrix ({layer}.pre_quant_scale), and ComfyUI "
            "would use a LoRA otherwise there than it was trained; load the same model from a bf16 or fp8 file"
        )
