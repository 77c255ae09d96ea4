"""Prints, as JSON, the identity that each node of `wire_nodes` gives with its first values, in a process of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]


def main() -> None:
    import conftest  # loads the pack
    import inprocess

    base = inprocess.start_comfyui()
    import nodes

    asyncio.run(conftest._load_all(nodes))
    import wire_nodes

    wire_nodes.write_files(base)
    found = {}
    for name, node in wire_nodes.nodes_to_try().items():
        if name not in wire_nodes.NOT_TRIED:
            found[name] = _identities(name, node)
    print(json.dumps(found))


def _identities(name, node) -> dict[str, str]:
    """{kind of wire: text} on the first family that the node takes; {} where it takes none."""
    import inprocess
    import wire_nodes
    from bespoke.nodes.bridge import identity

    read = {"MODEL": identity.of_patcher, "CLIP": identity.of_clip, "VAE": identity.of_vae}
    for family in wire_nodes.FAMILIES[:3]:
        try:
            made = inprocess.call_node(name, **wire_nodes.first_values(node, family))
        except Exception:  # the node does not take this family, or an input cannot be made
            continue
        pairs = zip(node.RETURN_TYPES, made, strict=False)
        return {kind: read[kind](each).text for kind, each in pairs if kind in read}
    return {}


if __name__ == "__main__":
    main()
