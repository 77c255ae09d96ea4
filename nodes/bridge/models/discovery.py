"""The layers of a model that no record describes, found in its own forward pass.

`dataflow` shows which layers make the queries, keys and values of each attention and what takes its result; the module
tree shows the blocks. Nothing is read from a layer's name, so a class that this pack has never seen has targets too.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import comfy.model_base
import torch
from torch import Tensor, nn

from ..forward_pass.dataflow import PICTURE, TEXT, Attention, Dataflow, Observer
from ..forward_pass.differentiable import DifferentiableFunctions
from ..forward_pass.fake import FullMasks, fake_training, fake_values, fused_attention
from ..forward_pass.in_place import clone_layer_inputs
from .family import NO_LAYERS, Family
from .layers import is_linear
from .names import by_core

LATENT_SIDES = (32, 48)  # cells of the picture whose forward pass is observed; PixArt divides by 0 at half of them
TOKEN_NUMBERS = ("input_ids", "t5xxl_ids")  # arguments of `apply_model` that are a prompt as numbers of tokens


@dataclass(frozen=True)
class Layout:
    """What the forward pass of a network has shown; names of modules, in the order of the network.

    cross: the attention layers that bring the prompt to the picture: those of a cross-attention, or else of the joint
    attention over both, and there of the blocks with layers of their own for each where a network has such. attention:
    those and all other attention layers. feed_forward: the layers beside them. blocks: what gradient checkpointing
    computes again. overwritten: layers whose input is changed in place. unused: layers without a gradient, such as
    those of sound. plain: whether the forward pass has a backward pass as it is, without `DifferentiableFunctions`.
    rewritten: whether an argument of a block is changed in place, by the block or later.
    """

    cross: tuple[str, ...]
    attention: tuple[str, ...]
    feed_forward: tuple[str, ...]
    blocks: tuple[str, ...]
    overwritten: tuple[str, ...]
    unused: tuple[str, ...]
    plain: bool = True
    rewritten: bool = False


_known: WeakKeyDictionary[nn.Module, Layout | str] = WeakKeyDictionary()  # a text says why there is none
_by_structure: dict[tuple, Layout] = {}  # a file that is loaded again gives another network with the same layers


def discovery_latent(base: comfy.model_base.BaseModel) -> Tensor:
    """A latent [1, C, ...] of zeros, of the size that `discover` observes: one frame of `LATENT_SIDES` cells, or of 16
    times as many pixels where the model works on these."""
    form = base.latent_format
    frames = (1,) * (form.latent_dimensions - 2)
    pixels = 16 if getattr(form, "spacial_downscale_ratio", 8) == 1 else 1
    return torch.zeros(1, form.latent_channels, *frames, *(side * pixels for side in LATENT_SIDES))


def discover(base: comfy.model_base.BaseModel, conds: Mapping[str, Any]) -> Layout | str:
    """The layout of the base's network, observed once for each network, or why it cannot be observed.

    conds: the keyword arguments of `BaseModel.apply_model` for `discovery_latent` and one prompt, whose context [1,
    tokens, width] is `c_crossattn`.
    """
    network = base.diffusion_model
    if network not in _known:
        try:
            structure = _structure(network)
            if structure not in _by_structure:
                seen = _observe(base, discovery_latent(base), conds)
                if not seen[0].attentions:
                    _known[network] = "no attention was found in its forward pass"
                    return _known[network]
                _by_structure[structure] = _Reading(network, *seen).layout()
            _known[network] = _by_structure[structure]
        except Exception as error:  # whatever the class's code raises on fake tensors
            logging.info("Bespoke: the layers of a %s were not found", type(network).__name__, exc_info=True)
            first = next(iter(str(error).splitlines()), "")
            _known[network] = f"observing it raised {type(error).__name__}{f' ({first})' if first else ''}"
    return _known[network]


def was_observed(network: nn.Module) -> bool:
    """Whether `discover` was called for the network, with whatever result."""
    return network in _known


def _structure(network: nn.Module) -> tuple:
    """What tells networks with other layers apart: the classes of all modules, the shapes of their weights and their
    settings, which may change the order of the layers."""
    return tuple(
        (name, type(layer), tuple(getattr(getattr(layer, "weight", None), "shape", ())), _settings(layer))
        for name, layer in network.named_modules()
    )


def _settings(layer: nn.Module) -> tuple:
    """The attributes of a module that are numbers, texts, functions or none."""
    kinds = (bool, int, float, str, type(None), FunctionType)
    return tuple(
        (name, value) for name, value in vars(layer).items() if isinstance(value, kinds) and not _STATE.match(name)
    )


_STATE = re.compile("_|(prev_)?comfy_|(training|forward|seed_key)$")  # what a training or ComfyUI's loading changes


def discovered_family(network: nn.Module) -> Family | None:
    """The record made of what `discover` has found, or None before that and where it found none."""
    layout = _known.get(network)
    return family_from(layout, type(network).__name__) if isinstance(layout, Layout) else None


def why_not_discovered(network: nn.Module) -> str:
    """Why `discover` has found no layout, in brackets behind a space; "" where it has or was not called."""
    reason = _known.get(network)
    return f" ({reason})" if isinstance(reason, str) else ""


def family_from(layout: Layout, name: str) -> Family:
    """The record of a network with this layout. name: of its class."""

    def pattern(*groups: Iterable[str]) -> str:
        return "|".join(re.escape(layer) for group in groups for layer in group) or NO_LAYERS

    return Family(
        name,
        lambda network: False,  # found by its network, not by its class
        {
            "cross-attention": pattern(layout.cross),
            "attention": pattern(layout.attention),
            "attention + feed-forward": pattern(layout.attention, layout.feed_forward),
        },
        "",
        lambda network: [network.get_submodule(block) for block in layout.blocks],
        by_core,
        overwritten_input=lambda network: [network.get_submodule(layer) for layer in layout.overwritten],
        unused_layers=lambda _: layout.unused,
        plain_backward=lambda _: layout.plain,
        rewritten_blocks=lambda _: layout.rewritten,
    )


def _observe(
    base: comfy.model_base.BaseModel, latent: Tensor, conds: Mapping[str, Any]
) -> tuple[Dataflow, set[str], bool]:
    """(the flow of a forward pass on fake tensors, the linear layers that get no gradient in a second one, whether that
    one works without `DifferentiableFunctions`)."""
    network = base.diffusion_model
    with fake_training(base):
        noisy = torch.empty(latent.shape)
        inputs = {name: fake_values(value) for name, value in conds.items()}
        with Observer(network, noisy, _prompt(inputs)) as observer, DifferentiableFunctions():
            _call(base, noisy, inputs, observer.attention)
        flow = observer.flow
        with clone_layer_inputs(map(network.get_submodule, flow.overwritten)), FullMasks():
            try:
                return flow, _without_gradient(base, noisy, inputs), True
            except RuntimeError:  # from the backward pass
                with DifferentiableFunctions():
                    return flow, _without_gradient(base, noisy, inputs), False


def _prompt(inputs: Mapping[str, Any]) -> list[Tensor]:
    """The states of the text encoders, [1, tokens, width] each; most classes read one, as `c_crossattn`. Token numbers
    for a language model within the network."""
    named = ("c_crossattn", *TOKEN_NUMBERS)
    return [
        value
        for name, value in inputs.items()
        if isinstance(value, Tensor) and (name in named or (value.ndim == 3 and value.is_floating_point()))
    ]


def _call(
    base: comfy.model_base.BaseModel, noisy: Tensor, inputs: Mapping[str, Any], note: Callable[..., None]
) -> Tensor:
    """The model's output. note: called with query, key, value and result of every attention of ComfyUI's function."""

    def attention(default: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **options: Any) -> Tensor:
        out = fused_attention(default, q, k, v, heads, *args, **options)
        note(q, k, v, out)
        return out

    options = {"optimized_attention_override": attention}
    return base.apply_model(noisy, torch.ones(1), transformer_options=options, **inputs)


def _without_gradient(base: comfy.model_base.BaseModel, noisy: Tensor, inputs: Mapping[str, Any]) -> set[str]:
    """The linear layers that were called and whose output is not used."""
    probes: dict[str, Tensor] = {}  # a number that is added to each layer's output

    def add(name: str, _layer: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
        return out + probes.setdefault(name, torch.zeros((), requires_grad=True))

    linear = {name: layer for name, layer in base.diffusion_model.named_modules() if is_linear(layer)}
    hooks = [layer.register_forward_hook(partial(add, name)) for name, layer in linear.items()]
    try:
        out = _call(base, noisy, inputs, lambda *_: None)
    finally:
        for hook in hooks:
            hook.remove()
    gradients = torch.autograd.grad(out.float().sum(), list(probes.values()), allow_unused=True)
    return {name for name, gradient in zip(probes, gradients, strict=True) if gradient is None}


class _Reading:
    """What a flow means for the layers of a network."""

    def __init__(self, network: nn.Module, flow: Dataflow, unused: set[str], plain: bool) -> None:
        self._network, self._flow, self._plain = network, flow, plain
        self._linear = [name for name, layer in network.named_modules() if is_linear(layer)]
        self.blocks = self._find_blocks()
        self._block_of = {name: block for block in self.blocks for name in flow.layers if name.startswith(f"{block}.")}
        self._readers: dict[str, set[str]] = {}
        for name, call in flow.layers.items():
            for feeding in call.inputs.layers:
                self._readers.setdefault(feeding, set()).add(name)
        self._outs = [self._find_outs(number) for number in range(len(flow.attentions))]
        never_called = set(self._linear) - flow.modules
        self._unused = unused | never_called | self._unused_queries(unused)

    def layout(self) -> Layout:
        """The layout, with names in the order of the network."""
        attention = {name for found in self._groups() for name in found}
        return Layout(
            self._ordered(self._cross()),
            self._ordered(attention),
            self._ordered(self._feed_forward(attention)),
            tuple(self.blocks),
            tuple(dict.fromkeys(self._flow.overwritten)),
            tuple(name for name in self._linear if name in self._unused),
            self._plain,
            not self._flow.rewritten.isdisjoint(self.blocks),
        )

    def _ordered(self, names: Iterable[str]) -> tuple[str, ...]:
        chosen = set(names) - self._unused
        return tuple(name for name in self._linear if name in chosen)

    def _tokens(self, name: str) -> int:
        return self._flow.layers[name].tokens

    def _for_positions(self, names: Iterable[str]) -> set[str]:
        """Those of the layers that compute something for each position; the others scale whole channels."""
        return {name for name in names if self._tokens(name) > 1}

    def _find_blocks(self) -> list[str]:
        """The modules that gradient checkpointing computes again: all called elements of the outermost lists of modules
        in which an attention lies; where it lies in none, the outermost modules of one class beside each other."""
        found = dict[str, type | None]()  # {the module around them: the class of the blocks}
        for attention in self._flow.attentions:
            for name in attention.query | attention.key | attention.value:
                paths = [path for path in _paths_to(name)[:-1] if path in self._flow.modules]
                listed = next(filter(self._is_element, paths), None)
                block = listed or next(filter(self._has_equal_sibling, paths), None)
                if block is not None:
                    kind = None if listed else type(self._network.get_submodule(block))
                    found[block.rpartition(".")[0]] = kind
        called = ((name, module) for name, module in self._network.named_modules() if name in self._flow.modules)
        return [name for name, module in called if found.get(name.rpartition(".")[0], module) in (None, type(module))]

    def _is_element(self, name: str) -> bool:
        parent = self._network.get_submodule(name.rpartition(".")[0])
        return isinstance(parent, (nn.ModuleList, nn.ModuleDict, nn.Sequential))

    def _has_equal_sibling(self, name: str) -> bool:
        around, _, _ = name.rpartition(".")
        module, parent = self._network.get_submodule(name), self._network.get_submodule(around)
        equal = (
            f"{around}.{key}".removeprefix(".") for key, one in parent.named_children() if type(one) is type(module)
        )
        return sum(one in self._flow.modules for one in equal) > 1

    def _find_outs(self, number: int) -> set[str]:
        """The layers that take the result of an attention before any other layer does.

        A layer that reads the sum over earlier blocks is none, even where an attention without a layer after it is part
        of that sum.
        """
        attention = self._flow.attentions[number]
        block = self._block_of.get(next(iter(attention.query), ""))
        outs = set[str]()
        for name, call in self._flow.layers.items():
            feeding = self._for_positions(call.inputs.layers)
            first = call.inputs.attentions == {number} and all(self._block_of.get(one) == block for one in feeding)
            # A matrix that follows those of both streams. After one alone it may read the sum with a block's own input.
            second = len(feeding) > 1 and feeding <= outs and not call.inputs.attentions
            # The second of two matrices in a row, of which the first is read by nothing else.
            third = len(feeding) == 1 and feeding <= outs and self._readers[next(iter(feeding))] == {name}
            if first or second or third:
                outs.add(name)
        return outs

    def _groups(self) -> list[set[str]]:
        """For each attention its query, key, value and output layers; none for one that sums up all positions."""
        groups = list[set[str]]()
        for one, outs in zip(self._flow.attentions, self._outs, strict=True):
            ins = self._for_positions(one.query | one.key | one.value)
            groups.append(ins | self._before(ins) | outs if self._for_positions(one.query) else set())
        return groups

    def _before(self, ins: set[str]) -> set[str]:
        """The first of two matrices in a row, of which the second makes queries, keys or values (low rank)."""
        feeding = set[str]().union(*(self._flow.layers[name].inputs.layers for name in ins))
        blocks = {self._block_of.get(name) for name in ins}
        return {
            name
            for name in self._for_positions(feeding)
            if self._block_of.get(name) in blocks - {None} and self._readers[name] <= ins
        }

    def _unused_queries(self, unused: set[str]) -> set[str]:
        """The query layers of positions whose result is not used: a gradient of zero, which shapes do not show."""
        found = set[str]()
        for attention, outs in zip(self._flow.attentions, self._outs, strict=True):
            for name in attention.query - attention.key - attention.value:
                takers = [out for out in outs if self._tokens(out) == self._tokens(name)]
                if len(outs) > 1 and takers and all(out in unused for out in takers):
                    found.add(name)
        return found

    def _cross(self) -> set[str]:
        """See `Layout.cross`."""
        found = list(zip(self._flow.attentions, self._groups(), strict=True))
        cross = [
            group
            for attention, group in found
            if PICTURE in attention.query_origins
            and attention.key_origins >= {TEXT}
            and PICTURE not in attention.key_origins
        ]
        if cross:
            return set().union(*cross)
        both = [pair for pair in found if pair[0].key_origins >= {PICTURE, TEXT}]
        # Where text only scales the picture's tokens, or tells them what to add, there are no more keys than those. A
        # class that fills up both to one length (Ideogram 4) has as many everywhere, and tokens of text among them.
        joint = [pair for pair in both if self._keys(pair[0]) > self._picture_tokens(pair[0])]
        if not joint and any(self._reads_text_tokens(attention) for attention, _ in both):
            joint = both
        double = [group for attention, group in joint if len(self._for_positions(attention.key)) > 1]
        return set[str]().union(*(double or [group for _, group in joint]))

    def _keys(self, attention: Attention) -> int:
        return sum(map(self._tokens, self._for_positions(attention.key)))

    def _reads_text_tokens(self, attention: Attention) -> bool:
        """Whether a layer for each token of the prompt alone feeds the layers of the keys; a scale of channels is made
        by one for the prompt as a whole."""
        feeding = set[str]().union(*(self._flow.layers[name].inputs.layers for name in attention.key))
        return any(self._flow.layers[name].inputs.origins == {TEXT} for name in self._for_positions(feeding))

    def _picture_tokens(self, attention: Attention) -> int:
        """The positions of the picture before an attention; after it a class may compute something for each pixel."""
        tokens = 0
        for name, call in self._flow.layers.items():
            if name in attention.key:
                break
            if call.inputs.origins == {PICTURE}:
                tokens = max(tokens, call.tokens)
        return tokens

    def _feed_forward(self, attention: set[str]) -> set[str]:
        """Layers in a block that feed a layer of the same block and nothing else, with those that they feed."""
        found = set[str]()
        for name, call in self._flow.layers.items():
            feeding, block = self._for_positions(call.inputs.layers), self._block_of.get(name)
            if not feeding or block is None or name in attention or call.inputs.attentions:
                continue
            if not feeding & attention and all(self._block_of.get(other) == block for other in feeding):
                found |= feeding | {name}
        return found


def _paths_to(name: str) -> list[str]:
    """The modules on the way to a layer, the outermost first: "a", "a.b", "a.b.c"."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
