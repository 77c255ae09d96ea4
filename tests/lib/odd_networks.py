"""Networks of no known class whose attention or blocks are unusual: `ODD` has them by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import tiny
import torch
from torch import Tensor, nn

WIDTH = 32
functional = nn.functional


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (4, -1)).transpose(1, 2)


def rows(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def exponentials(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A softmax written out."""
    scores = q @ k.transpose(-1, -2) / 8**0.5
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return rows((weights / weights.sum(-1, keepdim=True)) @ v)


def sigmoids(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Ramapuram et al. 2024, arXiv 2409.04431."""
    return rows((q @ k.transpose(-1, -2) / 8**0.5 - 4).sigmoid() @ v)


def linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Linear attention (Katharopoulos et al. 2020, arXiv 2006.16236), with Sana's ReLU and column of ones."""
    q, k, v = q.relu() + 0.1, k.relu() + 0.1, functional.pad(v, (0, 1), value=1.0)
    out = q @ (k.transpose(-1, -2) @ v)
    return rows(out[..., :-1] / out[..., -1:])


def einsums(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1)
    return torch.einsum("bhij,bhjd->bihd", weights, v).flatten(2)


def pairwise(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Without any product of matrices."""
    weights = (q.unsqueeze(-2) * k.unsqueeze(-3)).sum(-1).softmax(-1)
    return rows((weights.unsqueeze(-1) * v.unsqueeze(-3)).sum(-2))


class Feed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.gelu(self.up(x)))


class Block(nn.Module):
    """Attention of the picture to itself and to the prompt, keys and values fused, then a feed-forward."""

    def __init__(self, attention: Callable = functional.scaled_dot_product_attention) -> None:
        super().__init__()
        self.sight, self.tell = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.ask, self.words, self.hear = (nn.Linear(WIDTH, out) for out in (WIDTH, 2 * WIDTH, WIDTH))
        self.feed = Feed()
        self.norms = nn.ModuleDict({name: nn.LayerNorm(WIDTH) for name in "abc"})
        fused = attention is functional.scaled_dot_product_attention
        self.attention = (lambda *parts: rows(attention(*parts))) if fused else attention

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        x = x + self.tell(self.attention(*map(heads, self.sight(self.norms["a"](x)).chunk(3, -1))))
        key, value = self.words(words).chunk(2, -1)
        x = x + self.hear(self.attention(heads(self.ask(self.norms["b"](x))), heads(key), heads(value)))
        return x + self.feed(self.norms["c"](x))


class LowRank(nn.Module):
    """Queries, keys and values by two matrices each, over one row of text and picture (DeepSeek-AI 2024, arXiv
    2405.04434, section 2.1), and a result by two."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.ask_in, self.ask_out = nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH)
        self.know_in, self.know_out = nn.Linear(WIDTH, 8), nn.Linear(8, 2 * WIDTH)
        self.tell_in, self.tell_out, self.feed = nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH), Feed()

    def forward(self, x: Tensor) -> Tensor:
        calm = self.norm(x)
        parts = (self.ask_out(self.ask_in(calm)), *self.know_out(self.know_in(calm)).chunk(2, -1))
        attention = functional.scaled_dot_product_attention(*map(heads, parts))
        x = x + self.tell_out(self.tell_in(rows(attention)))
        return x + self.feed(self.norm(x))


class Modulated(nn.Module):
    """Attention of the picture to itself; the prompt's mean scales and shifts the channels before it (Peebles and Xie
    2023, arXiv 2212.09748, section 3.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.scale, self.feed = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), Feed()
        self.sight, self.tell = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        scale, shift = self.scale(words.mean(1, keepdim=True)).chunk(2, -1)
        parts = self.sight(self.norm(x) * (1 + scale) + shift).chunk(3, -1)
        x = x + self.tell(rows(functional.scaled_dot_product_attention(*map(heads, parts))))
        return x + self.feed(self.norm(x))


class StartsInPlace(Block):
    """Scales its input in place before anything reads it."""

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        return super().forward(x.mul_(1.1), words)


class Network(nn.Module):
    """Squares of 2x2 cells as tokens, blocks, and back. run: the blocks' part of the forward pass."""

    def __init__(self, block: Callable[[], nn.Module], run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.enter, self.read = nn.Conv2d(4, WIDTH, 2, 2), nn.Linear(tiny.CONTEXT, WIDTH)
        self.parts = nn.ModuleList(block() for _ in range(2))
        self.leave, self.run, self.dtype = nn.Linear(WIDTH, 16), run, torch.float32

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, **_: Any) -> Tensor:
        height, width = x.shape[-2] // 2, x.shape[-1] // 2
        tokens = self.enter(x).flatten(2).transpose(1, 2)
        tokens = self.run(self, tokens * (1 + timesteps[:, None, None].to(x.dtype) / 1000), self.read(context))
        out = self.leave(tokens).unflatten(1, (height, width)).unflatten(-1, (4, 2, 2))
        return out.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def plainly(network: Network, x: Tensor, words: Tensor) -> Tensor:
    for block in network.parts:
        x = block(x, words)
    return x


def joined(network: Network, x: Tensor, words: Tensor) -> Tensor:
    row = torch.cat([words, x], 1)
    for block in network.parts:
        row = block(row)
    return row[:, words.shape[1] :]


def adding(network: Network, x: Tensor, words: Tensor) -> Tensor:
    """Adds each block's result to its input in place, after the block has returned."""
    for block in network.parts:
        x += block(x, words)
    return x


def by_attribute(network: Network, x: Tensor, words: Tensor) -> Tensor:
    """Blocks in no list."""
    return network.second(network.first(x, words), words)


class Unreturned(nn.Module):
    """Changes its input in place and returns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Block()

    def forward(self, x: Tensor, words: Tensor) -> None:
        x += self.inner(x, words)


class InList(nn.Module):
    """Changes a list that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Block()

    def forward(self, kept: list[Tensor], words: Tensor) -> None:
        kept[0] = self.inner(kept[0], words)


def unreturned(network: Network, x: Tensor, words: Tensor) -> Tensor:
    for block in network.parts:
        block(x, words)
    return x


def in_list(network: Network, x: Tensor, words: Tensor) -> Tensor:
    kept = [x]
    for block in network.parts:
        block(kept, words)
    return kept[0]


@dataclass(frozen=True)
class Odd:
    """block, run: of `Network`. cross, attention, feed_forward: the names within a block that belong to each target."""

    block: Callable[[], nn.Module]
    run: Callable[..., Tensor] = plainly
    cross: tuple[str, ...] = ("ask", "words", "hear")
    attention: tuple[str, ...] = ("sight", "ask", "tell", "words", "hear")
    feed_forward: tuple[str, ...] = ("feed.up", "feed.down")
    blocks: tuple[str, ...] = ("parts.0", "parts.1")


_LOW = ("ask_in", "ask_out", "know_in", "know_out", "tell_in", "tell_out")


def _inner(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"inner.{name}" for name in names)


_INNER = dict(cross=_inner(Odd.cross), attention=_inner(Odd.attention), feed_forward=_inner(Odd.feed_forward))
ODD: Mapping[str, Odd] = {
    **{one.__name__: Odd(partial(Block, one)) for one in (exponentials, sigmoids, linear, einsums)},
    "low rank": Odd(LowRank, joined, _LOW, _LOW),
    "no list": Odd(Block, by_attribute, blocks=("first", "second")),
    "starts in place": Odd(StartsInPlace),
    "added in place": Odd(Block, adding),
    "unreturned": Odd(Unreturned, unreturned, **_INNER),
    "in a list": Odd(InList, in_list, **_INNER),
}


def make(odd: Odd):
    """(model, clip, vae) of SD1.5's base with this network."""
    network = Network(odd.block, odd.run)
    if odd.blocks[0] == "first":
        network.first, network.second = network.parts
        del network.parts
    tiny.fill(network, 7)
    model = tiny.patcher(tiny.SMALLEST)
    model.model.diffusion_model = network.eval()
    return model, tiny.clip(), tiny.vae()
