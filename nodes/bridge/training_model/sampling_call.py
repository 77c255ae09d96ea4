"""Calls a model as ComfyUI's sampling calls it, for a batch whose samples each have a noise level of their own."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sampler_helpers
import torch
from torch import Tensor, nn

from ....training.adapters.dropout import part_of_batch
from ..dataset.conditioning import ModelConds
from ..wire.compatibility import compatibility_of
from .backward_check import checked_attention, checked_patches

_CONDITIONAL = [0]  # `cond_or_uncond` of a call with positive prompts alone, as sampling makes it at CFG 1


class SamplingCall:
    """What the patcher's own sampling would pass to the model, with an attention that has a backward pass.

    patcher: loaded, with the wire's patches. sigmas: the training schedule [T], rising.

    As `sample_sigmas`, the noise levels of a whole sampling, the code on the wire gets the training schedule from noise
    to clean with a last 0: each noise level of a training is in it. `uuids` name one conditioning through a sampling;
    here each call has a new one, so that nothing is taken for the conditioning of an earlier call.
    """

    def __init__(self, patcher: comfy.model_patcher.ModelPatcher, sigmas: Tensor) -> None:
        self.compatibility = compatibility_of(patcher)
        self._patcher = patcher
        self._sample_sigmas = torch.cat([sigmas.flip(0), sigmas.new_zeros(1)])
        self._model_options: dict[str, Any] = comfy.model_patcher.create_model_options_clone(patcher.model_options)
        comfy.sampler_helpers.prepare_model_patcher(patcher, {}, self._model_options)  # merges wrappers and callbacks
        options = self._model_options["transformer_options"]
        own = options.get("optimized_attention_override")
        options["optimized_attention_override"] = _attention if own is None else checked_attention(own, _attention)
        for name in ("patches", "patches_replace"):
            if name in options:
                options[name] = checked_patches(options[name])
        self._wrapper = self._model_options.get("model_function_wrapper")

    def __call__(self, base: Any, noisy: Tensor, sigma: Tensor, conditioning: ModelConds) -> Tensor:
        """The model's estimate of the clean latent [B, C, ...] at the noise levels [B].

        One call of the model, or, where code on the wire may read the noise level, one for each level, or, where it
        takes one sample at a time, one for each sample.
        """
        rows = rows_by_level(sigma) if self.compatibility.by_sample else []
        if self.compatibility.one_row:
            rows = [[row] for row in range(len(sigma))]
        if len(rows) < 2:
            return self._call(base, noisy, sigma, conditioning)
        parts: list[Tensor] = []
        for own in rows:
            with part_of_batch(own):
                parts.append(self._call(base, noisy[own], sigma[own], conditioning.of(own)))
        order = torch.tensor([row for own in rows for row in own])
        return torch.cat(parts)[order.argsort().to(noisy.device)]

    def _call(self, base: Any, noisy: Tensor, sigma: Tensor, conditioning: ModelConds) -> Tensor:
        options = self._options(sigma)
        inputs = {**conditioning.tensors(), "transformer_options": options}
        self._patcher.prepare_state(sigma, self._model_options)
        if self._wrapper is None:
            return base.apply_model(noisy, sigma, **inputs)
        given = {"input": noisy, "timestep": sigma, "c": inputs, "cond_or_uncond": list(_CONDITIONAL)}
        return self._wrapper(base.apply_model, given)

    def _options(self, sigma: Tensor) -> dict[str, Any]:
        options: dict[str, Any] = self._model_options["transformer_options"]
        # Code on the wire may write into what it gets; sampling copies it for each call too.
        options = comfy.patcher_extension.copy_nested_dicts(options) if self.compatibility.code else dict(options)
        options["sample_sigmas"] = self._sample_sigmas.to(sigma.device)
        options["cond_or_uncond"], options["uuids"], options["sigmas"] = list(_CONDITIONAL), [uuid.uuid4()], sigma
        return options

    @contextmanager
    def without_code(self) -> Iterator[None]:
        """Within the block the model is called without patches, wrappers and replaced attention."""
        before = self._model_options, self._wrapper
        self._model_options, self._wrapper = {"transformer_options": {"optimized_attention_override": _attention}}, None
        try:
            yield
        finally:
            self._model_options, self._wrapper = before


@contextmanager
def frozen_modules(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within the block no gradient goes to the parameters of `modules`, which code on the wire holds.

    What such code computes of its own inputs and keeps for later steps then has no graph either.
    """
    trained = [each for module in modules for each in module.parameters() if each.requires_grad]
    for each in trained:
        each.requires_grad_(False)
    try:
        yield
    finally:
        with torch.inference_mode():  # outside of it an inference tensor cannot be set back
            for each in trained:
                each.requires_grad_(True)


def rows_by_level(sigma: Tensor) -> list[list[int]]:
    """The positions in a batch of each noise level, in the order of their first appearance. sigma: [B]."""
    rows: dict[float, list[int]] = {}
    for row, level in enumerate(sigma.tolist()):
        rows.setdefault(level, []).append(row)
    return list(rows.values())


def _attention(_default, *args, **kwargs):
    return comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)
