"""LoRA as a technique of the trainer: low-rank adapters on the model's layers, trained on captions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ....training.adapters import ADAPTERS, Adapter, AdapterConfig, AdapterSet, DoraAdapter, LoraAdapter
from ....training.adapters.dropout import Dropout
from ....training.adapters.lora import UP_RATE
from ....training.data import Batch, prompts_of
from ....training.distributed import World
from ....training.errors import InputError
from ....training.images import passes, passes_in_words
from ....training.layer_names.parts import ALPHA, LOKR_W2
from ....training.layer_names.spelling import COMFY_PREFIX, TEXT_PREFIX
from ....training.leak import LeakMeter
from ....training.measure import StepCost, format_duration
from ....training.objective import denoising_loss
from ....training.optimizers import OPTIMIZERS
from ....training.record import Run
from ....training.sample_prompts import SamplePrompt, parse_sample_prompts, texts_of
from ....training.timestep_range import TimestepRange
from ...bridge.dataset.captions import CaptionConditioning, check_fixed_captions
from ...bridge.dataset.conditioning import encode_prompt, encode_prompts, join_conds, learn_layers_of, model_conds
from ...bridge.dataset.encoded import EncodedDataset, describe_models, identify_models
from ...bridge.dataset.pictures import Pictures, encode_pictures
from ...bridge.dataset.second_pictures import encode_with_pictures
from ...bridge.models import check_trainable
from ...bridge.models.clips import check_clips
from ...bridge.models.custom import own_sizes
from ...bridge.models.second_picture import IN_PROMPT, WORDS, check_pairs, has_source, source_encoding
from ...bridge.noise_level import noise_level
from ...bridge.runs.report import (
    describe_card,
    describe_draws,
    describe_held_out,
    describe_leak,
    describe_notes,
    describe_pairs,
    describe_pictures,
    describe_rate,
    describe_rate_at_start,
    describe_shared,
    describe_unread,
)
from ...bridge.runs.samples import SamplerSettings, as_conditioning, with_frames
from ...bridge.schedule_part import describe_part, trained_range
from ...bridge.trainer import Models
from ...bridge.training_model.clip_memory import what_fits
from ...bridge.training_model.denoiser import ComfyDenoiser, check_wire
from ...bridge.training_model.memory_forecast import OPTIMIZER_BYTES, StepMemory, forecast
from ...bridge.training_model.offload import MEMORY_ADVICE
from ...bridge.training_model.text_encoder import TrainableTextEncoder, attention_layers
from ...bridge.wire.compiled import restore_own_modules
from ..keys import names_in_files
from ..match import starting_parts
from .few_steps import PROMPTS, FewStepDrift
from .preserve import BaseComparison, leak_prompts, lines_of
from .request import LoraData, LoraRequest
from .training_adapter import Attachments, TrainingAdapter

PART_USE = (
    "The model output and Bespoke Inject LoRA use the LoRA there alone; other loaders use it at every step, so give "
    "them the same part."
)


def encode_dataset(models: Models, data: LoraData, request: LoraRequest) -> EncodedDataset:
    """Encode the pictures, and the captions unless the text encoder is trained: then each step encodes them.

    Raises `InputError`, before anything is encoded, for a model or targets that cannot be trained.
    """
    model, clip, vae = models.model, models.clip, models.vae
    # These are called for their errors only. `LoraTechnique.prepare` looks up the layers of the prepared model.
    check_wire(model, clip)
    restore_own_modules(model)
    items = data.items
    check_clips(model.model, items)
    check_pairs(model.model, items)
    check_trainable(model.model, all(has_source(model.model, item) for item in items))
    how = source_encoding(model.model, request.source_encoding, items)
    trained_range(model, request.train)
    learn_layers_of(model.model, partial(encode_prompt, clip, "a photo"))
    request.layers(model.model.diffusion_model)
    if request.train_text_encoder:
        attention_layers(clip.cond_stage_model)
    if not request.runs_text_encoder:
        check_fixed_captions([*data.images.items, *(data.prior.items if data.prior else ())])
    if request.runs_text_encoder and how in IN_PROMPT:
        mend = "switch train_text_encoder off" if request.train_text_encoder else "use Train LoRA"
        raise InputError(
            f"the text encoder runs in each step, and the model is given the source as {WORDS[how]}, which is encoded "
            f"before the training; {mend}"
        )
    if data.training_adapter:
        _training_adapter(models, request, data.training_adapter)
    pictures = encode_pictures(vae, model.model, request.train, data.images, data.validation, data.prior, how)
    wanted = _wanted_prompts(pictures, request)
    if not request.preserve.strip():
        wanted |= {pictures.prompt_key(i, prompt): (i, prompt) for i, prompt in leak_prompts(pictures)}
    if data.training_adapter:
        first = pictures.training_indices[0]
        wanted |= {pictures.prompt_key(first, prompt): (first, prompt) for prompt in (*PROMPTS, "")}
    return EncodedDataset(
        pictures,
        fingerprint=data.fingerprint(how),
        run_fields=describe_models(model, clip, data.images),
        prompts={} if request.runs_text_encoder else _encode_wanted(clip, pictures, wanted),
        start=starting_parts(data.start, model, clip, request.adapter) if data.start else None,
        training_adapter=data.training_adapter,
        **identify_models(model, clip, vae),
    )


def needed_prompts(pictures: Pictures, request: LoraRequest) -> set[str]:
    """The keys of all prompts that a training needs, where the text encoder does not run in its steps."""
    return set(_wanted_prompts(pictures, request))


def _wanted_prompts(pictures: Pictures, request: LoraRequest) -> dict[str, tuple[int, str]]:
    """{key, see `Pictures.prompt_key`: (index of a picture, prompt)} of all prompts that a training needs."""
    preserved, samples = lines_of(request.preserve), sample_texts(pictures, request)
    wanted = [(i, prompt) for i in range(len(pictures.items)) for prompt in (*pictures.prompts_of(i), *preserved)]
    wanted += [(pictures.sample_index, text) for text in samples]
    return {pictures.prompt_key(i, prompt): (i, prompt) for i, prompt in wanted}


def _encode_wanted(
    clip, pictures: Pictures, wanted: Mapping[str, tuple[int, str]]
) -> dict[str, tuple[Tensor, dict[str, Any]]]:
    """The conditioning of each of the prompts, by its key; see `_wanted_prompts`."""
    plain = [prompt for key, (_, prompt) in wanted.items() if key == prompt]
    with_picture = {key: (pictures.items[i], prompt) for key, (i, prompt) in wanted.items() if key != prompt}
    encoded = encode_prompts(clip, plain)
    return encoded | (encode_with_pictures(clip, with_picture, pictures.how) if with_picture else {})


def _training_adapter(models: Models, request: LoraRequest, lora: Mapping[str, Tensor]) -> TrainingAdapter:
    """Raises `InputError` where it does not fit the models."""
    clip = models.clip if request.train_text_encoder else None
    return TrainingAdapter(lora, request.training_adapter_strength, models.model, clip)


def sample_texts(pictures: Pictures, request: LoraRequest) -> list[str]:
    """Every text that the sample images encode: of an empty prompt the first picture's caption, see `sample_item`."""
    return texts_of(parse_sample_prompts(request.sample_prompt), pictures.sample_item.prompt)


def _check_own_weights(layers: Mapping[str, torch.nn.Module]) -> None:
    """Raise `InputError` where a layer computes with more than its weight: DoRA's norm would be of another matrix.

    ComfyUI adds a patch at each call where the weight is offloaded, and older versions a scale of fp8 weights.
    """
    odd = [
        name
        for name, layer in layers.items()
        if getattr(layer, "weight_function", None) or getattr(layer, "scale_weight", None) is not None
    ]
    if odd:
        raise InputError(
            f"adapter is DoRA, which is made from each layer's weight, and {len(odd)} layers, such as {odd[0]}, are "
            "changed at each call (an offloaded weight with a patch, or scaled fp8); choose adapter LoRA, or take the "
            "LoRA or patch off this MODEL"
        )


@contextmanager
def acting_in(part: TimestepRange, base: Any, adapters: AdapterSet[Adapter]) -> Iterator[None]:
    """Within the block the adapters act at the levels of noise of `part` alone, as the LoRA does where it is used.

    For sample images: training and validation call the model at these levels only.

    base: ComfyUI's `BaseModel`.
    """

    def before(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        sigmas = kwargs["transformer_options"]["sigmas"]
        adapters.enabled = part.contains(noise_level(base.model_sampling, sigmas.flatten()[:1]).item())

    def after(_module: Any, _args: Any, _output: Any) -> None:
        adapters.enabled = True  # for the text encoder, which is called before the model

    model = base.diffusion_model
    hooks = [
        model.register_forward_pre_hook(before, with_kwargs=True),
        model.register_forward_hook(after, always_call=True),
    ]
    try:
        yield
    finally:
        adapters.enabled = True
        for hook in hooks:
            hook.remove()


def settings_with_adapter(request: LoraRequest, adapter: Mapping[str, Tensor] | None) -> dict[str, Any]:
    """{widget name: value} of a request; with a training adapter its strength too, also where that is the default."""
    strength = {"training_adapter_strength": request.training_adapter_strength} if adapter else {}
    return request.settings() | strength


class LoraTechnique:
    """Trains low-rank adapters on the layers that the request targets. See `trainer.Technique`."""

    name = "lora"
    learns_captions = True

    def __init__(self, request: LoraRequest, models: Models, dataset: EncodedDataset) -> None:
        self.request, self._models, self._dataset = request, models, dataset
        self.needs_text_encoder = request.runs_text_encoder
        checkpointing = "" if request.train.gradient_checkpointing else "gradient_checkpointing, "
        self.memory_advice = f"{checkpointing}{MEMORY_ADVICE}, a lower rank, fewer targets"
        # Set by `prepare`.
        self._denoiser: ComfyDenoiser
        self._layers: dict[str, torch.nn.Module] = {}  # the target layers by ComfyUI's name
        self._names: dict[str, Any] = {}  # {ComfyUI's name: {file format: name}} of the target layers
        self._configs: dict[str, AdapterConfig] = {}  # of the layers that have their own
        self._captions: CaptionConditioning
        self._trainable: AdapterSet[Adapter] | None = None  # the one that is attached
        self._comparison: BaseComparison  # set while adapters are attached
        self._training_adapter: TrainingAdapter | None = None
        self._attach_adapter: Callable[[], AbstractContextManager[None]] | None = None
        self._attachments = Attachments([])
        self._drift: FewStepDrift | None = None

    def settings(self) -> dict[str, Any]:
        # The up factor's rate is part of the identity: a state that was trained at another rate must not be resumed.
        rates = {"loraplus_lr_ratio": self._up_rate} if self._has_up_rate else {}
        return settings_with_adapter(self.request, self._dataset.training_adapter) | rates

    @property
    def _kind(self) -> type[Adapter]:
        return ADAPTERS[self.request.adapter]

    @property
    def _has_up_rate(self) -> bool:
        return issubclass(self._kind, LoraAdapter)

    @property
    def _up_rate(self) -> float:
        return 1.0 if OPTIMIZERS[self.request.train.optimizer].one_rate else UP_RATE

    @property
    def _trained_calls(self) -> int:
        """How many graphs of a batch `loss` keeps."""
        return 1

    def step_memory(self, batch_size: int, compute: torch.dtype | None, latent: Tensor | None = None) -> StepMemory:
        """From the largest picture and its caption. A trained text encoder's own part is not in it.

        latent: another one than the picture's, [1, C, ...], of which the shape is read.
        """
        request, base, pictures = self.request, self._models.model.model, self._dataset.pictures
        index = pictures.largest_index()
        prompt, latent = pictures.items[index].prompt, pictures.data.latents[index] if latent is None else latent
        encoded = self._dataset.prompts or encode_prompts(self._models.clip, [prompt])
        context, extra = encoded[pictures.prompt_key(index, prompt)]
        told = extra | pictures.source_inputs(index)
        if latent.ndim == 5:
            ((context, told),) = with_frames([[context, told]], latent.shape[2])
        one = model_conds(base, context, told, latent, torch.device("cpu"))
        layers = request.layers(base.diffusion_model)
        config, configs, made = request.adapter_config, request.own_configs(layers), list[AdapterSet]()

        def make_parameters() -> list[torch.nn.Parameter]:
            # Called by `forecast` on fake tensors: adapters that are made before would be real ones.
            made.append(AdapterSet(self._kind, layers, config, torch.device("cpu"), configs=configs))
            return list(made[0].parameters())

        # The prior pictures are a second batch, and the training pictures at preserved prompts another one, whose
        # graphs are kept beside the first's. The base's prediction keeps none.
        count = batch_size * (self._trained_calls + bool(pictures.prior_indices) + bool(lines_of(request.preserve)))
        memory = forecast(
            base,
            latent.expand(count, *latent.shape[1:]),
            join_conds([one] * count),
            make_parameters,
            compute,
            request.train.gradient_checkpointing,
            OPTIMIZER_BYTES[request.train.optimizer] + (4 if request.train.ema else 0),
            lambda: made[0].attached(),
        )
        adapter = self._dataset.training_adapter or {}
        return replace(memory, trained=memory.trained + sum(tensor.nbytes for tensor in adapter.values()))

    def what_fits(self, batch_size: int, compute: torch.dtype | None, fits: Callable[[StepMemory], bool]) -> str:
        """See `trainer.SaysWhatFits`."""
        pictures = self._dataset.pictures
        index = pictures.largest_index()
        item, latent = pictures.items[index], pictures.data.latents[index]
        return what_fits(item, latent, batch_size, lambda shape, count: fits(self.step_memory(count, compute, shape)))

    def frozen_models(self) -> Sequence[Any]:
        return ()

    def prepare(self, denoiser: ComfyDenoiser, text: TrainableTextEncoder | None) -> None:
        request, base = self.request, denoiser.base
        self._denoiser = denoiser
        # The layers of the prepared model: loading may have replaced its modules.
        layers = request.layers(base.diffusion_model)
        self._configs = {COMFY_PREFIX + name: config for name, config in request.own_configs(layers).items()}
        self._layers = {COMFY_PREFIX + name: layer for name, layer in layers.items()}
        if text is not None:
            self._layers |= {TEXT_PREFIX + name: layer for name, layer in attention_layers(text.model).items()}
        names = names_in_files(base, None if text is None else self._models.clip.cond_stage_model)
        self._names = {name: forms for name, forms in names.items() if name in self._layers}
        dataset = self._dataset
        self._captions = CaptionConditioning(denoiser, dataset.pictures, self._models.clip, text, dataset.prompts)
        if dataset.training_adapter:
            self._prepare_training_adapter(dataset.training_adapter, text)

    def take_captions(self, captions: CaptionConditioning) -> None:
        """Read prompts by `captions` from now on, such as one that knows a word that is trained too.

        Called after `prepare` and before `attached`.
        """
        self._captions = captions

    def _prepare_training_adapter(self, lora: Mapping[str, Tensor], text: TrainableTextEncoder | None) -> None:
        denoiser, request = self._denoiser, self.request
        adapter = self._training_adapter = _training_adapter(self._models, request, lora)
        changed = adapter.weights_read_at_call(self._layers, denoiser.base)
        if changed and issubclass(self._kind, DoraAdapter):
            raise InputError(
                f"adapter is DoRA, which is made from each layer's weight, and training_adapter changes {len(changed)} "
                f"of these weights at each call, such as {changed[0]}; choose adapter LoRA"
            )
        of_text = (None, None) if text is None else (text.model, text.device)
        self._attach_adapter = partial(adapter.attached, denoiser.base, denoiser.device, *of_text)
        denoiser.without_steps_only = partial(self._without, 1)

    def _without(self, first: int) -> AbstractContextManager[None]:
        """A context without what is attached from number `first` on: 0 what is trained, 1 the training adapter."""
        return self._attachments.without(first)

    def layer_names(self) -> Mapping[str, Any]:
        return self._names

    def new_trainable(self) -> AdapterSet[Adapter]:
        request = self.request
        rates = {TEXT_PREFIX: request.text_encoder_lr} if request.text_encoder_lr else {}
        config, device = request.adapter_config, self._denoiser.device
        if issubclass(self._kind, DoraAdapter):
            _check_own_weights(self._layers)
        adapters = AdapterSet(
            self._kind,
            self._layers,
            config,
            device,
            rates,
            optional_prefix=TEXT_PREFIX,
            configs=self._configs,
            dropout=Dropout(request.rank_dropout, request.module_dropout),
            max_norm=request.max_norm,
        )
        if self._dataset.start is not None:
            adapters.load_state_dict(self._dataset.start)
        return adapters

    @contextmanager
    def attached(self, trainable: AdapterSet[Adapter]) -> Iterator[None]:
        request, dataset, self._trainable = self.request, self._dataset, trainable
        self._comparison = BaseComparison(
            self._denoiser,
            dataset.pictures,
            self._captions,
            trainable,
            lines_of(request.preserve),
            frozenset(dataset.prompts) or None,
            request.train.loss_weighting,
        )
        part = trained_range(self._models.model, request.train)
        # The training adapter comes last: what is trained sees the layer's own output, as it does where it is used.
        further = [] if self._attach_adapter is None else [self._attach_adapter]
        self._attachments = Attachments([trainable.attached, *further])
        acting = nullcontext() if part.is_whole else acting_in(part, self._denoiser.base, trainable)
        with self._attachments.attached(), acting:
            yield

    def preservation_loss(self, batch: Batch) -> Tensor | None:
        """`preserve_weight` times that of `BaseComparison`; None without prompts to preserve."""
        if not lines_of(self.request.preserve):
            return None
        return self.request.preserve_weight * self._comparison.loss(batch)

    def leak_meter(
        self, indices: Sequence[int], steps: Sequence[int], timesteps: Sequence[float], world: World
    ) -> LeakMeter:
        return self._comparison.leak_meter(indices, steps, timesteps, world)

    def loss(self, batch: Batch) -> Tensor:
        """With dropout where a gradient is computed: not in validation, and not where pictures are scored."""
        if self._trainable is None or not torch.is_grad_enabled():
            return self._loss(batch)
        with self._trainable.dropping(batch.seed, batch.number, batch.sample_positions):
            return self._loss(batch)

    def _loss(self, batch: Batch) -> Tensor:
        denoiser, of_samples = self._denoiser, prompts_of(batch, self._dataset.pictures.items)
        dropped = [index < 0 for index in batch.caption_indices]
        prompts = ["" if drop else prompt for drop, prompt in zip(dropped, of_samples, strict=True)]
        conditioning = self._captions.of_batch(batch.indices, prompts)
        weighting, measure = self.request.train.loss_weighting, batch.measure
        sigma = denoiser.sigma(batch.t)
        given = (batch.latent, batch.noise, sigma, conditioning, batch.mask, weighting)
        return denoising_loss(denoiser, *given, measure=measure, perturbation=batch.perturbation)

    def sample_prompts(self) -> Sequence[SamplePrompt]:
        return parse_sample_prompts(self.request.sample_prompt)

    def sample_conditioning(self, prompt: SamplePrompt) -> tuple[list, list]:
        pictures = self._dataset.pictures
        texts = [prompt.prompt or pictures.sample_item.prompt, prompt.negative]
        positive, negative = as_conditioning(self._captions.encode(texts, pictures.sample_index))
        return positive, negative

    def drift(self, sampler: SamplerSettings, timesteps: Sequence[float]) -> FewStepDrift | None:
        if self._training_adapter is None:
            return None
        pictures = self._dataset.pictures
        index = pictures.training_indices[0]
        self._drift = FewStepDrift(
            self._denoiser,
            self._captions,
            (index, pictures.data.latents[index]),
            sampler,
            timesteps,
            self.request.train.loss_weighting,
            (partial(self._without, 0), partial(self._without, 1)),
        )
        return self._drift

    def frozen_tensors(self) -> Sequence[Tensor]:
        return self._captions.tensors()

    def describe_start(self, run: Run, cost: StepCost, steps: int) -> str:
        config = self.request.train
        # The numbers, their gradient, and what the optimiser keeps.
        memory = cost.kept + run.info.trained * (8 + OPTIMIZER_BYTES[config.optimizer])
        return (
            f"{len(run.info.names) or 'custom'} layers, {run.info.trained:,} numbers, file about "
            f"{run.info.trained * 2 / 1e6:.1f} MB in fp16; {self._describe_plan(run, steps)}; about "
            f"{format_duration(cost.seconds * config.gradient_accumulation * steps)}; {memory / 2**20:.0f} MB beside "
            "the model" + describe_rate_at_start(config) + self._describe_variants() + self._describe_drift()
        )

    def _describe_plan(self, run: Run, steps: int) -> str:
        """What the steps train on, before the first one."""
        per_step = self.request.train.images_per_step
        seen = passes_in_words(run.info.images, steps, per_step)
        return f"{steps} steps of {per_step} pictures, each of {run.info.images} seen {seen}"

    def _describe_data(self, run: Run) -> str:
        """What the steps have trained on."""
        return describe_draws(self._dataset.pictures, run, self.request.train)

    def _passes(self, run: Run) -> float:
        """How often each picture was seen."""
        return passes(run.info.images, len(run.losses), self.request.train.images_per_step)

    def _describe_drift(self) -> str:
        if self._drift is None:
            return ""
        return f"; the few-step drift takes {self._drift.model_calls} calls of the model with one picture"

    def _describe_adapter(self) -> str:
        request = self.request
        root = "root of " if request.rslora else ""
        strength = request.alpha / (math.sqrt(request.rank) if request.rslora else request.rank)
        return (
            f"{request.adapter} of rank {request.rank}, alpha {request.alpha:g} (strength alpha/{root}rank = "
            f"{strength:g})"
            + (f", 3x3 convolutions of rank {request.conv_rank}" if request.conv_rank else "")
            + self._describe_own_ranks()
        )

    def _describe_own_ranks(self) -> str:
        """How many layers have a rank or an alpha of their own from custom_targets; "" where none has."""
        request = self.request
        sizes = own_sizes(self._own_names(), request.custom_targets) if request.targets == "custom" else {}
        return f", {len(sizes)} layers with their own rank" if sizes else ""

    def _own_names(self) -> list[str]:
        return [name.removeprefix(COMFY_PREFIX) for name in self._layers if name.startswith(COMFY_PREFIX)]

    def _describe_whole(self, learned: Mapping[str, Tensor]) -> list[str]:
        """That alpha has no effect on a LoKr's layers without factors of the rank; empty where it has one."""
        whole, config = sum(key.endswith(LOKR_W2) for key in learned), self.request.adapter_config
        if not whole or config.alpha == config.rank:
            return []
        return [
            f"{whole} of {len(self._layers)} layers have a strength of 1 instead: rank {config.rank} is at least half "
            "of their larger block, which is then learned whole, without alpha, as LyCORIS does."
        ]

    def _describe_limits(self) -> list[str]:
        """What dropout and `max_norm` have done, a line each."""
        request, lines = self.request, list[str]()
        dropped = [
            f"{share:.0%} of {what}"
            for share, what in (
                (request.rank_dropout, "the ranks" if self._has_up_rate else "the outputs of each change"),
                (request.module_dropout, "the layers' adapters"),
            )
            if share
        ]
        if dropped:
            lines.append(f"{' and '.join(dropped)} were left out at random in training; what is saved has all.")
        if request.max_norm and self._trainable is not None:
            lines.append(
                f"The last step's change was longer than max_norm {request.max_norm:g} in {self._trainable.limited} of "
                f"{len(self._layers)} layers, and was scaled down to it there."
            )
        return lines

    def _describe_preserve(self) -> list[str]:
        """That prompts were preserved, and with which weight; empty where none were."""
        count, weight = len(lines_of(self.request.preserve)), self.request.preserve_weight
        if not count:
            return []
        prompts = "1 prompt was" if count == 1 else f"{count} prompts were"
        return [f"{prompts} held to the base's own prediction, at the weight {weight:g}; the loss contains it."]

    def _describe_variants(self) -> str:
        """How many prompts are encoded, and the memory that they take, where captions are varied; "" elsewhere."""
        contexts = self._captions.tensors()
        if not contexts or all(item.variants is None for item in self._dataset.pictures.items):
            return ""
        size = sum(context.numel() * context.element_size() for context in contexts)
        return f"; {len(contexts)} prompts encoded, {size / 2**20:.0f} MB"

    def describe(self, run: Run, learned: Mapping[str, Tensor]) -> str:
        """The report: what was trained, the number of passes over the pictures, and the losses."""
        losses, request = run.losses, self.request
        config = request.train
        first, last = run.quarters()
        lines = [
            f"{self._describe_adapter()} on {sum(key.endswith(ALPHA) for key in learned)} layers "
            f"({request.targets}{', text encoder' if request.train_text_encoder else ''}): "
            f"{run.info.trained:,} numbers trained, 0 of the model's own changed.",
            f"{len(losses)} steps of {config.images_per_step} in {run.seconds:.0f} s "
            f"({len(losses) * config.images_per_step / max(run.seconds, 1e-9):.1f} images/s); "
            f"{self._describe_data(run)}. "
            + " ".join(describe_rate(run, config, self._up_rate if self._has_up_rate else 1.0)),
            f"Loss {first:.4f} over the first quarter, {last:.4f} over the last. A single step's loss scatters with "
            "the noise levels and pictures that were drawn.",
        ]
        if not any(bool(part.any()) for name, part in learned.items() if name.endswith(self._kind.ZERO_PARTS)):
            lines.append(
                "NOTHING WAS LEARNED: the factors that start at zero are still zero, so this LoRA changes nothing. Try "
                f"a higher learning_rate (it was {config.learning_rate:g}) or more steps."
            )
        lines += describe_pairs(self._dataset.pictures)
        lines += self._describe_whole(learned) + self._describe_limits() + self._describe_preserve()
        lines += describe_held_out(run, config)
        lines += describe_leak(run, config) + describe_shared(self._dataset.pictures)
        lines += describe_pictures(run) + describe_notes(run) + describe_card(run)
        lines += describe_part(self._models.model, run, PART_USE)
        if self._training_adapter is not None:
            lines.append(self._training_adapter.describe())
        if self._passes(run) > 400:
            lines.append("That is a lot: look at images from an earlier number of steps too, for over-training.")
        lines += describe_unread(self._dataset.unread)
        if run.info.trigger:
            lines.append(f"Call it with: {run.info.trigger}")
        return "\n".join(lines)
