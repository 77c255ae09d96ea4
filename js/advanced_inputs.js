// @ts-check
// Folds the advanced inputs of a node in the classic look, as Nodes 2.0 does by itself. No side effects: index.js attaches
// it.

import { addPanel, advancedWidgets, fitNode, heightOf, hideWidgets, isClassic, leaveAdvancedOut, neededHeight, onConfigured, onLookChange, onNodeChange, propertyOf, setProperty, shrinkNode, whileOnGraph } from "./comfy.js";
import { el, setText, stopEvents } from "./dom.js";
import { t } from "./words.js";

const FEWEST = 4; // advanced inputs; fewer are not folded
const UNFOLDED = "bespoke_advanced"; // the node's property, saved with the graph
const HEIGHT = 22; // px

/**
 * Hide the advanced inputs of a new or loaded node behind a button. An input that has a link or another value than its
 * default stays visible. Values are saved and sent as before. In Nodes 2.0, which folds them itself, nothing is hidden here.
 * @param {import("./comfy.js").Node} node
 */
export function attachAdvanced(node) {
  leaveAdvancedOut(node);
  if (!isClassic()) shrinkNode(node, Infinity); // it was made with room for what Nodes 2.0 folds
  if (advancedWidgets(node).length < FEWEST) return;
  const button = el("button", { type: "button", class: "bespoke-fold", onclick: toggle });
  stopEvents(button);
  /** @type {Set<string>} */
  let folded = new Set();
  /** @type {number | null} by how many px the node grew when its inputs were shown; null: not known */
  let grown = null;

  /** @param {Set<string>} names of the inputs to hide */
  function hide(names) {
    folded = names;
    hideWidgets(node, names);
    const isOpen = !names.size;
    button.setAttribute("aria-expanded", String(isOpen));
    setText(button, isOpen ? t("advanced.fewer") : t("advanced.more", { count: names.size }));
  }

  /** Show or hide according to the look and the node's property. */
  function apply() {
    const names = advancedWidgets(node).filter(({ isLinked, isDefault }) => !isLinked && isDefault);
    button.hidden = !isClassic();
    hide(new Set(button.hidden || propertyOf(node, UNFOLDED) ? [] : names.map(({ name }) => name)));
  }

  /** Show an input that has got a link. Nothing that is visible is hidden here. */
  function showLinked() {
    const linked = advancedWidgets(node).filter(({ name, isLinked }) => isLinked && folded.has(name));
    if (!linked.length) return;
    hide(new Set([...folded].filter((name) => !linked.some((one) => one.name === name))));
    fitNode(node);
  }

  function toggle() {
    const isOpening = !propertyOf(node, UNFOLDED);
    const before = heightOf(node);
    setProperty(node, UNFOLDED, isOpening);
    refit(grown);
    grown = isOpening ? heightOf(node) - before : null;
  }

  /**
   * Show or hide, and let the node's height follow in the classic look.
   * @param {number | null} [by] px by which the node becomes lower; null: by the height of what is hidden
   */
  function refit(by = null) {
    const before = neededHeight(node);
    apply();
    if (!isClassic()) return;
    shrinkNode(node, by ?? before - neededHeight(node));
    fitNode(node);
  }

  apply();
  addPanel(node, "advanced", button, { height: () => (isClassic() ? HEIGHT : 0) });
  if (isClassic()) shrinkNode(node, Infinity); // a node that is loaded gets its saved size afterwards
  whileOnGraph(node, () => onLookChange(() => refit()));
  onConfigured(node, () => {
    grown = null;
    apply();
  });
  onNodeChange(node, showLinked);
}
