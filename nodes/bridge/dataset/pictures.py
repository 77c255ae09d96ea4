"""The pictures of a training as latents, and the split into pictures that are trained on, held out, or prior."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.model_base
import torch
from torch import Tensor

from ....training.config import TrainConfig
from ....training.data import LatentSet
from ....training.errors import InputError
from ....training.images import ImageSet, TrainingImage, apart, by_picture, first_equal
from ....training.stopping import ALL_STEPS
from ....training.validation import MIN_SPLIT, split
from ....training.validation import folds as make_folds
from .. import identity
from ..models import check_picture_sizes, is_inpainting_model
from ..models.clips import check_clips
from ..models.second_picture import FIRST_FRAME, IN_PROMPT
from ..runs.events import with_phase
from . import cache
from .clips import cut_clips, groups_of, latent_frames, mask_to_latent, needs_tiles
from .clips import encode as encode_frames
from .second_pictures import encode_seconds, equal_seconds, film_of


@dataclass(frozen=True)
class Pictures:
    """Pictures, their latents and their roles.

    items, data: the pictures and their latents and masks, in the same order. training_indices, held_out_indices,
    prior_indices: positions in both. folds: (training indices, held-out indices) of the trainings that come first,
    where the set is too small to hold a picture out; see `runs.cross_validation`.
    blank_latents: for a model that reads a masked picture, the unscaled latent [1, C, h, w] of a grey picture by its
    (height, width) in px. set_sizes, equal: see `split_pictures`.
    told: what the model is told of each item's second picture, as arguments of `extra_conds`; see `second_pictures`.
    how: the way, a key of `second_picture.WORDS`; "" without second pictures. in_prompts: where the prompt has the
    second picture in it, for each item the first with the same one, -1 for one without; else empty. notes: sentences
    for the report on what was done with clips.
    """

    items: list[TrainingImage]
    data: LatentSet
    training_indices: list[int]
    held_out_indices: list[int]
    prior_indices: list[int]
    folds: list[tuple[list[int], list[int]]]
    blank_latents: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    set_sizes: tuple[int, int, int] = (0, 0, 0)
    equal: Sequence[int] = ()
    told: Sequence[Mapping[str, Any]] = ()
    how: str = ""
    in_prompts: Sequence[int] = ()
    notes: Sequence[str] = ()

    def model_inputs(self, index: int) -> dict[str, Any]:
        """What the model is told about a picture besides its caption, as arguments of ComfyUI's `extra_conds`.

        The size before scaling and what was cropped away, in px: SDXL learns from small and cropped pictures without
        drawing like them (Podell et al. 2023, arXiv 2307.01952, section 2.2). For an inpainting model, a picture that
        is masked everywhere, as InpaintModelConditioning makes it of a mask of ones: grey, the colour of a hole. And
        what is told of its source.
        """
        item, latent = self.items[index], self.data.latents[index]
        inputs: dict[str, Any] = {}
        if item.original is not None:
            height, width = item.original
            inputs = {
                "height": height,
                "width": width,
                "crop_h": item.crop[0],
                "crop_w": item.crop[1],
                "target_height": latent.shape[-2] * 8,
                "target_width": latent.shape[-1] * 8,
            }
        told = self.source_inputs(index)
        if self.blank_latents and not told:
            inputs["concat_latent_image"] = self.blank_latents[item.size]
            inputs["concat_mask"] = torch.ones(1, 1, *latent.shape[-2:])
        return inputs | told

    def source_inputs(self, index: int) -> dict[str, Any]:
        """What the model is told of a picture's source, or of its hole, and of a clip's frames a second; else {}."""
        item = self.items[index]
        rate = {"frame_rate": item.fps} if item.frames > 1 and item.fps else {}  # as LTXVConditioning's
        return (dict(self.told[index]) if self.told else {}) | rate

    def prompt_key(self, index: int, prompt: str) -> str:
        """The key in `EncodedDataset.prompts` of a prompt for a picture: the prompt, with a number of its source where
        the prompt has that in it."""
        source = self.in_prompts[index] if self.in_prompts else -1
        return prompt if source < 0 else f"{prompt}\0{source}"

    @property
    def sample_index(self) -> int:
        """The picture whose size the samples have, and whose source: of pairs the first held-out one, else the first
        that is trained on. Where there are clips, the first one of the most frequent frames and size."""
        candidates = self.held_out_indices if self.how and self.held_out_indices else self.training_indices
        shapes = Counter(tuple(self.items[i].pixels.shape) for i in candidates if self.items[i].frames > 1)
        if not shapes:
            return candidates[0]
        common = shapes.most_common(1)[0][0]
        return next(i for i in candidates if tuple(self.items[i].pixels.shape) == common)

    @property
    def sample_item(self) -> TrainingImage:
        """The picture whose caption an empty sample prompt takes."""
        return self.items[self.sample_index] if self.how else self.items[0]

    def count_pictures(self, indices: Sequence[int]) -> int:
        """The number of different pictures among `indices`; see `ImageSet.copies`."""
        return len(by_picture(self.items[i] for i in indices))

    def held_out_and_trained_on(self) -> list[str]:
        """The names of the pictures of a validation set that the training set has too, by file or by pixels."""
        training, validation, _ = self.set_sizes
        both = self.items[: training + validation] if validation else []
        groups = apart(both, self.equal[: len(both)])
        return [self.items[i].name for own in groups if own[0] < training for i in own if i >= training]

    def largest_index(self) -> int:
        """The index of the largest latent that is trained on."""
        return max(self.training_indices, key=lambda i: self.data.latents[i].numel())

    def prompts_of(self, index: int) -> list[str]:
        """The prompts of a picture that a training encodes: the empty one and all, or the first of a validation one."""
        training, validation, _ = self.set_sizes
        own = self.items[index].prompts
        return ["", *(own[:1] if training <= index < training + validation else own)]

    @property
    def prompts(self) -> list[str]:
        """Every prompt that a training encodes, sorted; see `prompts_of`."""
        return sorted({prompt for index in range(len(self.items)) for prompt in self.prompts_of(index)} | {""})


def encode_pictures(
    vae,
    base: comfy.model_base.BaseModel,
    config: TrainConfig,
    images: ImageSet,
    validation: ImageSet | None = None,
    prior: ImageSet | None = None,
    how: str | None = None,
) -> Pictures:
    """Encode all pictures and assign their roles.

    validation: pictures to score instead of some of `images`. prior: pictures for prior preservation. how: the way in
    which the model is given second pictures, see `Pictures`; None for a trainer that takes none. Raises `InputError`
    for a VAE of another model, for more held-out pictures than there are, for a size that the model cannot be trained
    at, for clips where the model makes pictures, and for second pictures where `how` is None.
    """
    sets = [list(given.items) if given is not None else [] for given in (images, validation, prior)]
    items = [item for one in sets for item in one]
    check_clips(base, items)
    items, notes = cut_clips(vae, items)
    seconds = [item.path for item in items if item.control is not None]
    if how is None and seconds:
        raise InputError(
            f"the set has a second picture for {seconds[0]!r}, and this trainer takes none; train a LoRA on the pairs, "
            "or take Bespoke Pair Image Sets away or switch pairs off"
        )
    # Before the encoding, which takes long, since these may raise.
    check_picture_sizes(base, ((item.name, *item.size) for item in items))
    pictures = split_pictures(items, LatentSet([], []), [len(one) for one in sets], config)
    with torch.inference_mode(False), torch.no_grad():
        latents, tiled = _encode_latents(vae, base, items, how or "")
    masks = [
        None if item.mask is None else mask_to_latent(item.mask, latent, _groups(vae, base, item, latent))
        for item, latent in zip(items, latents, strict=True)
    ]
    if tiled:
        notes.append(
            f"{tiled} of the clips needed more memory than is free, and VAEEncodeTiled's tiles were used to encode"
        )
    blank_latents = encode_blanks(vae, items) if is_inpainting_model(base) else {}
    data = LatentSet(latents, masks, [item.weight for item in items])
    pictures = replace(pictures, data=data, blank_latents=blank_latents, notes=tuple(notes))
    if not how:
        return pictures
    in_prompts = equal_seconds(items) if how in IN_PROMPT else ()
    return replace(pictures, how=how, told=encode_seconds(vae, items, how), in_prompts=in_prompts)


def split_pictures(
    items: list[TrainingImage],
    data: LatentSet,
    set_sizes: Sequence[int],
    config: TrainConfig,
    equal: Sequence[int] | None = None,
) -> Pictures:
    """Assign the roles of the pictures: trained on, held out, prior.

    set_sizes: how many of `items` are training, validation and prior pictures, in this order. equal: see
    `training.images.first_equal`; by default the pixels of the items tell, which are read for nothing else. A picture
    that is there twice is held out in all its places or in none. Raises `InputError` for more held-out pictures than
    there are, and for a `config.stop` that needs held-out pictures where there are none.
    """
    training_count, validation_count, prior_count = set_sizes
    is_split = bool(config.validation or validation_count)
    if config.stop != ALL_STEPS and not is_split:
        raise InputError(
            f"stop is {config.stop!r}, which the loss of held-out pictures decides, and none is held out; set "
            f"validation to 2 or more, or stop to {ALL_STEPS!r}"
        )
    if equal is None:
        equal = first_equal(items) if is_split else range(len(items))
    copies = apart(items[:training_count], equal[:training_count]) if is_split else []
    training, held_out, folds = list(range(training_count)), [], []
    if validation_count:
        held_out = list(range(training_count, training_count + validation_count))
    elif config.validation and len(copies) < MIN_SPLIT:
        folds = make_folds(copies, config.validation, config.seed)
    elif config.validation:
        training, held_out = split(copies, config.validation, config.seed)
    return Pictures(
        items,
        data,
        training,
        held_out,
        list(range(training_count + validation_count, len(items))),
        folds,
        set_sizes=(training_count, validation_count, prior_count),
        equal=equal,
    )


def encode_blanks(vae, items: list[TrainingImage]) -> dict[tuple[int, ...], Tensor]:
    """{(height, width) in px: the unscaled latent of a grey picture of that size} for all sizes, on the CPU."""
    with torch.inference_mode(False), torch.no_grad():
        return {
            size: vae.encode(torch.full((1, *size, 3), 0.5)).float().to("cpu", copy=True).clone()
            for size in {item.size for item in items}
        }


def _encode_latents(
    vae, base: comfy.model_base.BaseModel, items: list[TrainingImage], how: str
) -> tuple[list[Tensor], int]:
    """(a latent [1, C, H, W] of each picture, [1, C, T, H, W] for a video model, how many clips needed tiles).

    float32 on the CPU, scaled and shifted as the model was trained. how: see `Pictures`. For a model that is given the
    first frame, the latent of a pair is that of a film which begins with the source.
    """
    vae_identity, out, count = identity.of_vae(vae), list[Tensor](), 0
    for item in with_phase("pictures", items):
        film = item.control is not None and how == FIRST_FRAME
        pixels = film_of(item) if film else item.pixels if item.is_clip else item.pixels[None]
        pixels, tiled = pixels.contiguous(), item.is_clip and needs_tiles(vae, item.pixels.shape)
        count += tiled
        shape = str(tuple(pixels.shape if film or item.is_clip else pixels.shape[1:]))
        parts = [*(["in tiles"] if tiled else []), shape, pixels.numpy().tobytes()]
        key = cache.key_of(vae_identity, type(base.latent_format).__name__, *parts)

        def encode(item: TrainingImage = item, pixels: Tensor = pixels, tiled: bool = tiled) -> Tensor:
            latent = _in_model_shape(base, encode_frames(vae, pixels, tiled))
            if item.is_clip:
                _check_frames(vae, item, latent)
            return base.process_latent_in(latent).float().to("cpu", copy=True).clone()

        out.append(cache.latent_cache.get(key, encode))
    return out, count


def _check_frames(vae, item: TrainingImage, latent: Tensor) -> None:
    """Raise `InputError` where the VAE's latent of a clip has other frames than the VAE says."""
    wanted = latent_frames(vae, item.frames)
    if latent.shape[0] != 1 or latent.shape[2] != wanted:
        raise InputError(
            f"the VAE makes {latent.shape[2]} latent frames of the {item.frames} of {item.path!r}, and {wanted} are "
            "expected; wire in the VAE that belongs to the video model"
        )


def _groups(vae, base: comfy.model_base.BaseModel, item: TrainingImage, latent: Tensor) -> tuple[int, ...]:
    return groups_of(vae, base, latent) if item.is_clip else (1,)


def _in_model_shape(base: comfy.model_base.BaseModel, latent: Tensor) -> Tensor:
    """A VAE's latent in the shape of the model's latents; for a video model with one frame.

    Raises `InputError` where the channels or dimensions do not fit.
    """
    channels, axes = base.latent_format.latent_channels, base.latent_format.latent_dimensions
    if axes == 3 and latent.ndim == 4:
        latent = latent.unsqueeze(2)
    if latent.shape[1] != channels or latent.ndim != axes + 2:
        raise InputError(
            f"the VAE makes latents of {latent.shape[1]} channels in {latent.ndim} dimensions, and this model's have "
            f"{channels} in {axes + 2}; wire in the VAE that belongs to the model"
        )
    return latent
