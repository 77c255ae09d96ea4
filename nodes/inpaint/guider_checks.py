"""What the mask blend expects of a guider or sampler of another pack, checked where it is relied on.

The blend is reached through ComfyUI's wrappers: `CFGGuider.sample` calls `OUTER_SAMPLE`, `inner_sample` calls
`SAMPLER_SAMPLE`, and each call of the guider calls `PREDICT_NOISE`, which gives one prediction of the state's shape.
Packs replace these methods on the class or override them. Where one of the four is missing, part of the picture would
be sampled without the blend, so the run ends with an `InputError` that names the node and the mend.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from ...training.errors import InputError
from .start import NODE

MEND = (
    "wire the model from before Latent Mask Blend into this sampler (the latent keeps its noise mask), or sample with "
    "KSampler or SamplerCustomAdvanced and a guider of ComfyUI's"
)


def refuse(what: str) -> NoReturn:
    raise InputError(f"{NODE}: {what}; {MEND}")


class MaskGuard:
    """The denoise-mask function of a patched model, which refuses to be called. earlier: the one that it replaces.

    A blended run gives the sampler no mask, so ComfyUI calls the function only where the `OUTER_SAMPLE` or the
    `SAMPLER_SAMPLE` wrapper was left out.
    """

    def __init__(self, earlier: Any = None):
        self.earlier = unguarded(earlier)

    def __call__(self, *args, **kwargs) -> NoReturn:
        refuse("the sampler masks by itself and leaves out the sampling wrappers of the model, so the blend is missed")


def unguarded(function: Any) -> Any:
    """The denoise-mask function without our guard, or None."""
    return function.earlier if isinstance(function, MaskGuard) else function


def check_guider(guider: Any) -> None:
    """Refuse a guider that does not have what every `CFGGuider` has."""
    for name in ("model_patcher", "model_options"):
        if not hasattr(guider, name):
            refuse(f"the guider {type(guider).__name__} has no {name}")


def checked_prediction(guider: Any, prediction: Any, x: torch.Tensor) -> torch.Tensor:
    """`prediction`, if it is one tensor of the shape of the state x [B, ...]. Else an `InputError`."""
    if not isinstance(prediction, torch.Tensor):
        given = type(prediction).__name__
        if isinstance(prediction, (tuple, list)):
            given += f" of {len(prediction)}"
        refuse(
            f"predict_noise of the guider {type(guider).__name__} gave a {given} where one prediction is due (as "
            "LanPaint's samplers do)"
        )
    if prediction.shape != x.shape:
        refuse(
            f"predict_noise of the guider {type(guider).__name__} gave the shape {list(prediction.shape)} for a state "
            f"of {list(x.shape)}"
        )
    return prediction


def check_state(x: torch.Tensor, mask: torch.Tensor) -> None:
    """Refuse a state [n, ...] that the mask [B, ...] cannot be told to cover: of other cells, or of other samples.

    A mask of one sample holds for any number of states.
    """
    if x.shape[1:] == mask.shape[1:] and mask.shape[0] in (1, x.shape[0]):
        return
    refuse(
        f"the sampler asks for a prediction of the shape {list(x.shape)} and the latent has {list(mask.shape)}, so it "
        "is not known which sample or part each mask is for"
    )


def checked_result(out: Any, latent: torch.Tensor, guider: Any) -> torch.Tensor:
    """The result of a run, if it has the latent's shape [B, ...]."""
    if not isinstance(out, torch.Tensor) or out.shape != latent.shape:
        given = list(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        refuse(f"the guider {type(guider).__name__} returned {given} for a latent of {list(latent.shape)}")
    return out
