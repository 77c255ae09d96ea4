"""The settings of `BespokeTrainSlider`, and the data that it trains on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ....training.config import check_choice, check_range
from ....training.errors import InputError
from ....training.images import ImageSet
from ..training.request import LoraRequest, fingerprint_of

SLIDER, ERASE = "slider", "erase"
MODES = (SLIDER, ERASE)


@dataclass(frozen=True)
class SliderRequest(LoraRequest):
    """The settings of a slider training. Fields have the names of the widgets.

    target: the prompt whose pictures change. more, less: prompts of the two ends. mode: "slider", or "erase", which
    pulls `target` away from itself, towards `more` (empty: no prompt). guidance: how far the base's prediction is
    pulled, see `slider.pulled`. resolution: the side in px of the latents that are made from words. preserve: see
    `LoraRequest`; each prompt is also added to both ends, see `technique.ends_of`. Raises `InputError` for values out
    of range.
    """

    target: str = ""
    more: str = ""
    less: str = ""
    guidance: float = 0.5
    resolution: int = 512
    mode: str = SLIDER

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("guidance", self.guidance)
        check_range("resolution", self.resolution)
        check_choice("mode", self.mode, MODES)
        for name in ("target", "more", "less"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"{name} is {getattr(self, name)!r}; give a text, or an empty one")
        if self.train_text_encoder:
            raise InputError("a slider trains no text encoder; set train_text_encoder to false")

    @property
    def erases(self) -> bool:
        return self.mode == ERASE

    @property
    def signs(self) -> tuple[float, ...]:
        """The strengths that are trained."""
        return (1.0,) if self.erases else (1.0, -1.0)

    @property
    def drawn_strengths(self) -> tuple[float, ...]:
        """The strengths of a strip of sample images."""
        return (0.0, 0.5, 1.0, 1.5) if self.erases else (-2.0, -1.0, 0.0, 1.0, 2.0)

    def check_words(self) -> None:
        """Raise `InputError` where these words tell nothing to learn. For a training without pictures."""
        if not self.target.strip():
            raise InputError("target is empty; write a prompt whose pictures change, such as 'a person'")
        if self.erases:
            if self.more.strip() == self.target.strip():
                raise InputError(
                    f"more is {self.more!r}, the target itself; leave it empty, or write what is drawn instead"
                )
        elif self.more.strip() == self.less.strip():
            same = f"both {self.more!r}" if self.more.strip() else "both empty"
            raise InputError(f"more and less are {same}; write what the two ends of the slider show")


@dataclass(frozen=True)
class SliderData:
    """The inputs of a slider training besides the models.

    positive, negative: the pictures of strength 1 and -1, both or neither. start: the LoRA to go on from. Raises
    `InputError` for one of the two.
    """

    positive: ImageSet | None = None
    negative: ImageSet | None = None
    start: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        for given, missing in (("positive", "negative"), ("negative", "positive")):
            if getattr(self, given) is not None and getattr(self, missing) is None:
                raise InputError(
                    f"{given}_images is wired and {missing}_images is not; wire in both, or neither to train on words"
                )

    def fingerprint(self) -> str:
        """A hash of all pictures and captions, and of `start`."""
        sets = [data.fingerprint if data else "" for data in (self.positive, self.negative)]
        return "|".join([*sets, fingerprint_of(self.start)])
