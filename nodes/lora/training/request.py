"""What `BespokeTrainLora` is asked to do, and what it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ....training.config import PRECISIONS, TrainConfig, check_choice, check_range
from ....training.images import ImageSet
from ...bridge.dataset.cache import digest
from ...bridge.models import TARGETS


@dataclass(frozen=True)
class LoraRequest:
    """A request for a LoRA. alpha / rank is the strength of the low-rank path.

    text_encoder_lr: the learning rate of the text encoder's adapters; 0 takes the run's. sample_prompt: empty takes
    the first picture's caption.
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

    def __post_init__(self) -> None:
        for name in ("rank", "alpha", "text_encoder_lr"):
            check_range(name, getattr(self, name))
        check_choice("precision", self.precision, PRECISIONS)

    def settings(self) -> dict[str, Any]:
        """The request by widget name."""
        own = {k: v for k, v in asdict(self).items() if k not in ("train", "resume")}
        return asdict(self.train) | own


@dataclass(frozen=True)
class LoraData:
    """What a training reads.

    validation: pictures to score instead of some of `images`. prior: pictures of what must not change. start: the LoRA
    that the training starts from.
    """

    images: ImageSet
    validation: ImageSet | None = None
    prior: ImageSet | None = None
    start: Mapping[str, Tensor] | None = None

    def fingerprint(self) -> str:
        """A hash of all that is read."""
        sets = [data.fingerprint if data else "" for data in (self.images, self.validation, self.prior)]
        return "|".join([*sets, fingerprint_of(self.start)])


def fingerprint_of(lora: Mapping[str, Tensor] | None) -> str:
    """A hash of a LoRA's keys and numbers; empty for None."""
    if not lora:
        return ""
    tensors = {key: lora[key].float().contiguous().numpy().tobytes() for key in sorted(lora)}
    return digest(*(part for item in tensors.items() for part in item))
