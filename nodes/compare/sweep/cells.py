"""Draws the pictures of a sweep as the graph of ComfyUI's own nodes would, and keeps them for the next one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.utils
import latent_preview
import nodes as core_nodes
from torch import Tensor

from ...bridge import identity
from ...bridge.dataset.cache import ContentCache, key_of
from ...bridge.sampling import fitting_latent, noise_for, schedule_of
from ...bridge.trainer import Models
from ...lora.bundle import clip_with_words
from ...lora.injection.part import inject_on_its_part
from ...lora.injection.request import Request
from .plan import Column

MAX_BYTES = 2**30  # of the pictures that are kept
cell_cache, loss_cache = ContentCache(MAX_BYTES), ContentCache()


@dataclass(frozen=True)
class Sampling:
    """The widgets of KSampler and Empty Latent Image, and the negative prompt."""

    negative: str
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    seed: int
    width: int
    height: int


@dataclass
class Cells:
    """Draws cells: see `picture`. drawn, kept: how many were drawn, and how many were known from before."""

    models: Models
    sampling: Sampling
    total: int
    drawn: int = 0
    kept: int = 0
    seconds: float = 0.0
    notes: dict[str, list[str]] = field(default_factory=dict)  # of each column

    def __post_init__(self) -> None:
        model, sampling = self.models.model, self.sampling
        schedule_of(model, sampling.scheduler, sampling.sampler_name)  # for its errors
        self.reading = identity.of_models(model, self.models.clip, self.models.vae)
        self._bar = comfy.utils.ProgressBar(self.total * sampling.steps)
        self._patched: tuple[Any, tuple[Any, Any]] | None = None
        self._encoded: tuple[Any, dict[str, list]] | None = None

    def key(self, column: Column, strength: float, *parts: str) -> str | None:
        """The key of what the model with a LoRA makes of `parts`; None where it cannot be compared."""
        lora = "" if strength == 0.0 else column.key
        return key_of(self.reading, lora, repr(strength if lora else 0.0), *parts)

    def picture(self, column: Column, strength: float, prompt: str) -> Tensor:
        """IMAGE [1, H, W, 3] in 0..1: what Load LoRA, CLIP Text Encode, KSampler and VAE Decode give.

        A LoRA that was trained on a part of the schedule acts there alone, as through Inject LoRA.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        drawn = self.drawn
        key = self.key(column, strength, prompt, json.dumps(asdict(self.sampling)))
        picture = cell_cache.get(key, lambda: self._draw(*self.patched(column, strength), prompt))
        self.kept += self.drawn == drawn
        self._bar.update_absolute((self.drawn + self.kept) * self.sampling.steps)
        return picture

    def patched(self, column: Column, strength: float) -> tuple[Any, Any]:
        """(model, clip) with the LoRA, made anew where the last call was for another."""
        model, clip = self.models.model, self.models.clip
        if column.lora is None or strength == 0.0:
            return model, clip
        wanted = (id(column.lora), strength)
        if self._patched is None or self._patched[0] != wanted:
            *patched, lines, report = inject_on_its_part(model, clip, column.lora, Request(strength, strength))
            knowing, words = clip_with_words(patched[1], column.lora)
            self.notes.setdefault(column.name, lines + report.splitlines()[1:] + words)
            self._patched = wanted, (patched[0], knowing)
        return self._patched[1]

    def _draw(self, model: Any, clip: Any, prompt: str) -> Tensor:
        sampling, begun = self.sampling, time.monotonic()
        positive, negative = self._encode(clip, prompt), self._encode(clip, sampling.negative)
        (latent,) = core_nodes.EmptyLatentImage().generate(sampling.width, sampling.height)
        samples = fitting_latent(model, latent)
        samples = comfy.sample.sample(
            model,
            noise_for(samples, sampling.seed, latent),
            sampling.steps,
            sampling.cfg,
            sampling.sampler_name,
            sampling.scheduler,
            positive,
            negative,
            samples,
            denoise=1.0,
            callback=self._callback(model),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=sampling.seed,
        )
        (picture,) = core_nodes.VAEDecode().decode(self.models.vae, {"samples": samples})
        self.drawn += 1
        self.seconds += time.monotonic() - begun
        return picture[:1].cpu()  # of a film its first frame

    def _encode(self, clip: Any, text: str) -> list:
        """CLIP Text Encode's CONDITIONING. Those of the last text encoder are kept: a column's cells share them."""
        if self._encoded is None or self._encoded[0] is not clip:
            self._encoded = clip, {}
        known = self._encoded[1]
        if text not in known:
            (known[text],) = core_nodes.CLIPTextEncode().encode(clip, text)
        return known[text]

    def _callback(self, model: Any) -> Callable[..., None]:
        """KSampler's callback, with the progress of the whole sweep."""
        previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
        before, steps = self.drawn + self.kept, self.sampling.steps

        def callback(step: int, x0: Any, x: Any, total: int) -> None:
            plain = x0.tensors[0] if x0.is_nested else x0
            preview = previewer.decode_latent_to_preview_image("JPEG", plain) if previewer else None
            self._bar.update_absolute(before * steps + min(step + 1, steps), self.total * steps, preview)

        return callback
