"""Advanced inputs are folded in the classic look, keep their values, and Nodes 2.0 gives a node no room for them."""

from __future__ import annotations

import pytest

KIND = "BespokeTrainLora"
FOLDED = "n.widgets.filter((w) => w.hidden).map((w) => w.name)"


@pytest.fixture(scope="module")
def page(browser, server):
    from comfy_page import ComfyPage

    opened = ComfyPage(browser, server)
    yield opened
    opened.close()


def advanced(server, kind):
    inputs = server.get("/object_info")[kind]["input"]
    return [name for name, spec in inputs["optional"].items() if len(spec) > 1 and spec[1].get("advanced")]


def new_node(page, kind=KIND):
    page.tab.evaluate(
        f"(app.graph.clear(), app.graph.add(Object.assign(LiteGraph.createNode('{kind}'), {{ pos: [100, 100] }})), 1)"
    )
    page.tab.wait("!!document.querySelector('.bespoke-fold')")


def on_node(page, script, kind=KIND):
    return page.tab.evaluate(f"((n) => {script})({page.node(kind)})")


def click(page):
    page.tab.evaluate("(document.querySelector('.bespoke-fold').click(), 1)")


def test_a_new_node_shows_the_common_inputs_alone(page, server, screenshots):
    new_node(page)
    names = advanced(server, KIND)
    assert len(names) > 15
    assert set(on_node(page, FOLDED)) == set(names)
    low = on_node(page, "n.size[1]")
    assert page.tab.evaluate("document.querySelector('.bespoke-fold').innerText") == f"▸ {len(names)} more inputs"
    page.frame(KIND)
    page.picture(screenshots / f"advanced_folded_{page.version()}.png")
    click(page)
    assert on_node(page, FOLDED) == []
    assert on_node(page, "n.size[1]") >= low + 20 * len(names)
    page.frame(KIND)
    page.picture(screenshots / f"advanced_open_{page.version()}.png")
    click(page)
    assert on_node(page, "n.size[1]") == low


@pytest.mark.parametrize("spare", [60, 700])
def test_a_roomy_node_is_as_high_as_before_after_the_fold_was_opened_and_closed(page, spare):
    """With room for a part of the inputs, and for all."""
    new_node(page)
    needed = on_node(page, "n.computeSize()[1]")
    on_node(page, f"n.setSize([n.size[0], {needed + spare}])")
    click(page)
    assert on_node(page, "n.size[1]") >= max(needed + spare, on_node(page, "n.computeSize()[1]"))
    click(page)
    assert on_node(page, "n.size[1]") == needed + spare


def test_values_of_folded_inputs_are_sent_and_saved(page):
    new_node(page)
    folded = on_node(page, FOLDED)
    sent = page.tab.evaluate("app.graphToPrompt().then((p) => Object.values(p.output)[0].inputs)")
    assert set(folded) <= set(sent)
    saved = page.tab.evaluate("app.rootGraph.serialize().nodes[0].widgets_values.filter((v) => v !== null).length")
    click(page)
    assert sent == page.tab.evaluate("app.graphToPrompt().then((p) => Object.values(p.output)[0].inputs)")
    opened = page.tab.evaluate("app.rootGraph.serialize().nodes[0].widgets_values.filter((v) => v !== null).length")
    assert opened == saved


def test_a_loaded_node_is_as_it_was_saved_and_shows_what_was_changed(page):
    new_node(page)
    page.change(KIND, ema=0.95, loss_weighting="debiased")
    page.tab.evaluate("app.loadGraphData(app.rootGraph.serialize()).then(() => true)")
    folded = on_node(page, FOLDED)
    assert folded
    assert not {"ema", "loss_weighting"} & set(folded)
    assert on_node(page, "n.widgets.find((w) => w.name === 'ema').value") == 0.95
    click(page)
    page.tab.evaluate("app.loadGraphData(app.rootGraph.serialize()).then(() => true)")
    assert on_node(page, FOLDED) == []


def test_an_input_with_a_link_is_shown(page):
    new_node(page)
    folded = len(on_node(page, FOLDED))
    page.tab.evaluate(
        """((n) => { const source = LiteGraph.createNode('PrimitiveFloat'); app.graph.add(source);
      source.connect(0, n, n.inputs.findIndex((i) => i.name === 'noise_offset')); return 1; })"""
        f"({page.node(KIND)})"
    )
    # From page 1.58 on, a widget with a link reads as hidden, and its row is drawn.
    row = "((n) => { const w = n.widgets.find((w) => w.name === 'noise_offset'); "
    row += f"return n.isWidgetRowVisible?.(w) ?? !w.hidden; }})({page.node(KIND)})"
    page.tab.wait(row)
    assert page.tab.evaluate("document.querySelector('.bespoke-fold').innerText") == f"▸ {folded - 1} more inputs"


def test_few_advanced_inputs_are_not_folded(page):
    page.tab.evaluate("(app.graph.clear(), app.graph.add(LiteGraph.createNode('BespokeSaveLora')), 1)")
    assert on_node(page, FOLDED, "BespokeSaveLora") == []


def test_each_look_folds_by_itself_after_the_look_was_changed(open_page):
    """Nodes 2.0 has the page's own button with all inputs behind it, the classic look the pack's button."""
    page = open_page()
    try:
        new_node(page)
        folded, low = on_node(page, FOLDED), on_node(page, "n.size[1]")
        assert folded
        page.look("nodes 2.0")
        page.tab.wait(f"((n) => !{FOLDED}.length)({page.node(KIND)})")
        assert page.tab.evaluate("document.querySelector('.bespoke-fold').getClientRects().length") == 0
        page.tab.evaluate(
            "[...document.querySelectorAll('[data-node-id] button')].find((b) => /advanced/i.test(b.innerText)).click()"
        )
        page.tab.wait("document.querySelector('[data-node-id]').innerText.includes('text_encoder_lr')")
        page.look("classic")
        page.tab.wait(f"((n) => {FOLDED}.length === {len(folded)})({page.node(KIND)})")
        # Page 1.47 keeps some of the height of the other look, but not that of the folded inputs.
        assert on_node(page, "n.size[1]") < low + 20 * len(folded)
    finally:
        page.look("classic")


def test_a_node_made_in_nodes_2_0_is_folded_in_the_classic_look(open_page):
    page = open_page(look="nodes 2.0")
    try:
        page.tab.evaluate(f"(app.graph.clear(), app.graph.add(LiteGraph.createNode('{KIND}')), 1)")
        page.tab.wait("!!document.querySelector('.bespoke-training')")
        assert on_node(page, FOLDED) == []
        page.look("classic")
        page.tab.wait(f"((n) => {FOLDED}.length > 15)({page.node(KIND)})")
        assert page.tab.evaluate("document.querySelector('.bespoke-fold').getClientRects().length") == 1
    finally:
        page.look("classic")


def test_nodes_2_0_leaves_no_room_for_what_it_folds(open_page, workflow):
    """The trainer of the first example before a run: a third of its element at most is below its last words."""
    page = open_page(look="nodes 2.0")
    page.load(workflow("lora_train_and_use"))
    page.tab.wait("!!document.querySelector('.bespoke-training')")
    assert page.tab.evaluate("document.querySelector('.bespoke-fold').getClientRects().length") == 0
    box = on_node(
        page,
        "{ const e = document.querySelector(`[data-node-id='${n.id}']`).getBoundingClientRect();"
        " const first = document.querySelector(`[data-node-id='${n.id}']`).querySelector('.bespoke-note')"
        ".getBoundingClientRect();"
        " return [e.top, first.bottom, e.bottom]; }",
    )
    top, last, bottom = box
    assert (bottom - last) / (bottom - top) < 1 / 3


@pytest.mark.parametrize("kind", [KIND, "BespokeTrainTextualInversion", "BespokeCaptionVariants"])
def test_a_new_node_has_no_empty_room_in_nodes_2(open_page, kind):
    """Its height is what its visible inputs need, not that of the classic look with all inputs open."""
    page = open_page(look="nodes 2.0")
    page.tab.evaluate(f"(app.graph.clear(), app.graph.add(LiteGraph.createNode('{kind}')), 1)")
    page.tab.wait("!!document.querySelector('[data-node-id]')")
    assert on_node(page, "n.size[1] - n.computeSize()[1]", kind) < 40


def test_the_panels_are_no_inputs_in_the_side_panel(open_page):
    """Page 1.58 lists a selected node's inputs at the right; a panel would be a name without a field."""
    page = open_page(look="nodes 2.0")
    page.tab.evaluate(f"(app.graph.clear(), app.graph.add(LiteGraph.createNode('{KIND}')), 1)")
    panels = on_node(page, "n.widgets.filter((w) => w.element).map((w) => [w.name, w.options.hideInPanel])")
    assert panels == [["advanced", True], ["training", True]]
