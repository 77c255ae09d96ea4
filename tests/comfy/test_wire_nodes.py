"""Over every node of the host that takes and gives a MODEL, CLIP or VAE: settings that compute otherwise differ.

What a setting changes is not taken from any list: where two settings have one identity, both are computed and must be
equal in every bit.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import wire_nodes
from bespoke.nodes.bridge import identity
from wire_nodes import WIRES

# The nodes that merge two models have a setting for each block, up to 60, read alike: three or eight are varied.
MOST_INPUTS = 16
READ = {"MODEL": identity.of_patcher, "CLIP": identity.of_clip, "VAE": identity.of_vae}
# Nodes of which something cannot be read. Their runs are not resumed, and the report says why.
UNREADABLE: set[str] = set()


@dataclass
class Tried:
    """What was found of one node.

    settings: the inputs that were varied. without_effect: those that compute the same. not_computed: those with one
    identity whose result could not be computed. refused: those whose second value the node refused.
    """

    name: str
    family: str = ""
    settings: int = 0
    without_effect: int = 0
    refused: int = 0
    unread: str = ""
    why_not: str = ""
    not_computed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def outputs(run_node, name, node, values) -> dict[str, object]:
    made = run_node(name, **values)
    kinds = tuple(node.RETURN_TYPES)
    found = {kind: thing for kind, thing in zip(kinds, made, strict=False) if kind in WIRES}
    given = {given.kind for given in wire_nodes.inputs_of(node).values()}
    return {kind: thing for kind, thing in found.items() if kind in given}


def identities(made) -> dict[str, str]:
    return {kind: READ[kind](thing).text for kind, thing in made.items()}


def unread(made) -> list[str]:
    return [each for kind, thing in made.items() for each in READ[kind](thing).unread]


def first_made(run_node, name, node, out: Tried, wide: bool):
    """(values, outputs, outputs that have sampled or None) on the first family that the node takes; None without one.

    wide: preferably one with which its output can be sampled.
    """
    fallback = None
    for family in wire_nodes.FAMILIES:
        try:
            values = wire_nodes.first_values(node, family)
            made = outputs(run_node, name, node, dict(values))
        except wire_nodes.NoValue as error:
            out.why_not = str(error)
            return None
        except Exception as error:  # the node does not take this family
            out.why_not = out.why_not or f"{type(error).__name__}: {str(error)[:80]}"
            continue
        fallback = fallback or (family, values, made)
        if not wide or name in wire_nodes.NOT_COMPUTED:
            break
        fresh = outputs(run_node, name, node, dict(values))  # before anything has sampled with it
        if computed(made, family) is not None:
            out.family, out.why_not = family, ""
            return values, fresh, made
    if fallback is None:
        return None
    out.family, values, made = fallback
    return values, made, None


def computed(made, family) -> list | None:
    """What the wires compute, or None where this small model cannot."""
    try:
        return [tensor for kind, thing in made.items() for tensor in wire_nodes.result_of(kind, thing, family)]
    except Exception:
        return None


def try_node(run_node, name, node, wide) -> Tried:
    out = Tried(name)
    found = first_made(run_node, name, node, out, wide)
    if found is None:
        return out
    values, made, sampled = found
    out.why_not, out.unread = "", "; ".join(unread(made))
    base = identities(made)
    if out.unread:
        out.wrong += ["an unreadable wire is equal to itself"] if base == identities(made) else []
        return out
    if identities(outputs(run_node, name, node, dict(values))) != base:
        out.wrong.append("the same settings differ")
    if sampled is not None and identities(sampled) != base:
        out.wrong.append("the identity is another after sampling")
    same = vary(run_node, node, values, out, base, wide)
    if same and name in wire_nodes.NOT_COMPUTED:
        out.not_computed = sorted(same)
    elif same:
        check_without_effect(run_node, node, values, out, base, same)
    return out


def vary(run_node, node, values, out, base, wide) -> dict[str, object]:
    """{input: its second value} of those that leave the identity as it is."""
    same = {}
    given_inputs = list(wire_nodes.inputs_of(node).items())
    if len(given_inputs) > MOST_INPUTS:
        given_inputs = given_inputs[:: math.ceil(len(given_inputs) / (8 if wide else 3))]
    for name, given in given_inputs:
        try:
            other = wire_nodes.two_values(name, given, out.family)[1]
            changed = outputs(run_node, out.name, node, values | {name: other})
        except wire_nodes.NoValue:
            continue
        except Exception:
            out.refused += 1
            continue
        out.settings += 1
        if identities(changed) == base:
            same[name] = other
    return same


def check_without_effect(run_node, node, values, out, base, same) -> None:
    """Where the identity stays, the result must stay too. All at once first, then each by itself."""
    groups = [same]
    for group in groups:
        changed = outputs(run_node, out.name, node, values | group)
        alike = identities(changed) == base
        # The first anew each time, since core may leave something in the model.
        before = computed(outputs(run_node, out.name, node, dict(values)), out.family)
        after = computed(changed, out.family)
        if alike and (before is None or after is None):
            out.not_computed += sorted(group)
        elif alike and wire_nodes.equal(before, after):
            out.without_effect += len(group)
        elif len(group) > 1:
            groups += [{name: value} for name, value in group.items()]
        else:
            out.wrong.append(f"{next(iter(group))} changes the result and not the identity")


@pytest.mark.parametrize("wide", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_setting_that_changes_the_result_changes_the_identity(run_node, comfyui, no_progress_bars, wide):
    """wide: more settings of the nodes that merge models, a whole U-Net, and the identities again after sampling."""
    wire_nodes.use(wide)
    wire_nodes.write_files(comfyui)
    not_tried = wire_nodes.left_out(wide)
    found = [
        Tried(name, why_not=not_tried[name]) if name in not_tried else try_node(run_node, name, node, wide)
        for name, node in wire_nodes.nodes_to_try().items()
    ]
    tried = [each for each in found if each.family]
    for each in tried:
        print(
            f"{each.name:32} {each.family:10} varied {each.settings:3}, without effect {each.without_effect:3}, "
            f"refused {each.refused} {each.unread} {each.why_not} {each.not_computed or ''} {each.wrong or ''}"
        )
    for each in found:
        if not each.family:
            print(f"not tried: {each.name}: {each.why_not}")
    print(
        f"{len(found)} nodes, {len(tried)} tried, {sum(each.settings for each in tried)} settings varied, of which "
        f"{sum(each.without_effect for each in tried)} compute the same"
    )
    assert {each.name: each.wrong for each in tried if each.wrong} == {}
    assert {each.name for each in tried if each.unread} == UNREADABLE


@pytest.mark.slow
def test_identities_are_equal_in_another_process():
    """With other hash seeds, so that sets and vocabularies have another order."""
    script = Path(wire_nodes.__file__).with_name("wire_process.py")
    texts = [
        subprocess.run(
            [sys.executable, str(script)],
            env=os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    first, second = (json.loads(text.splitlines()[-1]) for text in texts)
    assert sum(bool(found) for found in first.values()) > 80
    assert {name for name in first if first[name] != second[name]} == UNREADABLE
