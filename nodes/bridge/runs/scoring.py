"""Scores every picture that a run trains on: its loss on the fixed grid, see `training.validation`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ....training.config import TrainConfig
from ....training.data import Batch
from ....training.distributed import World
from ....training.images import by_picture
from ....training.picture_scores import MOST_COST, MOST_PICTURES, Picture, share_of_run
from ....training.validation import TIMESTEPS, grid_batch, shared_numbers
from ..dataset.pictures import Pictures

ENDS = 2  # the start and the end of a run
# Of `TIMESTEPS`, those at which a caption is judged: there the loss differs most with it and without.
CAPTION_POSITIONS = (1, 2, 3)


@dataclass(frozen=True)
class PictureLoss:
    """loss: the mean loss of one picture on the grid. caption_gain: see `PictureLosses`; None where not asked for."""

    picture: Picture
    loss: float
    caption_gain: float | None


@dataclass(frozen=True)
class PictureScorer:
    """Scores the trained pictures of one training with the model as it is.

    indices: one item of each picture, a position in `Pictures.items`. captions: whether the start is scored with the
    empty prompt too. device, timesteps: of the batches. loss: batch -> [B]. world: the processes that share the work.
    """

    pictures: Pictures
    indices: Sequence[int]
    captions: bool
    device: torch.device
    timesteps: Sequence[float]
    loss: Callable[[Batch], Tensor]
    world: World = field(default_factory=World)

    def score(self, captions: bool, goes_on: Callable[[int, int], bool]) -> list[PictureLoss] | None:
        """The loss of each picture, the same in all processes, which must all call this.

        captions: whether with the empty prompt too. goes_on: called with (pictures done, of how many) before each
        round, in all processes alike; False ends the scoring with None. What it raises passes through.
        """
        width, count = (2 if captions else 1), len(self.indices)
        with torch.no_grad():
            numbers = shared_numbers(
                count, width, lambda i: self._numbers(i, captions), self.world, lambda done: goes_on(done, count)
            )
        if numbers is None:
            return None
        gains = numbers[1::width] if captions else [None] * count
        return [
            PictureLoss(self.pictures.items[index].picture, loss, gain)
            for index, loss, gain in zip(self.indices, numbers[::width], gains, strict=True)
        ]

    def _numbers(self, number: int, captions: bool) -> list[float]:
        """The loss of a picture and, with `captions`, its caption gain."""
        losses = self._losses(number, range(len(self.timesteps)), True)  # [timesteps]
        if not captions:
            return [losses.mean().item()]
        uncaptioned = self._losses(number, CAPTION_POSITIONS, False)
        return [losses.mean().item(), (uncaptioned.mean() / losses[list(CAPTION_POSITIONS)].mean()).log().item()]

    def _losses(self, number: int, positions: Sequence[int], captioned: bool) -> Tensor:
        index = self.indices[number]
        batch = grid_batch(self.pictures.data, index, index, self.device, self.timesteps, captioned, positions)
        return self.loss(batch).cpu().double()


def scored_indices(pictures: Pictures, training_indices: Sequence[int]) -> list[int]:
    """One item of each picture that is trained on, at most `MOST_PICTURES`.

    Mirrored and repeated copies and copies of other sizes count as one picture.
    """
    copies = by_picture(pictures.items[i] for i in training_indices)
    return [training_indices[own[0]] for own in copies[:MOST_PICTURES]]


def what_is_scored(config: TrainConfig, pictures: int, learns_captions: bool) -> tuple[bool, bool]:
    """(whether the trained pictures are scored, whether without their captions too), by the setting `score_pictures`.

    With "auto" both are done, or the first alone, where the run takes at most `MOST_COST` longer for it.
    learns_captions: whether the technique trains on the captions of the pictures.
    """
    if config.score_pictures == "off":
        return False, False
    if config.score_pictures == "on":
        return True, learns_captions
    scores = (ENDS * pictures * len(TIMESTEPS), pictures * len(CAPTION_POSITIONS))
    share = [share_of_run(config, sum(scores[:count])) for count in (1, 2)]
    return share[0] <= MOST_COST, learns_captions and share[1] <= MOST_COST
