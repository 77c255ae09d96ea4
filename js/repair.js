// @ts-check
// Restores the values of a node that was saved wrongly. Up to 0.1.0 pages from 1.53 on moved the values of some of this
// pack's nodes by one place when they saved them. A file that was saved so once still has the right values by name
// (`widgets_values_named`, saved since page 1.49); one that was saved so again has not. No side effects: index.js attaches it.

import { nodeKey, onConfigured, savedWidgets, setValue, titleOf, toast } from "./comfy.js";
import { judge } from "./saved_values.js";
import { t } from "./words.js";

/** @typedef {"restored" | "check" | "lost"} Kind */
/** @typedef {import("./comfy.js").Node} Node */

/** Notices that were shown: undo, a change of tabs and a change of the language load the same values again. */
const shown = new Set();
/** @type {{ kind: Kind, node: Node }[]} */
let waiting = [];

/**
 * Check the values that a node is given from now on.
 * @param {Node} node
 */
export function repairMovedValues(node) {
  onConfigured(node, (saved) => repair(node, saved));
}

/**
 * @param {Node} node
 * @param {{ widgets_values?: unknown, widgets_values_named?: Record<string, any> }} [saved]
 */
function repair(node, saved) {
  const [listed, named] = [saved?.widgets_values, saved?.widgets_values_named];
  if (!Array.isArray(listed)) return;
  const widgets = savedWidgets(node);
  const verdict = judge(widgets, listed, named);
  if (verdict === "right") return;
  if (verdict === "moved" && named) {
    const wrong = widgets.filter(({ name, value }) => Object.hasOwn(named, name) && value !== named[name]);
    if (!wrong.length) return; // the page reads values by name itself
    for (const { name } of wrong) setValue(node, name, named[name]);
  }
  // An empty list, and every value by name at its first choice: the values from before may be lost.
  const isEmpty = listed.every((value) => value === null) && widgets.every(({ name, choices }) => named?.[name] === choices?.[0]);
  notify(verdict === "lost" ? "lost" : isEmpty ? "check" : "restored", node, listed);
}

/**
 * Collect the nodes of a file, then show one notice for all of them.
 * @param {Kind} kind
 * @param {Node} node
 * @param {unknown[]} listed
 */
function notify(kind, node, listed) {
  const key = noticeKey(kind, node, listed);
  if (shown.has(key)) return;
  shown.add(key);
  if (!waiting.length) setTimeout(showNotice, 0);
  waiting.push({ kind, node });
}

/**
 * @param {Kind} kind
 * @param {Node} node
 * @param {unknown[]} values
 */
const noticeKey = (kind, node, values) => `${kind} ${nodeKey(node)} ${JSON.stringify(values)}`;

function showNotice() {
  const titles = (/** @type {Kind} */ kind) => waiting.filter((one) => one.kind === kind).map(({ node }) => titleOf(node));
  const part = (/** @type {Kind} */ kind) =>
    titles(kind).length ? [t(`repair.${kind}.nodes`, { nodes: titles(kind).join(", ") })] : [];
  const isLost = titles("lost").length > 0;
  const detail = [...part("lost"), ...part("restored"), ...part("check"), ...(isLost ? [] : [t("repair.save")])].join("\n\n");
  toast({ severity: isLost ? "error" : "warn", summary: t(isLost ? "repair.lost" : "repair.restored"), detail });
  // The values that the nodes have now are what the page saves and loads again.
  for (const { kind, node } of waiting) shown.add(noticeKey(kind, node, savedWidgets(node).map(({ value }) => value ?? null)));
  waiting = [];
}
