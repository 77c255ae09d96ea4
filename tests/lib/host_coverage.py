"""Which classes of ComfyUI's models the tests try, and which the trainer refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import families
import host_models
import torch


@dataclass(frozen=True)
class Tried:
    """Of a class of `comfy.supported_models`: the small models of it, and why the trainer refuses it, or ""."""

    names: tuple[str, ...]
    reason: str


class _AnyWeights(dict):
    """A checkpoint in which every weight is there."""

    def __missing__(self, key: str) -> torch.Tensor:
        return torch.zeros(4, 4)


@contextmanager
def _without_networks() -> Iterator[list[Any]]:
    """Within the block ComfyUI makes models without their network. Gives those that it has begun to make."""
    import comfy.model_base

    begun: list[Any] = []

    def empty(self: Any, config: Any, *_: Any, **__: Any) -> None:
        torch.nn.Module.__init__(self)
        self.model_config, self.latent_format = config, config.latent_format
        self.concat_keys = ()
        begun.append(self)

    before = comfy.model_base.BaseModel.__init__
    comfy.model_base.BaseModel.__init__ = empty
    try:
        yield begun
    finally:
        comfy.model_base.BaseModel.__init__ = before


def _reason(config: type) -> str:
    """Why the trainer refuses the model that core makes of a configuration, by its class."""
    from bespoke.nodes.bridge.models import refused

    with _without_networks() as begun, suppress(RuntimeError, KeyError, AttributeError, TypeError):
        config({"in_channels": 4, **config.unet_config}).get_model(
            _AnyWeights(), ""
        )  # some read weights that are not there
    return refused.reason_against(begun[-1]) if begun else ""


def table() -> dict[str, Tried]:
    """{class of `comfy.supported_models`: what the tests do with it}, in core's order."""
    import comfy.supported_models

    names: dict[str, list[str]] = {}
    for name in families.FAMILIES:
        names.setdefault(type(families.made(name)[0].model.model_config).__name__, []).append(name)
    for name, row in host_models.ROWS.items():
        if not row.reason:
            names.setdefault(row.config, []).append(name)
    by_row = {row.config: row.reason for row in host_models.ROWS.values() if row.reason}
    return {
        config.__name__: Tried(
            tuple(names.get(config.__name__, ())), by_row.get(config.__name__, "") or _reason(config)
        )
        for config in comfy.supported_models.models
    }


def report(table: dict[str, Tried]) -> str:
    """The table in words: a line for each class, and how many there are of each kind."""
    lines = [
        f"{config:28} {', '.join(row.names) or ('refused: ' + row.reason if row.reason else 'UNTRIED')}"
        for config, row in table.items()
    ]
    tried = sum(bool(row.names) for row in table.values())
    refused = sum(bool(row.reason) and not row.names for row in table.values())
    return "\n".join(["", *lines, f"{len(table)} classes: {tried} tried, {refused} refused, "
                      f"{len(table) - tried - refused} untried"])  # fmt: skip
