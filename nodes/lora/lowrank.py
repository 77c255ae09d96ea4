"""Adaptations as two thin factors, so that sums, norms, angles and spectra never need the full matrix.

A layer's delta is up @ down with up [out, R] and down [R, in * kernel], the strength alpha / rank already in `up`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...training.errors import InputError

TOO_LARGE = 1e15  # the norm of a factor: its square times another's is still a float32


@dataclass(frozen=True)
class Factors:
    """delta = up @ down, [out, in * kernel], in float32. kernel: a convolution's, such as (3, 3); () for a linear
    layer."""

    up: Tensor  # [out, R]
    down: Tensor  # [R, in * kernel]
    kernel: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        return self.up.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]

    def scaled(self, strength: float) -> Factors:
        return Factors(self.up * strength, self.down, self.kernel)


def kind(parts: Mapping[str, Tensor]) -> str:
    """What a layer's parts make: "LoRA", "LoHa", "LoKr", "OFT", "BOFT", "DoRA", "GLoRA", "full" (a difference of
    weights)."""
    names = set(parts)
    if ".dora_scale" in names:
        return "DoRA"
    if ".oft_blocks" in names:
        return "OFT" if parts[".oft_blocks"].ndim == 3 else "BOFT"
    if ".hada_w1_a" in names:
        return "LoHa"
    if any(name.startswith(".lokr_") for name in names):
        return "LoKr"
    if ".a1.weight" in names:
        return "GLoRA"
    return "LoRA" if ".lora_up.weight" in names else "full"


def factors(layer: str, parts: Mapping[str, Tensor]) -> Factors:
    """A layer's delta in two factors, exactly: LoRA (Hu et al. 2021), also of convolutions and with a Tucker core, LoHa
    (Hyeon-Woo et al. 2022), LoKr (Yeh et al. 2024, "LyCORIS") and a whole difference of weights.

    Raises `InputError` for what depends on the base's own weights, such as DoRA and OFT.
    """
    what = kind(parts)
    make = {"LoRA": _lora, "LoHa": _loha, "LoKr": _lokr, "full": _full}.get(what)
    if make is None or ".reshape_weight" in parts or ".set_weight" in parts:
        what = what if make is None else "a replacement of the weight"
        raise InputError(
            f"{layer} is {what}, which depends on the base's own weights and cannot be summed before they are known; "
            "inject that LoRA by a node of its own"
        )
    try:
        made = make({name: tensor.detach().to("cpu", torch.float32) for name, tensor in parts.items()})
    except (RuntimeError, KeyError, IndexError, ValueError) as error:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in parts.items())
        raise InputError(f"the parts of {layer} do not fit together ({shapes}); the file is damaged") from error
    largest = max(
        float(made.up.norm()), float(made.down.norm())
    )  # what overflows is infinite, and refused with the rest
    if not largest < TOO_LARGE:
        raise InputError(
            f"{layer} holds numbers up to {largest:.0e}, too large for a LoRA; it was broken when it was saved"
        )
    return made


def _scale(parts: Mapping[str, Tensor], rank: int) -> float:
    return float(parts[".alpha"]) / rank if ".alpha" in parts else 1.0


def _lora(parts: Mapping[str, Tensor]) -> Factors:
    up, down = parts[".lora_up.weight"], parts[".lora_down.weight"]
    scale = _scale(parts, down.shape[0])
    if ".lora_mid.weight" in parts:  # Tucker: mid [r_up, r_down, *kernel]
        mid = parts[".lora_mid.weight"]
        down = torch.einsum("pq...,qi->pi...", mid, down.flatten(1))
    kernel = tuple(down.shape[2:])
    return Factors(up.flatten(1) * scale, down.flatten(1), kernel)


def _loha(parts: Mapping[str, Tensor]) -> Factors:
    """(A1 B1) * (A2 B2), elementwise, is the sum over pairs (p, q) of (a1_p * a2_q)(b1_p * b2_q): rank r^2."""
    scale = _scale(parts, parts[".hada_w1_b"].shape[0])
    sides, kernel = [], ()
    for n in ("1", "2"):
        a, b = parts[f".hada_w{n}_a"], parts[f".hada_w{n}_b"]
        if f".hada_t{n}" in parts:
            core = parts[f".hada_t{n}"]  # [r, r, *kernel]; a [r, out], b [r, in]
            kernel = tuple(core.shape[2:])
            a, b = a.t(), torch.einsum("pq...,qi->pi...", core, b).flatten(1)
        sides.append((a, b))
    (a1, b1), (a2, b2) = sides
    if a1.shape[1] * a2.shape[1] > min(a1.shape[0], b1.shape[1]):  # the whole difference is smaller than its factors
        whole = (a1 @ b1) * (a2 @ b2) * scale
        return _full({".diff": whole.reshape(*whole.shape[:1], -1, *kernel)})
    up = (a1[:, :, None] * a2[:, None, :]).flatten(1)
    down = (b1[:, None, :] * b2[None, :, :]).flatten(0, 1)
    return Factors(up * scale, down, kernel)


def _lokr(parts: Mapping[str, Tensor]) -> Factors:
    """kron(W1, U V) = kron(W1, U) kron(I, V) = kron(I, U) kron(W1, V): the one of less rank."""
    scale = 1.0
    if ".lokr_w1" in parts:
        w1 = parts[".lokr_w1"]
    else:
        w1 = parts[".lokr_w1_a"] @ parts[".lokr_w1_b"]
        scale = _scale(parts, parts[".lokr_w1_b"].shape[0])
    kernel: tuple[int, ...] = ()
    if ".lokr_w2" in parts:
        w2 = parts[".lokr_w2"]
        kernel = tuple(w2.shape[2:])
        full = w2.flatten(1)
        u, v = (full, torch.eye(full.shape[1])) if full.shape[1] <= full.shape[0] else (torch.eye(full.shape[0]), full)
    else:
        u, v = parts[".lokr_w2_a"], parts[".lokr_w2_b"]
        scale = _scale(parts, v.shape[0])
        if ".lokr_t2" in parts:
            core = parts[".lokr_t2"]
            kernel = tuple(core.shape[2:])
            u, v = u.t(), torch.einsum("pq...,qi->pi...", core, v)
        v = v.flatten(1)
    rows, columns = w1.shape
    if columns <= rows:
        up, down = torch.kron(w1, u), torch.kron(torch.eye(columns), v)
    else:
        up, down = torch.kron(torch.eye(rows), u), torch.kron(w1, v)
    return Factors(up * scale, down, kernel)


def _full(parts: Mapping[str, Tensor]) -> Factors:
    """A difference of weights [out, in, *kernel] as itself times the identity."""
    diff = parts[".diff"]
    kernel, flat = tuple(diff.shape[2:]), diff.flatten(1)
    rows, columns = flat.shape
    return Factors(flat, torch.eye(columns), kernel) if columns <= rows else Factors(torch.eye(rows), flat, kernel)


def add(terms: Sequence[Factors]) -> Factors:
    """The exact sum of deltas of one shape: factors side by side, ranks added."""
    return Factors(torch.cat([t.up for t in terms], 1), torch.cat([t.down for t in terms], 0), terms[0].kernel)


def inner_products(terms: Sequence[Factors], whole: Factors | None = None) -> Tensor:
    """The Frobenius inner products of n deltas of one shape: [n, n], float64. whole: their sum, where it is known.

    tr(A^T B) = sum((Ua^T Ub) * (Da Db^T)), for all pairs in two products, at a cost of R^2 (out + in).
    """
    whole = whole or add(terms)
    product = (whole.up.t() @ whole.up).double() * (whole.down @ whole.down.t()).double()
    owner = torch.repeat_interleave(torch.arange(len(terms)), torch.tensor([t.rank for t in terms]))
    sums = torch.zeros(len(terms), whole.rank, dtype=torch.float64).index_add_(0, owner, product)
    return torch.zeros(len(terms), len(terms), dtype=torch.float64).index_add_(1, owner, sums)


def norm(delta: Factors) -> float:
    """The Frobenius norm."""
    return math.sqrt(max(float(inner_products([delta])), 0.0))


def _reduced(delta: Factors) -> tuple[Tensor, Tensor, Tensor]:
    """(Q_up, core, Q_down) with delta = Q_up core Q_down^T and core no larger than R x R."""
    q_up, r_up = torch.linalg.qr(delta.up)
    q_down, r_down = torch.linalg.qr(delta.down.t())
    return q_up, r_up @ r_down.t(), q_down


def spectrum(delta: Factors) -> Tensor:
    """The delta's singular values, falling: [min(R, out, in)]."""
    _, core, _ = _reduced(delta)
    return torch.linalg.svdvals(core)


def truncate(delta: Factors, rank: int) -> tuple[Factors, Tensor]:
    """(the nearest delta of at most this rank, all singular values, falling), as of Eckart and Young (1936).

    With energy the sum of the squared singular values, 1 - kept / whole is the squared relative error.
    """
    q_up, core, q_down = _reduced(delta)
    u, s, vh = torch.linalg.svd(core)
    rank = min(rank, len(s))
    root = s[:rank].sqrt()
    return Factors(q_up @ (u[:, :rank] * root), (root[:, None] * vh[:rank]) @ q_down.t(), delta.kernel), s
