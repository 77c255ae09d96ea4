"""What an embedding holds: the nearest words of the vocabulary to its vectors, and their lengths compared with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ...training.bundles import SHORT, key_for
from ...training.embedding import nearest_words
from ...training.errors import InputError
from ..bridge.drawing.fonts import builtin_font, drawable
from ..bridge.drawing.image import tensor_of
from ..bridge.drawing.palette import BAR, FAINT, INK, PAPER, WARNING
from ..bridge.drawing.shown import SHOWN_WIDTH
from ..bridge.files.reading import read_safetensors
from ..bridge.training_model.pseudo_word import embedding_width, is_clip_model, text_encoders, vocabulary
from ..bridge.training_model.spelling import spelling

LARGEST = 64 * 2**20  # bytes: 75 vectors for every known encoder need far less
COUNT = 6  # nearest words named for each vector
LONG = 5  # times the vocabulary's median length: a longer vector outweighs the rest of a prompt
PLOTTED = 12  # vectors in the plot


@dataclass(frozen=True)
class Neighbour:
    """One vector of an embedding, compared with its encoder's vocabulary.

    key: the encoder's, such as "clip_l". place: the vector's index. length: its L2 norm. median: the median norm of the
    vocabulary. words: (word, cosine) of the nearest ones, the nearest first.
    """

    key: str
    place: int
    length: float
    median: float
    words: tuple[tuple[str, float], ...]


def read_embedding(path: Path, clip) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """(vectors by encoder, metadata, notes) of an embedding file, read as ComfyUI reads it for each encoder.

    A tensor that is as wide as no word of its encoder is left out, as ComfyUI does, and noted; where all are, they are
    given as they are. Raises `InputError` for a file that cannot be read.
    """
    tensors, meta = read_safetensors(path, "embedding", LARGEST)
    parts = text_encoders(clip)
    found = {key: vectors_for(key, tensors, path.name) for key in parts}
    widths = {key: embedding_width(model) for key, (_, model) in parts.items()}
    fits = {key: tensor for key, tensor in found.items() if tensor.ndim and tensor.shape[-1] == widths[key]}
    notes = [
        f"{key}: the file's tensor is {tuple(tensor.shape)} and the words have {widths[key]} numbers, so a prompt says "
        "nothing there, in ComfyUI too."
        for key, tensor in found.items()
        if fits and key not in fits and is_clip_model(parts[key][1])
    ]
    unread = [key for key in found if fits and key not in fits and not is_clip_model(parts[key][1])]
    if unread:
        notes.append(f"The file has no vectors for {' and '.join(unread)}, which read nothing in its place.")
    for key in parts:
        other = key_for(key, tensors, parts)
        if key not in fits and other in SHORT and tensors[other].shape[-1:] == (widths[key],):
            notes.append(
                f"The file's {other} is OneTrainer's key for {key}, which ComfyUI does not look for; in a LoRA's file "
                "Bespoke Inject LoRA reads it."
            )
    return fits or found, meta, notes


def vectors_for(key: str, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """The tensor of a file that ComfyUI takes for the encoder `key`, by the rule of `load_embed` in its `sd1_clip.py`.

    In this order: the encoder's own key; the tensors of a bundle, `bundle_emb.<word>.string_to_param.*`, put together,
    else `bundle_emb.<word>.<key>`; the file's first tensor. name: the file's, for the error.
    """
    if "string_to_param" in tensors:
        raise InputError(f"{name} has a tensor where ComfyUI looks for a list of them; fetch it again")
    if key in tensors:
        return tensors[key]
    for ending in (".string_to_param.*", f".{key}"):
        bundle = [tensor for k, tensor in tensors.items() if k.startswith("bundle_emb.") and k.endswith(ending)]
        if bundle and len({(tensor.ndim, *tensor.shape[1:]) for tensor in bundle}) > 1:
            raise InputError(
                f"{name} has words of different widths in its bundle; take them out into files of their own"
            )
        if bundle:
            return torch.cat(bundle, dim=0)
    return next(iter(tensors.values()))


def fitting(name: str, vectors: Mapping[str, Tensor], clip) -> dict[str, Tensor]:
    """The vectors [n, width], fp32 on the CPU, of the encoders that this CLIP has.

    Raises `InputError` where a width does not fit, a vector is not finite, or no encoder is shared.
    """
    parts, out = text_encoders(clip), {}
    for key, tensor in vectors.items():
        if key not in parts:
            continue
        width = embedding_width(parts[key][1])
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
    """Each vector with the `COUNT` nearest words of its encoder's vocabulary by cosine."""
    found = []
    for key, (tokenizer, encoder) in text_encoders(clip).items():
        if key not in vectors:
            continue
        table = vocabulary(clip, encoder)
        median = table.median
        for place, vector in enumerate(vectors[key]):
            words = tuple((spelling(tokenizer, token), cosine) for token, cosine in nearest_words(vector, table, COUNT))
            found.append(Neighbour(key, place, float(vector.norm()), median, words))
    return found


def describe(name: str, near: list[Neighbour], meta: Mapping[str, str], notes: Sequence[str] = ()) -> str:
    """The report of an embedding: each vector's length and nearest words. notes: more lines, after the vectors."""
    lines = [f"{name}: {len(near)} vector{'s' if len(near) != 1 else ''}."]
    for one in near:
        words = ", ".join(f"{word} {cosine:.2f}" for word, cosine in one.words)
        lines.append(
            f"{one.key} vector {one.place + 1}: length {one.length:.3f} ({one.length / one.median:.1f} x the "
            f"vocabulary's median), nearest to {words}."
        )
    lines += notes
    if any(one.length > LONG * one.median for one in near):
        lines.append("A vector this long drowns the rest of a prompt; train with a norm_limit, or for fewer steps.")
    if meta.get("ss_sd_model_name"):
        lines.append(f"Learned on {meta['ss_sd_model_name']}.")
    return "\n".join(lines)


def plot(name: str, near: list[Neighbour]) -> Tensor:
    """The first 12 vectors as an IMAGE [1, H, W, 3] in 0..1: bars of the cosine to the nearest words, and lengths."""
    shown = near[:PLOTTED]
    row, width, left = 34 + COUNT * 22 + 26, SHOWN_WIDTH, 150  # px
    sheet = Image.new("RGB", (width, 56 + row * len(shown)), PAPER)
    draw = ImageDraw.Draw(sheet)
    text = builtin_font(14)
    draw.text((20, 16), name, INK, builtin_font(20))
    for i, one in enumerate(shown):
        y = 56 + i * row
        times = one.length / one.median
        draw.text((20, y), f"{one.key} vector {one.place + 1}", INK, text)
        draw.text(
            (left + 60, y),
            f"length {one.length:.2f}, {times:.1f} x the vocabulary's median",
            WARNING if times > LONG else FAINT,
            text,
        )
        for j, (word, cosine) in enumerate(one.words):
            at = y + 26 + j * 22
            label, font = drawable(word[:16], 14)
            draw.text((left - 10, at), label, INK, font, anchor="ra")
            draw.rectangle((left, at + 3, left + max(1, round(max(cosine, 0.0) * (width - left - 90))), at + 15), BAR)
            draw.text((width - 70, at), f"{cosine:.2f}", FAINT, text)
    return tensor_of(sheet)


def plot_all(near: Mapping[str, list[Neighbour]]) -> Tensor:
    """`plot` of each word as one batch [words, H, W, 3]; the shorter sheets continue as blank paper."""
    sheets = [plot(name, found)[0] for name, found in near.items()]
    height = max(sheet.shape[0] for sheet in sheets)
    paper = torch.tensor(PAPER) / 255
    blank = [paper.expand(height - sheet.shape[0], *sheet.shape[1:]) for sheet in sheets]
    return torch.stack([torch.cat(parts) for parts in zip(sheets, blank, strict=True)])
