"""A MODEL on the wire as the `Denoiser` that a training needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import comfy.ldm.modules.attention
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.patcher_extension
import torch
from torch import Tensor

from ....training.errors import InputError
from ....training.objective import Prediction
from ..dataset.conditioning import ModelConds
from ..models import checkpoint_blocks, overwritten
from .autograd_views import autocast_for, autograd_views, refuse_evictable
from .checkpointing import checkpointed
from .frozen_linear import frozen_layers
from .in_place import keep_layer_inputs

_PREDICTIONS: dict[type, Prediction] = {
    comfy.model_sampling.EPS: "epsilon",
    comfy.model_sampling.V_PREDICTION: "v",
    comfy.model_sampling.CONST: "flow",
    comfy.model_sampling.X0: "x0",
}


def prediction_of(model_sampling) -> Prediction:
    """Which target the model's network was trained on: whose rule turns its output into a clean latent."""
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
    return _PREDICTIONS[rule]


class ComfyDenoiser:
    """ComfyUI's `BaseModel` behind the `Denoiser` protocol. Made by `prepare_for_training`.

    work: the clone of the user's MODEL that is trained on. autocast: the context of the compute type. load: brings the
    weights to the device, or as many as are to be there, and makes them fit for autograd. compute: the type that
    matrices
    are multiplied in, or None for the model's own.
    """

    def __init__(
        self,
        work: comfy.model_patcher.ModelPatcher,
        transformer_options: dict,
        autocast,
        load: Callable[[], None],
        compute: torch.dtype | None = None,
    ):
        base, device = work.model, work.load_device
        self.work, self.base, self.device, self.autocast, self._load = work, base, device, autocast, load
        self.compute = compute
        self.prediction = prediction_of(base.model_sampling)
        self._transformer_options = transformer_options
        # A table of the training schedule: discrete models have one noise level a timestep, flow models a fine grid.
        self._sigmas = base.model_sampling.sigmas.detach().float().clone().to(device)  # [T], rising

    def sigma(self, t: Tensor) -> Tensor:
        index = (t.to(self.device) * len(self._sigmas)).long().clamp(0, len(self._sigmas) - 1)
        return self._sigmas[index]

    def add_noise(self, sigma: Tensor, noise: Tensor, latent: Tensor) -> Tensor:
        return self.base.model_sampling.noise_scaling(sigma.reshape(-1, *[1] * (latent.ndim - 1)), noise, latent)

    def denoise(self, noisy: Tensor, sigma: Tensor, conditioning: ModelConds) -> Tensor:
        if conditioning.apart:
            parts = [self.denoise(noisy[where], sigma[where], own) for where, own in conditioning.apart]
            order = torch.tensor([i for where, _ in conditioning.apart for i in where])
            return torch.cat(parts)[order.argsort().to(noisy.device)]
        with self.autocast():
            return self.base.apply_model(
                noisy, sigma, transformer_options=self._transformer_options, **conditioning.tensors()
            )

    def move_to(self, device: torch.device) -> None:
        """Compute on `device` from now on, where the caller has put the base's weights."""
        self.device, self._sigmas = device, self._sigmas.to(device)
        self.autocast = autocast_for(device, self.compute)

    def reload(self) -> None:
        """Back on the device and ready for the next step, after something else has used the model."""
        self._load()
        self.work.pre_run()


def compute_type(base: comfy.model_base.BaseModel, device: torch.device, precision: str) -> torch.dtype | None:
    """The type that matrices are multiplied in, or None for the model's own.

    `auto`: bfloat16 for float32 and float16 weights where the processor has it, since it is faster and, unlike
    float16, loses no small gradient; otherwise the model's own.
    """
    own = base.get_dtype_inference()
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    if wanted is None:
        if own == torch.bfloat16:
            return None
        return torch.bfloat16 if _has_fast_bf16(device) else None
    if wanted == torch.float32 and own == torch.float64:
        return None  # more exact still
    if wanted == torch.float32 and own != torch.float32:
        raise InputError(
            f"precision is fp32 and the model computes in {own}; start ComfyUI with --force-fp32 or choose 'auto'"
        )
    return None if wanted == own else wanted


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
) -> Iterator[ComfyDenoiser]:
    """The MODEL loaded as it is on the wire (patches, shifts, wrappers), frozen, with gradients able to flow.

    Works on a clone of the patcher; every weight is the same object with the same bits after the block. The block
    runs outside of inference mode with gradients on. leave_free: load only as many weights as leave that many bytes of
    the device free, and bring the others there layer by layer at each call; None loads all. Raises `InputError` for a
    model whose weights cannot be trained through.
    """
    refuse_gguf(model)
    refuse_evictable(model, "MODEL", "diffusion model")
    with torch.inference_mode(False), torch.enable_grad():
        work = model.clone(disable_dynamic=True)  # evictable weights could change under a saved graph
        _load(work, leave_free)
        base, device = work.model, work.load_device
        blocks = checkpoint_blocks(base.diffusion_model) if gradient_checkpointing else []
        in_place = overwritten(base.diffusion_model)
        options = comfy.model_patcher.create_model_options_clone(work.model_options)["transformer_options"]
        options["wrappers"] = comfy.patcher_extension.copy_nested_dicts(work.wrappers)
        options["callbacks"] = comfy.patcher_extension.copy_nested_dicts(work.callbacks)
        # One attention for the whole run, and one that has a backward pass.
        options["optimized_attention_override"] = _attention
        compute = compute_type(base, device, precision)
        autocast = autocast_for(device, compute)
        was_training = comfy.model_management.in_training
        comfy.model_management.in_training = True
        try:
            work.pre_run()  # other packs' callbacks among it
            with (
                frozen_layers(base, compute) as recast,
                autograd_views(base, device, compute) as ready,
                keep_layer_inputs(in_place),
                checkpointed(blocks, bool(in_place)),
            ):

                def load() -> None:
                    _load(work, leave_free)
                    recast()
                    ready()

                yield ComfyDenoiser(work, options, autocast, load, compute)
        finally:
            comfy.model_management.in_training = was_training
            work.cleanup()


def _load(work: comfy.model_patcher.ModelPatcher, leave_free: int | None) -> None:
    comfy.model_management.load_models_gpu([work], memory_required=leave_free or 0, force_full_load=leave_free is None)


def refuse_gguf(model: comfy.model_patcher.ModelPatcher) -> None:
    """Raises `InputError` for a model from a GGUF file: its layers read those weights themselves, and without a
    gradient."""
    kinds = {kind.__name__ for kind in type(model).__mro__}
    kinds |= {kind.__name__ for layer in model.model.modules() for kind in type(layer).__mro__}
    if kinds & {"GGUFModelPatcher", "GGMLLayer"}:
        raise InputError(
            "this MODEL comes from a GGUF file, whose weights cannot be trained through; load the same model from a "
            "safetensors file (fp8 is nearly as small) with Load Diffusion Model, train, and use the LoRA on the "
            "GGUF model"
        )


def _attention(_chosen, *args, **kwargs):
    return comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)
