"""The code that other nodes have put on a wire: its name for a report, and whether it may read the noise level."""

from __future__ import annotations

import functools
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from .origin import is_known, short_module

# A step cache (TeaCache, FBCache, MagCache, DeepCache and the like) is known by its names, since its code is free.
_CACHE = re.compile(r"(?<!kv)(?<!kv_)(?<!lru_)cache", re.IGNORECASE)
_LEVEL_WORDS = frozenset({"sigmas", "sigma", "sample_sigmas", "timestep", "timesteps"})
_MOST_VALUES = 2000  # read of one piece of code; with more it counts as unreadable
_SKIPPED_PACKAGES = frozenset({"torch", "numpy", "builtins", "typing", "collections", "functools", "math", "logging"})


def functions_in(value: Any) -> Iterator[Any]:
    """The functions and callable objects in nested mappings and lists, in their order."""
    if isinstance(value, Mapping):
        for each in value.values():
            yield from functions_in(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from functions_in(each)
    elif value is not None and not isinstance(value, (bool, int, float, str, torch.Tensor, torch.dtype)):
        yield value


def code_name(code: Any) -> str:
    """What a report calls a function or an object: the kinds of node that make it, or its name and module."""
    kinds = _node_kinds(code)
    if kinds:
        return " or ".join(kinds)
    thing = plain(code)
    name = getattr(thing, "__qualname__", type(thing).__qualname__).replace(".<locals>", "")
    what = "the function" if isinstance(thing, types.FunctionType) else "a"
    return f"{what} {name} of {short_module(getattr(thing, '__module__', ''))}"


def is_step_cache(code: Any) -> bool:
    """Whether a name of the code says that it hands on the result of an earlier step."""
    thing = plain(code)
    names = [getattr(thing, "__qualname__", type(thing).__qualname__), str(getattr(thing, "__module__", ""))]
    names[1] = names[1].replace("\\", "/").rpartition("/")[2]  # the folders above may be a machine's "cache"
    return any(map(is_cache_name, names))


def is_cache_name(name: str) -> bool:
    """Whether a name has the word cache in it, but for a cache of keys and values."""
    return _CACHE.search(name) is not None


def may_read_level(code: Any, in_arguments: bool = False) -> bool:
    """Whether the code may read the noise level of a call: it or a value that it holds names it, or it cannot be read.

    in_arguments: whether the code is given the noise level by position, so that another program's need not name it.
    """
    thing = plain(code)
    if in_arguments and not is_known(thing if isinstance(thing, types.FunctionType) else type(thing)):
        return True
    open_values, seen = [code], dict[int, Any]()  # the values too, so that no id is taken again
    while open_values:
        value = open_values.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if len(seen) > _MOST_VALUES:
            return True
        # ComfyUI's own objects (a patcher, a sampling) in another node's code are not what it calls at a step, and this
        # pack's code does not read the noise level.
        known = (_package(type(value)) == "comfy" and value is not code) or _package(value) == _PACK
        found = [] if known else _parts(value)
        if found is None or any(isinstance(part, str) and part in _LEVEL_WORDS for part in found):
            return True
        open_values += [part for part in found if not isinstance(part, str)]
    return False


def modules_in(code: Any) -> Iterator[nn.Module]:
    """The modules that another node's code holds: its own, and those of patchers, VAEs and CLIPs."""
    open_values, seen = [code], dict[int, Any]()
    while open_values and len(seen) <= _MOST_VALUES:
        value = open_values.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        own = getattr(value, "__dict__", {})
        inner = [own.get(name) for name in ("model", "first_stage_model", "cond_stage_model")]
        modules = [each for each in (value, *inner) if isinstance(each, nn.Module)]
        yield from modules
        if not modules and not isinstance(value, type):
            open_values += [each for each in _parts(value) or () if not isinstance(each, (str, type))]


def _parts(value: Any) -> list[Any] | None:
    """The words that a value names and the further values that it may call; None where it cannot be read."""
    if isinstance(value, types.FunctionType):
        return [*_words(value.__code__), *_called(value)]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    if isinstance(value, type):
        functions = [getattr(each, "__func__", each) for each in vars(value).values()]
        return [each for each in functions if isinstance(each, types.FunctionType)]
    if isinstance(getattr(value, "__wrapped__", None), types.FunctionType):  # by `functools.cache` and the like
        return [value.__wrapped__]
    if value is None or isinstance(value, _PLAIN) or _package(type(value)) in _SKIPPED_PACKAGES:
        return [] if not _is_c_code(value) else None
    classes = [each for each in type(value).__mro__ if _package(each) not in _SKIPPED_PACKAGES]
    if isinstance(value, nn.Module):
        return [*classes, *(v for k, v in vars(value).items() if not k.startswith("_")), *value.children()]
    if callable(value) and not isinstance(type(value).__call__, types.FunctionType):
        return None
    return [*classes, *getattr(value, "__dict__", {}).values()]


_PLAIN = (bool, int, float, complex, str, bytes, torch.Tensor, torch.dtype, torch.device, types.ModuleType)


def _is_c_code(value: Any) -> bool:
    """Whether a callable has no Python code, and is not one of Python's or PyTorch's own."""
    if isinstance(value, (types.BuiltinFunctionType, types.MethodDescriptorType)):
        return str(value.__module__ or "builtins").split(".")[0] not in _SKIPPED_PACKAGES | {"_operator", "operator"}
    return False


def _words(code: types.CodeType) -> Iterator[str]:
    """The attribute names and texts in a function's code and in the functions in it."""
    yield from code.co_names
    for each in code.co_consts:
        if isinstance(each, str):
            yield each
        elif isinstance(each, types.CodeType):
            yield from _words(each)


def _called(function: types.FunctionType) -> list[Any]:
    """What a function closes over, its defaults, and what its code names of its own module: texts, collections, and the
    functions of its own package."""
    out: list[Any] = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        try:
            out.append(cell.cell_contents)
        except ValueError:  # not assigned yet
            continue
    own = _package(function)
    for name in function.__code__.co_names:
        found = function.__globals__.get(name)
        is_own = isinstance(found, (types.FunctionType, type)) and _package(found) == own
        # A constant may be the name of a noise level: `extra_options[KEY]`.
        if own != "comfy" and (is_own or isinstance(found, (str, Mapping, list, tuple, set, frozenset))):
            out.append(found)
    return out


def _package(thing: Any) -> str:
    """The top package of a thing's module. ComfyUI names a pack's modules by their path."""
    folder, slash, name = str(getattr(thing, "__module__", "")).replace("\\", "/").rpartition("/")
    return folder + slash + name.split(".")[0]


def plain(code: Any) -> Any:
    """The function of a method or of a partial; other values as they are."""
    while isinstance(code, functools.partial):
        code = code.func
    if isinstance(code, types.MethodType):
        bound = code.__self__
        return bound if not isinstance(bound, (type, types.ModuleType)) else code.__func__
    return code


def _node_kinds(code: Any) -> list[str]:
    """The nodes whose code makes a function or an object: the function is defined in the node's, or named there."""
    thing = plain(code)
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", type(thing).__qualname__)
    out = []
    nodes = sys.modules.get("nodes")  # not in a job's process, which has no server
    for kind, node in ({} if nodes is None else nodes.NODE_CLASS_MAPPINGS).items():
        if getattr(node, "__module__", "") != module:
            continue
        functions: list[Callable[..., Any]] = [getattr(each, "__func__", each) for each in vars(node).values()]
        named = any(name in each.__code__.co_names for each in functions if isinstance(each, types.FunctionType))
        if named or name.split(".")[0] == node.__name__:
            out.append(kind)
    return sorted(out)


_PACK = _package(functions_in)
