"""What a training computes behind a node of another program, beside what sampling computes with the same wires.

`compare` trains one step of `BespokeTrainLora`'s or `BespokeTrainTextualInversion`'s technique. In its first step the
technique predicts the clean latents of one batch with a noise level for each row. The same latents, noise levels and
conditioning go through `comfy.sample` at cfg 1, one noise level after the other, as a sampler calls the model.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import partial
from typing import Any

import inprocess
import torch
from bespoke.nodes.bridge.models import training_conds
from bespoke.nodes.bridge.runs.context import RunContext
from bespoke.nodes.bridge.runs.store import RunStore
from bespoke.nodes.bridge.trainer import Models, train
from bespoke.nodes.lora.training import technique as lora
from bespoke.nodes.lora.training.request import LoraData, LoraRequest
from bespoke.nodes.textual_inversion import technique as inversion
from bespoke.nodes.textual_inversion.names import prompt_word
from bespoke.nodes.textual_inversion.request import InversionRequest
from bespoke.training.config import TrainConfig
from bespoke.training.errors import InputError
from bespoke.training.images import TrainingImage
from helpers import image_set
from run_records import Shown

PROMPT = "a (red:1.3) circle"
TIMES = (0.9, 0.6, 0.35, 0.05)  # of the training schedule, the noisiest first as a sampler goes
# Float rounding: another attention, and a batch of four in the place of four calls.
TOLERANCE = 2e-4
# The slope of a loss by finite differences in float32 is rounded and curved.
SLOPE_TOLERANCE = 0.1
SLOPE_STEPS = (1e-2, 1e-3, 1e-4, 1e-1)


@dataclass
class Verdict:
    """What was found of one wire.

    kind: "equal", "refused", "said", "random" (the node draws numbers at each call, and sampling twice differs as
    much), "differs" or "failed" (an exception without words for a user). words: of the refusal or of the report.
    difference: of the predictions, as a share of the largest value. effect: how far the node changes what sampling
    computes, as the same share; None where that is not known. slope: the error of the gradient beside finite
    differences.
    """

    kind: str
    words: str = ""
    difference: float = 0.0
    effect: float | None = None
    slope: float = 0.0

    @property
    def is_fault(self) -> bool:
        return self.kind in ("differs", "failed")

    def __str__(self) -> str:
        effect = "" if self.effect is None else f", changes sampling by {self.effect:.1e}"
        shown = f"{self.difference:.1e}" if self.kind not in ("refused", "failed") else ""
        return f"{self.kind} {shown}{effect} {self.words}"


class _Capture:
    """Predictions of a technique that is being trained, taken at its first loss."""

    def take(self, denoiser: Any, conditioning: Any, latent: torch.Tensor, trainable: Any) -> None:
        """Predict the rows of `rows_of` in one batch. trainable: its gradient is held against finite differences."""
        sigma = denoiser.sigma(torch.tensor(TIMES))
        clean, noise = rows_of(latent)
        self.sigma = sigma.clone()
        self.noisy = denoiser.add_noise(sigma, noise, clean).detach().clone()

        def predict() -> torch.Tensor:
            return denoiser.denoise(self.noisy.clone(), sigma, conditioning())

        prediction = predict()
        self.predicted = prediction.detach().float().clone()
        self.slope = slope_error(prediction, lambda: predict().float(), trainable) if trainable else 0.0


def rows_of(latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(clean latents, noises), a row for each of `TIMES`, of the shape of `latent` [1, C, ...]."""
    generator = torch.Generator().manual_seed(11)
    shape = (len(TIMES), *latent.shape[1:])
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def slope_error(prediction: torch.Tensor, predict: Any, trainable: Any) -> float:
    """The error of the gradient along itself, as a share, beside (loss(+h) - loss(-h)) / 2h; 1 without a gradient.

    The smallest error over several h, since a small h rounds and a large one curves.
    """
    parameters = [p for group, _ in trainable.parameter_groups(0.0) for p in group]
    weights = torch.randn(prediction.shape, generator=torch.Generator().manual_seed(3))
    gradients = torch.autograd.grad((prediction.float() * weights).sum(), parameters, allow_unused=True)
    found = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
    norm = float(torch.sqrt(sum((g.double() ** 2).sum() for _, g in found))) if found else 0.0
    errors = []
    for size in SLOPE_STEPS if norm else ():
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                for p, g in found:
                    p.add_(g, alpha=sign * size / norm)
                losses.append(float((predict().double() * weights).sum()))
                for p, g in found:
                    p.sub_(g, alpha=sign * size / norm)
        errors.append(abs((losses[0] - losses[1]) / (2 * size) / norm - 1))
        if errors[-1] <= SLOPE_TOLERANCE:
            break
    return min(errors, default=1.0)


class CapturingLora(lora.LoraTechnique):
    """The technique of `BespokeTrainLora`, whose first loss is preceded by a `_Capture`."""

    capture: _Capture | None = None

    def attached(self, trainable):
        self._trainable = trainable
        return super().attached(trainable)

    def loss(self, batch):
        if self.capture is None:
            self.capture = _Capture()
            prompt = self._dataset.pictures.items[0].prompt
            rows = len(TIMES)
            self.capture.take(
                self._denoiser,
                lambda: self._captions.of_batch([0] * rows, [prompt] * rows),
                self._dataset.pictures.data.latents[0],
                self._trainable,
            )
        return super().loss(batch)


class CapturingInversion(inversion.TextualInversionTechnique):
    """The technique of `BespokeTrainTextualInversion`, whose first loss is preceded by a `_Capture`.

    The prompt that is predicted does not have the word, so that sampling can encode it; that of the gradient has it.
    """

    capture: _Capture | None = None

    def attached(self, trainable):
        self._trainable = trainable
        return super().attached(trainable)

    def loss(self, batch):
        if self.capture is None:
            self.capture = _Capture()
            rows = len(TIMES)

            def conditioning(words: str = ""):
                return self._prompts.of_batch([0] * rows, [PROMPT + words] * rows)

            word = f" {prompt_word(self.request.name)}"
            latent = self._dataset.pictures.data.latents[0]
            self.capture.take(self._denoiser, partial(conditioning, word), latent, self._trainable)
            slope = self.capture.slope
            self.capture.take(self._denoiser, conditioning, latent, None)
            self.capture.slope = slope
        return super().loss(batch)


@functools.cache
def one_picture():
    """A set of one picture, 64 px high and 96 px wide."""
    pixels = torch.randint(0, 256, (64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    return image_set([TrainingImage("one", pixels, PROMPT, caption_syntax="prompt")])


def trained(models: Models, folder, kind: str = "lora"):
    """(capture, report) of a training of one step. kind: "lora", "text encoder" or "word"."""
    config = TrainConfig(steps=1, learning_rate=1e-4, batch_size=1, seed=0, validation=0)
    if kind == "word":
        request = InversionRequest(config, "new-word", "circle", precision="fp32", resume=False)
        dataset = inversion.encode_dataset(models, one_picture(), request)
        technique = CapturingInversion(request, models, dataset)
    else:
        request = LoraRequest(
            config,
            targets="attention",
            rank=2,
            alpha=2.0,
            precision="fp32",
            train_text_encoder=kind != "lora",
            resume=False,
        )
        dataset = lora.encode_dataset(models, LoraData(one_picture()), request)
        technique = CapturingLora(request, models, dataset)
    context = RunContext(store=lambda run_id: RunStore(run_id, folder), display=lambda run_id, last: Shown())
    with torch.inference_mode():
        result = train(technique, models, dataset, context)
    assert technique.capture is not None
    return technique.capture, technique.describe(result.run, result.learned)


def sampled(model, conditioning, noisy: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """The clean latents that sampling at cfg 1 predicts for `noisy`, a row at each of the falling `sigmas`."""
    import comfy.sample
    import comfy.samplers
    import node_helpers

    found = []

    def sampler(guided, x, given, extra_args=None, callback=None, disable=None, **_):
        for row, sigma in zip(noisy, given[:-1], strict=True):
            found.append(guided(row[None].clone(), sigma.reshape(1), **(extra_args or {})).float().clone())
        return x

    extra = dict(training_conds(model.model))
    conditioning = node_helpers.conditioning_set_values(conditioning, extra) if extra else conditioning
    latent = torch.zeros_like(noisy[:1])
    schedule = torch.cat([sigmas, sigmas.new_zeros(1)])
    with torch.inference_mode():
        comfy.sample.sample_custom(
            model,
            latent,
            1.0,
            comfy.samplers.KSAMPLER(sampler),
            schedule,
            conditioning,
            conditioning,
            latent,
            disable_pbar=True,
            seed=0,
        )
    return torch.cat(found)


def noised(model, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(noisy latents, sigmas) of `rows_of` as sampling makes them, at `TIMES` of the model's own schedule."""
    sampling = model.get_model_object("model_sampling")
    table = sampling.sigmas.float()
    sigma = table[(torch.tensor(TIMES) * len(table)).long()]
    clean, noise = rows_of(latent)
    shape = (-1, *[1] * (clean.ndim - 1))
    return sampling.noise_scaling(sigma.reshape(shape), noise, clean), sigma


def share(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference as a share of b's largest value; infinite where the shapes differ or one has NaN."""
    if a.shape != b.shape or bool(a.isnan().any() != b.isnan().any()):
        return float("inf")
    return float((a - b).abs().nan_to_num().max() / b.abs().nan_to_num().max().clamp(min=1e-12))


def sentences_beyond(report: str, plain: str) -> list[str]:
    """The report's lines that the report of a model without the node does not have, apart from numbers."""

    def shape(line: str) -> str:
        return "".join(c for c in line if not c.isdigit() and c not in ".,-e")

    known = {shape(line) for line in plain.splitlines()}
    return [line for line in report.splitlines() if shape(line) not in known]


def is_about_training(sentence: str) -> bool:
    """Whether a sentence of a report says something else than that the run cannot be resumed."""
    return "cannot be compared" not in sentence and "resume" not in sentence


def compare(made: Models, again: Models, folder, kind: str = "lora", plain: Any = None) -> Verdict:
    """made, again: two equal results of the node with the rest of its family, one to sample with and one to train.

    kind: see `trained`. plain: (the same family without the node, the report of its training), or None.
    """
    latent = encoded_latent(made)
    (conditioning,) = inprocess.call_node("CLIPTextEncode", clip=made.clip, text=PROMPT)
    noisy, sigmas = noised(made.model, latent)
    expected = sampled(made.model, conditioning, noisy, sigmas)
    scatter = share(sampled(made.model, conditioning, noisy, sigmas), expected)  # of a node that draws numbers
    effect, known = None, ""
    if plain is not None:
        models, known = plain
        (plain_conditioning,) = inprocess.call_node("CLIPTextEncode", clip=models.clip, text=PROMPT)
        effect = share(sampled(models.model, plain_conditioning, noisy, sigmas), expected)
    try:
        capture, report = trained(again, folder, kind)
    except InputError as error:
        return Verdict("refused", str(error), effect=effect)
    except Exception as error:
        return Verdict("failed", f"{type(error).__name__}: {str(error)[:200]}", effect=effect)
    wrong = []
    if share(capture.sigma, sigmas) > 1e-5:
        wrong.append(f"noise levels differ by {share(capture.sigma, sigmas):.1e}")
    if share(capture.noisy, noisy) > 1e-5:
        wrong.append(f"noised latents differ by {share(capture.noisy, noisy):.1e}")
    difference = share(capture.predicted, expected)
    if capture.slope > SLOPE_TOLERANCE and scatter <= TOLERANCE:
        wrong.append(f"the gradient is wrong by {capture.slope:.1%}")
    words = [line for line in sentences_beyond(report, known) if is_about_training(line)] if known else []
    if scatter > TOLERANCE:
        words.append(f"sampling twice differs by {scatter:.1e}")
    if scatter > TOLERANCE and not wrong and difference <= 2 * scatter:
        return Verdict("random", "; ".join(words), difference, effect, capture.slope)
    if not wrong and difference <= TOLERANCE:
        return Verdict("equal", "; ".join(words), difference, effect, capture.slope)
    if words and not wrong:
        return Verdict("said", "; ".join(words), difference, effect, capture.slope)
    return Verdict("differs", "; ".join(wrong), difference, effect, capture.slope)


def encoded_latent(models: Models) -> torch.Tensor:
    """The latent [1, C, ...] of the picture that is trained on; its shape is read."""
    pixels = one_picture().items[0].pixels
    with torch.inference_mode():
        out = models.vae.encode(pixels[None].float() / 255)
    return torch.zeros(out.shape, dtype=torch.float32)


def nodes_to_try() -> dict[str, Any]:
    """{id: class} of the nodes that give a MODEL or a CLIP, by id."""
    import nodes

    return {
        name: node
        for name, node in sorted(nodes.NODE_CLASS_MAPPINGS.items())
        if {"MODEL", "CLIP"} & set(node.RETURN_TYPES or ())
    }
