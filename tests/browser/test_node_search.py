"""The page's search for nodes: what a person types for a purpose lists this pack's nodes for it among the first.

The page ranks by the node's id and by its title, not by its search aliases: equal to the words, beginning with them,
having them as a word, having them inside, and last whatever is merely similar.
"""

from __future__ import annotations

import json

import pytest

FIND = """((words) => document.querySelector("#vue-app").__vue_app__.config.globalProperties.$pinia._s.get("nodeDef")
  .nodeSearchService.searchNode(words).map((node) => node.name))"""


@pytest.mark.parametrize(
    ("words", "nodes"),
    [
        ("inpaint", ["BespokeLatentMaskBlend", "BespokeRestoreUnmasked"]),
        ("img2img", ["BespokePartialDenoise", "BespokeStrengthSigmas"]),
        ("train lora", ["BespokeTrainLora"]),
        ("textual inversion", ["BespokeTrainTextualInversion"]),
    ],
)
def test_a_search_lists_this_packs_nodes_among_the_first(page, words, nodes):
    found = page.tab.evaluate(f"{FIND}({json.dumps(words)})")
    first = [node for node in found if not node.startswith("Subgraph")][:6]
    assert set(nodes) <= set(first), (first, len(found))
