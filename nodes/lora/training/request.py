"""The settings of `BespokeTrainLora`, and the data that it trains on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor, nn

from ....training.adapters import ADAPTERS, AdapterConfig
from ....training.config import PRECISIONS, TrainConfig, check_choice, check_range
from ....training.errors import InputError
from ....training.images import ImageSet, TrainingImage
from ....training.optimizers import OPTIMIZERS
from ....training.sample_prompts import parse_sample_prompts
from ...bridge.dataset.cache import digest
from ...bridge.models import TARGETS, target_layers
from ...bridge.models.custom import custom_targets, own_sizes
from ...bridge.models.second_picture import AUTO, MASKED, SOURCE_ENCODINGS

# Settings that version 0.1 lacks.
ADDED = (
    *("adapter", "lokr_factor", "rslora", "conv_rank", "rank_dropout", "module_dropout", "max_norm"),
    *("training_adapter_strength", "preserve", "preserve_weight", "source_encoding"),
)


@dataclass(frozen=True)
class LoraRequest:
    """The settings of a LoRA training; see `trainer.TrainingRequest`. Fields but `train` have the names of the widgets.

    targets, custom_targets: see `models.target_layers`. alpha: the adapters' output is scaled by alpha / rank, or with
    `rslora` by alpha / sqrt(rank). adapter: a kind of `ADAPTERS`. lokr_factor: see `lokr.factorization`.
    text_encoder_lr: the learning rate of the text encoder's adapters; 0 takes `train.learning_rate`. sample_prompt: see
    `sample_prompts`; an empty prompt takes the first picture's caption. conv_rank: the rank of 3x3 convolutions; 0
    adapts no convolution, see `models.target_layers`. rank_dropout, module_dropout: see `adapters.dropout`. max_norm:
    the longest change of a layer's weight, see `Adapter.limit_norm`; 0 is no limit. training_adapter_strength: of
    `LoraData.training_adapter`. preserve: prompts at which the model is held to the base, one a line; empty is off.
    preserve_weight: the weight of that loss; that on training pictures has 1. source_encoding: how the model is given
    second pictures, one of `SOURCE_ENCODINGS`. Raises `InputError` for values out of range.
    """

    train: TrainConfig
    targets: str = TARGETS[0]
    rank: int = 8
    alpha: float = 8.0
    custom_targets: str = ""
    precision: str = "auto"
    sample_prompt: str = ""
    train_text_encoder: bool = False
    text_encoder_lr: float = 0.0
    resume: bool = True
    adapter: str = "LoRA"
    lokr_factor: int = -1
    rslora: bool = False
    conv_rank: int = 0
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    max_norm: float = 0.0
    training_adapter_strength: float = 1.0
    preserve: str = ""
    preserve_weight: float = 1.0
    source_encoding: str = AUTO

    def __post_init__(self) -> None:
        for name in (
            *("rank", "alpha", "text_encoder_lr", "training_adapter_strength"),
            *("conv_rank", "rank_dropout", "module_dropout", "max_norm", "preserve_weight"),
        ):
            check_range(name, getattr(self, name))
        for name in ("preserve", "custom_targets", "sample_prompt"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"{name} is {getattr(self, name)!r}; give a text, or an empty one")
        parse_sample_prompts(self.sample_prompt)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("adapter", self.adapter, list(ADAPTERS))
        check_choice("source_encoding", self.source_encoding, SOURCE_ENCODINGS)
        if self.lokr_factor == 0 or self.lokr_factor < -1:
            raise InputError(f"lokr_factor is {self.lokr_factor}; give -1, or 1 or more")
        if self.targets == "custom":
            custom_targets(self.custom_targets)
        if self.train_text_encoder:
            self._check_text_encoder_lr()

    def layers(self, network: nn.Module) -> dict[str, nn.Module]:
        """{layer name: layer} of the diffusion model's layers that get an adapter, see `models.target_layers`."""
        return target_layers(network, self.targets, self.custom_targets, self.conv_rank > 0)

    def _check_text_encoder_lr(self) -> None:
        """Raise `InputError` for a rate that means nothing where the optimiser finds the rate itself."""
        own, rate, kind = self.text_encoder_lr, self.train.learning_rate, OPTIMIZERS[self.train.optimizer]
        if not kind.finds_rate or own in (0.0, rate):
            return
        given = f"text_encoder_lr is {own:g} and optimizer is {self.train.optimizer}"
        if kind.one_rate:
            raise InputError(
                f"{given}, whose package has one rate for all; set text_encoder_lr to 0, or choose {kind.instead}"
            )
        if rate > 0 and not 0.01 <= own / rate <= 10:
            raise InputError(
                f"{given}, with which only its ratio to learning_rate ({rate:g}) counts, and that is {own / rate:g}; "
                f"give a tenth of learning_rate, {rate / 10:g}, or at least 0.01 and at most 10 times it"
            )

    @property
    def runs_text_encoder(self) -> bool:
        """Whether the text encoder runs in the steps, so that no prompt is encoded before them."""
        return self.train_text_encoder

    @property
    def adapter_config(self) -> AdapterConfig:
        """The settings of each layer's adapter.

        With `rslora` alpha is `rank` / sqrt(`rank`) times as large, so that alpha / rank is the strength that rsLoRA
        has (Kalajdzievski 2023, arXiv 2312.03732, equation 4). The alpha in the file is that one, as LyCORIS writes it.
        """
        alpha = self.alpha * math.sqrt(self.rank) if self.rslora else self.alpha
        return AdapterConfig(self.rank, alpha, self.train.seed, self.lokr_factor)

    def own_configs(self, layers: Mapping[str, nn.Module]) -> dict[str, AdapterConfig]:
        """{layer name: settings} of the layers of `layers` that have others than `adapter_config`.

        3x3 convolutions have `conv_rank`, as kohya's `conv_dim`; 1x1 ones and linear layers `rank`. The alpha is such
        that the strength is that of all other layers, as with kohya's and LyCORIS' `conv_alpha` at alpha * conv_rank /
        rank. A line of `custom_targets` has its own rank, and its own alpha where it names one.
        """
        ranks = {name: self.conv_rank for name, layer in layers.items() if _has_kernel(layer)}
        sizes: dict[str, tuple[int | None, float | None]] = {name: (rank, None) for name, rank in ranks.items()}
        if self.targets == "custom":
            sizes |= own_sizes(layers, self.custom_targets)
        return {name: self._config(rank or self.rank, alpha) for name, (rank, alpha) in sizes.items()}

    def _config(self, rank: int, alpha: float | None) -> AdapterConfig:
        config = self.adapter_config
        if alpha is None:
            return replace(config, rank=rank, alpha=config.alpha * (rank / self.rank))
        return replace(config, rank=rank, alpha=alpha * math.sqrt(rank) if self.rslora else alpha)

    def settings(self) -> dict[str, Any]:
        """{widget name: value} of all settings but `resume`, and of those that version 0.1 lacks the changed ones.

        The metadata of a file and the table of a job are then what version 0.1 writes and reads. Without a prompt to
        preserve its weight has no effect.
        """
        left_out = {"train", "resume"} | {name for name in ADDED if getattr(self, name) == getattr(type(self), name)}
        if not self.preserve.strip():
            left_out |= {"preserve", "preserve_weight"}
        return self.train.settings() | {k: v for k, v in asdict(self).items() if k not in left_out}


@dataclass(frozen=True)
class LoraData:
    """The inputs of a LoRA training besides the models.

    validation: pictures to validate on, instead of some of `images`. prior: pictures of what the training must not
    change, see `prior_weight`. start: the LoRA that the training starts from. training_adapter: a LoRA that is part of
    the base in the steps alone, see `training_adapter.py`.
    """

    images: ImageSet
    validation: ImageSet | None = None
    prior: ImageSet | None = None
    start: Mapping[str, Tensor] | None = None
    training_adapter: Mapping[str, Tensor] | None = None

    @property
    def items(self) -> list[TrainingImage]:
        """The pictures of all sets."""
        return [item for data in (self.images, self.validation, self.prior) if data for item in data.items]

    def fingerprint(self, how: str = "") -> str:
        """A hash of all pictures, captions and masks, and of `start` and `training_adapter`.

        how: see `Pictures`. Masks that are holes make another training than masks that weight the loss alone, which an
        earlier version made of them.
        """
        sets = [data.fingerprint if data else "" for data in (self.images, self.validation, self.prior)]
        # Without an adapter, that of version 0.1.
        adapter = [fingerprint_of(self.training_adapter)] if self.training_adapter else []
        holes = ["holes"] if how == MASKED else []
        return "|".join([*sets, fingerprint_of(self.start), *adapter, *holes])


def fingerprint_of(lora: Mapping[str, Tensor] | None) -> str:
    """A hash of a LoRA's keys and numbers; empty for None."""
    if not lora:
        return ""
    tensors = {key: lora[key].float().contiguous().numpy().tobytes() for key in sorted(lora)}
    return digest(*(part for item in tensors.items() for part in item))


def _has_kernel(layer: nn.Module) -> bool:
    """Whether a layer is a convolution over more than one position."""
    return isinstance(layer, nn.Conv2d) and max(layer.kernel_size) > 1
