"""Which layers of a network feed which: one forward pass, observed, without reading a name.

Each tensor carries the names of the layers that made it: an operation gives its result the names of all its inputs,
and a layer with a weight of its own starts anew. Where two such tensors are multiplied with each other, and the product
(as weights of a sum) with a third, that is an attention, and the names tell its query, key and value layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .fake import full_masks

PICTURE, TEXT = "picture", "text"  # where a tensor comes from
_PRODUCTS = {"mm", "bmm", "baddbmm", "matmul", "addmm", "addbmm"}
_SOFTMAX = {"_softmax", "_safe_softmax", "softmax", "exp"}  # the last where a class divides by the sum itself


@dataclass(frozen=True)
class Mark:
    """What is known of a tensor. layers: the names of the layers that made it. origins: `PICTURE`, `TEXT`, both or
    none. scores: the (query, key) layers whose product it was made of. weights: whether a softmax has been taken of
    these. sums: the (key, value) layers whose product, summed over the positions, it was made of. attentions: the
    numbers of the attentions that it was made of. All but the origins are those since the last layer with a weight.
    """

    layers: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    scores: frozenset[tuple[frozenset[str], frozenset[str]]] = frozenset()
    attentions: frozenset[int] = frozenset()
    weights: bool = False
    sums: frozenset[tuple[frozenset[str], frozenset[str]]] = frozenset()

    def joined(self, other: Mark) -> Mark:
        """The mark of a result of both."""
        return Mark(
            self.layers | other.layers,
            self.origins | other.origins,
            self.scores | other.scores,
            self.attentions | other.attentions,
            self.weights or other.weights,
            self.sums | other.sums,
        )


_NOTHING = Mark()


@dataclass(frozen=True)
class Attention:
    """The layers of one attention by role, and where its queries and keys come from."""

    query: frozenset[str]
    key: frozenset[str]
    value: frozenset[str]
    query_origins: frozenset[str]
    key_origins: frozenset[str]


@dataclass
class Call:
    """A layer's call. inputs: the mark of its input. tokens: positions of its output for each sample of the batch."""

    inputs: Mark
    tokens: int


@dataclass
class Dataflow:
    """What a forward pass has shown.

    layers: the first call of each layer with a weight matrix, by name, in the order of the calls. attentions: in the
    order of the calls. modules: the names of all modules that were called. overwritten: the names of the layers, in the
    order of their calls, whose input was changed in place after they had read it. rewritten: the names of the modules
    with an argument that was changed in place, by themselves or later.
    """

    layers: dict[str, Call] = field(default_factory=dict)
    attentions: list[Attention] = field(default_factory=list)
    modules: set[str] = field(default_factory=set)
    overwritten: list[str] = field(default_factory=list)
    rewritten: set[str] = field(default_factory=set)


class _Marks(TorchDispatchMode):
    """Carries marks from the inputs of each operation to its results, and notes attentions and changes in place."""

    def __init__(self, flow: Dataflow):
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.flow = flow
        self._marks: dict[int, tuple[Tensor, Mark]] = {}  # the tensor is kept, since its id could be used again
        self._readers: dict[int, list[str]] = {}  # storage -> layers that have read it
        self._written: dict[int, Mark] = {}  # storage -> what was written to it through any tensor over it
        self._storages: list[torch.UntypedStorage] = []  # kept, since their ids could be used again
        self._takers: dict[int, set[str]] = {}  # storage -> modules that have got it as an argument

    def of(self, value: Any) -> Mark:
        """The mark of all tensors in lists, tuples and dictionaries together."""
        mark = Mark()
        for tensor in tree_leaves(value):
            if isinstance(tensor, Tensor):
                if id(tensor) in self._marks:
                    mark = mark.joined(self._marks[id(tensor)][1])
                if self._written:
                    mark = mark.joined(self._written.get(id(tensor.untyped_storage()), _NOTHING))
        return mark

    def set(self, value: Any, mark: Mark) -> None:
        """Give every tensor in lists, tuples and dictionaries the mark."""
        for tensor in tree_leaves(value):
            if isinstance(tensor, Tensor):
                self._marks[id(tensor)] = tensor, mark

    def _write(self, tensor: Tensor, mark: Mark) -> None:
        """Note that a tensor was changed in place: a part of what other tensors over its memory show."""
        self.set(tensor, mark)
        storage = tensor.untyped_storage()
        self._storages.append(storage)
        self._written[id(storage)] = mark.joined(self._written.get(id(storage), _NOTHING))
        self.flow.rewritten |= self._takers.get(id(storage), set())

    def note_arguments(self, values: Any, module: str) -> None:
        """Note that a module has got the tensors in `values`, any of which may be overwritten later."""
        for tensor in tree_leaves(values):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._storages.append(storage)
                self._takers.setdefault(id(storage), set()).add(module)

    def note_reader(self, tensor: Tensor, layer: str) -> None:
        """Note that a layer has read a tensor, which may be overwritten later."""
        storage = tensor.untyped_storage()
        self._storages.append(storage)
        self._readers.setdefault(id(storage), []).append(layer)

    def note_attention(self, query: Mark, key: Mark, value: Mark) -> int:
        """The number of an attention; one whose parts are computed one by one is one."""
        found = Attention(query.layers, key.layers, value.layers, query.origins, key.origins)
        if found not in self.flow.attentions:
            self.flow.attentions.append(found)
        return self.flow.attentions.index(found)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = func.__name__.split(".")[0]
        mark = self.of((args, kwargs))
        out = full_masks(func, args, kwargs)
        if name in _SOFTMAX and mark.scores:
            mark = replace(mark, weights=True)
        elif "scaled_dot_product" in name:
            query, key, value = map(self.of, args[:3])
            number = self.note_attention(query, key, value)
            mark = Mark(frozenset(), mark.origins, frozenset(), frozenset({number}))
        elif name in _PRODUCTS:
            *_, left, right = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            mark = self._product(mark, left, right)
        if name.endswith("_") and not name.startswith("_") and args and isinstance(args[0], Tensor):
            self.flow.overwritten += self._readers.pop(id(args[0].untyped_storage()), [])
            self._write(args[0], mark)
        self.set(out, mark)
        return out

    def _product(self, mark: Mark, left: Tensor, right: Tensor) -> Mark:
        """The mark of the product of two tensors, one of which may be a weight without a mark.

        An attention is (Q K^T) V or, linear in the number of positions, Q (K^T V) (Katharopoulos et al. 2020, arXiv
        2006.16236, section 3.2): one of its two products is a sum over positions. The scores Q K^T become weights by a
        softmax. A product of products without a softmax and without a sum over positions is a small network whose
        matrices are made by a layer.
        """
        first, second = self.of(left), self.of(right)
        if not all(one.layers or one.scores or one.sums for one in (first, second)):
            return mark
        summed = left.shape[-1]
        if first.sums or second.sums:
            state, query = (first, second) if first.sums else (second, first)
            return self._attention(mark, [(query, self._known(key), self._known(value)) for key, value in state.sums])
        if not first.scores and not second.scores:
            pair = frozenset({(first.layers, second.layers)})
            over_positions = self._are_positions(summed, first) and self._are_positions(summed, second)
            if over_positions and not self._are_positions(left.shape[-2], first):
                return Mark(origins=mark.origins, sums=pair)
            return Mark(origins=mark.origins, scores=pair)
        scores, value = (first, second) if first.scores else (second, first)
        if not scores.weights and not self._are_positions(summed, value):
            return mark
        return self._attention(mark, [(self._known(query), self._known(key), value) for query, key in scores.scores])

    def _attention(self, mark: Mark, parts: Sequence[tuple[Mark, Mark, Mark]]) -> Mark:
        """The mark of the result of attentions of these queries, keys and values."""
        return Mark(origins=mark.origins, attentions=frozenset(self.note_attention(*part) for part in parts))

    def _are_positions(self, size: int, mark: Mark) -> bool:
        """Whether `size` is the number of positions of what these layers have made together."""
        tokens = [self.flow.layers[name].tokens for name in mark.layers]
        return size > 1 and size in (sum(count for count in tokens if count > 1), *tokens)

    def _known(self, layers: frozenset[str]) -> Mark:
        """The mark of what these layers have made."""
        origins = frozenset[str]().union(*(self.flow.layers[name].inputs.origins for name in layers))
        return Mark(layers, origins)


def _has_matrix(layer: nn.Module) -> bool:
    """Whether a layer has a weight of its own that mixes channels: linear, convolution, embedding."""
    weight = getattr(layer, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim >= 2 and not next(layer.children(), None)


class Observer:
    """Observes the calls of a network; enter it within `FakeTensorMode`, and read `flow` afterwards.

    picture, text: the tensors that come from the picture and from the prompt.
    """

    def __init__(self, network: nn.Module, picture: Tensor, text: Sequence[Tensor]):
        self.flow = Dataflow()
        self._network, self._batch = network, picture.shape[0]
        self._marks = _Marks(self.flow)
        self._marks.set(picture, Mark(origins=frozenset({PICTURE})))
        self._marks.set(list(text), Mark(origins=frozenset({TEXT})))
        self._open = ExitStack()

    def __enter__(self) -> Observer:
        for name, layer in self._network.named_modules():
            hooks = [layer.register_forward_hook(partial(self._called, name), with_kwargs=True)]
            if not next(layer.children(), None):
                hooks.append(layer.register_forward_pre_hook(partial(self._read, name), with_kwargs=True))
            else:
                hooks.append(layer.register_forward_pre_hook(partial(self._entered, name), with_kwargs=True))
            for hook in hooks:
                self._open.callback(hook.remove)
        self._open.enter_context(self._marks)
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def attention(self, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
        """Note an attention that was computed elsewhere; `out` is its result."""
        query_mark, key_mark, value_mark = map(self._marks.of, (query, key, value))
        number = self._marks.note_attention(query_mark, key_mark, value_mark)
        origins = query_mark.origins | key_mark.origins | value_mark.origins
        self._marks.set(out, Mark(origins=origins, attentions=frozenset({number})))

    def _read(self, name: str, _layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        for tensor in [*inputs, *named.values()][:1]:
            if isinstance(tensor, Tensor):
                self._marks.note_reader(tensor, name)

    def _entered(self, name: str, _layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._marks.note_arguments((inputs, named), name)

    def _called(self, name: str, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], out: Any) -> None:
        self.flow.modules.add(name)
        if _has_matrix(layer) and isinstance(out, Tensor):
            known = self._marks.of((inputs, named))
            width = out.shape[1] if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) else out.shape[-1]
            self.flow.layers.setdefault(name, Call(known, out.numel() // max(1, width * self._batch)))
            self._marks.set(out, Mark(frozenset({name}), known.origins))
