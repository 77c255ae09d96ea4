"""Where a run under a mask stands: which clean latent is kept outside, and where its first stage began.

A run that adds noise keeps the latent that it gets. A run without noise of its own goes on from what another left, and
the clean original has to be found. Its result is known by its content where a blended model made it (`stages`). Where
it was not, as after AddNoise or an edit between two stages, the node's own latents are the candidates, and the
likelihood of the state decides. With the state's kept cells x, a candidate L, the signal's and the noise's scale s and
q at the first sigma (1 and sigma, or 1 - sigma and sigma for flow):

    -log p(x | L) = sum (x - s L)^2 / (2 q^2) + const        for noise of variance 1

A difference of `DECISIVE` or more between two candidates decides. The mean of L is a candidate, too: a state that is
nearer to it than to L was not made from L, unless it is L's inversion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NoReturn

import torch
import torch.nn.functional as F

from ...training.errors import InputError
from .stages import STORE, Sample

DECISIVE = 20.0  # nats: a likelihood ratio of 5e8
MOST_DETAIL = 1.2  # above a picture's `noise_estimate`: the whole deviation of most models' latents is about 1
MOST_DEVIATION = 2.0  # above the deviation of a picture's latent
EQUAL = 1e-3  # kept cells differ by less than this share of the noise: the latent holds none there
STRONG = 1.3  # the residual's root mean square, in the noise's scale, from which it is not noise alone
RESIZED = 0.3  # the same against a resized original, from which it is noise: bilinear upscaling leaves 0.64 of it
MOST_RESIDUAL = 2.0  # the same, from which no candidate is the original, whatever else speaks for it
NODE = "Bespoke Latent Mask Blend"


@dataclass(frozen=True)
class Start:
    """The start of a run.

    original: the clean latents [B, ...] in the space of LATENT. goes_on: the latent that the run gets is another one,
    which holds noise. first: the sigma [B] at which each sample's first stage began; None where only the model's
    highest can be assumed. noise: the first stage's noise of each sample, or None where the state tells it.
    """

    original: torch.Tensor
    goes_on: bool
    first: tuple[float | None, ...]
    noise: tuple[torch.Tensor | None, ...]


_Found = tuple[torch.Tensor, int, float | None, torch.Tensor | None]  # latents, index, first, noise


@dataclass(frozen=True)
class _State:
    """The latents x [B, ...] at the first sigma in LATENT's space. signal, level: the scales s and q of the module."""

    latent: torch.Tensor
    mask: torch.Tensor  # [B, ...]
    sigma: float
    signal: float
    level: float
    scaled: Any  # from LATENT's space to the model's


def find_start(
    given: torch.Tensor | None,
    latent: torch.Tensor,
    noise: torch.Tensor,
    sigmas: torch.Tensor,
    mask: torch.Tensor,
    model: Any,
    needs_noise: bool,
) -> Start:
    """The `Start` of a run under `mask` [B, ...].

    given: the clean latents [C, ...] of the node, the candidates for an unknown state. latent, noise: [B, ...], in the
    space of LATENT. model: ModelPatcher. needs_noise: whether the blend reads the first stage's noise. Raises
    `InputError` where a sample holds noise and no original fits, and where the noise is needed and not known.
    """
    adds_noise, sigma = bool(torch.count_nonzero(noise)), float(sigmas[0])
    known = STORE.find(latent)
    if sigma <= 0.0 or (adds_noise and not any(_goes_on(sample) for sample in known)):
        return fresh(latent, sigmas)
    state = _state(latent, mask, sigma, model)
    if given is not None:
        given = given.to(latent.device)
    found: list[_Found] = []
    for i, sample in enumerate(known):
        needed = needs_noise and is_soft(state.mask[i])
        if sample is not None and not sample.finished:
            kept = sample.original
            original, index = _guess(state, i, given) if kept is None else (kept, sample.index)
            if original is latent and not bool((state.mask[i] >= 1).all()):
                _refuse_unknown(i, len(latent))
            needed = needed and not adds_noise  # else the noise of this run counts, which the state tells
            if needed and sample.had_noise and sample.noise is None:
                _refuse_noise_lost(i, len(latent))
            found.append((original, index, sample.first, sample.noise if needed else None))
        elif sample is not None or adds_noise:
            found.append((latent, i, sigma, None))
        else:
            original, index = _guess(state, i, given)
            x, clean = state.scaled(torch.stack([latent[i], original[index]]))
            begins = original is latent or _is_noised(state, state.signal * x, clean, state.mask[i])
            if needed and not begins:
                _refuse_noise_lost(i, len(latent))
            found.append((original, index, sigma if begins else None, None))
    return _start(latent, found)


def chained(latent: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor) -> Start | None:
    """The `Start` of a run without a mask, for a later stage with one; None where the state is not known."""
    known = STORE.find(latent)
    if not any(_goes_on(sample) for sample in known):
        return fresh(latent, sigmas) if bool(torch.count_nonzero(noise)) else None
    found = []
    for i, sample in enumerate(known):
        if sample is None or not _goes_on(sample):
            found.append((latent, i, float(sigmas[0]), None))
        elif sample.original is None:
            return None
        else:
            found.append((sample.original, sample.index, sample.first, None))
    return _start(latent, found)


def clean_of(latent: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
    """The clean latents of `latent` [B, ...]: a known unfinished sample's original, a finished one itself.

    otherwise: [B, ...] for the samples that no run left.
    """
    known = STORE.find(latent)
    if not any(known):
        return otherwise
    rows = []
    for i, sample in enumerate(known):
        if sample is None:
            rows.append(otherwise[i])
        elif not _goes_on(sample):
            rows.append(latent[i])
        else:
            rows.append(otherwise[i] if sample.original is None else sample.original[sample.index])
    return torch.stack([row.to(latent) for row in rows])


def is_soft(mask: torch.Tensor) -> bool:
    """Whether any value of the mask lies between 0 and 1."""
    return bool(((mask > 0) & (mask < 1)).any())


def _goes_on(sample: Sample | None) -> bool:
    return sample is not None and not sample.finished


def fresh(latent: torch.Tensor, sigmas: torch.Tensor) -> Start:
    """The `Start` of a run that begins with `latent` as it is."""
    # A run upwards, which turns a picture into noise, is the start of one down from its last sigma.
    first = max(float(sigmas[0]), float(sigmas[-1]))
    count = latent.shape[0]
    return Start(latent, False, (first,) * count, (None,) * count)


def _start(latent: torch.Tensor, found: Sequence[_Found]) -> Start:
    tensors, indices, first, noise = zip(*found, strict=True)
    if all(tensor is tensors[0] for tensor in tensors) and indices == tuple(range(tensors[0].shape[0])):
        original = tensors[0].to(latent.device)  # the same object where it can be: no copy is held
    else:
        dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
        rows = [tensor[index].to(latent.device, dtype) for tensor, index in zip(tensors, indices, strict=True)]
        original = torch.stack(rows)
    return Start(original, original is not latent, first, noise)


def _state(latent: torch.Tensor, mask: torch.Tensor, sigma: float, model) -> _State:
    one = torch.ones(1)
    scale = model.get_model_object("model_sampling").noise_scaling
    signal, level = (float(scale(torch.tensor([sigma]), a, b)) for a, b in ((0 * one, one), (one.clone(), 0 * one)))
    mask = mask.to(latent.device).expand_as(latent)
    return _State(latent, mask, sigma, signal, level, model.get_model_object("process_latent_in"))


def _guess(state: _State, i: int, given: torch.Tensor | None) -> tuple[torch.Tensor, int]:
    """(latents, index) of the original of sample i, which no known run left: one of `given` or the sample itself."""
    latent, mask = state.latent, state.mask[i]
    itself = (latent, i)
    if bool((mask >= 1).all()):
        return itself
    outside = mask <= 0
    if given is None:
        _refuse_noise(state, i, outside)
        return itself
    if given.shape[1:] != latent.shape[1:]:
        _refuse_resized(state, i, outside, given)
        return itself
    in_order = i % given.shape[0] if latent.shape[0] % given.shape[0] == 0 else None
    if in_order is not None and torch.equal(given[in_order].to(latent.dtype), latent[i]):
        _refuse_noise(state, i, outside)
        return itself
    originals, y = state.scaled(given), state.scaled(latent[i : i + 1])[0]
    # A stage leaves flow's state divided by s, as a run takes it; AddNoise leaves the state itself.
    for x in (state.signal * y, y):
        chosen = _likeliest(state, i, x, originals, in_order)
        if chosen is not None:
            break
    else:
        if not _has_no_noise(state, i, outside):
            _refuse_unknown(i, len(latent))
        return itself
    if _distance(state, x, originals[chosen], outside) < EQUAL**2 * outside.sum() / 2:  # finished, as the rest shows
        return torch.where(outside, given[chosen], latent[i])[None], 0
    return given, chosen


def _likeliest(state: _State, i: int, x: torch.Tensor, originals: torch.Tensor, in_order: int | None) -> int | None:
    """The number of the original [C, ...] that x [...] of sample i was made from; None if from none.

    in_order: the original of this place in the batch, which is taken where nothing decides. Raises `InputError` where
    nothing decides and there is none.
    """
    chosen = in_order
    # Noise that was added to all of a latent tells its original inside the mask, too.
    for cells, whole in ((state.mask[i] <= 0, False), (torch.ones_like(x, dtype=torch.bool), True)):
        distances = [_distance(state, x, original, cells) for original in originals]
        best = min(range(len(distances)), key=distances.__getitem__)
        if _decides(originals, distances, best) and (not whole or _is_noised(state, x, originals[best], state.mask[i])):
            chosen = best
            break
    outside = state.mask[i] <= 0
    if chosen is None:
        if _has_no_noise(state, i, outside):
            return None
        _refuse_unknown(i, len(state.latent))
    original = originals[chosen]
    distance = _distance(state, x, original, outside)
    count = int(outside.sum()) / 2  # the distance that noise alone has
    if distance > MOST_RESIDUAL**2 * count + DECISIVE:
        return None
    blank = original.mean(dim=tuple(range(1, x.ndim)), keepdim=True).expand_as(x)
    if distance - _distance(state, x, blank, outside) < DECISIVE:
        return chosen
    if chosen != in_order or _has_no_noise(state, i, outside):
        return None
    # In its place a latent may be an inverted one: its noise is no independent draw, and no stronger. Noise on another
    # picture has the square of both pictures on top.
    signal = float((state.signal * (original - blank))[outside].double().square().sum() / (2 * state.level**2))
    return None if distance > min(STRONG**2 * count, count + signal / 2) else chosen


def _decides(originals: torch.Tensor, distances: Sequence[float], best: int) -> bool:
    """Whether the likelihood decides for number `best`; the same latent several times is one candidate."""
    rivals = [j for j, d in enumerate(distances) if d - distances[best] < DECISIVE and j != best]
    return all(torch.equal(originals[j], originals[best]) for j in rivals)


def _distance(state: _State, x: torch.Tensor, original: torch.Tensor, cells: torch.Tensor) -> float:
    """-log p(x | original) over `cells`, without the constant."""
    return float(((x - state.signal * original)[cells].double() ** 2).sum() / (2 * state.level**2))


def _is_noised(state: _State, x: torch.Tensor, clean: torch.Tensor, mask: torch.Tensor) -> bool:
    """Whether x is `clean` with noise inside the mask as well as outside, as AddNoise makes it, all in model space."""
    noise = (x - state.signal * clean) / state.level
    inside, outside = noise[mask > 0].double(), noise[mask <= 0].double()
    if len(inside) < 2:
        return True
    here, there = (float((part**2).mean() ** 0.5) if len(part) else 1.0 for part in (inside, outside))
    # The ratio's standard error for white noise.
    error = (0.5 / len(inside) + (0.5 / len(outside) if len(outside) else 0.0)) ** 0.5
    return abs(here / max(there, 1e-9) - 1.0) < 4 * error + 0.02


def noise_estimate(x: torch.Tensor, cells: torch.Tensor) -> tuple[float, float] | None:
    """(noise, deviation) of x [..., rows, columns] in the cells [..., rows, columns] of a picture; None for too few.

    noise: the root mean square of the Laplacian difference of Immerkaer (1996), "Fast noise variance estimation",
    which is the deviation of white noise and at most a little of a picture's. deviation: the square root of the local
    variance, about the mean of each channel.
    """
    if x.ndim < 3:
        return None
    planes, where = (part.reshape(-1, 1, *x.shape[-2:]).double() for part in (x, cells))
    if min(x.shape[-2:]) < 3:
        return None
    stencil = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]], dtype=torch.double)
    differences = F.conv2d(planes, (stencil / 6.0).view(1, 1, 3, 3).to(planes.device))
    whole = F.conv2d(where, torch.ones_like(stencil).view(1, 1, 3, 3).to(planes.device)) == 9
    if int(whole.sum()) < 64:
        return None
    values = planes * where
    mean = values.sum((2, 3), keepdim=True) / where.sum((2, 3), keepdim=True).clamp(min=1)
    variance = (((planes - mean) * where) ** 2).sum() / where.sum()
    return float((differences[whole] ** 2).mean() ** 0.5), float(variance**0.5)


def _estimate(state: _State, i: int, outside: torch.Tensor) -> tuple[float, float] | None:
    return noise_estimate(state.signal * state.scaled(state.latent[i : i + 1])[0], outside)


def _refuse_noise(state: _State, i: int, outside: torch.Tensor) -> None:
    """Refuse sample i, taken as its own original, if it surely holds noise of the first sigma's level outside."""
    estimate = _estimate(state, i, outside)
    if estimate is None or not 0.9 < estimate[0] / state.level < 1.15:
        return
    if state.level > MOST_DETAIL or estimate[0] > 0.9 * estimate[1]:
        _refuse_unknown(i, len(state.latent))


def _refuse_resized(state: _State, i: int, outside: torch.Tensor, given: torch.Tensor) -> None:
    """Refuse sample i, which has another size than the node's latents [C, ...], unless it surely holds no noise.

    A crop keeps white noise white. An upscale makes it smooth, as a picture is; then what is left of x without the
    node's latent at that size tells the noise, or a deviation that no picture has.
    """
    x = state.signal * state.scaled(state.latent[i : i + 1])[0]
    if (
        _has_no_noise(state, i, outside)
        and float(x[outside].std()) < max(MOST_DEVIATION * state.signal, RESIZED * state.level)
        and not any(_is_resized_and_noised(state, x, original, outside) for original in state.scaled(given))
    ):
        return
    sizes = ["x".join(str(size) for size in latent.shape[2:]) for latent in (state.latent, given)]
    raise InputError(
        f"{NODE}: latent {i + 1} of {len(state.latent)} has {sizes[0]} cells and goes on without new noise, and the "
        f"latent of this node has {sizes[1]}: noise of an earlier stage would stay outside the mask; finish that stage "
        "before the size changes, set this node on the latent of the new size and let its sampler add the noise"
    )


def _is_resized_and_noised(state: _State, x: torch.Tensor, original: torch.Tensor, cells: torch.Tensor) -> bool:
    """Whether x [...] shows `original`, resized, under an error of `RESIZED` of the noise or more."""
    if x.ndim < 3 or x.shape[:-2] != original.shape[:-2]:
        return False
    planes = original.reshape(1, -1, *original.shape[-2:])
    resized = F.interpolate(planes, size=x.shape[-2:], mode="bilinear").reshape(x.shape)
    blank = resized.mean(dim=tuple(range(1, x.ndim)), keepdim=True).expand_as(x)
    distance = _distance(state, x, resized, cells)
    shows = _distance(state, x, blank, cells) - distance > 4 * DECISIVE  # neighbours share their noise
    return shows and distance > RESIZED**2 * int(cells.sum()) / 2


def _has_no_noise(state: _State, i: int, outside: torch.Tensor) -> bool:
    """Whether sample i surely holds less noise outside than the first sigma's."""
    estimate = _estimate(state, i, outside)
    return estimate is not None and estimate[0] < 0.7 * state.level


def _refuse_unknown(i: int, count: int) -> NoReturn:
    raise InputError(
        f"{NODE}: latent {i + 1} of {count} holds an earlier stage's noise, and the clean original to keep outside the "
        "mask is not known; give the first stage this node's model and latent too and pass its result on unchanged "
        "(batches may be picked, repeated and joined), or set this node on the clean latents in the order of this stage"
    )


def _refuse_noise_lost(i: int, count: int) -> NoReturn:
    raise InputError(
        f"{NODE}: re-inject with a soft mask needs the noise of the first stage, and that of latent {i + 1} of {count} "
        "is not known; run the first stage again with this node's model, choose the blend prediction or differential, "
        "or make the mask hard (feather 0)"
    )
