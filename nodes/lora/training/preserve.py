"""Holds the trained model to the base at prompts of the class, and measures how far it moved there."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import comfy.model_management
import torch
from torch import Tensor

from ....training.adapters import Adapter, AdapterSet
from ....training.captions import as_prompt, without_words
from ....training.data import Batch
from ....training.distributed import World
from ....training.images import TrainingImage, by_picture
from ....training.leak import MOST_PICTURES, LeakMeter, spread
from ....training.objective import prediction_change, preservation_loss
from ....training.randomness import generator
from ....training.validation import grid_batch
from ...bridge.dataset.captions import CaptionConditioning
from ...bridge.dataset.conditioning import ModelConds
from ...bridge.dataset.pictures import Pictures
from ...bridge.training_model.denoiser import ComfyDenoiser


def lines_of(text: str) -> list[str]:
    """The prompts of `preserve`: one a line, without blank lines and repetitions."""
    return list(dict.fromkeys(line for line in map(str.strip, text.splitlines()) if line))


def drawn_prompts(batch: Batch, prompts: Sequence[str]) -> list[str]:
    """One of `prompts` for each sample, a function of the batch's seed and number and the sample's position."""
    draws = (generator(batch.seed, "preserve", batch.number, position) for position in batch.sample_positions)
    return [prompts[int(torch.randint(len(prompts), (), generator=draw))] for draw in draws]


def untriggered_prompt(item: TrainingImage) -> str:
    """The prompt of a picture's first caption without its trigger words; the empty one where it has none."""
    if not item.trigger:
        return ""
    left = reduce(without_words, item.trigger.splitlines(), item.caption)
    return as_prompt(left, item.caption_syntax)


def leak_prompts(pictures: Pictures) -> list[tuple[int, str]]:
    """The pictures and prompts that the leak may be measured at where `preserve` is empty."""
    sets = [pictures.held_out_indices, *(held_out for _, held_out in pictures.folds)]
    return [(i, untriggered_prompt(pictures.items[i])) for indices in sets for i in leak_pictures(pictures, indices)]


def leak_pictures(pictures: Pictures, indices: Sequence[int]) -> list[int]:
    """One index of each of the first held-out pictures, at most `MOST_PICTURES`."""
    copies = by_picture(pictures.items[i] for i in indices)
    return [indices[own[0]] for own in copies[:MOST_PICTURES]]


class BaseComparison:
    """Compares the model with adapters with the model without them. For the time in which these are attached.

    prompts: those of `preserve`. known: the keys of the prompts that are encoded; None where the text encoder is
    trained, which encodes any. weighting: see `objective.loss_weight`.
    """

    def __init__(
        self,
        denoiser: ComfyDenoiser,
        pictures: Pictures,
        captions: CaptionConditioning,
        adapters: AdapterSet[Adapter],
        prompts: Sequence[str],
        known: frozenset[str] | None,
        weighting: str,
    ) -> None:
        self._denoiser, self._pictures, self._captions, self._adapters = denoiser, pictures, captions, adapters
        self._prompts, self._known, self._weighting = prompts, known, weighting

    def loss(self, batch: Batch) -> Tensor:
        """The loss [B] of a batch at drawn prompts; see `objective.preservation_loss`."""
        prompts = drawn_prompts(batch, self._prompts)

        def conditioning() -> ModelConds:
            return self._captions.of_batch(batch.indices, prompts)

        denoiser = self._denoiser
        sigma, detached = denoiser.sigma(batch.t), self._adapters.detached
        return preservation_loss(denoiser, batch.latent, batch.noise, sigma, conditioning, detached, self._weighting)

    def leak_meter(
        self, indices: Sequence[int], steps: Sequence[int], timesteps: Sequence[float], world: World
    ) -> LeakMeter:
        """What measures the leak after `steps` on the pictures `indices` at each of `timesteps`.

        At the prompts of `preserve`, or else at the pictures' captions without the trigger word.
        """
        levels, items, device = len(timesteps), self._pictures.items, self._denoiser.device
        others = [
            spread(self._prompts, levels, number * levels) if self._prompts else [self._untriggered(index)] * levels
            for number, index in enumerate(indices)
        ]
        return LeakMeter(
            [grid_batch(self._pictures.data, index, number, device, timesteps) for number, index in enumerate(indices)],
            others,
            [[items[index].prompt] * levels for index in indices],
            self._predict,
            self._change,
            self._adapters.detached,
            frozenset(steps),
            world,
        )

    def _untriggered(self, index: int) -> str:
        """`untriggered_prompt`, or the empty prompt where a job's set of encoded prompts lacks it."""
        prompt = untriggered_prompt(self._pictures.items[index])
        return prompt if self._known is None or self._pictures.prompt_key(index, prompt) in self._known else ""

    def _predict(self, batch: Batch, prompts: Sequence[str]) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        denoiser, sigma = self._denoiser, self._denoiser.sigma(batch.t)
        noisy = denoiser.add_noise(sigma, batch.noise, batch.latent)
        return denoiser.denoise(noisy, sigma, self._captions.of_batch(batch.indices, prompts))

    def _change(self, batch: Batch, one: Tensor, other: Tensor) -> Tensor:
        return prediction_change(self._denoiser, one, other, self._denoiser.sigma(batch.t), self._weighting)
