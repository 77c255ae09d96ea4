"""Modules of a MODEL that another node has replaced by what `torch.compile` gives, by an object patch.

Such a module holds the model's own one under `_orig_mod`, so while it is in place the weights have other names, and
ComfyUI's patches of weights, which go by name, find none of them: a LoRA is lost without a word. Core's
TorchCompileModel puts its module in place within each call only, where no name is read.
"""

from __future__ import annotations

from typing import Any

import comfy.model_management
from torch import nn

from ....training.errors import InputError


def compiled_objects(patcher: Any) -> list[str]:
    """The object patches of a patcher that hold a compiled module, by the place that they replace."""
    return [
        name
        for name, value in patcher.object_patches.items()
        if isinstance(value, nn.Module) and any(map(_is_compiled, value.modules()))
    ]


def restore_names(patcher: Any) -> None:
    """See to it that the weights of a MODEL have their own names, as a LoRA is matched to them.

    Where a clone with compiled modules is loaded, it is unloaded: it shares the base model. Raises `InputError` where
    the MODEL itself carries one.
    """
    found = compiled_objects(patcher)
    if found:
        raise InputError(
            f"the MODEL carries a compiled module in the place of {found[0]}, beside which ComfyUI finds no weight of "
            "it by its name, so the LoRA would be lost there; take the node away that compiles it, or compile with "
            "TorchCompileModel of ComfyUI instead"
        )
    if any(map(_is_compiled, patcher.model.modules())):
        comfy.model_management.unload_model_and_clones(patcher)


def restore_own_modules(patcher: Any) -> None:
    """See to it that the base model of a MODEL has its own modules and functions, as a training looks at them.

    All clones share the base model, and ComfyUI leaves the object patches and injections of the one that was used last
    in it. A clone that has put something else than a noise schedule there is unloaded.
    """
    loaded = (each.model for each in comfy.model_management.current_loaded_models)
    clones = [each for each in loaded if each is not None and each.model is patcher.model]
    if any(each.is_injected or set(each.object_patches_backup) - {"model_sampling"} for each in clones):
        comfy.model_management.unload_model_and_clones(patcher)


def _is_compiled(module: nn.Module) -> bool:
    return "_orig_mod" in module._modules
