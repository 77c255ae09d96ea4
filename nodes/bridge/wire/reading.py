"""A MODEL, CLIP or VAE read by the table of what it can carry."""

from __future__ import annotations

import enum
import types
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import comfy.model_base
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import torch
from torch import nn

from .origin import Unreadable, class_origin, is_known, short_module
from .table import CLIP, PATCHER, VAE, Role, Row, carried
from .values import Reader, digest, state_of
from .weights import base_modules, loaded_checksum

_SIMPLE = (bool, int, float, str, torch.dtype, enum.Enum)


@dataclass(frozen=True)
class Reading:
    """What a wire carries, as text.

    text: equal for wires that compute the same. With anything in `unread` it is equal to no other, not even to another
    reading of the same wire.
    unread: what cannot be compared, such as "the MODEL carries a wrapper of another node (the function f of module m)".
    as_in_0_1: whether the wire carries nothing besides what version 0.1 read.
    """

    text: str
    unread: tuple[str, ...] = ()
    as_in_0_1: bool = True

    def __add__(self, other: Reading) -> Reading:
        return Reading(f"{self.text}|{other.text}", self.unread + other.unread, self.as_in_0_1 and other.as_in_0_1)


NOTHING = Reading("nothing")


@dataclass
class _Wire:
    """Collects a reading. name: what a report calls the wire."""

    name: str
    reader: Reader
    parts: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    as_in_0_1: bool = True

    def add(self, label: str, read: Callable[[], str], words: str) -> None:
        try:
            self.parts.append(f"{label}={read()}")
        except Unreadable as error:
            self.unread.append(f"the {self.name} carries {words} ({error})")
        except RecursionError:
            self.unread.append(f"the {self.name} carries {words} (nested too deeply)")

    def add_table(self, thing: Any, table: Mapping[str, Row]) -> None:
        for name, row, value in carried(thing, table):
            if row is None:
                self.unread.append(f"the {self.name} carries {name}, which this version of Bespoke does not know")
            elif row.role is Role.CHANGE:
                self.add(name, lambda name=name, value=value: self._change(name, value), row.words)
                self.as_in_0_1 &= row.in_0_1
            elif not isinstance(value, nn.Module):
                self.add(name, lambda value=value: _loaded(value, self.reader), f"another {name}")

    def _change(self, name: str, value: Any) -> str:
        if name in ("patches", "hook_patches"):  # each weight by itself; the order of their names is the loader's
            return str(sorted(f"{self.reader.read(key)}: {self.reader.read(item)}" for key, item in value.items()))
        if name == "injections":  # their names may be drawn at random, and only tell them apart
            return self.reader.read(list(value.values()))
        if name == "object_patches":
            self.as_in_0_1 &= all(key == "model_sampling" or isinstance(v, _SIMPLE) for key, v in value.items())
        return self.reader.read(value)

    def add_patcher(self, patcher: Any) -> None:
        self.add("kind", lambda: class_origin(type(patcher)) and "", "a patcher of another node")
        self.parts += [f"base={_kind(patcher)} {loaded_checksum(patcher)}"]
        self.add("settings", lambda: _settings(patcher, self.reader), "another program's function in its model")
        self.add_table(patcher, PATCHER)
        if hasattr(patcher.model, "model_sampling"):
            sampling = patcher.get_model_object("model_sampling")
            self.add("model_sampling", lambda: self.reader.read(sampling), "the noise schedule of another node")

    def reading(self) -> Reading:
        if self.unread:
            return Reading(f"{self.name} {uuid.uuid4()}", tuple(dict.fromkeys(self.unread)), False)
        return Reading(f"{self.name} {digest('|'.join(self.parts))}", (), self.as_in_0_1)


def read_model(patcher: Any, name: str = "MODEL") -> Reading:
    """A MODEL with its base, all that nodes changed on it and its noise schedule; `NOTHING` for None."""
    if patcher is None:
        return NOTHING
    wire = _Wire(name, Reader(_special))
    wire.add_patcher(patcher)
    return wire.reading()


def read_clip(clip: Any) -> Reading:
    """A CLIP with its tokenizer, its patcher, hooks, schedules and options."""
    wire = _Wire("CLIP", Reader(_special))
    _add_clip(wire, clip)
    return wire.reading()


def read_vae(vae: Any) -> Reading:
    """A VAE with its patcher; `NOTHING` for one without weights."""
    if getattr(vae, "patcher", None) is None:
        return NOTHING
    wire = _Wire("VAE", Reader(_special))
    _add_vae(wire, vae)
    return wire.reading()


def _add_clip(wire: _Wire, clip: Any) -> None:
    wire.add("kind", lambda: class_origin(type(clip)), "a CLIP of another node")
    wire.add_patcher(clip.patcher)
    wire.add_table(clip, CLIP)


def _add_vae(wire: _Wire, vae: Any) -> None:
    wire.add("kind", lambda: class_origin(type(vae)), "a VAE of another node")
    wire.add_patcher(vae.patcher)
    wire.add_table(vae, VAE)


def _special(value: Any, reader: Reader) -> str | None:
    """A MODEL, CLIP or VAE inside of a value: a further model, or one that a function closes over."""
    kinds: list[tuple[type, Callable[[_Wire, Any], None]]] = [
        (comfy.model_patcher.ModelPatcher, _Wire.add_patcher),
        (comfy.sd.CLIP, _add_clip),
        (comfy.sd.VAE, _add_vae),
    ]
    for kind, add in kinds:
        if isinstance(value, kind):
            wire = _Wire(kind.__name__, reader)
            add(wire, value)
            if wire.unread:
                raise Unreadable(wire.unread[0])
            return digest("|".join(wire.parts))
    if isinstance(value, (comfy.sd1_clip.SDTokenizer, comfy.sd1_clip.SD1Tokenizer)):
        return _loaded(value, reader)
    if isinstance(value, comfy.model_base.BaseModel):
        # Its weights may hold the patches of a clone, and only a patcher knows.
        raise Unreadable(f"a {type(value).__name__} without its patcher")
    return None


def _kind(patcher: Any) -> str:
    """The classes of a model and its layers: the same weights compute otherwise in other classes (fp8, for example)."""
    names = [f"{name} {type(each).__module__}.{type(each).__qualname__}" for name, each in base_modules(patcher)]
    kind = type(patcher.model)
    return f"{kind.__module__}.{kind.__qualname__} {digest('|'.join(names))}"


def _settings(patcher: Any, reader: Reader) -> str:
    """The plain settings of a model and its text encoders. Raises `Unreadable` for a replaced method of any layer."""
    model: nn.Module = patcher.model
    for _, each in base_modules(patcher):
        for name, value in vars(each).items():
            replaced = callable(value) and isinstance(value, _FUNCTIONS) and hasattr(type(each), name)
            if replaced and not is_known(value):
                where = short_module(getattr(value, "__module__", ""))
                raise Unreadable(f"{type(each).__name__}.{name} is replaced by a function of {where}")
    parts = []
    for name, each in [("", model), *model.named_children()]:
        if isinstance(each, comfy.sd1_clip.SDClipModel) or each is model:
            own = vars(each)
            plain = {k: v for k, v in own.items() if isinstance(v, _SIMPLE) and k not in _MODEL_STATE}
            parts.append(f"{name}: {reader.fields(plain, state_of(type(each)))}")
    return "|".join(parts)


_FUNCTIONS = (types.FunctionType, types.MethodType)
# Attributes of a model that patchers and the loading of weights write.
_MODEL_STATE = frozenset(
    {
        "training",
        "device",
        "model_loaded_weight_memory",
        "lowvram_patch_counter",
        "model_lowvram",
        "model_offload_buffer_memory",
        "manual_cast_dtype",  # the layers' classes and object patches tell it
        "memory_usage_factor",
        "can_assign_sd",
    }
)


def _loaded(value: Any, reader: Reader) -> str:
    """What a loader made of a file: its plain settings, and whose code it is.

    Functions of ComfyUI are not read, since the weights stand for them. Raises `Unreadable` for another program's.
    """
    if isinstance(value, (*_FUNCTIONS, type)):
        if not is_known(value):
            reader.read(value)  # raises, with its name
        return "function"
    if isinstance(value, (list, tuple)):
        return str([_loaded(each, reader) for each in value])
    if isinstance(value, Mapping) or value is None or isinstance(value, _SIMPLE):
        return reader.read(value)
    return f"{type(value).__module__}.{type(value).__qualname__} {_tokenizer(value, reader)}"


_vocabularies: WeakKeyDictionary[Any, str] = WeakKeyDictionary()  # tokenizer -> a hash of its words


def _vocabulary(tokenizer: Any) -> str:
    if tokenizer not in _vocabularies:  # of up to 250 thousand words
        _vocabularies[tokenizer] = digest(repr(sorted(tokenizer.inv_vocab.items())))
    return _vocabularies[tokenizer]


def _tokenizer(value: Any, reader: Reader) -> str:
    """The plain settings and the vocabulary of a tokenizer, and of those in it; the words that only it knows."""
    parts = []
    for name, each in sorted(getattr(value, "__dict__", {}).items()):
        if name in ("embedding_directory", "tokenizer_path", "vocab_file"):  # folders of this machine
            continue
        if isinstance(each, _SIMPLE) or each is None:
            parts.append(f"{name}={reader.read(each)}")
        elif name == "inv_vocab":
            parts.append(f"{name}={_vocabulary(value)}")
        elif isinstance(each, comfy.sd1_clip.SDTokenizer):
            parts.append(f"{name}={_loaded(each, reader)}")
        elif hasattr(type(value), name):  # a replaced method
            parts.append(f"{name}={reader.read(each)}")
    return ", ".join(parts)
