"""A technique is one file: this one trains a bias on the output of each cross-attention, and the trainer does the rest.

The first half of this file is all that it takes: a request and the technique. Its kind of adapter is `BiasAdapter` of
tests/lib/toy_training.py.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import comfy.model_management
import pytest
import tiny
import torch
from bespoke.nodes.bridge.dataset.captions import CaptionConditioning
from bespoke.nodes.bridge.dataset.conditioning import encode_prompts, model_conds
from bespoke.nodes.bridge.dataset.encoded import EncodedDataset, describe_models, identify_models
from bespoke.nodes.bridge.dataset.pictures import encode_pictures
from bespoke.nodes.bridge.models import target_layers
from bespoke.nodes.bridge.runs.context import RunContext
from bespoke.nodes.bridge.runs.samples import as_conditioning
from bespoke.nodes.bridge.runs.store import RunStore
from bespoke.nodes.bridge.trainer import Models, train
from bespoke.nodes.bridge.training_model.memory_forecast import forecast
from bespoke.training.adapters import AdapterConfig, AdapterSet
from bespoke.training.config import TrainConfig
from bespoke.training.data import LatentSet
from bespoke.training.distributed import StopRequest
from bespoke.training.objective import denoising_loss
from bespoke.training.optimizers import OPTIMIZERS
from bespoke.training.record import RunState
from bespoke.training.sample_prompts import SamplePrompt
from bespoke.training.timesteps import UniformTimesteps
from helpers import sprite_set, weights_hash
from toy_training import BiasAdapter

# --- the technique ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BiasRequest:
    """What is asked for. targets: a pattern of layer names."""

    train: TrainConfig
    targets: str = "*attn2.to_out.0"
    precision: str = "fp32"
    resume: bool = True


class BiasTechnique:
    """Trains biases on the layers that the request targets. See `trainer.Technique`."""

    name, needs_text_encoder, memory_advice = "bias", False, "a smaller batch"
    learns_captions = True

    def __init__(self, request: BiasRequest, models: Models, images):
        self.request, self._models = request, models
        pictures = encode_pictures(models.vae, models.model.model, request.train, images)
        self.dataset = EncodedDataset(
            pictures,
            images.fingerprint,
            run_fields=describe_models(models.model, models.clip, images),
            prompts=encode_prompts(models.clip, pictures.prompts),
            **identify_models(models.model, models.clip, models.vae),
        )

    def settings(self):
        return asdict(self.request.train) | {"targets": self.request.targets}

    def _layers(self, base):
        return target_layers(base.diffusion_model, "custom", self.request.targets)

    def _biases(self, base, device):
        return AdapterSet(BiasAdapter, self._layers(base), AdapterConfig(1, 1.0, 0), device)

    def step_memory(self, batch_size, compute):
        base, pictures, cpu, made = self._models.model.model, self.dataset.pictures, torch.device("cpu"), []
        index = pictures.largest_index()
        latent, prompt = pictures.data.latents[index], self.dataset.prompts[pictures.items[index].caption]
        conds = model_conds(base, *prompt, latent, cpu)
        state_bytes = OPTIMIZERS[self.request.train.optimizer].state_bytes

        def make_parameters():
            made.append(self._biases(base, cpu))
            return list(made[0].parameters())

        return forecast(base, latent, conds, make_parameters, compute, False, state_bytes, lambda: made[0].attached())

    def frozen_models(self):
        return (self._models.model,)

    def prepare(self, denoiser, text):
        self._denoiser = denoiser
        self._captions = CaptionConditioning(
            denoiser, self.dataset.pictures, self._models.clip, text, self.dataset.prompts
        )

    def layer_names(self):
        return {}

    def new_trainable(self):
        return self._biases(self._denoiser.base, self._denoiser.device)

    def attached(self, trainable):
        return trainable.attached()

    def loss(self, batch):
        items, denoiser = self.dataset.pictures.items, self._denoiser
        conditioning = self._captions.of_batch(batch.indices, [items[i].caption for i in batch.indices])
        return denoising_loss(denoiser, batch.latent, batch.noise, denoiser.sigma(batch.t), conditioning, batch.mask)

    def sample_prompts(self):
        return [SamplePrompt()]

    def sample_conditioning(self, prompt):
        return tuple(as_conditioning(self._captions.encode(["", ""])))

    def drift(self, sampler, timesteps):
        return None

    def frozen_tensors(self):
        return self._captions.tensors()

    def describe_start(self, run, cost, steps):
        return f"{run.info.trained} biases, {steps} steps"

    def describe(self, run, learned):
        return f"{len(learned)} biases learned in {len(run.losses)} steps"


# --- what the trainer makes of it ------------------------------------------------------------------------------------

RATE, STEPS = 1e-2, 6


@pytest.fixture(scope="module")
def models(comfyui):
    return Models(tiny.patcher(tiny.SMALLEST), tiny.clip(), tiny.vae())


@pytest.fixture(scope="module")
def images():
    return sprite_set(2, 4, side=64, colour="teal")


def make(models, images, resume=False, **changes) -> BiasTechnique:
    config = TrainConfig(
        **{"steps": STEPS, "learning_rate": RATE, "batch_size": 2, "seed": 7, "optimizer": "SGD"}
        | {"lr_schedule": "constant", "timestep_sampling": "uniform", "max_grad_norm": 0.0}
        | changes
    )
    with torch.inference_mode():  # as in ComfyUI
        return BiasTechnique(BiasRequest(config, resume=resume), models, images)


def run(technique, models, context=None):
    with torch.inference_mode():
        return train(technique, models, technique.dataset, context)


def gradient_of_the_bare_model(technique, models) -> tuple[dict[str, torch.Tensor], float]:
    """({layer: gradient of its own bias}, loss) of the first batch, from the network's output and Ho et al.'s loss.

    A bias that is added to a layer's output has the gradient of the layer's own.
    """
    base, config, data = models.model.model, technique.request.train, technique.dataset.pictures.data
    batch = LatentSet(data.latents, data.masks).batch(config, 0, torch.device("cpu"), UniformTimesteps())
    sampling, network = base.model_sampling, base.diffusion_model
    steps = (batch.t * len(sampling.sigmas)).long()
    sigma = sampling.sigmas[steps].reshape(-1, 1, 1, 1)
    items = technique.dataset.pictures.items
    prompts = encode_prompts(models.clip, {items[i].caption for i in batch.indices})
    context = torch.cat([prompts[items[i].caption][0] for i in batch.indices])
    layers = {name: network.get_submodule(name) for name in technique._layers(base)}
    assert len(layers) == 4
    for layer in layers.values():
        layer.bias.requires_grad_(True)
    try:
        noisy = (batch.latent + sigma * batch.noise) / (1 + sigma**2).sqrt()
        loss = (network(noisy, steps.float(), context=context) - batch.noise).square().mean()
        gradients = torch.autograd.grad(loss, [layer.bias for layer in layers.values()])
    finally:
        for layer in layers.values():
            layer.bias.requires_grad_(False)
    return dict(zip(layers, gradients, strict=True)), loss.item()


def test_the_first_step_is_the_gradient_of_the_bare_model(models, images):
    technique = make(models, images, steps=1)
    gradients, loss = gradient_of_the_bare_model(technique, models)
    result = run(technique, models)
    assert result.run.losses == pytest.approx([loss], rel=1e-4)
    assert set(result.learned) == {f"{name}.diff_b" for name in gradients}
    for name, gradient in gradients.items():  # the first step of SGD with momentum is -rate * gradient
        assert gradient.norm() > 0
        error = (result.learned[f"{name}.diff_b"] / -RATE - gradient).norm() / gradient.norm()
        assert error < 1e-3, name


def test_a_run_has_a_record_and_leaves_the_models_as_they_are(models, images):
    before = weights_hash(models.model.model), weights_hash(models.clip.cond_stage_model)
    technique = make(models, images, sample_every=3)
    result = run(technique, models)
    assert (weights_hash(models.model.model), weights_hash(models.clip.cond_stage_model)) == before
    assert not any(layer._forward_hooks for layer in models.model.model.modules())
    kept = RunStore(result.run.id).record()
    assert result.run.id.startswith("bias-")
    assert (kept.state, kept.losses, kept.samples) == (RunState.FINISHED, result.run.losses, result.run.samples)
    assert [step for step, _ in kept.samples] == [0, 3, 6]
    assert kept.info.trained == sum(bias.numel() for bias in result.learned.values())
    assert kept.info.settings["targets"] == "*attn2.to_out.0"
    assert technique.describe(kept, result.learned) == f"4 biases learned in {STEPS} steps"


def test_interrupted_and_resumed_is_the_run_at_once(models, images):
    at_once = run(make(models, images), models)
    asked = iter([StopRequest.CONTINUE] * 3 + [StopRequest.ABORT])  # the first is asked before step 1
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(make(models, images), models, RunContext(stop_request=lambda run_id: next(asked)))
    assert RunStore(at_once.run.id).record().state is RunState.INTERRUPTED
    assert RunStore(at_once.run.id).state().step == 3
    resumed = run(make(models, images, resume=True), models)
    assert resumed.run.losses == at_once.run.losses
    assert all(torch.equal(resumed.learned[name], bias) for name, bias in at_once.learned.items())
    assert any(bias.abs().max() > 0 for bias in at_once.learned.values())


def test_the_memory_of_a_step_is_forecast(models, images):
    technique = make(models, images, optimizer="AdamW")
    memory = technique.step_memory(1, None)
    numbers = sum(bias.numel() for bias in technique._biases(models.model.model, torch.device("cpu")).parameters())
    assert memory.trained == numbers * (4 + 8)
    assert memory.kept > 0


def test_the_gradient_test_would_find_another_loss(models, images):
    """At other noise levels, what is learned is not the gradient of the bare model."""
    technique = make(models, images, steps=1)
    gradients, _ = gradient_of_the_bare_model(technique, models)
    plain = technique.loss
    technique.loss = lambda batch: plain(replace(batch, t=batch.t * 0.9))
    learned = run(technique, models).learned
    name, gradient = next(iter(gradients.items()))
    assert (learned[f"{name}.diff_b"] / -RATE - gradient).norm() / gradient.norm() > 0.1
