"""Which run a trainer node shows.

A workflow stores no run. The run's record says where it was made and what was asked, and the node says what it asks, so
the two find each other in a copy of the graph, after a reload and inside a subgraph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ....training.errors import InputError
from ....training.record import Summary, plain_value
from ....training.run_identity import NOT_IDENTITY
from ..web import kind_of, read_object

TOLERANCE = 1e-9  # relative, as widgets round numbers in their own way


@dataclass(frozen=True)
class NodeRequest:
    """What a trainer node asks for.

    paths: its execution paths, one for each place of its subgraph. workflow: the graph's id, "" where it has none.
    request: its widgets' values by name, without the widgets that are wired.
    """

    technique: str
    workflow: str
    paths: frozenset[str]
    request: Mapping[str, Any]

    @classmethod
    def from_json(cls, body: bytes) -> NodeRequest:
        """The request that the page sends. Raises `InputError` for anything else."""
        values = read_object(body, {"technique": str, "workflow": str, "paths": list, "request": dict})
        wrong = [path for path in values["paths"] if not isinstance(path, str)]
        if wrong:
            raise InputError(f"one of paths is {kind_of(wrong[0])}; give texts like '1:2'")
        request = {name: plain_value(value) for name, value in values["request"].items()}
        return cls(values["technique"], values["workflow"], frozenset(values["paths"]), request)


def find_run(
    runs: Sequence[Summary], wanted: NodeRequest, defaults: Mapping[str, Any] | None = None
) -> tuple[Summary | None, bool]:
    """(the run that the node shows or None, whether this node of this workflow made it). runs: newest first.

    The first that there is: a run of this node in this workflow; a run at one of the paths with the same request; a run
    with the same request. defaults: of the technique's settings, see `same_request`.
    """

    def is_here(run: Summary) -> bool:
        return run.node != "" and run.node in wanted.paths

    of_technique = [run for run in runs if run.technique == wanted.technique]
    here = list(filter(is_here, of_technique))
    own = [run for run in here if run.workflow and run.workflow == wanted.workflow]
    same = (run for run in (*here, *of_technique) if same_request(run.settings, wanted.request, defaults))
    found = next(iter(own), None) or next(same, None)
    return found, found is not None and is_here(found) and found.workflow == wanted.workflow


def same_request(
    settings: Mapping[str, Any], request: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> bool:
    """Whether a run with these settings is what is asked for: the settings that both have agree, if they count at all.

    defaults: {setting: its default}. A run without such a setting has it at its default: runs of versions before the
    setting do not name it, and others leave out what is at its default.
    """
    if not any(name in request and name not in NOT_IDENTITY for name in settings):
        return False
    of_run = {**(defaults or {}), **settings}
    both = (name for name in of_run if name in request and name not in NOT_IDENTITY)
    return all(_same(of_run[name], request[name]) for name in both)


def _same(a: Any, b: Any) -> bool:
    if not _is_number(a) or not _is_number(b):
        return type(a) is type(b) and a == b
    if isinstance(a, int) and isinstance(b, int):
        return float(a) == float(b)  # as JavaScript has them; large seeds differ by less than the tolerance
    return abs(a - b) <= TOLERANCE * max(1, abs(a), abs(b))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
