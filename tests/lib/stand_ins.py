"""Text encoders and VAEs for models of any class: what they give has the shapes that the class takes, and no meaning.

Released text encoders have vocabularies that ComfyUI does not ship, and released VAEs have hundreds of classes; what is
tested with these is the diffusion model.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import tiny
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Text:
    """What a text encoder gives for a prompt.

    width: of a token's vector. tokens: how many for each prompt; 0 is one for each word and four more. pooled: the
    width of the pooled vector, 0 for none. layers: hidden states stacked before the tokens, [1, layers, tokens, width];
    0 for none. more: {name of a further field: (tokens -> its shape)}, such as the states of a second encoder.
    ids: names of the numbers of a second tokenizer's words and of their weights, both [tokens]. facts: further fields
    that are no tensors. mask: whether an attention mask comes along. pictures: whether a prompt has a token of
    each picture.
    """

    width: int
    tokens: int = 0
    pooled: int = 0
    layers: int = 0
    more: Mapping[str, Callable[[int], tuple[int, ...]]] = field(default_factory=dict)
    ids: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    mask: bool = False
    pictures: bool = False


class _Words:
    """Words as numbers by their letters; see comfy.sd1_clip.SDTokenizer."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
        self.embedding_directory = embedding_directory

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **_: Any) -> dict[str, list]:
        return {"words": [[(sum(map(ord, word)) % 251, 1.0) for word in (text.split() or [""])]]}

    def untokenize(self, pairs: Any) -> Any:
        return pairs


class _WordsAndPictures(_Words):
    """A picture is a number of all its pixels and of its size."""

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, images: Any = (), **_: Any) -> dict:
        words = super().tokenize_with_weights(text)["words"][0]
        seen = [(round(1000 * image.double().sum().item() + image.shape[1]) % 251, 1.0) for image in images]
        return {"words": [[*seen, *words]]}


def _encoder(kind: Text) -> type[nn.Module]:
    class Encoder(nn.Module):
        def __init__(self, device: Any = None, dtype: Any = None, model_options: Any = None) -> None:
            super().__init__()
            self.table = nn.Embedding(256, kind.width)
            self.dtypes = {torch.float32}

        def set_clip_options(self, options: Any) -> None:
            pass

        def reset_clip_options(self) -> None:
            pass

        def encode_token_weights(self, pairs: Mapping[str, list]) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
            numbers = [number for number, _ in pairs["words"][0]]
            count = kind.tokens or len(numbers) + 4
            numbers = (numbers + [252 + i % 4 for i in range(count)])[:count]
            states = self.table(torch.tensor([numbers], device=self.table.weight.device))
            if kind.layers:
                states = torch.stack([states * (1 + i / kind.layers) for i in range(kind.layers)], 1)
            pooled = states.flatten(1)[:, : kind.pooled] if kind.pooled else None
            seed = torch.Generator().manual_seed(sum(numbers))
            more = {name: torch.randn(*shape(count), generator=seed) for name, shape in kind.more.items()}
            if kind.ids:
                more |= dict(zip(kind.ids, (torch.tensor(numbers, dtype=torch.int), torch.ones(count)), strict=True))
            more.update(kind.facts)
            if kind.mask:
                more["attention_mask"] = torch.ones(1, count, dtype=torch.long)
            return states, pooled, more

        def load_sd(self, sd: Any) -> Any:
            return self.load_state_dict(sd, strict=False)

    return Encoder


def own_clip(target: Any):
    """ComfyUI's CLIP over a text encoder of its own that has no weights."""
    import comfy.sd

    return comfy.sd.CLIP(target, model_options={"dtype": torch.float32})


def clip(kind: Text):
    """ComfyUI's CLIP over a text encoder of this kind."""
    import comfy.sd

    class Target:
        params: dict = {}  # noqa: RUF012 (what ComfyUI's own targets are)
        clip, tokenizer = _encoder(kind), _WordsAndPictures if kind.pictures else _Words

    made = comfy.sd.CLIP(Target, model_options={"dtype": torch.float32})
    # Encoders of different kinds have different weights: the pack keeps prompts by the weights of their encoder.
    eyes = ("eyes",) if kind.pictures else ()
    parts = (kind.width, kind.tokens, kind.pooled, kind.layers, kind.mask, *eyes, *kind.more, *kind.ids, *kind.facts)
    tiny.fill(made.cond_stage_model, zlib.crc32(repr(parts).encode()))
    made.cond_stage_model.table.weight.mul_(kind.width**0.5)  # numbers of about unit size
    return made


class _Cells(nn.Module):
    """Squares of pixels as channels by a fixed linear map, and its pseudo-inverse.

    temporal: frames that become one latent frame, as their mean; the first one is a latent frame of its own. 0 for a
    model of pictures.
    """

    def __init__(self, channels: int, side: int, temporal: int) -> None:
        super().__init__()
        self.side, self.temporal = side, temporal
        self.weight = nn.Parameter(torch.zeros(channels, 3 * side * side), requires_grad=False)

    def encode(self, pixels: Tensor) -> Tensor:
        if pixels.ndim == 4:
            return self._cells(pixels)
        first, rest = self._cells(pixels[:, :, 0]), pixels[:, :, 1:]
        whole = rest.shape[2] // self.temporal * self.temporal
        groups = rest[:, :, :whole].unflatten(2, (-1, self.temporal)).mean(3)  # [B, 3, groups, H, W]
        return torch.stack([first, *(self._cells(group) for group in groups.unbind(2))], 2)

    def _cells(self, pixels: Tensor) -> Tensor:
        return torch.einsum("oc,bchw->bohw", self.weight, nn.functional.pixel_unshuffle(pixels, self.side))

    def decode(self, latent: Tensor) -> Tensor:
        frames = latent.ndim == 5
        if frames and latent.shape[2] > 1:
            latent = torch.cat([latent[:, :, :1], latent[:, :, 1:].repeat_interleave(self.temporal, 2)], 2)
        flat = latent.transpose(1, 2).flatten(0, 1) if frames else latent
        cells = torch.einsum("oc,bohw->bchw", self.weight, flat)
        pixels = nn.functional.pixel_shuffle(cells, self.side)
        return pixels.unflatten(0, latent.shape[:1] + latent.shape[2:3]).transpose(1, 2) if frames else pixels


def vae(channels: int, side: int = 8, frames: bool = False, temporal: int = 4):
    """ComfyUI's VAE over a fixed linear map. side: pixels a latent cell. frames: latents are [1, C, T, h, w], and
    `temporal` frames become one latent frame behind the first."""
    import comfy.model_patcher

    made = tiny.vae()
    made.first_stage_model = _Cells(channels, side, temporal if frames else 0)
    tiny.fill(made.first_stage_model, 3)
    made.first_stage_model.eval()
    cpu = torch.device("cpu")
    made.patcher = comfy.model_patcher.ModelPatcher(made.first_stage_model, load_device=cpu, offload_device=cpu)
    made.latent_channels, made.downscale_ratio, made.upscale_ratio = channels, side, side
    made.latent_dim = 3 if frames else 2
    made.process_input = made.process_output = lambda image: image
    if frames:
        made.upscale_ratio = (lambda count: max(0, count * temporal - temporal + 1), side, side)
        made.downscale_ratio = (lambda count: max(0, (count + temporal - 1) // temporal), side, side)
    return made
