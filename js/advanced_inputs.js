// @ts-check
// Folds the advanced inputs of a node in the classic look, as Nodes 2.0 does by itself. No side effects: index.js attaches
// it.

import { addPanel, advancedWidgets, fitNode, hideWidgets, isClassic, leaveAdvancedOut, onConfigured, onNodeChange, propertyOf, setProperty, shrinkNode } from "./comfy.js";
import { el, setText, stopEvents } from "./dom.js";
import { t } from "./words.js";

const FEWEST = 4; // advanced inputs; fewer are not folded
const UNFOLDED = "bespoke_advanced"; // the node's property, saved with the graph
const HEIGHT = 22; // px

/**
 * Hide the advanced inputs of a new or loaded node behind a button. An input that has a link or another value than its
 * default stays visible. Values are saved and sent as before.
 * @param {import("./comfy.js").Node} node
 */
export function attachAdvanced(node) {
  leaveAdvancedOut(node);
  if (!isClassic() || advancedWidgets(node).length < FEWEST) return;
  const button = el("button", { type: "button", class: "bespoke-fold", onclick: toggle });
  stopEvents(button);
  /** @type {Set<string>} */
  let folded = new Set();

  /** @param {Set<string>} names of the inputs to hide */
  function hide(names) {
    folded = names;
    hideWidgets(node, names);
    const isOpen = !names.size;
    button.setAttribute("aria-expanded", String(isOpen));
    setText(button, isOpen ? t("advanced.fewer") : t("advanced.more", { count: names.size }));
  }

  /** Show or hide according to the node's property. */
  function apply() {
    const names = advancedWidgets(node).filter(({ isLinked, isDefault }) => !isLinked && isDefault);
    hide(new Set(propertyOf(node, UNFOLDED) ? [] : names.map(({ name }) => name)));
  }

  /** Show an input that has got a link. Nothing that is visible is hidden here. */
  function showLinked() {
    const linked = advancedWidgets(node).filter(({ name, isLinked }) => isLinked && folded.has(name));
    if (!linked.length) return;
    hide(new Set([...folded].filter((name) => !linked.some((one) => one.name === name))));
    fitNode(node);
  }

  function toggle() {
    const before = node.computeSize()[1];
    setProperty(node, UNFOLDED, !propertyOf(node, UNFOLDED));
    apply();
    shrinkNode(node, before - node.computeSize()[1]);
    fitNode(node);
  }

  apply();
  addPanel(node, "advanced", button, { height: () => HEIGHT });
  shrinkNode(node, Infinity); // a node that is loaded gets its saved size afterwards
  onConfigured(node, apply);
  onNodeChange(node, showLinked);
}
