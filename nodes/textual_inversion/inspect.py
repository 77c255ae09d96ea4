"""A word explained: what its vectors are near to in the vocabulary, and how long they are beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...training.embedding import nearest_words
from ...training.errors import InputError
from ..bridge.drawing import text_layout
from ..bridge.drawing.image import tensor_of
from ..bridge.files.reading import read_safetensors
from ..bridge.training_model.text_encoder import encoders, vocabulary

LARGEST = 64 * 2**20  # bytes: 75 vectors for every encoder there is are far below it
COUNT = 6  # words named for each vector


@dataclass(frozen=True)
class Neighbour:
    """One vector: its encoder, place, length, the vocabulary's median length, and the nearest words with their
    cosine."""

    key: str
    place: int
    length: float
    median: float
    words: tuple[tuple[str, float], ...]


def read_embedding(path: Path, clip) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(vectors by encoder, metadata) of a file, in canonical keys or with one nameless tensor, as ComfyUI reads it."""
    tensors, meta = read_safetensors(path, "embedding", LARGEST)
    parts = encoders(clip)
    known = {key: tensor for key, tensor in tensors.items() if key in parts}
    if not known:
        known = {next(iter(parts)): next(iter(tensors.values()))}
    return known, meta


def fitting(name: str, vectors: Mapping[str, Tensor], clip) -> dict[str, Tensor]:
    """The vectors [n, width] of the encoders that this CLIP has; `InputError` where a width does not fit."""
    parts, out = encoders(clip), {}
    for key, tensor in vectors.items():
        if key not in parts:
            continue
        width = vocabulary(parts[key][1]).shape[1]
        if tensor.ndim not in (1, 2) or tensor.shape[-1] != width or not tensor.is_floating_point():
            raise InputError(
                f"{name}: {key} is {tuple(tensor.shape)} and this text encoder's words have {width} numbers; "
                "wire in the CLIP that the word was learned for"
            )
        if not tensor.numel():
            raise InputError(f"{name}: {key} holds no vector; learn or fetch it again")
        if not torch.isfinite(tensor).all():
            raise InputError(f"{name}: {key} holds numbers that are not finite; learn or fetch it again")
        out[key] = tensor.detach().float().cpu().reshape(-1, width)
    if not out:
        raise InputError(
            f"{name} has vectors for {', '.join(vectors)}, and this CLIP has {', '.join(parts)}; wire in another CLIP"
        )
    return out


def neighbours(vectors: Mapping[str, Tensor], clip) -> list[Neighbour]:
    """What each vector is near to."""
    found = []
    for key, (tokenizer, encoder) in encoders(clip).items():
        if key not in vectors:
            continue
        table = vocabulary(encoder)
        median = float(table.norm(dim=-1).median())
        for place, vector in enumerate(vectors[key]):
            words = tuple(
                (tokenizer.inv_vocab.get(token, "?").removesuffix("</w>"), cosine)
                for token, cosine in nearest_words(vector, table, COUNT)
            )
            found.append(Neighbour(key, place, float(vector.norm()), median, words))
    return found


def describe(name: str, near: list[Neighbour], meta: Mapping[str, str]) -> str:
    """The word in sentences."""
    lines = [f"{name}: {len(near)} vector{'s' if len(near) != 1 else ''}."]
    for one in near:
        words = ", ".join(f"{word} {cosine:.2f}" for word, cosine in one.words)
        lines.append(
            f"{one.key} vector {one.place + 1}: length {one.length:.3f} ({one.length / one.median:.1f} x the "
            f"vocabulary's median), nearest to {words}."
        )
    if any(one.length > 5 * one.median for one in near):
        lines.append("A vector this long drowns the rest of a prompt; train with a norm_limit, or for fewer steps.")
    if meta.get("ss_sd_model_name"):
        lines.append(f"Learned on {meta['ss_sd_model_name']}.")
    return "\n".join(lines)


INK, FAINT, PAPER, BAR, LONG = (28, 28, 32), (122, 120, 114), (250, 249, 246), (84, 128, 160), (196, 120, 52)


def plot(name: str, near: list[Neighbour]) -> Tensor:
    """[1, H, W, 3] in 0..1: for each vector (the first 12) its nearest words as bars of cosine, and its length."""
    shown = near[:12]
    row, width, left = 34 + COUNT * 22 + 26, 640, 150
    sheet = Image.new("RGB", (width, 56 + row * len(shown)), PAPER)
    draw = ImageDraw.Draw(sheet)
    head, text = ImageFont.load_default(20), ImageFont.load_default(14)
    draw.text((20, 16), name, INK, head)
    for i, one in enumerate(shown):
        y = 56 + i * row
        times = one.length / one.median
        draw.text((20, y), f"{one.key} vector {one.place + 1}", INK, text)
        draw.text(
            (left + 60, y),
            f"length {one.length:.2f}, {times:.1f} x the vocabulary's median",
            LONG if times > 5 else FAINT,
            text,
        )
        for j, (word, cosine) in enumerate(one.words):
            at = y + 26 + j * 22
            shown, font = text_layout.set_in(word[:16], 14)
            draw.text((left - 10, at), shown, INK, font, anchor="ra")
            draw.rectangle((left, at + 3, left + max(1, round(max(cosine, 0.0) * (width - left - 90))), at + 15), BAR)
            draw.text((width - 70, at), f"{cosine:.2f}", FAINT, text)
    return tensor_of(sheet)
