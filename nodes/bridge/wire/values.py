"""Any value that a wire carries, as a short text by content: equal in every process for equal values."""

from __future__ import annotations

import dis
import enum
import functools
import hashlib
import sys
import types
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ....training.measure import plain_tensors
from .origin import Unreadable, class_origin, function_origin, known_file, short_module
from .state import RUNTIME_STATE, TORCH_MODULE_STATE

_PLAIN = (bool, int, float, complex, str, bytes)
_C_FUNCTIONS = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)
_C_MODULES = ("builtins", "math", "torch", "operator", "_operator", "_functools", "numpy")
# Of these only that they are there is read: a device or a lock does not change a result.
_MACHINE = (torch.device, torch.cuda.Stream, uuid.UUID)


def digest(text: str) -> str:
    """A hash of a text, as 32 hexadecimal digits."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class Reader:
    """Reads values by content. One reader reads one wire.

    Functions are read as the name of their code, its instructions, the values that they close over and their defaults;
    objects as their class and attributes; tensors as a hash of all their bytes. What cannot be compared raises
    `Unreadable`: functions and objects of other programs than ComfyUI, PyTorch and this pack, since they may depend on
    anything, and objects without attributes in Python. Module globals are not read.

    special: a function that reads a value of a kind of its own (a MODEL, a CLIP), or returns None.
    """

    def __init__(self, special: Callable[[Any, Reader], str | None] = lambda value, reader: None) -> None:
        self._special = special
        self._open: list[int] = []  # ids of the values that are being read, outermost first
        self._known: dict[int, tuple[str, Any]] = {}  # id -> (text, the value, so that its id stays taken)

    def read(self, value: Any) -> str:
        """The value as text. Raises `Unreadable`."""
        if value is None or type(value) in _PLAIN:
            return _short(f"{type(value).__name__} {value!r}")
        if id(value) in self._known:
            return self._known[id(value)][0]
        if id(value) in self._open:  # a value that contains itself
            return f"<{len(self._open) - self._open.index(id(value))} levels up>"
        self._open.append(id(value))
        try:
            text = self._special(value, self)
            text = _short(self._read(value) if text is None else text)
        finally:
            self._open.pop()
        self._known[id(value)] = text, value
        return text

    def items(self, values: Iterable[Any]) -> str:
        return ", ".join(map(self.read, values))

    def fields(self, values: Mapping[str, Any], without: frozenset[str] = frozenset()) -> str:
        """Attributes by name, as text, in the order of their names."""
        return ", ".join(f"{name}={self.read(values[name])}" for name in sorted(values) if name not in without)

    def _read(self, value: Any) -> str:
        for kinds, read in self._readers():
            if isinstance(value, kinds):
                return read(value)
        return self._object(value)

    def _readers(self) -> Iterable[tuple[Any, Callable[[Any], str]]]:
        yield enum.Enum, lambda value: f"{class_origin(type(value))}.{value.name}"
        yield Tensor, tensor_text
        yield (np.ndarray, np.generic), self._array
        yield (torch.dtype, torch.layout, torch.memory_format, PurePath, range, slice), repr
        yield _MACHINE, lambda value: type(value).__name__
        yield _PLAIN, self._plain
        yield (list, tuple, deque), lambda value: f"{type(value).__name__} [{self.items(value)}]"
        yield (set, frozenset), lambda value: f"set {sorted(map(self.read, value))}"
        yield Mapping, self._mapping
        yield type, self._class
        yield types.FunctionType, self._function
        yield types.MethodType, lambda value: f"method {self.read(value.__func__)} of {self.read(value.__self__)}"
        yield (*_C_FUNCTIONS, types.MethodWrapperType), self._c_function
        yield functools.partial, lambda value: f"partial {self.items((value.func, value.args, value.keywords))}"
        yield types.ModuleType, self._namespace
        yield weakref.ReferenceType, lambda value: f"reference {self.read(value())}"
        yield nn.Module, self._module

    def _plain(self, value: Any) -> str:
        """A value of a class derived from number or text."""
        kind: Any = next(each for each in _PLAIN if isinstance(value, each))
        return f"{class_origin(type(value))} {kind(value)!r}"

    def _array(self, value: Any) -> str:
        array = np.asarray(value)
        if array.dtype.hasobject:
            return f"array {array.shape} {self.read(array.tolist())}"
        return f"array {array.shape} {array.dtype} {hashlib.blake2b(array.tobytes(), digest_size=16).hexdigest()}"

    def _mapping(self, value: Mapping[Any, Any]) -> str:
        # In their own order, which may count: wrappers call each other in it.
        # What is noted for a device is no setting, and sampling adds "model_conds" to a conditioning's "cross_attn".
        pairs = [
            f"{self.read(key)}: {self.read(item)}"
            for key, item in value.items()
            if not isinstance(key, torch.device) and not (key == "model_conds" and "cross_attn" in value)
        ]
        return f"dict {{{', '.join(pairs)}}}"

    def _class(self, value: type) -> str:
        origin = class_origin(value)
        if value.__module__ == "builtins" or _named_in_module(value):
            return f"class {origin}"
        own = {k: v for k, v in vars(value).items() if isinstance(v, types.FunctionType)}
        bases = [self.read(base) for base in value.__bases__ if base is not object]
        return f"class {origin} {bases} {self.fields(own)}"

    def _function(self, value: types.FunctionType) -> str:
        rebound = _rebound_variables(value)
        names = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        cells = [None if name in rebound else _content(cell) for name, cell in names]
        parts = [function_origin(value), code_text(value.__code__)]
        parts += [self.read(each) for each in (cells, value.__defaults__, value.__kwdefaults__)]
        return f"function {' '.join(parts)} {self.fields(vars(value))}"

    def _c_function(self, value: Any) -> str:
        owner = getattr(value, "__self__", None)
        where = getattr(value, "__module__", None) or getattr(value, "__objclass__", type(owner)).__module__
        if str(where).split(".")[0] not in _C_MODULES:
            raise Unreadable(f"the function {value.__qualname__} of {short_module(where)}")
        bound = "" if owner is None or isinstance(owner, (types.ModuleType, type)) else self.read(owner)
        return f"function {where}.{value.__qualname__} {bound}"

    def _namespace(self, value: types.ModuleType) -> str:
        place = known_file(getattr(value, "__file__", None) or "")
        if not place and value.__name__.split(".")[0] not in ("builtins", "math", "sys", "time"):
            raise Unreadable(f"the module {short_module(value.__name__)}")
        return f"module {place or value.__name__}"

    def _module(self, value: nn.Module) -> str:
        """A module with its settings, tensors, hooks and children."""
        if type(value).__module__.startswith("torch._dynamo."):  # by torch.compile, which computes the same
            return "compiled module"
        own = vars(value)
        parts = [self.read(type(value)), self.fields(own, TORCH_MODULE_STATE | state_of(type(value)))]
        tensors = {**value._parameters, **value._buffers}
        parts += [f"{name}={self.read(tensor)}" for name, tensor in sorted(tensors.items())]
        parts += [
            f"{name} {self.items(own[name].values())}" for name in sorted(own) if name.endswith("_hooks") and own[name]
        ]
        parts += [f"{name}: {self.read(child)}" for name, child in value._modules.items()]
        return f"module {' '.join(parts)}"

    def _object(self, value: Any) -> str:
        kind = type(value)
        for each in kind.__mro__[:-1]:
            if each.__module__ == "builtins":  # it keeps its values where only C code reads them
                raise Unreadable(f"a {kind.__qualname__}")
            class_origin(each)
        slots = [name for each in kind.__mro__ for name in _names(vars(each).get("__slots__", ()))]
        own: dict[str, Any] = {name: getattr(value, name) for name in slots if hasattr(value, name)}
        own |= getattr(value, "__dict__", {})
        return f"object {self.read(kind)} {self.fields(own, state_of(kind))}"


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:40]}... {digest(text)}"


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _named_in_module(kind: type) -> bool:
    """Whether its module's name and its own find the class. One that a function makes may be another at each call."""
    found: Any = sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is kind


def state_of(kind: type) -> frozenset[str]:
    """The attributes of a class that change while a model runs, from its bases too."""
    return frozenset().union(*(RUNTIME_STATE.get(each.__qualname__, frozenset()) for each in kind.__mro__))


def _rebound_variables(function: types.FunctionType) -> set[str]:
    """The variables outside of the function that it, or another function made beside it, assigns anew when called.

    They are what a run remembers, such as a running mean, and no settings.
    """
    path, _, _ = function.__qualname__.rpartition(".<locals>.")
    outer: Any = sys.modules.get(function.__module__)
    for name in path.split(".") if path else ():
        outer = getattr(outer, name, None)
    code = getattr(getattr(outer, "__func__", outer), "__code__", None)
    siblings = [each for each in code.co_consts if isinstance(each, types.CodeType)] if code else []
    return set().union(*(_assigned_outside(each) for each in (function.__code__, *siblings)))


@functools.lru_cache(maxsize=1024)
def _assigned_outside(code: types.CodeType) -> frozenset[str]:
    """The free variables that a function's code, or that of a function in it, assigns."""
    own = {each.argval for each in dis.get_instructions(code) if each.opname == "STORE_DEREF"}
    inner = (_assigned_outside(each) for each in code.co_consts if isinstance(each, types.CodeType))
    return frozenset(own.union(*inner)) & frozenset(code.co_freevars)


def code_text(code: types.CodeType) -> str:
    """A hash of a function's instructions, without lines and file: two lambdas of one function differ."""
    constants = [
        code_text(each)
        if isinstance(each, types.CodeType)
        else repr(sorted(map(repr, each)))
        if isinstance(each, frozenset)
        else repr(each)
        for each in code.co_consts
    ]
    parts = [code.co_code.hex(), repr(code.co_names), repr(code.co_freevars), repr(code.co_varnames), *constants]
    return digest("|".join(parts))


def tensor_text(tensor: Tensor) -> str:
    """Shapes, dtypes and a hash of all bytes of a tensor, and of each part of a quantised one."""
    parts = []
    for part in plain_tensors(tensor):
        if part.is_meta:
            raise Unreadable("a tensor without values")
        data = part.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
        content = hashlib.blake2b(data.numpy().data, digest_size=16).hexdigest()
        parts.append(f"{tuple(part.shape)} {part.dtype} {content}")
    return f"tensor {' '.join(parts)}"
