"""Whose code a function or a class is: only the code of known programs is compared by value."""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
from collections.abc import Callable
from types import FunctionType
from typing import Any

import comfy
import torch

# The folders of ComfyUI whose code is ComfyUI's own; others in its folder are custom nodes, models or an environment.
_CORE_FOLDERS = frozenset(
    {
        "api_server",
        "app",
        "comfy",
        "comfy_api",
        "comfy_config",
        "comfy_execution",
        "comfy_extras",
        "middleware",
        "utils",
    }
)


class Unreadable(Exception):
    """A value that cannot be compared by content. Its text names the value, such as "the function f of module m"."""


def _real(path: str) -> str:
    return os.path.normcase(os.path.realpath(path))


CORE = os.path.dirname(_real(next(iter(comfy.__path__))))
_PACK = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(_real(__file__)))))
_TORCH = os.path.dirname(_real(torch.__file__ or ""))
_STDLIB = _real(sysconfig.get_paths()["stdlib"])


@functools.lru_cache(maxsize=4096)
def known_file(path: str) -> str:
    """A source file's name without the machine's folders, such as "comfy_extras/nodes_freelunch.py".

    "" for a file that is neither ComfyUI's, nor this pack's, nor PyTorch's, nor of Python's library.
    """
    path = _real(path)
    inside = _inside(path, _PACK)
    if inside.split("/")[0] in ("nodes", "training"):
        return f"bespoke/{inside}"
    inside = _inside(path, CORE)
    first, *rest = inside.split("/")
    if inside and (first in _CORE_FOLDERS or (not rest and first.endswith(".py"))):
        return inside
    inside = _inside(path, _TORCH)
    if inside:
        return f"torch/{inside}"
    inside = _inside(path, _STDLIB)
    return "" if not inside or "-packages" in inside else f"python/{inside}"


def _inside(path: str, folder: str) -> str:
    start = folder.rstrip(os.sep) + os.sep
    return path[len(start) :].replace(os.sep, "/") if path.startswith(start) else ""


def function_origin(function: FunctionType) -> str:
    """The file of a function's code and its qualified name. Raises `Unreadable` for another program's."""
    place = known_file(function.__code__.co_filename)
    if not place:
        raise Unreadable(f"the function {function.__qualname__} of {short_module(function.__module__)}")
    return f"{place}:{function.__qualname__}"


def class_origin(kind: type) -> str:
    """The file of a class and its qualified name. Raises `Unreadable` for another program's."""
    if kind.__module__ == "builtins":
        return f"builtins:{kind.__qualname__}"
    place = known_file(getattr(sys.modules.get(kind.__module__), "__file__", None) or "")
    if not place.endswith(".py"):  # a compiled class may keep its values where Python does not see them
        raise Unreadable(f"a {kind.__qualname__} of {short_module(kind.__module__)}")
    return f"{place}:{kind.__qualname__}"


def is_known(thing: type | Callable[..., Any]) -> bool:
    """Whether a class or a function is of a program whose code is compared by value."""
    function = getattr(thing, "__func__", thing)
    try:
        if isinstance(function, type):
            class_origin(function)
        elif isinstance(function, FunctionType):
            function_origin(function)
    except Unreadable:
        return False
    return True


def short_module(name: str | None) -> str:
    """A module's name without the folders of this machine, for a report."""
    parts = str(name).replace("\\", "/").split("/")
    return "/".join(parts[-2:]) if len(parts) > 1 else parts[0]
