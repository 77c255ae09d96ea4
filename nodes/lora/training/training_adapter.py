"""A LoRA that is part of the base in the steps of a training alone, as the published way to train distilled bases.

A distilled base (Z-Image Turbo, FLUX schnell) draws in a few steps. A training on pictures undoes the distillation
sooner than it teaches anything. A training adapter undoes it beforehand: it is in the model while the loss is computed,
and what is trained learns only the rest. Without the adapter the base draws in few steps as before, with what was
learned. This is `assistant_lora_path` of ai-toolkit, which has it on in training and off in sampling:
https://huggingface.co/ostris/zimage_turbo_training_adapter.

The adapter is computed beside the layers, `W x + strength * B (A x)`, so no weight of the base changes, quantised and
offloaded weights are as exact as without it, and it can be taken off for a sample in no time. Adapters that are not two
factors have the weight of their layer computed at each call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ....training.errors import InputError
from ..files import as_named_lora
from ..injection.bypass import Share, attach, can_bypass, hookable_layer, module_of
from ..match import match
from ..named_lora import NamedLora
from ..patch import Patch
from ..wording import listed

WEIGHT = ".weight"


class TrainingAdapter:
    """A LoRA's layers that belong to a model and, where that is trained, to its text encoder.

    Raises `InputError` for a LoRA with layers that belong to neither, and for one that cannot be computed at each call.
    """

    def __init__(self, lora: Mapping[str, Tensor], strength: float, model: Any, clip: Any) -> None:
        """lora: as any program names it. model: a MODEL. clip: the CLIP where the text encoder runs in the steps."""
        named = as_named_lora(lora)
        with torch.inference_mode(False):  # copies, since autograd does not save a loader's tensors of inference mode
            tensors = {key: tensor.detach().clone() for key, tensor in named.items()}
        named = NamedLora(tensors, named.name, named.meta, named.programs)
        found = match(model, clip, named)
        if found.unmatched:
            raise InputError(
                f"training_adapter has {len(found.unmatched)} layers that this model does not have, such as "
                f"{listed(found.unmatched, 3)}; give the training adapter that was made for this base"
            )
        self.strength, self.nbytes = strength, sum(tensor.nbytes for tensor in named.values())
        self.left_out = len(found.no_clip)  # layers of a text encoder that does not run in the steps
        self._model, self._clip = found.model, found.clip
        sides = [(model.model, found.model)] + ([] if clip is None else [(clip.cond_stage_model, found.clip)])
        for module, patches in sides:
            odd = [patch.layer for patch in patches if not can_bypass(module_of(module, patch.weight), patch)]
            if odd:
                raise InputError(
                    f"training_adapter changes {len(odd)} weights that cannot be changed for the steps alone, such as "
                    f"{listed(odd, 3)}; give an adapter of linear and convolution layers"
                )

    @property
    def layers(self) -> int:
        """How many layers it changes."""
        return len({patch.weight for patch in (*self._model, *self._clip)})

    def weights_read_at_call(self, layers: Collection[str], base: nn.Module) -> list[str]:
        """Those of the layers, by ComfyUI's name, whose weight this adapter computes anew at each call of `base`."""
        names = {patch.weight: patch for patch in self._model if patch.weight.endswith(WEIGHT)}
        return [
            name
            for name in layers
            if (patch := names.get(name + WEIGHT)) and hookable_layer(module_of(base, patch.weight), patch) is None
        ]

    @contextmanager
    def attached(
        self, base: nn.Module, device: torch.device, text: nn.Module | None, text_device: torch.device | None
    ) -> Iterator[None]:
        """Within the block `base` and the text encoder compute with the adapter. device: where each computes."""
        undo = attach(base, self._weighted(self._model), Share(), device)
        try:
            if text is not None and text_device is not None:
                undo += attach(text, self._weighted(self._clip), Share(), text_device)
            yield
        finally:
            for each in undo:
                each()

    def _weighted(self, patches: Sequence[Patch]) -> list[tuple[float, Patch]]:
        return [(self.strength, patch) for patch in patches]

    def describe(self) -> str:
        """A sentence of the report."""
        more = (
            f" {self.left_out} more layers are of the text encoder, which does not run in the steps, and are left out."
            if self.left_out
            else ""
        )
        return (
            f"The training adapter ({self.layers} layers, strength {self.strength:g}) was part of the base in the "
            "training steps and in the losses above; it is not in the samples, the outputs and the file." + more
        )


class Attachments:
    """Contexts that are entered in their order, and that can be left for a while, from the last one on."""

    def __init__(self, contexts: Sequence[Callable[[], AbstractContextManager[None]]]) -> None:
        self._contexts = contexts
        self._stacks: list[ExitStack] = []

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Within the block all of them are entered."""
        try:
            self._enter(len(self._contexts))
            yield
        finally:
            self._leave(0)

    @contextmanager
    def without(self, first: int) -> Iterator[None]:
        """Within the block, which lies in one of `attached`, the contexts from number `first` on are left."""
        count = len(self._stacks)
        self._leave(first)
        try:
            yield
        finally:
            self._enter(count)

    def _enter(self, count: int) -> None:
        for context in self._contexts[len(self._stacks) : count]:
            stack = ExitStack()
            stack.enter_context(context())
            self._stacks.append(stack)

    def _leave(self, first: int) -> None:
        while len(self._stacks) > first:
            self._stacks.pop().close()
